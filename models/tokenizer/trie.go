package tokenizer

// trie holds strings with an id each and finds those a text starts with.
type trie struct {
	edges *pairTable
	ids   []int32 // of a node: the id of the string that ends there, -1 if none does
	first [256]bool
}

func newTrie() *trie {
	return &trie{edges: newPairTable(64), ids: []int32{-1}}
}

// add puts s into the trie; a string that is there already gets the new id.
func (t *trie) add(s string, id int32) {
	node := int32(0)
	for i := range len(s) {
		next, ok := t.next(node, s[i])
		if !ok {
			next = int32(len(t.ids))
			t.ids = append(t.ids, -1)
			t.edges.put(pairKey(node, int32(s[i])), uint64(next))
		}
		node = next
	}
	if s != "" {
		t.first[s[0]] = true
	}
	t.ids[node] = id
}

func (t *trie) next(node int32, b byte) (int32, bool) {
	to, ok := t.edges.get(pairKey(node, int32(b)))
	return int32(to), ok
}

// longest returns the length and id of the longest string in the trie that s
// starts with, 0 and -1 if there is none.
func (t *trie) longest(s string) (length int, id int32) {
	id = -1
	node := int32(0)
	for i := range len(s) {
		next, ok := t.next(node, s[i])
		if !ok {
			break
		}
		node = next
		if t.ids[node] >= 0 {
			length, id = i+1, t.ids[node]
		}
	}
	return length, id
}
