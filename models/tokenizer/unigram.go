package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
)

// unkPenalty is how much worse than the worst token an unknown character is.
const unkPenalty = 10.0

// unigramConfig is the model section of type Unigram.
type unigramConfig struct {
	UnkID        *int64         `json:"unk_id"`
	ByteFallback bool           `json:"byte_fallback"`
	Vocab        []unigramToken `json:"vocab"`
}

// unigramToken is written as ["token", score].
type unigramToken struct {
	token string
	score float64
}

func (t *unigramToken) UnmarshalJSON(data []byte) error {
	var parts []json.RawMessage
	if err := json.Unmarshal(data, &parts); err != nil {
		return err
	}
	if len(parts) != 2 {
		return fmt.Errorf("a vocabulary entry has %d parts, wanted a token and its score", len(parts))
	}
	if err := json.Unmarshal(parts[0], &t.token); err != nil {
		return err
	}
	return json.Unmarshal(parts[1], &t.score)
}

// unigram takes the segmentation of highest probability (Kudo 2018, arXiv:1804.10959).
type unigram struct {
	tokens       *trie
	ids          map[string]int32
	scores       []float64
	minScore     float64
	unk          int32
	byteFallback bool
	byteIDs      [256]int32
}

// pathNode is the best segmentation that ends at some byte.
type pathNode struct {
	score float64
	start int32 // of its last token, -1 if the byte is not reached
	id    int32
}

func newUnigram(c *unigramConfig) (*vocabulary, *unigram, error) {
	if c.UnkID == nil {
		return nil, nil, errors.New("unk_id is missing: an unknown character could not be encoded")
	}
	if *c.UnkID < 0 || *c.UnkID >= int64(len(c.Vocab)) {
		return nil, nil, fmt.Errorf("unk_id is %d, wanted less than the %d tokens of the vocabulary", *c.UnkID, len(c.Vocab))
	}
	if len(c.Vocab) > math.MaxInt32 {
		return nil, nil, errors.New("too many tokens")
	}
	m := &unigram{tokens: newTrie(), minScore: math.Inf(1), unk: int32(*c.UnkID), byteFallback: c.ByteFallback}
	v := &vocabulary{ids: make(map[string]int32, len(c.Vocab)), maxID: int32(len(c.Vocab)) - 1}
	for i, t := range c.Vocab {
		// A token that comes twice has the id and score of the last.
		v.ids[t.token] = int32(i)
		v.dense, v.has = append(v.dense, t.token), append(v.has, true)
		m.scores = append(m.scores, t.score)
		m.minScore = min(m.minScore, t.score)
		if t.token != "" {
			m.tokens.add(t.token, int32(i))
		}
	}
	m.ids = v.ids
	m.byteIDs, _ = v.byteFallbackIDs()
	return v, m, nil
}

// appendIDs implements model.
func (m *unigram) appendIDs(dst []int32, piece string, w *worker) []int32 {
	nodes := m.bestPaths(piece, w)
	// Walk back from the end; a run of unknown characters is one token.
	w.stack = w.stack[:0]
	for end := len(piece); end > 0; {
		start := int(nodes[end].start)
		if nodes[end].id == m.unk {
			for start > 0 && nodes[start].id == m.unk {
				start = int(nodes[start].start)
			}
			w.stack = m.pushUnknown(w.stack, piece[start:end])
		} else {
			w.stack = append(w.stack, nodes[end].id)
		}
		end = start
	}
	slices.Reverse(w.stack)
	return append(dst, w.stack...)
}

// bestPaths is the Viterbi search. nodes[i] is the best way to reach byte i.
func (m *unigram) bestPaths(piece string, w *worker) []pathNode {
	w.nodes = slices.Grow(w.nodes[:0], len(piece)+1)[:len(piece)+1]
	nodes := w.nodes
	for i := range nodes {
		nodes[i] = pathNode{start: -1}
	}
	reach := func(start, end int, id int32, score float64) {
		score += nodes[start].score
		if n := &nodes[end]; n.start < 0 || score > n.score {
			*n = pathNode{score, int32(start), id}
		}
	}
	for start := 0; start < len(piece); {
		size := runeLen(piece[start:])
		single := false
		node := int32(0)
		for end := start; end < len(piece); {
			next, ok := m.tokens.next(node, piece[end])
			if !ok {
				break
			}
			node = next
			end++
			if id := m.tokens.ids[node]; id >= 0 {
				reach(start, end, id, m.scores[id])
				single = single || end-start == size
			}
		}
		if !single {
			reach(start, start+size, m.unk, m.minScore-unkPenalty)
		}
		start += size
	}
	return nodes
}

// pushUnknown appends the ids of an unknown text, last first.
func (m *unigram) pushUnknown(stack []int32, text string) []int32 {
	if id, ok := m.ids[text]; ok {
		return append(stack, id)
	}
	if !m.byteFallback {
		return append(stack, m.unk)
	}
	n := len(stack)
	for i := len(text) - 1; i >= 0; i-- {
		id := m.byteIDs[text[i]]
		if id < 0 {
			return append(stack[:n], m.unk)
		}
		stack = append(stack, id)
	}
	return stack
}
