package tokenizer

import (
	"strings"
	"unicode/utf8"
)

const (
	metaspace = "▁" // U+2581, SentencePiece's blank
	// longChunk is the length from which boundaries other than blanks are
	// looked for.
	longChunk = 2 * maxCachedWord
)

// boundaries knows between which characters no merge can ever reach across.
// SentencePiece-style BPE has no pre-tokenizer: the whole text is one piece.
// Cutting it where no merge joins gives the same ids, and the pieces are words,
// which the cache knows.
//
// It is a preTokenizer that comes last, without changing the text.
type boundaries struct {
	joined *pairTable // pairs of characters (left's last, right's first) of some merge
	space  map[rune]bool
}

// newBoundaries returns nil if the merges use tokens that do not stand for their
// own characters (byte tokens, the unknown token): then cutting is not safe.
func newBoundaries(merges mergeList, m *bpe) *boundaries {
	b := &boundaries{joined: newPairTable(1024), space: map[rune]bool{}}
	blank, _ := utf8.DecodeRuneInString(metaspace)
	for _, pair := range merges {
		if m.standsForBytes(pair[0]) || m.standsForBytes(pair[1]) || pair[0] == "" || pair[1] == "" {
			return nil
		}
		last, _ := utf8.DecodeLastRuneInString(pair[0])
		first, _ := utf8.DecodeRuneInString(pair[1])
		b.joined.put(pairKey(last, first), 1)
		if first == blank {
			b.space[last] = true
		}
	}
	return b
}

// standsForBytes says whether token is a byte token or the unknown token.
func (m *bpe) standsForBytes(token string) bool {
	id, _ := m.vocab.id(token)
	if id == m.unk && m.unk >= 0 {
		return true
	}
	return len(token) == 6 && strings.HasPrefix(token, "<0x") && token[5] == '>'
}

func (b *boundaries) split(s string, first bool, yield pieceFunc) {
	for s != "" {
		word := s[:b.word(s)]
		s = s[len(word):]
		for word != "" {
			n := len(word)
			if n > longChunk {
				n = b.chunk(word)
			}
			yield(word[:n], first)
			word, first = word[n:], false
		}
	}
}

// word is the length of s up to the next blank that starts a word.
func (b *boundaries) word(s string) int {
	for from := 1; ; {
		if from >= len(s) {
			return len(s)
		}
		i := strings.Index(s[from:], metaspace)
		if i < 0 {
			return len(s)
		}
		i += from
		if last, _ := utf8.DecodeLastRuneInString(s[:i]); !b.space[last] {
			return i
		}
		from = i + len(metaspace)
	}
}

// chunk is the length of s up to the first cut after maxCachedWord/2 bytes.
func (b *boundaries) chunk(s string) int {
	prev := rune(-1)
	for i, r := range s {
		if i >= maxCachedWord/2 {
			if _, joined := b.joined.get(pairKey(prev, r)); !joined {
				return i
			}
		}
		prev = r
	}
	return len(s)
}
