package tokenizer

import (
	"sync"
	"unicode"
)

// Classes of a character in the regular expressions of byte-level BPE.
const (
	otherClass = iota
	letterClass
	numberClass
	spaceClass
)

// newLetters are the letters of Unicode 15.1 and 16, which Oniguruma knows and
// Go's unicode package (15.0) does not.
var newLetters = &unicode.RangeTable{
	R16: []unicode.Range16{{0x1C89, 0x1C8A, 1}, {0xA7CB, 0xA7CD, 1}, {0xA7DA, 0xA7DC, 1}},
	R32: []unicode.Range32{
		{0x105C0, 0x105F3, 1}, {0x10D4A, 0x10D65, 1}, {0x10D6F, 0x10D85, 1}, {0x10EC2, 0x10EC4, 1},
		{0x11380, 0x11389, 1}, {0x1138B, 0x1138B, 1}, {0x1138E, 0x1138E, 1}, {0x11390, 0x113B5, 1},
		{0x113B7, 0x113B7, 1}, {0x113D1, 0x113D1, 1}, {0x113D3, 0x113D3, 1}, {0x11BC0, 0x11BE0, 1},
		{0x13460, 0x143FA, 1}, {0x16100, 0x1611D, 1}, {0x16D40, 0x16D6C, 1}, {0x18CFF, 0x18CFF, 1},
		{0x1E5D0, 0x1E5ED, 1}, {0x1E5F0, 0x1E5F0, 1}, {0x2EBF0, 0x2EE5D, 1},
	},
}

// newNumbers are the numbers of Unicode 16.
var newNumbers = &unicode.RangeTable{R32: []unicode.Range32{
	{0x10D40, 0x10D49, 1}, {0x116D0, 0x116E3, 1}, {0x11BF0, 0x11BF9, 1}, {0x16130, 0x16139, 1},
	{0x16D70, 0x16D79, 1}, {0x1CCF0, 0x1CCF9, 1}, {0x1E5F1, 0x1E5FA, 1},
}}

// basicPlane holds the class of every character up to U+FFFF.
var basicPlane = sync.OnceValue(func() *[1 << 16]uint8 {
	var table [1 << 16]uint8
	for r := range table {
		table[r] = slowClass(rune(r))
	}
	return &table
})

func slowClass(r rune) uint8 {
	switch {
	case unicode.IsLetter(r), unicode.Is(newLetters, r):
		return letterClass
	case unicode.IsNumber(r), unicode.Is(newNumbers, r):
		return numberClass
	case unicode.IsSpace(r):
		return spaceClass
	}
	return otherClass
}

// isNumeric is Rust's char::is_numeric: categories Nd, Nl and No.
func isNumeric(r rune) bool {
	return unicode.IsNumber(r) || r > 0x7F && unicode.In(r, newNumbers, moreDigits)
}

// isPunctuation is ASCII punctuation, symbols such as $ included, and category P.
func isPunctuation(r rune) bool {
	if r < 0x80 {
		return r >= '!' && r <= '/' || r >= ':' && r <= '@' || r >= '[' && r <= '`' || r >= '{' && r <= '~'
	}
	return unicode.IsPunct(r) && !unicode.Is(notPunctuation, r) || unicode.Is(morePunctuation, r)
}

// isMark is category M, as StripAccents knows it.
func isMark(r rune) bool {
	return unicode.IsMark(r) && !unicode.Is(notMark, r) || r == 0x1CF2 || r == 0x1CF3
}

// isWordRune is \w of UTS #18: Alphabetic, M, Nd, Pc, Join_Control.
func isWordRune(r rune) bool {
	if r < 0x80 {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_'
	}
	return unicode.IsLetter(r) || unicode.IsMark(r) ||
		unicode.In(r, unicode.Nd, unicode.Nl, unicode.Pc, unicode.Other_Alphabetic, unicode.Join_Control, newLetters, moreWordRunes)
}

// wordKind is 0 for a blank, 1 for a word character, 2 for anything else.
func wordKind(r rune) int {
	switch {
	case isWordRune(r):
		return 1
	case unicode.IsSpace(r):
		return 0
	}
	return 2
}
