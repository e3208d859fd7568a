package train

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNewDataset(t *testing.T) {
	examples := examplesOf(5, 1, 0, 9)
	prompt := examplesOf(3)[0]
	prompt.Labels = []int32{1, IgnoreIndex, IgnoreIndex} // the first never counts
	d, err := NewDataset(append(examples, prompt))
	require.NoError(t, err)
	require.Equal(t, Report{Examples: 2, Rows: 2, Tokens: 14, Targets: 12, Dropped: 3}, d.Report())
	require.Equal(t, "2 examples, 14 tokens, 12 of them targets, 3 dropped with nothing to learn", d.Report().String())
	require.Equal(t, 2, d.Len())
	require.Equal(t, examples[3], d.Example(1))
	require.Equal(t, []int{16}, d.Buckets())
}

func TestNewDatasetErrors(t *testing.T) {
	for _, c := range []struct {
		examples []Example
		want     string
	}{
		{nil, "train: new data set: data set is empty"},
		{examplesOf(1, 0), "none of the 2 examples has anything to learn"},
		{[]Example{{IDs: []int32{1, 2}, Labels: []int32{1}}}, "example 0: 2 ids and 1 labels"},
		{[]Example{{IDs: []int32{1, -2}, Labels: []int32{1, 2}}}, "example 0: token 1: id -2, label 2"},
		{[]Example{{IDs: []int32{1, 2}, Labels: []int32{1, -1}}}, "example 0: token 1: id 2, label -1"},
		{[]Example{{IDs: []int32{1, 2}, Labels: []int32{1, 2}, Starts: []int{1}}}, "starts [1] of packed sequences in 2 tokens"},
		{[]Example{{IDs: []int32{1, 2}, Labels: []int32{1, 2}, Starts: []int{0, 2}}}, "starts [0 2]"},
	} {
		_, err := NewDataset(c.examples)
		require.ErrorContains(t, err, c.want)
	}
}

func TestSplit(t *testing.T) {
	d, err := NewDataset(examplesOf(slices.Repeat([]int{3}, 40)...))
	require.NoError(t, err)
	rest, held, err := d.Split(0.1, 7)
	require.NoError(t, err)
	require.Equal(t, 36, rest.Len())
	require.Equal(t, []int32{1301, 1501, 2101, 2201}, firstIDs(held), "these stay, whatever the version of Go")
	all := append(firstIDs(rest), firstIDs(held)...)
	require.True(t, slices.IsSorted(firstIDs(rest)))
	slices.Sort(all)
	require.Equal(t, firstIDs(d), all, "every example is in one part")
	_, again, err := d.Split(0.1, 7)
	require.NoError(t, err)
	require.Equal(t, held.examples, again.examples)
	_, other, err := d.Split(0.1, 8)
	require.NoError(t, err)
	require.NotEqual(t, held.examples, other.examples)
	require.Equal(t, 4, held.Report().Examples)
}

func TestSplitEdges(t *testing.T) {
	d, err := NewDataset(examplesOf(100, 3))
	require.NoError(t, err)
	for _, fraction := range []float64{0.01, 0.5, 0.99} {
		rest, held, err := d.Split(fraction, 1)
		require.NoError(t, err)
		require.Equal(t, []int{1, 1}, []int{rest.Len(), held.Len()})
		require.Equal(t, d.Buckets(), rest.Buckets(), "both keep the buckets")
		require.Equal(t, d.Buckets(), held.Buckets())
	}
	for _, fraction := range []float64{0, 1, -0.1, nan()} {
		_, _, err := d.Split(fraction, 1)
		require.ErrorContains(t, err, "want it between 0 and 1")
	}
	one, err := NewDataset(examplesOf(3))
	require.NoError(t, err)
	_, _, err = one.Split(0.5, 1)
	require.ErrorContains(t, err, "train: split: 1 row, want 2 or more")
}

func TestBuckets(t *testing.T) {
	for _, c := range []struct {
		longest, limit int
		given          []int
		want           []int
		err            string
	}{
		{longest: 5, want: []int{8}},
		{longest: 64, want: []int{64}},
		{longest: 96, limit: 96, want: []int{64, 96}},
		{longest: 100, want: []int{64, 104}},
		{longest: 100, limit: 100, want: []int{64, 100}},
		{longest: 300, limit: 512, want: []int{64, 128, 304}},
		{longest: 512, limit: 512, want: []int{64, 128, 256, 512}},
		{longest: 1500, limit: 2048, want: []int{64, 128, 256, 512, 1024, 1504}},
		{longest: 100, given: []int{200, 50, 50}, want: []int{50, 200}},
		{longest: 300, given: []int{256}, err: "the longest example has 300 tokens, the largest bucket 256"},
		{longest: 3, given: []int{1, 4}, err: "buckets [1 4], want lengths of 2 or more"},
		{longest: 3, given: []int{}, err: "buckets [], want"},
	} {
		got, err := bucketsFor(c.longest, c.limit, c.given)
		if c.err != "" {
			require.ErrorContains(t, err, c.err)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, c.want, got)
	}
}

func TestPack(t *testing.T) {
	d, err := NewDataset(examplesOf(3, 7, 5, 2, 4, 10))
	require.NoError(t, err)
	packed, err := d.Pack(10)
	require.NoError(t, err)
	// Longest first, each into the first row with room: 10 | 7, 3 | 5, 4 | 2; in a row, the data's order.
	require.Equal(t, [][]int32{{501}, {1, 101}, {201, 401}, {301}}, packedStarts(packed))
	// Of each example the first token is no target.
	require.Equal(t, Report{Examples: 6, Rows: 4, Tokens: 31, Targets: 25}, packed.Report())
	require.Equal(t, "6 examples, 31 tokens, 25 of them targets, packed into 4 rows", packed.Report().String())
	require.Equal(t, d.Report().Targets, packed.Report().Targets, "packing loses no target")
	require.Equal(t, []int{10}, packed.Buckets())
	require.Equal(t, int32(1), d.Example(0).Labels[0], "the original is as it was")

	twice, err := packed.Pack(20)
	require.NoError(t, err)
	require.Equal(t, 6, twice.Report().Examples)
	require.Equal(t, 25, twice.Report().Targets)

	_, err = d.Pack(9)
	require.ErrorContains(t, err, "has 10 tokens, rows have 9")
	_, err = d.Pack(1)
	require.ErrorContains(t, err, "rows of 1 tokens")
}

func TestPackKeepsEveryToken(t *testing.T) {
	var lengths []int
	for i := range 5000 { // more than a window
		lengths = append(lengths, 2+i*7919%61)
	}
	d, err := NewDataset(examplesOf(lengths...))
	require.NoError(t, err)
	packed, err := d.Pack(128)
	require.NoError(t, err)
	require.Equal(t, d.Report().Tokens, packed.Report().Tokens)
	require.Equal(t, d.Report().Targets, packed.Report().Targets)
	require.Equal(t, 5000, packed.Report().Examples)
	require.Less(t, packed.Len()*128, d.Report().Tokens*102/100, "hardly any padding")
}

func firstIDs(d *Dataset) []int32 {
	var ids []int32
	for _, e := range d.examples {
		ids = append(ids, e.IDs[0])
	}
	return ids
}

func packedStarts(d *Dataset) [][]int32 {
	var rows [][]int32
	for _, e := range d.examples {
		var row []int32
		for _, start := range e.Starts {
			row = append(row, e.IDs[start])
		}
		rows = append(rows, row)
	}
	return rows
}

func ExampleDataset_Split() {
	examples := []Example{
		{IDs: []int32{5, 6, 7}, Labels: []int32{IgnoreIndex, 6, 7}},
		{IDs: []int32{5, 8}, Labels: []int32{IgnoreIndex, 8}},
		{IDs: []int32{5, 9, 4, 3}, Labels: []int32{IgnoreIndex, IgnoreIndex, 4, 3}},
	}
	data, err := NewDataset(examples)
	if err != nil {
		fmt.Println(err)
		return
	}
	rest, held, err := data.Split(0.1, 1)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(data.Report())
	fmt.Println(rest.Len(), "to learn,", held.Len(), "held out")
	// Output:
	// 3 examples, 9 tokens, 5 of them targets
	// 2 to learn, 1 held out
}
