package train

import "fmt"

// Batch is one batch of token sequences, padded to one length.
type Batch struct {
	Rows, Length int
	// IDs are [Rows, Length], row-major.
	IDs []int32
	// Labels are what Kind says, or [IgnoreIndex] where nothing is to be learned: of
	// [LabelNextToken] [Rows, Length], where Labels[i] is the token that IDs[i] itself
	// should be (as in Hugging Face: the loss shifts them by one); of [LabelToken]
	// [Rows, Length] classes of the tokens; of [LabelRow] [Rows] classes.
	Labels []int32
	Kind   LabelKind
	// Positions and Segments are [Rows, Length] or nil; see site.Tokens.
	Positions, Segments []int32
	// Tasks is the task of each row, [Rows], or nil; see site.Tokens.
	Tasks []int32
	// arrays are what the batch has in place of all the above, if its data is [NewArrays]'s.
	arrays arrays
	// RowOffset is the index of the first row within the whole optimizer step's
	// batch: dropout depends on it, so that splitting a batch changes nothing.
	RowOffset int
}

// IgnoreIndex is the label that takes no part in the loss.
const IgnoreIndex = -100

// Targets counts the labels that take part in the loss: those that are not
// [IgnoreIndex], and of [LabelNextToken] not the first of a row. Of arrays it counts the
// rows: what a target is, only the loss knows.
func (b Batch) Targets() int {
	if b.arrays.inputs != nil {
		return b.Rows
	}
	n, width := 0, b.Kind.width(b.Length)
	for r := range b.Rows {
		n += b.Kind.targets(b.Labels[r*width : (r+1)*width])
	}
	return n
}

// Tokens counts the tokens of the batch, padding included; of arrays it counts the rows.
func (b Batch) Tokens() int {
	if b.arrays.inputs != nil {
		return b.Rows
	}
	return b.Rows * b.Length
}

func (b Batch) validate() error {
	if b.arrays.inputs != nil {
		return nil
	}
	n := b.Rows * b.Length
	if b.Rows <= 0 || b.Length < 2 {
		return fmt.Errorf("train: batch of %d rows of %d tokens", b.Rows, b.Length)
	}
	if len(b.IDs) != n || len(b.Labels) != b.Rows*b.Kind.width(b.Length) {
		return fmt.Errorf("train: batch of %d x %d: %d ids and %d labels", b.Rows, b.Length, len(b.IDs), len(b.Labels))
	}
	for _, optional := range [][]int32{b.Positions, b.Segments} {
		if optional != nil && len(optional) != n {
			return fmt.Errorf("train: batch of %d x %d: %d positions or segments", b.Rows, b.Length, len(optional))
		}
	}
	if b.Tasks != nil && len(b.Tasks) != b.Rows {
		return fmt.Errorf("train: batch of %d rows: %d tasks", b.Rows, len(b.Tasks))
	}
	return nil
}
