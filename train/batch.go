package train

import "fmt"

// Batch is one batch of token sequences, padded to one length.
type Batch struct {
	Rows, Length int
	// IDs and Labels are [Rows, Length], row-major. Labels[i] is the token that IDs[i]
	// itself should be (as in Hugging Face: the loss shifts them by one), or
	// [IgnoreIndex] where nothing is to be learned.
	IDs, Labels []int32
	// Positions and Segments are [Rows, Length] or nil; see site.Tokens.
	Positions, Segments []int32
	// RowOffset is the index of the first row within the whole optimizer step's
	// batch: dropout depends on it, so that splitting a batch changes nothing.
	RowOffset int
}

// IgnoreIndex is the label that takes no part in the loss.
const IgnoreIndex = -100

// Targets counts the tokens that take part in the loss: labels after the first
// token of each row that are not [IgnoreIndex].
func (b Batch) Targets() int {
	n := 0
	for r := range b.Rows {
		for _, label := range b.Labels[r*b.Length+1 : (r+1)*b.Length] {
			if label != IgnoreIndex {
				n++
			}
		}
	}
	return n
}

// Tokens counts the tokens of the batch, padding included.
func (b Batch) Tokens() int { return b.Rows * b.Length }

func (b Batch) validate() error {
	n := b.Rows * b.Length
	if b.Rows <= 0 || b.Length < 2 {
		return fmt.Errorf("train: batch of %d rows of %d tokens", b.Rows, b.Length)
	}
	if len(b.IDs) != n || len(b.Labels) != n {
		return fmt.Errorf("train: batch of %d x %d: %d ids and %d labels", b.Rows, b.Length, len(b.IDs), len(b.Labels))
	}
	for _, optional := range [][]int32{b.Positions, b.Segments} {
		if optional != nil && len(optional) != n {
			return fmt.Errorf("train: batch of %d x %d: %d positions or segments", b.Rows, b.Length, len(optional))
		}
	}
	return nil
}
