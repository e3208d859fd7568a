package tokenizer

import "slices"

// Encoder is what turns text into ids; *[Tokenizer] is one.
type Encoder interface {
	Encode(text string, o EncodeOptions) []int32
}

// EncodeUpTo encodes text, with what the tokenizer puts around it, in at most limit
// tokens: what is cut off is the end of the text, not the special tokens after it.
// A limit below their number leaves only as many of them.
func EncodeUpTo(t Encoder, text string, limit int) (ids []int32, truncated bool) {
	ids = t.Encode(text, EncodeOptions{AddSpecialTokens: true})
	if len(ids) <= limit {
		return ids, false
	}
	alone := t.Encode(text, EncodeOptions{})
	around := len(ids) - len(alone)
	for before := 0; before <= around; before++ {
		if !slices.Equal(ids[before:before+len(alone)], alone) {
			continue
		}
		if after := around - before; after < limit {
			end := ids[len(ids)-after:]
			return append(slices.Clone(ids[:limit-after]), end...), true
		}
		break
	}
	return slices.Clone(ids[:limit]), true
}
