package train

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// packWindow is the number of examples among which partners are looked for.
const packWindow = 4096

// Pack puts several examples into one row of at most length tokens, so that
// little is spent on padding. Attention, positions and labels stay apart:
// batches carry positions that restart with each example and segment ids, and
// the first token of an example is never a target. An example longer than
// length is an error.
//
// The method is first-fit decreasing, in windows of 4096 examples so that rows
// stay mixed; the rows of equal data are equal. Batches of packed data sets are
// all padded to one length.
func (d *Dataset) Pack(length int) (*Dataset, error) {
	if length < 2 {
		return nil, fmt.Errorf("train: pack: rows of %d tokens, want 2 or more", length)
	}
	if d.kind != LabelNextToken || d.arrays != nil {
		return nil, errors.New("train: pack: rows of classes, and arrays, cannot be packed")
	}
	if d.examples[0].Task != nil {
		return nil, errors.New("train: pack: examples with tasks cannot be packed: a row has one task")
	}
	var rows []Example
	for window := range slices.Chunk(d.examples, packWindow) {
		for i, e := range window {
			if len(e.IDs) > length {
				return nil, fmt.Errorf("train: pack: example %d of the window has %d tokens, rows have %d", i, len(e.IDs), length)
			}
		}
		for _, members := range firstFitDecreasing(window, length) {
			rows = append(rows, join(members))
		}
	}
	report := d.report
	report.Examples, report.Tokens, report.Targets = 0, 0, 0
	buckets := []int{length}
	if d.fixed {
		buckets = d.buckets
	}
	packed, err := newDataset(rows, d.labelling, report, buckets, 0)
	if err != nil {
		return nil, fmt.Errorf("train: pack: %w", err)
	}
	packed.fixed = d.fixed
	return packed, nil
}

// firstFitDecreasing deals examples out to rows: the longest first, each into
// the first row with room. Within a row they keep their order in the data.
func firstFitDecreasing(examples []Example, length int) [][]Example {
	order := make([]int, len(examples))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(len(examples[b].IDs), len(examples[a].IDs)) })
	var members [][]int
	var room []int
	for _, i := range order {
		need := len(examples[i].IDs)
		row := slices.IndexFunc(room, func(free int) bool { return free >= need })
		if row < 0 {
			row = len(room)
			room, members = append(room, length), append(members, nil)
		}
		room[row] -= need
		members[row] = append(members[row], i)
	}
	rows := make([][]Example, len(members))
	for r, indices := range members {
		slices.Sort(indices)
		for _, i := range indices {
			rows[r] = append(rows[r], examples[i])
		}
	}
	return rows
}

// join makes one row of several examples, of which some may be packed already.
func join(members []Example) Example {
	var row Example
	for _, e := range members {
		offset := len(row.IDs)
		starts := e.Starts
		if starts == nil {
			starts = []int{0}
		}
		row.IDs = append(row.IDs, e.IDs...)
		row.Labels = append(row.Labels, e.Labels...)
		for _, start := range starts {
			row.Starts = append(row.Starts, offset+start)
			row.Labels[offset+start] = IgnoreIndex
		}
	}
	return row
}
