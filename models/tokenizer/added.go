package tokenizer

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// AddedToken is a token that is found in the text before the model runs.
type AddedToken struct {
	ID         int32  `json:"id"`
	Content    string `json:"content"`
	SingleWord bool   `json:"single_word"` // only where no word character is beside it
	LStrip     bool   `json:"lstrip"`      // takes the blanks before it along
	RStrip     bool   `json:"rstrip"`      // takes the blanks after it along
	Normalized bool   `json:"normalized"`  // looked for in the normalized text
	Special    bool   `json:"special"`     // left out by SkipSpecialTokens
}

// addedVocabulary holds the added tokens.
type addedVocabulary struct {
	ids     map[string]int32
	byID    map[int32]AddedToken
	special map[string]bool
	order   []string // as in the file
	maxID   int32

	raw, normalized *addedMatcher
}

// newAddedVocabulary checks the tokens against the model's vocabulary. A token
// that is listed twice has the flags of the last.
func newAddedVocabulary(tokens []AddedToken, v *vocabulary, n normalizer) (*addedVocabulary, error) {
	a := &addedVocabulary{ids: map[string]int32{}, byID: map[int32]AddedToken{}, special: map[string]bool{}, maxID: -1}
	next := int32(len(v.ids)) // the id that the library gives to the next new token
	for _, t := range tokens {
		if t.Content == "" {
			continue // as in the library
		}
		want, known := a.ids[t.Content]
		if !known {
			want, known = v.id(t.Content)
			a.order = append(a.order, t.Content)
		}
		if !known {
			if other, taken := v.token(next); taken {
				return nil, fmt.Errorf("%q needs a new id after the %d of the vocabulary, but %d is %q there", t.Content, len(v.ids), next, other)
			}
			want = next
		}
		if t.ID != want {
			return nil, fmt.Errorf("%q has id %d, wanted %d: added tokens that are not in the model's vocabulary follow it without a gap", t.Content, t.ID, want)
		}
		if t.ID >= next {
			next = t.ID + 1
		}
		a.ids[t.Content], a.byID[t.ID] = t.ID, t
		a.maxID = max(a.maxID, t.ID)
		if t.Special {
			a.special[t.Content] = true
		}
	}
	a.raw, a.normalized = newAddedMatcher(), newAddedMatcher()
	for _, content := range a.order {
		t := a.byID[a.ids[content]]
		if !t.Normalized {
			a.raw.add(content, t)
			continue
		}
		if n != nil {
			content = n.normalize(content)
		}
		a.normalized.add(content, t)
	}
	return a, nil
}

// addedMatcher finds added tokens: the leftmost, and of those the longest.
type addedMatcher struct {
	trie   *trie // of indices into tokens
	tokens []AddedToken
}

func newAddedMatcher() *addedMatcher { return &addedMatcher{trie: newTrie()} }

func (m *addedMatcher) add(content string, t AddedToken) {
	if content == "" {
		return // normalized away: it can never be found
	}
	m.trie.add(content, int32(len(m.tokens)))
	m.tokens = append(m.tokens, t)
}

// split calls yield for each added token with its id and for each stretch
// between with id -1, in order, with the offset of its start.
func (m *addedMatcher) split(s string, specialAsText bool, yield func(s string, start int, id int32)) {
	from := 0
	for i := 0; len(m.tokens) > 0 && i < len(s); {
		if !m.trie.first[s[i]] {
			i++
			continue
		}
		length, index := m.trie.longest(s[i:])
		if length == 0 {
			i++
			continue
		}
		t := &m.tokens[index]
		start, end := i, i+length
		i = end
		if specialAsText && t.Special || t.SingleWord && besideWord(s, start, end) {
			continue
		}
		if t.LStrip {
			start = max(from, len(strings.TrimRightFunc(s[:start], unicode.IsSpace)))
		}
		if t.RStrip {
			end = len(s) - len(strings.TrimLeftFunc(s[end:], unicode.IsSpace))
		}
		if from < start {
			yield(s[from:start], from, -1)
		}
		yield(s[start:end], start, t.ID)
		from = end
	}
	if from < len(s) {
		yield(s[from:], from, -1)
	}
}

// besideWord says whether a word character touches s[start:end].
func besideWord(s string, start, end int) bool {
	before, n := utf8.DecodeLastRuneInString(s[:start])
	if n > 0 && isWordRune(before) {
		return true
	}
	after, n := utf8.DecodeRuneInString(s[end:])
	return n > 0 && isWordRune(after)
}
