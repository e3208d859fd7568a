package train

import (
	"runtime"

	"github.com/gomlx/gomlx/core/tensors"
	"golang.org/x/sync/errgroup"

	"github.com/gopeft/gopeft/internal/graphx"
)

// defaultParts is the number of pieces a batch is cut into on the Go backend, whose
// programs run on one core. It must not depend on the machine: it decides in what
// order gradients are added, and so the last bits of the result.
const defaultParts = 4

// split cuts a batch into at most parts runs of rows, between groups of together rows
// only; 0: not at all.
func (b Batch) split(parts, together int) []Batch {
	if together == 0 || b.Rows%together != 0 {
		return []Batch{b}
	}
	groups := b.Rows / together
	parts = min(parts, groups)
	out := make([]Batch, 0, parts)
	for i := range parts {
		from, to := i*groups/parts*together, (i+1)*groups/parts*together
		rows := func(values []int32) []int32 {
			if values == nil {
				return nil
			}
			return values[from*b.Length : to*b.Length]
		}
		if b.arrays.inputs != nil {
			cut := b.arrays.each(func(a Array) Array { return a.cut(from, to) })
			out = append(out, Batch{Rows: to - from, RowOffset: b.RowOffset + from, arrays: cut})
			continue
		}
		width := b.Kind.width(b.Length)
		var tasks []int32
		if b.Tasks != nil {
			tasks = b.Tasks[from:to]
		}
		out = append(out, Batch{
			Rows: to - from, Length: b.Length, RowOffset: b.RowOffset + from,
			IDs: rows(b.IDs), Labels: b.Labels[from*width : to*width], Kind: b.Kind, Positions: rows(b.Positions), Segments: rows(b.Segments),
			Tasks: tasks,
		})
	}
	return out
}

// inParts runs the gradients program on the pieces of a batch side by side, one
// core each, and adds their results to sums in order.
func (s *stepper) inParts(sums []*tensors.Tensor, b Batch, call func(zeros []*tensors.Tensor, part Batch) ([]*tensors.Tensor, error)) ([]*tensors.Tensor, error) {
	pieces := b.split(s.config.parts, s.together)
	results := make([][]*tensors.Tensor, len(pieces))
	err := inParallel(len(pieces), func(i int) (err error) {
		zeros := make([]*tensors.Tensor, len(sums))
		for k, t := range sums {
			zeros[k] = tensors.FromShape(t.Shape())
		}
		defer free(zeros)
		results[i], err = call(zeros, pieces[i])
		return err
	})
	defer func() {
		for _, result := range results {
			free(result)
		}
	}()
	if err != nil {
		return nil, err
	}
	return addAll(sums, results)
}

// addAll returns sums plus all results, added in order.
func addAll(sums []*tensors.Tensor, results [][]*tensors.Tensor) ([]*tensors.Tensor, error) {
	out := make([]*tensors.Tensor, len(sums))
	for k, t := range sums {
		total, err := tensors.CopyFlatData[float32](t)
		if err != nil {
			return nil, err
		}
		for _, result := range results {
			err := tensors.ConstFlatData(result[k], func(values []float32) {
				for i, v := range values {
					total[i] += v
				}
			})
			if err != nil {
				return nil, err
			}
		}
		out[k] = tensors.FromFlatDataAndDimensions(total, t.Shape().Dimensions...)
	}
	return out, nil
}

// inParallel runs f for 0..n-1, as many at once as there are cores.
func inParallel(n int, f func(i int) error) error {
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i := range n {
		group.Go(func() error { return graphx.Try(func() error { return f(i) }) })
	}
	return group.Wait()
}
