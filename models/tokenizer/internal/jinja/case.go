package jinja

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/language"
)

// upper and lower are Python's, with special cases such as ß and final sigma.
func upper(s string) string { return cases.Upper(language.Und).String(s) }
func lower(s string) string { return cases.Lower(language.Und).String(s) }

func capitalize(s string) string {
	r, n := utf8.DecodeRuneInString(s)
	if n == 0 {
		return s
	}
	return string(unicode.ToTitle(r)) + lower(s[n:])
}

// pythonTitle is str.title: a letter after something that is not one is a capital.
func pythonTitle(s string) string {
	var b strings.Builder
	inWord := false
	for _, r := range s {
		if inWord {
			b.WriteRune(unicode.ToLower(r))
		} else {
			b.WriteRune(unicode.ToTitle(r))
		}
		inWord = unicode.IsLetter(r)
	}
	return b.String()
}

var wordBeginning = regexp.MustCompile(`[-\s({\[<]+`)

// jinjaTitle is the title filter: words begin after blanks, hyphens and brackets.
func jinjaTitle(s string) string {
	var b strings.Builder
	word := func(w string) {
		if _, n := utf8.DecodeRuneInString(w); n > 0 {
			b.WriteString(upper(w[:n]) + lower(w[n:]))
		}
	}
	last := 0
	for _, m := range wordBeginning.FindAllStringIndex(s, -1) {
		word(s[last:m[0]])
		word(s[m[0]:m[1]])
		last = m[1]
	}
	word(s[last:])
	return b.String()
}
