package tokenizer

import (
	"fmt"
	"math"
)

// vocabulary is the model's own tokens; added tokens stand beside it.
type vocabulary struct {
	ids    map[string]int32
	tokens map[int32]string // only when ids are sparse, else nil
	dense  []string
	has    []bool // dense[i] is a token
	maxID  int32
}

// newVocabulary checks ids and builds the way back from id to token.
func newVocabulary(ids map[string]int64) (*vocabulary, error) {
	v := &vocabulary{ids: make(map[string]int32, len(ids)), maxID: -1}
	for token, id := range ids {
		if id < 0 || id >= math.MaxInt32 {
			return nil, fmt.Errorf("token %q has id %d, wanted 0 to %d", token, id, math.MaxInt32-1)
		}
		v.ids[token] = int32(id)
		v.maxID = max(v.maxID, int32(id))
	}
	// A table the size of the largest id would let a tiny hostile file ask for gigabytes.
	if int64(v.maxID) > 4*int64(len(ids))+1<<16 {
		v.tokens = make(map[int32]string, len(ids))
	} else {
		v.dense = make([]string, v.maxID+1)
		v.has = make([]bool, v.maxID+1)
	}
	for token, id := range v.ids {
		if other, taken := v.token(id); taken {
			return nil, fmt.Errorf("tokens %q and %q share id %d", min(token, other), max(token, other), id)
		}
		if v.tokens != nil {
			v.tokens[id] = token
		} else {
			v.dense[id], v.has[id] = token, true
		}
	}
	return v, nil
}

func (v *vocabulary) id(token string) (int32, bool) {
	id, ok := v.ids[token]
	return id, ok
}

func (v *vocabulary) token(id int32) (string, bool) {
	if v.tokens != nil {
		token, ok := v.tokens[id]
		return token, ok
	}
	if id < 0 || int(id) >= len(v.dense) {
		return "", false
	}
	return v.dense[id], v.has[id]
}

// byteFallbackIDs returns the ids of <0x00> to <0xFF>, -1 for a missing one,
// and whether all are there.
func (v *vocabulary) byteFallbackIDs() (ids [256]int32, all bool) {
	all = true
	for b := range ids {
		id, ok := v.ids[fmt.Sprintf("<0x%02X>", b)]
		if !ok {
			id, all = -1, false
		}
		ids[b] = id
	}
	return ids, all
}
