package jinja

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

var simpleEscapes = map[byte]string{
	'\\': "\\", '\'': "'", '"': "\"", 'a': "\a", 'b': "\b", 'f': "\f",
	'n': "\n", 'r': "\r", 't': "\t", 'v': "\v", '\n': "",
}

// unescape decodes a string literal as Python's unicode-escape codec does: an
// escape it does not know stays as it is.
func unescape(s string, line int) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		i++ // the lexer saw a character after every backslash
		if text, ok := simpleEscapes[s[i]]; ok {
			b.WriteString(text)
			continue
		}
		digits := map[byte]int{'x': 2, 'u': 4, 'U': 8}[s[i]]
		switch {
		case digits > 0:
			i += digits
			if i >= len(s) {
				fail("template: line %d: truncated escape in a string", line)
			}
			n, err := strconv.ParseUint(s[i-digits+1:i+1], 16, 32)
			if err != nil || n > utf8.MaxRune || !utf8.ValidRune(rune(n)) {
				fail("template: line %d: bad escape \\%s in a string", line, s[i-digits:i+1])
			}
			b.WriteRune(rune(n))
		case s[i] >= '0' && s[i] <= '7':
			n := 0
			end := i
			for end < len(s) && end < i+3 && s[end] >= '0' && s[end] <= '7' {
				n = n*8 + int(s[end]-'0')
				end++
			}
			b.WriteRune(rune(n))
			i = end - 1
		case s[i] == 'N':
			fail("template: line %d: \\N escapes are not supported", line)
		default:
			b.WriteByte('\\')
			b.WriteByte(s[i])
		}
	}
	return b.String()
}
