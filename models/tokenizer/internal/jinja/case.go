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

// title writes the first character as a capital: ß becomes Ss.
func title(s string) string { return cases.Title(language.Und).String(s) }

// capitalize is str.capitalize.
func capitalize(s string) string {
	_, n := utf8.DecodeRuneInString(s)
	return title(s[:n]) + lower(s[n:])
}

// pythonTitle is str.title: every run of letters is capitalized.
func pythonTitle(s string) string {
	var b strings.Builder
	for s != "" {
		n := strings.IndexFunc(s, func(r rune) bool { return !unicode.IsLetter(r) })
		if n < 0 {
			n = len(s)
		}
		b.WriteString(capitalize(s[:n]))
		s = s[n:]
		n = strings.IndexFunc(s, unicode.IsLetter)
		if n < 0 {
			n = len(s)
		}
		b.WriteString(s[:n])
		s = s[n:]
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
