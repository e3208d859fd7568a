package tokenizer

import (
	"strings"
	"unicode/utf8"
)

// byteRunes is GPT-2's bytes_to_unicode: printable Latin-1 stands for itself,
// the other bytes for U+0100 and on, so that every token is printable text.
var byteRunes = func() (runes [256]rune) {
	next := rune(0x100)
	for b := range runes {
		switch {
		case b >= '!' && b <= '~', b >= 0xA1 && b <= 0xAC, b >= 0xAE:
			runes[b] = rune(b)
		default:
			runes[b] = next
			next++
		}
	}
	return runes
}()

// runeBytes is the inverse of byteRunes, -1 where there is none.
var runeBytes = func() (bytes [0x144]int16) {
	for i := range bytes {
		bytes[i] = -1
	}
	for b, r := range byteRunes {
		bytes[r] = int16(b)
	}
	return bytes
}()

// toByteLevel writes every byte of s as its rune.
func toByteLevel(s string) string {
	var b strings.Builder
	b.Grow(len(s) * 2)
	for i := range len(s) {
		b.WriteRune(byteRunes[s[i]])
	}
	return b.String()
}

// fromByteLevel appends the bytes that token stands for. A token with a rune
// outside the alphabet (an added token with a blank, say) stands for itself.
func fromByteLevel(dst []byte, token string) []byte {
	n := len(dst)
	for _, r := range token {
		if r < 0 || int(r) >= len(runeBytes) || runeBytes[r] < 0 {
			return append(dst[:n], token...)
		}
		dst = append(dst, byte(runeBytes[r]))
	}
	return dst
}

// gpt2Pattern is the regular expression of ByteLevel with use_regex.
const gpt2Pattern = `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`

// byteLevelSplit is the ByteLevel pre-tokenizer.
type byteLevelSplit struct {
	addPrefixSpace bool
	useRegex       bool
	// raw leaves the bytes as they are: the BPE model after it then works on
	// bytes, which spares mapping the text and gives the same ids.
	raw bool
}

func (p *byteLevelSplit) split(s string, first bool, yield pieceFunc) {
	if p.addPrefixSpace && !strings.HasPrefix(s, " ") {
		s = " " + s
	}
	emit := func(piece string, first bool) {
		if !p.raw {
			piece = toByteLevel(piece)
		}
		yield(piece, first)
	}
	if p.raw {
		emit = yield
	}
	if !p.useRegex {
		emit(s, first)
		return
	}
	for i := 0; i < len(s); {
		end := scanGPT2(s, i)
		emit(s[i:end], first && i == 0)
		i = end
	}
}

// byteLevelNormalizer is the ByteLevel normalizer: the mapping alone.
type byteLevelNormalizer struct{}

func (byteLevelNormalizer) normalize(s string) string { return toByteLevel(s) }

// runeLen is the length of the first rune of s, 1 at least.
func runeLen(s string) int {
	if s[0] < utf8.RuneSelf {
		return 1
	}
	_, n := utf8.DecodeRuneInString(s)
	return n
}
