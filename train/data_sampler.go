package train

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
)

// SamplerOptions says how a [Sampler] makes batches of a data set.
type SamplerOptions struct {
	// BatchSize is the number of rows of every batch. 0: 8.
	BatchSize int
	// Seed decides the order together with the epoch.
	Seed uint64
	// Shuffle takes the examples in a new random order each epoch. false: in the
	// data set's order.
	Shuffle bool
	// GroupByLength makes batches of examples of similar length, which saves
	// padding: in windows of 50 batches the examples are sorted by length, and with
	// Shuffle the batches are then shuffled again.
	GroupByLength bool
	// DropLast leaves out the last batch of an epoch when there are not enough
	// examples to fill it. false: it is filled up with rows of padding without
	// targets, so that all batches have the same number of rows.
	DropLast bool
}

const (
	defaultBatchSize = 8
	lengthWindow     = 50 // batches
)

// SamplerState is the place in the data: after how many batches of which epoch.
type SamplerState struct {
	Epoch  int `json:"epoch"`
	Cursor int `json:"cursor"`
	// Fingerprint tells other data or other options apart.
	Fingerprint string `json:"fingerprint"`
}

// Sampler gives the batches of a data set, epoch after epoch. The order of an
// epoch depends only on the data set, the options and the epoch's number, so a
// sampler restored to a state goes on with exactly the batches that were left.
// It is not safe for concurrent use.
type Sampler struct {
	data          *Dataset
	options       SamplerOptions
	epoch, cursor int
	order         []int // of this epoch; nil: not made yet
}

// NewSampler returns a sampler at the beginning of epoch 0.
func NewSampler(data *Dataset, options SamplerOptions) *Sampler {
	if options.BatchSize <= 0 {
		options.BatchSize = defaultBatchSize
	}
	return &Sampler{data: data, options: options}
}

// BatchesPerEpoch returns the number of batches of every epoch. It is 0 only if
// DropLast is set and the data set has fewer rows than a batch.
func (s *Sampler) BatchesPerEpoch() int {
	n := s.data.Len()
	if !s.options.DropLast {
		n += s.options.BatchSize - 1
	}
	return n / s.options.BatchSize
}

// Next returns the next batch of the epoch. At the end of an epoch it returns
// false once, and is then at the beginning of the next epoch.
//
// Rows are padded on the right to one of [Dataset.Buckets]. Padding has id 0,
// which every vocabulary has, and the label [IgnoreIndex]; it comes after all
// tokens, so that causal attention never sees it. Positions and Segments are nil
// but for packed data, where positions restart with every example and segments
// count 1, 2, ... in each row, with 0 for padding. Data for classifiers, which see
// what comes after a token, has segments too: 1, and 0 for padding. Data of arrays is
// not padded: the last batch of an epoch may be smaller.
func (s *Sampler) Next() (Batch, bool) {
	if s.cursor >= s.BatchesPerEpoch() {
		s.epoch, s.cursor, s.order = s.epoch+1, 0, nil
		return Batch{}, false
	}
	if s.order == nil {
		s.order = s.makeOrder()
	}
	size := s.options.BatchSize
	first := s.cursor * size
	s.cursor++
	indices := s.order[first:min(first+size, len(s.order))]
	if s.data.arrays != nil {
		return s.data.arrayBatch(indices), true
	}
	var rows []Example
	for _, i := range indices {
		rows = append(rows, s.data.examples[i])
	}
	return collate(rows, s.data.kind, size, s.data.buckets), true
}

// epochEnds reports whether the last batch taken was its epoch's last.
func (s *Sampler) epochEnds() bool { return s.cursor == s.BatchesPerEpoch() }

// State returns the place after the last batch that Next returned.
func (s *Sampler) State() SamplerState {
	return SamplerState{Epoch: s.epoch, Cursor: s.cursor, Fingerprint: s.fingerprint()}
}

// Restore continues after the batch that Next had returned last when state was
// taken. A state of other data or other options is an error, and changes nothing.
func (s *Sampler) Restore(state SamplerState) error {
	if want := s.fingerprint(); state.Fingerprint != want {
		return fmt.Errorf("train: resume data: the state is of other data or other sampler options (fingerprint %q, want %q)", state.Fingerprint, want)
	}
	if n := s.BatchesPerEpoch(); state.Epoch < 0 || state.Cursor < 0 || state.Cursor > n {
		return fmt.Errorf("train: resume data: batch %d of epoch %d, want 0 to %d of an epoch of 0 or more", state.Cursor, state.Epoch, n)
	}
	s.epoch, s.cursor, s.order = state.Epoch, state.Cursor, nil
	return nil
}

func (s *Sampler) fingerprint() string {
	h := newHash()
	h.add(s.data.hash(), uint64(s.options.BatchSize), s.options.Seed)
	for _, flag := range []bool{s.options.Shuffle, s.options.GroupByLength, s.options.DropLast} {
		h.add(map[bool]uint64{true: 1}[flag])
	}
	return fmt.Sprintf("%016x", h.sum)
}

// makeOrder returns the examples of the epoch in the order of their batches.
func (s *Sampler) makeOrder() []int {
	n, size := s.data.Len(), s.options.BatchSize
	source := rand.NewPCG(s.options.Seed, uint64(s.epoch))
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	if s.options.Shuffle {
		shuffle(order, source)
	}
	if !s.options.GroupByLength {
		return order
	}
	for window := range slices.Chunk(order, lengthWindow*size) {
		slices.SortStableFunc(window, func(a, b int) int {
			return cmp.Compare(len(s.data.examples[b].IDs), len(s.data.examples[a].IDs))
		})
	}
	if !s.options.Shuffle {
		return order
	}
	full := n / size * size
	batches := slices.Collect(slices.Chunk(slices.Clone(order[:full]), size))
	shuffle(batches, source)
	return append(slices.Concat(batches...), order[full:]...)
}
