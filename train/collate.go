package train

import (
	"fmt"
	"slices"
	"sync"
)

// minBucket is the shortest length that batches are padded to by default.
const minBucket = 64

// bucketsFor returns the lengths batches are padded to, ascending, the last at
// least longest. Every length is one more program to compile, so there are few:
// the powers of two from 64 to three quarters of the last, and last the longest
// example rounded up to a multiple of 8, if that is within limit (0: none).
func bucketsFor(longest, limit int, given []int) ([]int, error) {
	if given != nil {
		buckets := slices.Compact(slices.Sorted(slices.Values(given)))
		if len(buckets) == 0 || buckets[0] < 2 {
			return nil, fmt.Errorf("buckets %v, want lengths of 2 or more", given)
		}
		if last := buckets[len(buckets)-1]; last < longest {
			return nil, fmt.Errorf("the longest example has %d tokens, the largest bucket %d: raise the bucket or lower the maximum length", longest, last)
		}
		return buckets, nil
	}
	last := (longest + 7) / 8 * 8
	if limit > 0 && last > limit {
		last = max(longest, limit)
	}
	var buckets []int
	for b := minBucket; 4*b <= 3*last; b *= 2 {
		buckets = append(buckets, b)
	}
	return append(buckets, last), nil
}

// collate pads examples on the right to the shortest bucket that holds the
// longest of them, and adds rows of padding up to rows. See [Sampler.Next].
func collate(examples []Example, kind LabelKind, rows int, buckets []int) Batch {
	longest, packed := 0, false
	for _, e := range examples {
		longest = max(longest, len(e.IDs))
		packed = packed || e.Starts != nil
	}
	i, _ := slices.BinarySearch(buckets, longest)
	b := Batch{Rows: rows, Length: buckets[i], Kind: kind}
	n, width := b.Rows*b.Length, kind.width(b.Length)
	b.IDs, b.Labels = make([]int32, n), slices.Repeat([]int32{IgnoreIndex}, b.Rows*width)
	if packed {
		b.Positions, b.Segments = make([]int32, n), make([]int32, n)
	}
	if kind != LabelNextToken {
		b.Segments = make([]int32, n)
	}
	if len(examples) > 0 && examples[0].Task != nil {
		b.Tasks = make([]int32, rows)
	}
	for r, e := range examples {
		if e.Task != nil {
			b.Tasks[r] = *e.Task
		}
		copy(b.IDs[r*b.Length:], e.IDs)
		copy(b.Labels[r*width:], e.Labels)
		if kind != LabelNextToken {
			for i := range e.IDs {
				b.Segments[r*b.Length+i] = 1
			}
		}
		if packed {
			numberSegments(e, b.Positions[r*b.Length:], b.Segments[r*b.Length:])
		}
	}
	return b
}

func numberSegments(e Example, positions, segments []int32) {
	starts := e.Starts
	if starts == nil {
		starts = []int{0}
	}
	for s, start := range starts {
		end := len(e.IDs)
		if s+1 < len(starts) {
			end = starts[s+1]
		}
		for i := start; i < end; i++ {
			positions[i], segments[i] = int32(i-start), int32(s+1)
		}
	}
}

// within returns the data set with no bucket longer than limit but where its rows are.
func (d *Dataset) within(limit int) *Dataset {
	if d.arrays != nil || d.buckets[len(d.buckets)-1] <= limit {
		return d
	}
	for _, e := range d.examples {
		limit = max(limit, len(e.IDs)) // packed rows may be longer than positions
	}
	i, _ := slices.BinarySearch(d.buckets, limit)
	if i == len(d.buckets) {
		return d
	}
	out := *d
	out.buckets = append(slices.Clone(d.buckets[:i]), limit)
	out.hash = sync.OnceValue(out.contentHash)
	return &out
}
