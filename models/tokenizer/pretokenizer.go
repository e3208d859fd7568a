package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// preTokenizer cuts text into pieces; no merge and no token crosses a cut.
type preTokenizer interface {
	split(s string, first bool, yield pieceFunc)
}

// preTokenizerConfig has the fields of all types.
type preTokenizerConfig struct {
	PreTokenizers  []json.RawMessage `json:"pretokenizers"`
	Pattern        *pattern          `json:"pattern"`
	Behavior       string            `json:"behavior"`
	Invert         bool              `json:"invert"`
	AddPrefixSpace *bool             `json:"add_prefix_space"`
	UseRegex       *bool             `json:"use_regex"`
	Individual     bool              `json:"individual_digits"`
	Delimiter      string            `json:"delimiter"`
	Length         *int              `json:"length"`
	metaspaceConfig
}

// parsePreTokenizers flattens sequences.
func parsePreTokenizers(raw json.RawMessage, depth int) ([]preTokenizer, error) {
	if isNull(raw) {
		return nil, nil
	}
	kind, err := componentType(raw, depth)
	if err != nil {
		return nil, err
	}
	var c preTokenizerConfig
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	if kind != "Sequence" {
		p, err := newPreTokenizer(kind, &c)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", kind, err)
		}
		return []preTokenizer{p}, nil
	}
	var all []preTokenizer
	for _, raw := range c.PreTokenizers {
		some, err := parsePreTokenizers(raw, depth+1)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", kind, err)
		}
		all = append(all, some...)
	}
	return all, nil
}

func newPreTokenizer(kind string, c *preTokenizerConfig) (preTokenizer, error) {
	switch kind {
	case "ByteLevel":
		return &byteLevelSplit{
			addPrefixSpace: c.AddPrefixSpace == nil || *c.AddPrefixSpace,
			useRegex:       c.UseRegex == nil || *c.UseRegex,
		}, nil
	case "Split":
		return newSplit(c)
	case "Digits":
		behavior := contiguous
		if c.Individual {
			behavior = isolated
		}
		return &splitter{finder: runeFinder(isNumeric), behavior: behavior}, nil
	case "Whitespace":
		return &splitter{finder: wordFinder{}, behavior: removed, invert: true}, nil
	case "WhitespaceSplit":
		return &splitter{finder: runeFinder(unicode.IsSpace), behavior: removed}, nil
	case "Punctuation":
		behavior, err := parseBehavior(c.Behavior, isolated)
		return &splitter{finder: runeFinder(isPunctuation), behavior: behavior}, err
	case "BertPreTokenizer":
		return bertSplit{}, nil
	case "CharDelimiterSplit":
		r, n := utf8.DecodeRuneInString(c.Delimiter)
		if n == 0 || n != len(c.Delimiter) {
			return nil, fmt.Errorf("delimiter is %q, wanted one character", c.Delimiter)
		}
		return &splitter{finder: runeFinder(func(x rune) bool { return x == r }), behavior: removed}, nil
	case "FixedLength":
		n := 5
		if c.Length != nil {
			n = *c.Length
		}
		if n < 1 {
			return nil, fmt.Errorf("length is %d, wanted at least 1", n)
		}
		return fixedLength(n), nil
	case "Metaspace":
		return newMetaspace(&c.metaspaceConfig)
	}
	return nil, errors.New("this type is not supported")
}

// fixedLength cuts after that many characters.
type fixedLength int

func (n fixedLength) split(s string, first bool, yield pieceFunc) {
	count, start := 0, 0
	for i := range s {
		if count == int(n) {
			yield(s[start:i], first && start == 0)
			start, count = i, 0
		}
		count++
	}
	if start < len(s) {
		yield(s[start:], first && start == 0)
	}
}

// bertSplit drops blanks and isolates punctuation.
type bertSplit struct{}

func (bertSplit) split(s string, first bool, yield pieceFunc) {
	start := 0
	flush := func(end int) {
		if end > start {
			yield(s[start:end], first && start == 0)
		}
	}
	for i, r := range s {
		space := unicode.IsSpace(r)
		if !space && !isPunctuation(r) {
			continue
		}
		flush(i)
		start = i
		if !space {
			flush(i + utf8.RuneLen(r))
		}
		start = i + utf8.RuneLen(r)
	}
	flush(len(s))
}

// metaspaceConfig is shared by the pre-tokenizer and the decoder.
type metaspaceConfig struct {
	Replacement   string  `json:"replacement"`
	PrependScheme *string `json:"prepend_scheme"`
	OldPrefix     *bool   `json:"add_prefix_space"` // before prepend_scheme
	Split         *bool   `json:"split"`
}

// metaspaceSplit writes blanks as "▁" and cuts before each.
type metaspaceSplit struct {
	mark   string
	scheme string // always, first, never
	cut    bool
}

func newMetaspace(c *metaspaceConfig) (*metaspaceSplit, error) {
	m := &metaspaceSplit{mark: c.Replacement, scheme: "always", cut: c.Split == nil || *c.Split}
	if utf8.RuneCountInString(m.mark) != 1 {
		return nil, fmt.Errorf("replacement is %q, wanted one character", m.mark)
	}
	if c.PrependScheme != nil {
		m.scheme = *c.PrependScheme
	} else if c.OldPrefix != nil && !*c.OldPrefix {
		m.scheme = "never"
	}
	switch m.scheme {
	case "always", "first", "never":
		return m, nil
	}
	return nil, fmt.Errorf("prepend_scheme is %q, wanted always, first or never", m.scheme)
}

func (m *metaspaceSplit) split(s string, first bool, yield pieceFunc) {
	s = strings.ReplaceAll(s, " ", m.mark)
	if (m.scheme == "always" || m.scheme == "first" && first) && !strings.HasPrefix(s, m.mark) {
		s = m.mark + s
	}
	if !m.cut {
		yield(s, first)
		return
	}
	for s != "" {
		// A piece begins at each mark, so a run of marks gives one piece each.
		end := len(s)
		from := runeLen(s)
		if i := strings.Index(s[from:], m.mark); i >= 0 {
			end = from + i
		}
		yield(s[:end], first)
		s, first = s[end:], false
	}
}
