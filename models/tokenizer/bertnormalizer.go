package tokenizer

import (
	"errors"
	"strings"
	"unicode"

	"golang.org/x/text/unicode/norm"
)

// bertNormalizer is the clean-up of BERT's original BasicTokenizer.
type bertNormalizer struct {
	clean, chinese, strip, lower bool
}

func newBertNormalizer(c *normalizerConfig) (*bertNormalizer, error) {
	if c.CleanText == nil || c.Chinese == nil || c.Lowercase == nil {
		return nil, errors.New("no clean_text, handle_chinese_chars or lowercase")
	}
	n := &bertNormalizer{clean: *c.CleanText, chinese: *c.Chinese, lower: *c.Lowercase}
	n.strip = n.lower
	if c.StripAccents != nil {
		n.strip = *c.StripAccents
	}
	return n, nil
}

func (n *bertNormalizer) normalize(s string) string {
	var b strings.Builder
	b.Grow(len(s))
	ascii := true
	for _, r := range s {
		ascii = ascii && r < 0x80
		switch {
		case n.clean && (r == 0 || r == 0xFFFD || isBertControl(r)):
		case n.clean && unicode.IsSpace(r):
			b.WriteByte(' ')
		case n.chinese && isChinese(r):
			b.WriteByte(' ')
			b.WriteRune(r)
			b.WriteByte(' ')
		default:
			b.WriteRune(r)
		}
	}
	s = b.String()
	if n.strip && !ascii {
		s = filter(unicodeForm(norm.NFD).normalize(s), isNonspacingMark)
	}
	if n.lower {
		s = lowercase(s)
	}
	return s
}

func isNonspacingMark(r rune) bool {
	return r > 0x7F && (unicode.Is(unicode.Mn, r) && !unicode.Is(notBertMark, r) || r == 0x1734)
}

// isBertControl is category C without the blanks \t, \n and \r and without
// unassigned characters.
func isBertControl(r rune) bool {
	if r < 0x80 {
		return r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == 0x7F
	}
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Co) && !unicode.Is(notBertControl, r)
}

// isChinese follows BERT's list of CJK blocks.
func isChinese(r rune) bool {
	switch {
	case r < 0x3400:
		return false
	case r >= 0x4E00 && r <= 0x9FFF, r <= 0x4DBF,
		r >= 0x20000 && r <= 0x2A6DF, r >= 0x2A700 && r <= 0x2B73F, r >= 0x2B740 && r <= 0x2B81F,
		r >= 0x2B920 && r <= 0x2CEAF, r >= 0xF900 && r <= 0xFAFF, r >= 0x2F800 && r <= 0x2FA1F:
		return true
	}
	return false
}
