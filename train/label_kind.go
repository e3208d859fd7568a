package train

import "fmt"

// LabelKind says what the labels of examples and batches are of.
type LabelKind int

const (
	// LabelNextToken: a label is a token itself, to be predicted from those before it.
	LabelNextToken LabelKind = iota
	// LabelRow: there is one label, a class, for a whole row.
	LabelRow
	// LabelToken: a label is the class of a token.
	LabelToken
)

// String returns what labels of the kind are of.
func (k LabelKind) String() string {
	switch k {
	case LabelNextToken:
		return "next token"
	case LabelRow:
		return "row"
	case LabelToken:
		return "token"
	}
	return "unknown"
}

// counted leaves out the labels that never count: of next tokens the first, which has
// nothing before it.
func (k LabelKind) counted(labels []int32) []int32 {
	if k == LabelNextToken && len(labels) > 0 {
		return labels[1:]
	}
	return labels
}

// targets counts the labels of one row that take part in the loss.
func (k LabelKind) targets(labels []int32) int {
	n := 0
	for _, label := range k.counted(labels) {
		if label != IgnoreIndex {
			n++
		}
	}
	return n
}

// width is the number of labels of a row of length tokens.
func (k LabelKind) width(length int) int {
	if k == LabelRow {
		return 1
	}
	return length
}

// check compares the number of labels with that of tokens.
func (k LabelKind) check(labels, tokens int) error {
	if want := k.width(tokens); labels != want {
		return fmt.Errorf("%d ids and %d labels; want %d, labels being of a %s", tokens, labels, want, k)
	}
	return nil
}
