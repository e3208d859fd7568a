package tokenizer

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// wordPieceConfig is the model section of type WordPiece.
type wordPieceConfig struct {
	Unk      string           `json:"unk_token"`
	Prefix   string           `json:"continuing_subword_prefix"`
	MaxChars int              `json:"max_input_chars_per_word"`
	Vocab    map[string]int64 `json:"vocab"`
}

// wordPiece takes the longest token that the rest of the word starts with
// (Schuster and Nakajima 2012; Devlin et al. 2018, arXiv:1810.04805).
type wordPiece struct {
	starts, continues *trie
	unk               int32
	maxChars          int
}

func newWordPiece(v *vocabulary, c *wordPieceConfig) (*wordPiece, error) {
	unk, ok := v.id(c.Unk)
	if !ok {
		return nil, fmt.Errorf("unk_token %q is not in the vocabulary", c.Unk)
	}
	m := &wordPiece{starts: newTrie(), continues: newTrie(), unk: unk, maxChars: c.MaxChars}
	for token, id := range v.ids {
		if token == "" {
			continue
		}
		m.starts.add(token, id)
		if rest, ok := strings.CutPrefix(token, c.Prefix); ok && rest != "" {
			m.continues.add(rest, id)
		}
	}
	return m, nil
}

// appendIDs implements model. A word with a rest that no token fits is unknown whole.
func (m *wordPiece) appendIDs(dst []int32, piece string, _ *worker) []int32 {
	if len(piece) > m.maxChars && utf8.RuneCountInString(piece) > m.maxChars {
		return append(dst, m.unk)
	}
	n := len(dst)
	tokens := m.starts
	for rest := piece; rest != ""; {
		length, id := tokens.longest(rest)
		if length == 0 {
			return append(dst[:n], m.unk)
		}
		dst = append(dst, id)
		rest = rest[length:]
		tokens = m.continues
	}
	return dst
}

// wordLevelConfig is the model section of type WordLevel.
type wordLevelConfig struct {
	Unk   string           `json:"unk_token"`
	Vocab map[string]int64 `json:"vocab"`
}

// wordLevel knows whole pieces only.
type wordLevel struct {
	vocab *vocabulary
	unk   int32
}

func newWordLevel(v *vocabulary, c *wordLevelConfig) (*wordLevel, error) {
	unk, ok := v.id(c.Unk)
	if !ok {
		return nil, fmt.Errorf("unk_token %q is not in the vocabulary", c.Unk)
	}
	return &wordLevel{v, unk}, nil
}

func (m *wordLevel) appendIDs(dst []int32, piece string, _ *worker) []int32 {
	if id, ok := m.vocab.id(piece); ok {
		return append(dst, id)
	}
	return append(dst, m.unk)
}
