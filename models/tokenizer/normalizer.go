package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"golang.org/x/text/unicode/norm"
)

// normalizer changes text before it is split. Its input is valid UTF-8.
type normalizer interface {
	normalize(s string) string
}

// normalizerFunc makes a normalizer of a function.
type normalizerFunc func(string) string

func (f normalizerFunc) normalize(s string) string { return f(s) }

type normalizers []normalizer

func (n normalizers) normalize(s string) string {
	for _, one := range n {
		s = one.normalize(s)
	}
	return s
}

// keepsStart says whether the first character of s is still there, changed
// perhaps, at the start of the normalized text. Metaspace's prepend_scheme
// "first" goes by it: a piece is first if it comes from the start of the original.
func keepsStart(n normalizer, s string) bool {
	if s == "" {
		return true
	}
	switch n := n.(type) {
	case normalizers:
		for _, one := range n {
			if !keepsStart(one, s) {
				return false
			}
			s = one.normalize(s)
		}
		return true
	case *replace:
		return n.keepsStart(s)
	}
	return n.normalize(s[:runeLen(s)]) != ""
}

// keepsStart: the library counts what replaces several characters as coming from
// the last of them.
func (r *replace) keepsStart(s string) bool {
	kept := true
	check := func(start, end int, match bool) {
		if match && start == 0 && end > 0 {
			kept = end == runeLen(s) && r.content != ""
		}
	}
	if r.finder != nil {
		r.finder.find(s, check)
	} else if r.literal != "" && strings.HasPrefix(s, r.literal) {
		check(0, len(r.literal), true)
	}
	return kept
}

// normalizerConfig has the fields of all types.
type normalizerConfig struct {
	Normalizers  []json.RawMessage `json:"normalizers"`
	Prepend      *string           `json:"prepend"`
	Pattern      *pattern          `json:"pattern"`
	Content      *string           `json:"content"`
	StripLeft    *bool             `json:"strip_left"`
	StripRight   *bool             `json:"strip_right"`
	CleanText    *bool             `json:"clean_text"`
	Chinese      *bool             `json:"handle_chinese_chars"`
	StripAccents *bool             `json:"strip_accents"`
	Lowercase    *bool             `json:"lowercase"`
	Charsmap     []byte            `json:"precompiled_charsmap"`
}

func parseNormalizer(raw json.RawMessage, depth int) (normalizer, error) {
	if isNull(raw) {
		return nil, nil
	}
	kind, err := componentType(raw, depth)
	if err != nil {
		return nil, err
	}
	var c normalizerConfig
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	n, err := newNormalizer(kind, &c, depth)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	return n, nil
}

func newNormalizer(kind string, c *normalizerConfig, depth int) (normalizer, error) {
	switch kind {
	case "Sequence":
		var all normalizers
		for _, raw := range c.Normalizers {
			n, err := parseNormalizer(raw, depth+1)
			if err != nil {
				return nil, err
			}
			if n != nil {
				all = append(all, n)
			}
		}
		return all, nil
	case "NFC":
		return unicodeForm(norm.NFC), nil
	case "NFD":
		return unicodeForm(norm.NFD), nil
	case "NFKC":
		return unicodeForm(norm.NFKC), nil
	case "NFKD":
		return unicodeForm(norm.NFKD), nil
	case "Lowercase":
		return normalizerFunc(lowercase), nil
	case "StripAccents":
		return normalizerFunc(func(s string) string { return filter(s, isMark) }), nil
	case "Nmt":
		return normalizerFunc(nmt), nil
	case "ByteLevel":
		return byteLevelNormalizer{}, nil
	case "Strip":
		return newStrip(c)
	case "Prepend":
		if c.Prepend == nil {
			return nil, errors.New("no prepend")
		}
		return prepend(*c.Prepend), nil
	case "Replace":
		return newReplace(c.Pattern, c.Content)
	case "BertNormalizer":
		return newBertNormalizer(c)
	case "Precompiled":
		return newPrecompiled(c.Charsmap)
	}
	return nil, errors.New("this type is not supported")
}

// prepend puts its text before any text that is not empty.
type prepend string

func (p prepend) normalize(s string) string {
	if s == "" {
		return s
	}
	return string(p) + s
}

// replace puts content in place of every match.
type replace struct {
	literal string
	finder  finder // for a regular expression, else nil
	content string
}

func newReplace(p *pattern, content *string) (*replace, error) {
	if p == nil || content == nil {
		return nil, errors.New("no pattern or no content")
	}
	if p.String != nil {
		return &replace{literal: *p.String, content: *content}, nil
	}
	if p.Regex == nil {
		return nil, errors.New("pattern is neither String nor Regex")
	}
	f, err := newRegexFinder(*p.Regex)
	return &replace{finder: f, content: *content}, err
}

func (r *replace) normalize(s string) string {
	if r.finder == nil {
		if r.literal == "" {
			return s
		}
		return strings.ReplaceAll(s, r.literal, r.content)
	}
	var b strings.Builder
	r.finder.find(s, func(start, end int, match bool) {
		if match {
			b.WriteString(r.content)
		} else {
			b.WriteString(s[start:end])
		}
	})
	return b.String()
}

// newStrip is the Strip normalizer.
func newStrip(c *normalizerConfig) (normalizer, error) {
	if c.StripLeft == nil || c.StripRight == nil {
		return nil, errors.New("no strip_left or no strip_right")
	}
	left, right := *c.StripLeft, *c.StripRight
	return normalizerFunc(func(s string) string {
		if left {
			s = strings.TrimLeftFunc(s, unicode.IsSpace)
		}
		if right {
			s = strings.TrimRightFunc(s, unicode.IsSpace)
		}
		return s
	}), nil
}

// lowercase maps every character by itself: no final sigma, and U+0130 becomes
// two characters.
func lowercase(s string) string {
	if strings.ContainsRune(s, 'İ') {
		s = strings.ReplaceAll(s, "İ", "i̇")
	}
	return strings.Map(unicode.ToLower, s)
}

// filter leaves out the characters that drop says true to.
func filter(s string, drop func(rune) bool) string {
	return strings.Map(func(r rune) rune {
		if drop(r) {
			return -1
		}
		return r
	}, s)
}

// nmt is SentencePiece's old clean-up for translation.
func nmt(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 1 && r <= 8, r == 0xB, r >= 0xE && r <= 0x1F, r == 0x7F, r == 0x8F, r == 0x9F:
			return -1
		case r == '\t', r == '\n', r == '\f', r == '\r', r == 0x1680, r >= 0x200B && r <= 0x200F,
			r == 0x2028, r == 0x2029, r == 0x2581, r == 0xFEFF, r == 0xFFFD:
			return ' '
		}
		return r
	}, s)
}
