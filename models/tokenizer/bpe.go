package tokenizer

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// bpe is byte pair encoding (Sennrich et al. 2016, arXiv:1508.07909) with the
// extensions of tokenizer.json.
type bpe struct {
	vocab  *vocabulary
	merges *pairTable // pair of ids -> rank<<32 | merged id

	unk          int32 // -1: unknown characters are dropped
	fuseUnk      bool
	ignoreMerges bool // a piece that is a token is that token, whatever the merges
	byteFallback bool
	prefix       string // continuing_subword_prefix
	suffix       string // end_of_word_suffix

	// bytesMode: pieces are raw bytes and symbols start as single bytes (see
	// byteLevelSplit.raw); whole maps raw pieces to tokens for ignoreMerges.
	bytesMode bool
	byteIDs   [256]int32 // bytesMode: of single bytes; else of <0xXX>
	whole     map[string]int32

	ascii [128]int32
	runes map[rune]int32 // single-character tokens
	bound *boundaries    // nil: a piece must be merged in one go
}

func newBPE(v *vocabulary, c *bpeConfig) (*bpe, error) {
	if c.Dropout != nil && *c.Dropout != 0 {
		return nil, fmt.Errorf("BPE dropout is %v, wanted null or 0: ids would be random", *c.Dropout)
	}
	m := &bpe{
		vocab: v, unk: -1, fuseUnk: c.FuseUnk, ignoreMerges: c.IgnoreMerges,
		prefix: deref(c.Prefix), suffix: deref(c.Suffix), runes: map[rune]int32{},
	}
	for i := range m.ascii {
		m.ascii[i] = -1
	}
	for token, id := range v.ids {
		if r, n := utf8.DecodeRuneInString(token); n == len(token) && n > 0 {
			m.runes[r] = id
			if r < utf8.RuneSelf {
				m.ascii[r] = id
			}
		}
	}
	var all bool
	if m.byteIDs, all = v.byteFallbackIDs(); c.ByteFallback {
		m.byteFallback = true
	}
	if err := m.setMerges(c.Merges); err != nil {
		return nil, err
	}
	if c.Unk != nil {
		if id, ok := v.id(*c.Unk); ok {
			m.unk = id
		} else if !m.hasByteAlphabet() && !(all && m.byteFallback) {
			return nil, fmt.Errorf("unk_token %q is not in the vocabulary", *c.Unk)
		}
	}
	if m.byteFallback && all && m.prefix == "" && m.suffix == "" && !m.ignoreMerges {
		m.bound = newBoundaries(c.Merges, m)
	}
	return m, nil
}

func (m *bpe) setMerges(merges mergeList) error {
	m.merges = newPairTable(len(merges))
	for rank, pair := range merges {
		left, ok := m.vocab.id(pair[0])
		if !ok {
			return fmt.Errorf("merge %d: %q is not in the vocabulary", rank, pair[0])
		}
		right, ok := m.vocab.id(pair[1])
		if !ok {
			return fmt.Errorf("merge %d: %q is not in the vocabulary", rank, pair[1])
		}
		if len(pair[1]) < len(m.prefix) {
			return fmt.Errorf("merge %d: %q is shorter than continuing_subword_prefix %q", rank, pair[1], m.prefix)
		}
		merged := pair[0] + pair[1][len(m.prefix):]
		id, ok := m.vocab.id(merged)
		if !ok {
			return fmt.Errorf("merge %d: its result %q is not in the vocabulary", rank, merged)
		}
		m.merges.put(pairKey(left, right), uint64(rank)<<32|uint64(uint32(id)))
	}
	return nil
}

// hasByteAlphabet says whether every byte's rune of ByteLevel is a token.
func (m *bpe) hasByteAlphabet() bool {
	for _, r := range byteRunes {
		if _, ok := m.runes[r]; !ok {
			return false
		}
	}
	return true
}

// useBytes switches to raw bytes if that gives the same ids, and says whether it did.
func (m *bpe) useBytes() bool {
	if m.prefix != "" || m.suffix != "" || !m.hasByteAlphabet() {
		return false
	}
	m.bytesMode, m.bound = true, nil
	for b, r := range byteRunes {
		m.byteIDs[b] = m.runes[r]
	}
	if m.ignoreMerges {
		m.whole = make(map[string]int32, len(m.vocab.ids))
		for token, id := range m.vocab.ids {
			raw := string(fromByteLevel(nil, token))
			if toByteLevel(raw) == token {
				m.whole[raw] = id
			}
		}
	}
	return true
}

// appendIDs implements model.
func (m *bpe) appendIDs(dst []int32, piece string, w *worker) []int32 {
	if m.ignoreMerges {
		ids := m.vocab.ids
		if m.bytesMode {
			ids = m.whole
		}
		if id, ok := ids[piece]; ok {
			return append(dst, id)
		}
	}
	n := len(dst)
	if m.bytesMode {
		for i := range len(piece) {
			dst = append(dst, m.byteIDs[piece[i]])
		}
	} else {
		dst = m.appendSymbols(dst, piece)
	}
	return dst[:n+m.mergeAll(dst[n:], &w.bpe)]
}

// appendSymbols appends the ids of the characters of piece, before any merge.
func (m *bpe) appendSymbols(dst []int32, piece string) []int32 {
	pending := false // an unknown token is still to be written: it may fuse with the next
	for i := 0; i < len(piece); {
		n := runeLen(piece[i:])
		id := m.symbol(piece, i, n)
		switch {
		case id >= 0:
			if pending {
				dst, pending = append(dst, m.unk), false
			}
			dst = append(dst, id)
		case m.byteFallback && m.hasBytes(m.decorate(piece, i, n)):
			// A pending unknown stays pending: the library does so too.
			for _, b := range []byte(m.decorate(piece, i, n)) {
				dst = append(dst, m.byteIDs[b])
			}
		case m.unk >= 0:
			if pending && !m.fuseUnk {
				dst = append(dst, m.unk)
			}
			pending = true
		}
		i += n
	}
	if pending {
		dst = append(dst, m.unk)
	}
	return dst
}

// symbol is the id of the character at i, n bytes long, or -1.
func (m *bpe) symbol(piece string, i, n int) int32 {
	if m.prefix == "" && m.suffix == "" {
		if n == 1 {
			return m.ascii[piece[i]&0x7F]
		}
		r, _ := utf8.DecodeRuneInString(piece[i:])
		if id, ok := m.runes[r]; ok {
			return id
		}
		return -1
	}
	if id, ok := m.vocab.id(m.decorate(piece, i, n)); ok {
		return id
	}
	return -1
}

// decorate puts prefix and suffix around the character at i where they belong.
func (m *bpe) decorate(piece string, i, n int) string {
	s := piece[i : i+n]
	if i > 0 {
		s = m.prefix + s
	}
	if i+n == len(piece) {
		s += m.suffix
	}
	return s
}

func (m *bpe) hasBytes(s string) bool {
	for i := range len(s) {
		if m.byteIDs[s[i]] < 0 {
			return false
		}
	}
	return true
}

// mergeList reads merges written as ["a b", ...] or as [["a", "b"], ...].
type mergeList [][2]string

func (l *mergeList) UnmarshalJSON(data []byte) error {
	lines, pairs, err := parseMerges(data)
	if err != nil {
		return err
	}
	for rank, pair := range pairs {
		if len(pair) != 2 {
			return fmt.Errorf("merge %d has %d parts, wanted 2", rank, len(pair))
		}
		*l = append(*l, [2]string{pair[0], pair[1]})
	}
	for rank, line := range lines {
		if strings.HasPrefix(line, "#version") {
			continue
		}
		left, right, ok := strings.Cut(line, " ")
		if !ok || strings.Contains(right, " ") {
			return fmt.Errorf("merge %d is %q, wanted two tokens separated by one blank", rank, line)
		}
		*l = append(*l, [2]string{left, right})
	}
	if len(*l) >= 1<<31 {
		return errors.New("too many merges")
	}
	return nil
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
