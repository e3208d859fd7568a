package train

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func nan() float64 { return math.NaN() }

func samplerData(t *testing.T, lengths ...int) *Dataset {
	t.Helper()
	d, err := NewDataset(examplesOf(lengths...))
	require.NoError(t, err)
	return d
}

// epochOf returns the batches up to the end of the epoch.
func epochOf(s *Sampler) []Batch {
	var batches []Batch
	for b, ok := s.Next(); ok; b, ok = s.Next() {
		batches = append(batches, b)
	}
	return batches
}

// rowsOf returns the first id of every row that is not padding.
func rowsOf(batches []Batch) []int32 {
	var ids []int32
	for _, b := range batches {
		for r := range b.Rows {
			if id := b.IDs[r*b.Length]; id != 0 {
				ids = append(ids, id)
			}
		}
	}
	return ids
}

func TestSamplerBatch(t *testing.T) {
	d := samplerData(t, 2, 3, 2)
	d.buckets = []int{2, 4}
	s := NewSampler(d, SamplerOptions{BatchSize: 2})
	first, ok := s.Next()
	require.True(t, ok)
	const x = IgnoreIndex
	require.Equal(t, Batch{Rows: 2, Length: 4,
		IDs:    []int32{1, 2, 0, 0, 101, 102, 103, 0},
		Labels: []int32{1, 2, x, x, 101, 102, 103, x},
	}, first)
	last, ok := s.Next()
	require.True(t, ok)
	require.Equal(t, Batch{Rows: 2, Length: 2, IDs: []int32{201, 202, 0, 0}, Labels: []int32{201, 202, x, x}}, last)
	require.NoError(t, last.validate())
	require.Equal(t, 1, last.Targets())
	_, ok = s.Next()
	require.False(t, ok)
	again, ok := s.Next()
	require.True(t, ok)
	require.Equal(t, first, again)
	again.IDs[0] = 99
	require.Equal(t, int32(1), d.Example(0).IDs[0], "a batch is memory of its own")
}

func TestSamplerPacked(t *testing.T) {
	packed, err := samplerData(t, 3, 2, 2).Pack(6)
	require.NoError(t, err)
	b, ok := NewSampler(packed, SamplerOptions{BatchSize: 2}).Next()
	require.True(t, ok)
	const x = IgnoreIndex
	require.Equal(t, Batch{Rows: 2, Length: 6,
		IDs:       []int32{1, 2, 3, 101, 102, 0, 201, 202, 0, 0, 0, 0},
		Labels:    []int32{x, 2, 3, x, 102, x, x, 202, x, x, x, x},
		Positions: []int32{0, 1, 2, 0, 1, 0, 0, 1, 0, 0, 0, 0},
		Segments:  []int32{1, 1, 1, 2, 2, 0, 1, 1, 0, 0, 0, 0},
	}, b)
}

func TestSamplerOrder(t *testing.T) {
	d := samplerData(t, slices.Repeat([]int{2}, 10)...)
	s := NewSampler(d, SamplerOptions{BatchSize: 4, Shuffle: true, Seed: 3})
	require.Equal(t, 3, s.BatchesPerEpoch())
	// These must never change: a run is resumed by a newer build too. They were
	// checked against PCG, Lemire and Fisher-Yates written out in Python.
	require.Equal(t, []int32{1, 901, 701, 601, 501, 301, 401, 101, 801, 201}, rowsOf(epochOf(s)))
	require.Equal(t, []int32{801, 601, 401, 301, 201, 1, 501, 901, 701, 101}, rowsOf(epochOf(s)))

	other := NewSampler(d, SamplerOptions{BatchSize: 4, Shuffle: true, Seed: 4})
	require.NotEqual(t, []int32{1, 901, 701, 601, 501, 301, 401, 101, 801, 201}, rowsOf(epochOf(other)))
	plain := NewSampler(d, SamplerOptions{BatchSize: 4, Seed: 3})
	require.Equal(t, firstIDs(d), rowsOf(epochOf(plain)))

	drop := NewSampler(d, SamplerOptions{BatchSize: 4, Shuffle: true, Seed: 3, DropLast: true})
	require.Equal(t, 2, drop.BatchesPerEpoch())
	require.Equal(t, []int32{1, 901, 701, 601, 501, 301, 401, 101}, rowsOf(epochOf(drop)))
	require.Equal(t, 0, NewSampler(d, SamplerOptions{BatchSize: 11, DropLast: true}).BatchesPerEpoch())
	require.Empty(t, epochOf(NewSampler(d, SamplerOptions{BatchSize: 11, DropLast: true})))

	standard, _ := NewSampler(d, SamplerOptions{}).Next()
	require.Equal(t, 8, standard.Rows)
}

func TestSamplerGroupByLength(t *testing.T) {
	var lengths []int
	for i := range 1003 {
		lengths = append(lengths, 2+i*7919%97)
	}
	d := samplerData(t, lengths...)
	tokens := map[bool]int{}
	for _, group := range []bool{false, true} {
		s := NewSampler(d, SamplerOptions{BatchSize: 4, Shuffle: true, Seed: 1, GroupByLength: group})
		batches := epochOf(s)
		require.Len(t, batches, 251)
		rows := rowsOf(batches)
		require.NotEqual(t, rows, rowsOf(epochOf(s)), "each epoch is shuffled anew")
		slices.Sort(rows)
		require.Equal(t, firstIDs(d), rows, "every example once")
		for _, b := range batches {
			tokens[group] += b.Tokens()
		}
	}
	require.Less(t, tokens[true], tokens[false]*9/10, "less padding")

	sorted := NewSampler(d, SamplerOptions{BatchSize: 4, GroupByLength: true})
	batches := epochOf(sorted)
	require.GreaterOrEqual(t, batches[0].Length, batches[49].Length)
	require.Equal(t, rowsOf(batches), rowsOf(epochOf(sorted)), "without Shuffle all epochs are equal")
}

// Resuming after any batch gives exactly the batches that were left.
func TestSamplerResume(t *testing.T) {
	d := samplerData(t, 3, 60, 7, 100, 20, 4, 9, 65, 30, 2, 11)
	for _, options := range []SamplerOptions{
		{BatchSize: 3, Shuffle: true, Seed: 5},
		{BatchSize: 3, Shuffle: true, Seed: 5, GroupByLength: true},
		{BatchSize: 2, DropLast: true},
	} {
		t.Run(fmt.Sprintf("%+v", options), func(t *testing.T) {
			type event struct {
				batch Batch
				ok    bool
				after SamplerState
			}
			s := NewSampler(d, options)
			start := s.State()
			var events []event
			for range 3 * (s.BatchesPerEpoch() + 1) {
				b, ok := s.Next()
				events = append(events, event{b, ok, s.State()})
			}
			for i := -1; i < len(events); i++ {
				state := start
				if i >= 0 {
					state = events[i].after
				}
				text, err := json.Marshal(state)
				require.NoError(t, err)
				var read SamplerState
				require.NoError(t, json.Unmarshal(text, &read))
				resumed := NewSampler(d, options)
				resumed.Next() // wherever it was before
				require.NoError(t, resumed.Restore(read))
				for _, want := range events[i+1:] {
					b, ok := resumed.Next()
					require.Equal(t, want, event{b, ok, resumed.State()})
				}
			}
		})
	}
}

func TestSamplerRestoreErrors(t *testing.T) {
	d := samplerData(t, 3, 4, 5)
	options := SamplerOptions{BatchSize: 2, Shuffle: true, Seed: 5}
	s := NewSampler(d, options)
	s.Next()
	state := s.State()
	require.Equal(t, 1, state.Cursor)

	changed := map[string]*Sampler{
		"seed":       NewSampler(d, SamplerOptions{BatchSize: 2, Shuffle: true, Seed: 6}),
		"batch size": NewSampler(d, SamplerOptions{BatchSize: 3, Shuffle: true, Seed: 5}),
		"shuffle":    NewSampler(d, SamplerOptions{BatchSize: 2, Seed: 5}),
		"length":     NewSampler(samplerData(t, 3, 4, 6), options),
		"fewer":      NewSampler(samplerData(t, 3, 4), options),
	}
	examples := examplesOf(3, 4, 5)
	examples[1].Labels[2] = IgnoreIndex
	relabelled, err := NewDataset(examples)
	require.NoError(t, err)
	changed["label"] = NewSampler(relabelled, options)
	for name, other := range changed {
		require.ErrorContains(t, other.Restore(state), "other data or other sampler options", name)
		require.Equal(t, 0, other.State().Cursor, name)
	}
	for _, bad := range []SamplerState{
		{Epoch: -1, Fingerprint: state.Fingerprint},
		{Cursor: 3, Fingerprint: state.Fingerprint},
		{Cursor: -1, Fingerprint: state.Fingerprint},
	} {
		require.ErrorContains(t, s.Restore(bad), "want 0 to 2")
		require.Equal(t, state, s.State(), "nothing changed")
	}
	require.NoError(t, s.Restore(state))
}

func TestPermutationIsUniform(t *testing.T) {
	counts := map[string]int{}
	const runs = 6000
	for stream := range uint64(runs) {
		counts[fmt.Sprint(permutation(3, 9, stream))]++
	}
	require.Len(t, counts, 6)
	for order, n := range counts {
		// The standard deviation is 29: five of them.
		require.InDelta(t, runs/6, n, 145, order)
	}
}

func ExampleSampler() {
	data, err := NewDataset([]Example{
		{IDs: []int32{5, 6, 7}, Labels: []int32{IgnoreIndex, 6, 7}},
		{IDs: []int32{5, 8}, Labels: []int32{IgnoreIndex, 8}},
		{IDs: []int32{5, 9, 4, 3}, Labels: []int32{IgnoreIndex, IgnoreIndex, 4, 3}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	sampler := NewSampler(data, SamplerOptions{BatchSize: 2, Shuffle: true, Seed: 1})
	for epoch := range 2 {
		for batch, ok := sampler.Next(); ok; batch, ok = sampler.Next() {
			fmt.Printf("epoch %d: %d x %d, %d targets\n", epoch, batch.Rows, batch.Length, batch.Targets())
		}
	}
	// Output:
	// epoch 0: 2 x 8, 4 targets
	// epoch 0: 2 x 8, 1 targets
	// epoch 1: 2 x 8, 3 targets
	// epoch 1: 2 x 8, 2 targets
}
