package train

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
)

// Example is one sequence of tokens to learn from. Its slices are read only
// once it is part of a [Dataset]; Labels may be the same slice as IDs.
type Example struct {
	IDs []int32
	// Labels holds for each token that token itself where it is to be learned and
	// [IgnoreIndex] where it is not. The first label never counts: nothing stands
	// before it to predict it from. In data for a classifier it holds the class of each
	// token, or the one class of the whole row, see [LabelKind].
	Labels []int32
	// Starts holds the index of the first token of each sequence that was packed
	// into this one, so that Starts[0] is 0. nil: one sequence, not packed.
	Starts []int
	// Task is the task of the row, from 0 on, for adapters that know several. nil: none; all
	// examples of a data set have one or none has.
	Task *int32
}

func (e Example) validate(kind LabelKind) error {
	if err := kind.check(len(e.Labels), len(e.IDs)); err != nil {
		return err
	}
	for i, id := range e.IDs {
		label := e.Labels[min(i, len(e.Labels)-1)]
		if id < 0 || label < 0 && label != IgnoreIndex {
			return fmt.Errorf("token %d: id %d, label %d; want ids of 0 or more, labels the same or %d", i, id, label, IgnoreIndex)
		}
	}
	if kind != LabelNextToken && e.Starts != nil {
		return errors.New("rows of classes cannot be packed")
	}
	if e.Task != nil && *e.Task < 0 {
		return fmt.Errorf("task %d, want 0 or more", *e.Task)
	}
	for i, start := range e.Starts {
		if i == 0 && start != 0 || i > 0 && start <= e.Starts[i-1] || start >= len(e.IDs) {
			return fmt.Errorf("starts %v of packed sequences in %d tokens; want them ascending from 0", e.Starts, len(e.IDs))
		}
	}
	return nil
}

// Report says what became of the examples of a data set.
type Report struct {
	// Examples counts those kept, Rows the sequences they make: as many, or fewer
	// when packed.
	Examples, Rows int
	// Tokens counts the tokens kept, Targets those that take part in the loss.
	Tokens, Targets int
	// Truncated counts the examples cut to the maximum length.
	Truncated int
	// Dropped counts the examples left out because nothing in them is to be
	// learned: empty ones, and those whose prompt alone has the maximum length.
	Dropped int
}

// String returns the report as one line of text.
func (r Report) String() string {
	s := fmt.Sprintf("%s examples", grouped(r.Examples))
	if r.Tokens > 0 {
		s += fmt.Sprintf(", %s tokens, %s of them targets", grouped(r.Tokens), grouped(r.Targets))
	}
	if r.Rows != r.Examples {
		s += fmt.Sprintf(", packed into %s rows", grouped(r.Rows))
	}
	if r.Truncated > 0 {
		s += fmt.Sprintf(", %s truncated", grouped(r.Truncated))
	}
	if r.Dropped > 0 {
		s += fmt.Sprintf(", %s dropped with nothing to learn", grouped(r.Dropped))
	}
	return s
}

// Dataset is a list of tokenised examples in memory, each with at least one
// target. It does not change and is safe for concurrent use.
type Dataset struct {
	examples []Example
	buckets  []int // ascending; the last holds the longest example
	fixed    bool  // the buckets are the caller's choice
	report   Report
	hash     func() uint64
	labelling
	// arrays, if not nil, are the data, and examples only count their rows.
	arrays *arrays
}

// labelling says what the labels of a data set are.
type labelling struct {
	kind    LabelKind
	classes []string
}

// NewDataset makes a data set of examples that are already tokenised. Examples
// with nothing to learn are left out and counted in [Dataset.Report]; if none
// remains, or one is malformed, that is an error. For
// how rows are padded see [Sampler.Next].
func NewDataset(examples []Example) (*Dataset, error) {
	d, err := newDataset(examples, labelling{}, Report{}, nil, 0)
	if err != nil {
		return nil, fmt.Errorf("train: new data set: %w", err)
	}
	return d, nil
}

// newDataset adds to the report, which brings the count of what was truncated.
// For buckets and limit see bucketsFor.
func newDataset(examples []Example, labels labelling, report Report, buckets []int, limit int) (*Dataset, error) {
	kept := make([]Example, 0, len(examples))
	for i, e := range examples {
		if err := e.validate(labels.kind); err != nil {
			return nil, fmt.Errorf("example %d: %w", i, err)
		}
		if (e.Task == nil) != (examples[0].Task == nil) {
			return nil, fmt.Errorf("example %d: of it and the first only one has a task: want one for all or for none", i)
		}
		targets := labels.kind.targets(e.Labels)
		if targets == 0 || len(e.IDs) == 0 {
			report.Dropped++
			continue
		}
		kept = append(kept, e)
		report.Examples += max(1, len(e.Starts))
		report.Tokens += len(e.IDs)
		report.Targets += targets
	}
	report.Rows = len(kept)
	if len(kept) == 0 {
		if report.Dropped == 0 {
			return nil, errEmpty
		}
		return nil, fmt.Errorf("none of the %d examples has anything to learn (empty, or prompts as long as the maximum length)", report.Dropped)
	}
	d := &Dataset{examples: kept, report: report, fixed: buckets != nil, labelling: labels}
	d.hash = sync.OnceValue(d.contentHash)
	longest := len(slices.MaxFunc(kept, func(a, b Example) int { return cmp.Compare(len(a.IDs), len(b.IDs)) }).IDs)
	var err error
	d.buckets, err = bucketsFor(longest, limit, buckets)
	return d, err
}

// subset returns the data set of the examples at the given indices.
func (d *Dataset) subset(indices []int) (*Dataset, error) {
	if d.arrays != nil {
		return newArrays(d.arrays.each(func(a Array) Array { return a.rows(indices) }))
	}
	examples := make([]Example, len(indices))
	for i, index := range indices {
		examples[i] = d.examples[index]
	}
	sub, err := newDataset(examples, d.labelling, Report{}, d.buckets, 0)
	if err != nil {
		return nil, err
	}
	sub.fixed = d.fixed
	return sub, nil
}

// Len returns the number of rows: examples, or packed rows of several.
func (d *Dataset) Len() int { return len(d.examples) }

// Example returns the i-th row, 0 <= i < Len. It shares memory with the data set. It is
// empty where the data are arrays.
func (d *Dataset) Example(i int) Example { return d.examples[i] }

// Buckets returns the lengths that batches are padded to, ascending.
func (d *Dataset) Buckets() []int { return slices.Clone(d.buckets) }

// Kind says what the labels are of.
func (d *Dataset) Kind() LabelKind { return d.kind }

// Classes are the names of the classes that labels count; nil where they have none.
func (d *Dataset) Classes() []string { return slices.Clone(d.classes) }

// Report says how many examples the data set holds and what was left out. The
// parts of a [Dataset.Split] count only what they hold.
func (d *Dataset) Report() Report { return d.report }

// Split draws a part of the rows to hold out: fraction of them, rounded, at
// least one and never all. Both parts keep the order, and the buckets, of the
// whole; equal seeds give equal parts.
func (d *Dataset) Split(fraction float64, seed uint64) (rest, held *Dataset, err error) {
	if !(fraction > 0 && fraction < 1) {
		return nil, nil, fmt.Errorf("train: split: fraction %v, want it between 0 and 1", fraction)
	}
	n := len(d.examples)
	if n < 2 {
		return nil, nil, fmt.Errorf("train: split: %d row, want 2 or more", n)
	}
	order := permutation(n, seed, splitStream)
	k := min(max(int(math.Round(fraction*float64(n))), 1), n-1)
	slices.Sort(order[:k])
	slices.Sort(order[k:])
	if held, err = d.subset(order[:k]); err != nil {
		return nil, nil, fmt.Errorf("train: split: %w", err)
	}
	if rest, err = d.subset(order[k:]); err != nil {
		return nil, nil, fmt.Errorf("train: split: %w", err)
	}
	return rest, held, nil
}

// contentHash is a hash of all that batches are made of.
func (d *Dataset) contentHash() uint64 {
	h := newHash()
	h.add(uint64(len(d.examples)))
	for _, b := range d.buckets {
		h.add(uint64(b))
	}
	if d.kind != LabelNextToken {
		h.add(uint64(d.kind))
	}
	for _, e := range d.examples {
		h.add(uint64(len(e.IDs)), uint64(len(e.Starts)))
		for i, id := range e.IDs {
			h.add(uint64(uint32(id))<<32 | uint64(uint32(e.Labels[min(i, len(e.Labels)-1)])))
		}
		for _, start := range e.Starts {
			h.add(uint64(start))
		}
		if e.Task != nil {
			h.add(uint64(*e.Task))
		}
	}
	return h.sum
}
