package models

import (
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/models/tokenizer"
)

func tinyTokenizer(t testing.TB, name string) *tokenizer.Tokenizer {
	t.Helper()
	tok, err := tokenizer.Load(filepath.Join("tokenizer", "testdata", "tiny", name))
	require.NoError(t, err)
	return tok
}

func TestStopStrings(t *testing.T) {
	for _, c := range []struct {
		text  string
		from  int
		stops stopStrings
		want  int
		begun int
	}{
		{"one. two. three", 0, stopStrings{". "}, 3, 0},
		{"one. two. three", 5, stopStrings{". "}, 8, 0},
		{"one.", 0, stopStrings{". "}, -1, 1},
		{"aab", 0, stopStrings{"aabc", "ab"}, 1, 0},
		{"xabc", 0, stopStrings{"abc", "b"}, 2, 0},       // b is complete first
		{"xabc", 0, stopStrings{"c", "abc", "bc"}, 1, 0}, // of those complete at once the longest
		{"aaa", 0, stopStrings{"aab"}, -1, 2},
		{"", 0, stopStrings{"a"}, -1, 0},
		{"text", 0, nil, -1, 0},
		{"héé", 0, stopStrings{"éa"}, -1, 2},
	} {
		require.Equal(t, c.want, c.stops.find(c.text, c.from), "%q %q", c.text, c.stops)
		if c.want < 0 {
			require.Equal(t, c.begun, c.stops.begun(c.text), "%q %q", c.text, c.stops)
		}
	}
}

// TestRowText feeds random ids, thus odd bytes and special tokens, and compares
// with decoding everything at once.
func TestRowText(t *testing.T) {
	for _, name := range []string{"spbpe", "bytelevel", "unigram", "wordpiece"} {
		t.Run(name, func(t *testing.T) {
			tok := tinyTokenizer(t, name)
			r := rand.New(rand.NewPCG(3, 4))
			stopped := 0
			for range 400 {
				prompt, ids := randomIDs(r, tok, r.IntN(6)), randomIDs(r, tok, 1+r.IntN(30))
				s := &settings{GenerateOptions: GenerateOptions{Tokenizer: tok, KeepSpecialTokens: r.IntN(2) == 0}}
				follows := newText(s, prompt, ids)
				for range r.IntN(3) {
					s.stops = append(s.stops, randomPiece(r, follows))
				}
				want, wantN := "", 0
				stop := false
				for n := 1; n <= len(ids) && !stop; n++ {
					want, wantN = newText(s, prompt, ids[:n]), n
					if i := s.stops.find(want, 0); i >= 0 {
						want, stop = want[:i], true
					}
				}
				row := newRowText(s, prompt)
				var pieces strings.Builder
				n := 0
				for n < len(ids) && !row.stopped {
					row.add(ids[n])
					n++
					piece := row.take(false)
					require.True(t, utf8.ValidString(piece))
					pieces.WriteString(piece)
					require.True(t, strings.HasPrefix(want, pieces.String()), "%q: %q is not where %q begins", s.stops, pieces.String(), want)
				}
				row.finish()
				pieces.WriteString(row.take(true))
				require.Equal(t, want, row.text.String(), "stops %q, prompt %v, ids %v", s.stops, prompt, ids)
				require.Equal(t, want, pieces.String())
				require.Equal(t, wantN, n)
				if row.stopped {
					stopped++
				}
			}
			require.Greater(t, stopped, 100)
		})
	}
}

// newText is the reference: what the text of prompt and ids has after the prompt's.
func newText(s *settings, prompt, ids []int32) string {
	o := tokenizer.DecodeOptions{SkipSpecialTokens: !s.KeepSpecialTokens}
	before := s.Tokenizer.Decode(prompt, o)
	all := s.Tokenizer.Decode(append(append([]int32(nil), prompt...), ids...), o)
	if rest, ok := strings.CutPrefix(all, before); ok {
		return rest
	}
	// The new ids complete a character that the prompt began: it belongs to them.
	old, whole := []rune(before), []rune(all)
	n := 0
	for n < len(old) && n < len(whole) && old[n] == whole[n] {
		n++
	}
	return string(whole[n:])
}

// randomIDs prefers bytes and few letters, so that they make characters and repeat.
func randomIDs(r *rand.Rand, tok *tokenizer.Tokenizer, n int) []int32 {
	ids := make([]int32, n)
	for i := range ids {
		ids[i] = int32(r.IntN(tok.VocabSize()))
		if newline, ok := tok.ID("<0x0A>"); ok && r.IntN(5) == 0 {
			ids[i] = newline
		}
	}
	return ids
}

// randomPiece cuts valid text out of text, or returns some that is not in it.
func randomPiece(r *rand.Rand, text string) string {
	runes := []rune(strings.ReplaceAll(text, "\uFFFD", ""))
	if len(runes) == 0 {
		return "never"
	}
	from := r.IntN(len(runes))
	return string(runes[from:min(len(runes), from+1+r.IntN(4))])
}
