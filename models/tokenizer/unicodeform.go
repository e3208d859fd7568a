package tokenizer

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// unicodeForm is a Unicode normalization form (UAX #15).
type unicodeForm norm.Form

func (f unicodeForm) normalize(s string) string {
	form := norm.Form(f)
	if form.IsNormalString(s) {
		return s
	}
	if form == norm.NFC || form == norm.NFD {
		return f.apply(s)
	}
	// A character that the library leaves alone composes with nothing.
	var b strings.Builder
	for s != "" {
		end := strings.IndexFunc(s, func(r rune) bool { return unicode.Is(notCompatible, r) })
		if end < 0 {
			end = len(s)
		}
		b.WriteString(f.apply(s[:end]))
		if s = s[end:]; s != "" {
			n := runeLen(s)
			b.WriteString(s[:n])
			s = s[n:]
		}
	}
	return b.String()
}

// apply normalizes with x/text.
func (f unicodeForm) apply(s string) string {
	out := norm.Form(f).String(s)
	// x/text follows the Stream-Safe Text Format: it puts U+034F after every 30
	// combining marks in a row. UAX #15 itself does not.
	const joiner = "\u034F"
	if strings.Count(out, joiner) != strings.Count(s, joiner) {
		return f.exact(s)
	}
	return out
}

// exact normalizes without the Stream-Safe Text Format, slowly.
func (f unicodeForm) exact(s string) string {
	decompose := norm.NFD
	if norm.Form(f) == norm.NFKC || norm.Form(f) == norm.NFKD {
		decompose = norm.NFKD
	}
	var runes []rune
	for _, r := range s {
		runes = append(runes, []rune(decompose.String(string(r)))...)
	}
	for i := 0; i < len(runes); {
		end := i + 1
		if combiningClass(runes[i]) != 0 {
			for end < len(runes) && combiningClass(runes[end]) != 0 {
				end++
			}
			slices.SortStableFunc(runes[i:end], func(a, b rune) int {
				return int(combiningClass(a)) - int(combiningClass(b))
			})
		}
		i = end
	}
	if norm.Form(f) == norm.NFC || norm.Form(f) == norm.NFKC {
		runes = compose(runes)
	}
	return string(runes)
}

func combiningClass(r rune) uint8 { return norm.NFD.PropertiesString(string(r)).CCC() }

// compose is the canonical composition algorithm (Unicode 15, section 3.11, D117).
func compose(runes []rune) []rune {
	out := runes[:0:0]
	starter, lastClass := -1, -1
	for _, r := range runes {
		class := int(combiningClass(r))
		if starter >= 0 && lastClass < class {
			if c, ok := primaryComposite(out[starter], r); ok {
				out[starter] = c
				continue
			}
		}
		if class == 0 {
			starter, lastClass = len(out), -1
		} else {
			lastClass = class
		}
		out = append(out, r)
	}
	return out
}

// primaryComposite is the character that is canonically a followed by b.
func primaryComposite(a, b rune) (rune, bool) {
	s := norm.NFC.String(string(a) + string(b))
	r, n := utf8.DecodeRuneInString(s)
	return r, n == len(s)
}
