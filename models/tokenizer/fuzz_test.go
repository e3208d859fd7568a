package tokenizer

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/dlclark/regexp2"
)

var fuzzTexts = []string{
	"", " ", "Hello, world! I'LL don't 's", "  two  blanks \r\n\r\n\n x", "x1y22z333 4444 ٣٤ ½", "e\u0301 日本語 😀👍🏽 'ſ", "\xff\xc3(\xe2\x82",
	"<mask> <tag>  x tea steal <|im_end|>", "a\u00a0b\u3000c\u2028\u0085", "▁▁a ▁", strings.Repeat("ab", 100), strings.Repeat(" ", 70) + "x", "'", "''ll\n's", "﹕²ⅷ९\t!!\n\n?",
}

// FuzzScan: the scanners find what regexp2 finds with the patterns they stand for.
func FuzzScan(f *testing.F) {
	for _, s := range fuzzTexts {
		f.Add(s)
	}
	patterns := []string{gpt2Pattern, llama3Pattern, qwenPattern}
	var oracles []*regexFinder
	for _, p := range patterns {
		oracles = append(oracles, &regexFinder{regexp2.MustCompile(p, regexp2.None)})
	}
	f.Fuzz(func(t *testing.T, s string) {
		s = lossyUTF8(s)
		// regexp2 folds the long s differently and knows Unicode 15 only.
		if strings.ContainsRune(s, 'ſ') || strings.IndexFunc(s, func(r rune) bool { return unicode.In(r, newLetters, newNumbers) }) >= 0 {
			return
		}
		for i, p := range patterns {
			var want, got []string
			oracles[i].find(s, func(start, end int, match bool) {
				if !match {
					t.Fatalf("%q does not match %q of %q", p, s[start:end], s)
				}
				want = append(want, s[start:end])
			})
			scanSplit(knownScanner(p)).split(s, true, func(piece string, _ bool) { got = append(got, piece) })
			if !slices.Equal(got, want) {
				t.Fatalf("pattern %d on %q\n got %q\nwant %q", i, s, got, want)
			}
		}
	})
}

// FuzzEncode: any bytes are encoded; the ids are those of the text with U+FFFD
// for what is not UTF-8; streaming gives the decoded text; and the shortcuts
// (raw bytes, cuts between words, the cache, the small merge loop) change nothing.
func FuzzEncode(f *testing.F) {
	for _, s := range fuzzTexts {
		f.Add(s)
	}
	var toks, plain []*Tokenizer
	for _, name := range []string{"bytelevel", "spbpe", "wordpiece", "unigram"} {
		tok, err := Load(filepath.Join("testdata", "tiny", name))
		if err != nil {
			f.Fatal(err)
		}
		toks, plain = append(toks, tok), append(plain, withoutShortcuts(f, name))
	}
	f.Fuzz(func(t *testing.T, s string) {
		for i, tok := range toks {
			ids := tok.Encode(s, EncodeOptions{})
			if got := tok.Encode(lossyUTF8(s), EncodeOptions{}); !slices.Equal(got, ids) {
				t.Fatalf("%d: %q: %v, with U+FFFD %v", i, s, ids, got)
			}
			if got := plain[i].Encode(s, EncodeOptions{}); !slices.Equal(got, ids) {
				t.Fatalf("%d: %q: %v, without shortcuts %v", i, s, ids, got)
			}
			text := tok.Decode(ids, DecodeOptions{})
			if !utf8.ValidString(text) {
				t.Fatalf("%d: %q decodes to %q, not UTF-8", i, s, text)
			}
			if i == 0 && text != unicodeFormNFC(lossyUTF8(s)) && !strings.ContainsAny(s, "<") && !strings.Contains(s, "tea") {
				t.Fatalf("byte-level BPE: %q decodes to %q", s, text)
			}
			checkText(t, tok, ids, text, DecodeOptions{})
			// Any bytes as ids.
			odd := make([]int32, len(s))
			for j := range len(s) {
				odd[j] = int32(s[j])*2 - 3
			}
			checkText(t, tok, odd, tok.Decode(odd, DecodeOptions{}), DecodeOptions{})
		}
	})
}

func unicodeFormNFC(s string) string {
	n, _ := newNormalizer("NFC", nil, 0)
	return n.normalize(s)
}

// withoutShortcuts loads a tiny tokenizer and takes away what is there for speed.
func withoutShortcuts(f *testing.F, name string) *Tokenizer {
	tok, err := Load(filepath.Join("testdata", "tiny", name))
	if err != nil {
		f.Fatal(err)
	}
	if m, ok := tok.model.(*bpe); ok {
		m.bytesMode = false
		tok.model = slowBPE{m}
		for i, pre := range tok.pre {
			switch pre := pre.(type) {
			case *byteLevelSplit:
				pre.raw = false
			case *boundaries:
				tok.pre = slices.Delete(tok.pre, i, i+1)
			}
		}
	}
	return tok
}

// slowBPE merges the best pair over and over, as the definition says.
type slowBPE struct{ m *bpe }

func (s slowBPE) appendIDs(dst []int32, piece string, _ *worker) []int32 {
	ids := s.m.appendSymbols(nil, piece)
	vals := make([]uint64, 0, len(ids))
	for i := range max(len(ids)-1, 0) {
		vals = append(vals, s.m.pair(ids[i], ids[i+1]))
	}
	return append(dst, ids[:s.m.mergeSmall(ids, vals)]...)
}

// FuzzFromBytes: whatever tokenizer.json says, reading and using it does not panic.
func FuzzFromBytes(f *testing.F) {
	for _, name := range []string{"bytelevel", "spbpe", "wordpiece", "unigram"} {
		data, err := os.ReadFile(filepath.Join("testdata", "tiny", name, "tokenizer.json"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	for _, s := range hostileFiles {
		f.Add([]byte(s.json))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		tok, err := FromBytes(data)
		if err != nil {
			return
		}
		for _, s := range fuzzTexts {
			ids := tok.Encode(s, EncodeOptions{AddSpecialTokens: true})
			for _, id := range ids {
				if id < 0 {
					t.Fatalf("%q has the id %d", s, id)
				}
			}
			want := tok.Decode(ids, DecodeOptions{})
			checkText(t, tok, ids, want, DecodeOptions{})
			tok.EncodePair(s, "x", EncodeOptions{})
		}
	})
}
