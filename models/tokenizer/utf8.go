package tokenizer

import (
	"strings"
	"unicode/utf8"
)

const replacement = "\uFFFD"

// lossyUTF8 replaces each maximal ill-formed sequence by U+FFFD (Unicode 15,
// section 3.9, "U+FFFD Substitution of Maximal Subparts"), as Rust's
// from_utf8_lossy and Python's errors="replace" do. Go's own conversions differ:
// strings.ToValidUTF8 replaces runs, range replaces single bytes.
func lossyUTF8(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	b.Grow(len(s) + 8)
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 {
			n = illFormedLen(s[i:])
			b.WriteString(replacement)
		} else {
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

// illFormedLen is the length of the maximal ill-formed sequence at the start of
// s, at least 1: a truncated but so far valid sequence counts as one.
func illFormedLen(s string) int {
	need := sequenceLen(s[0])
	n := 1
	for n < need && n < len(s) && continues(s[0], n, s[n]) {
		n++
	}
	return n
}

// sequenceLen is the length of the UTF-8 sequence that b starts, 1 for a byte
// that starts none.
func sequenceLen(b byte) int {
	switch {
	case b >= 0xC2 && b <= 0xDF:
		return 2
	case b >= 0xE0 && b <= 0xEF:
		return 3
	case b >= 0xF0 && b <= 0xF4:
		return 4
	}
	return 1
}

// continues says whether b may stand at position n of a sequence that starts
// with lead (Unicode 15, table 3-7).
func continues(lead byte, n int, b byte) bool {
	lo, hi := byte(0x80), byte(0xBF)
	if n == 1 {
		switch lead {
		case 0xE0:
			lo = 0xA0
		case 0xED:
			hi = 0x9F
		case 0xF0:
			lo = 0x90
		case 0xF4:
			hi = 0x8F
		}
	}
	return b >= lo && b <= hi
}

// completePrefix is the length of the longest prefix of s that lossyUTF8 would
// convert the same whatever follows: all but a truncated last sequence.
func completePrefix(s string) int {
	for back := 1; back <= 3 && back <= len(s); back++ {
		start := len(s) - back
		if b := s[start]; b < 0x80 || b >= 0xC0 {
			need := sequenceLen(b)
			if need > back && illFormedLen(s[start:]) == back {
				return start
			}
			return len(s)
		}
	}
	return len(s)
}
