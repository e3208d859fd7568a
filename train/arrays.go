package train

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/gomlx/gomlx/core/tensors"

	"github.com/gopeft/gopeft/site"
)

// Array is an array of float32 or int32 numbers, row-major, whose axis 0 is the example.
// Make one with [Floats] or [Ints].
type Array struct {
	shape  []int
	floats []float32
	ints   []int32
}

// Floats makes an array of the given dimensions; without any it is [len(values)]. It
// shares memory with values, which must not change any more.
func Floats(values []float32, dims ...int) Array {
	return Array{shape: shapeOf(len(values), dims), floats: values}
}

// Ints is [Floats] for whole numbers, such as token ids or classes.
func Ints(values []int32, dims ...int) Array {
	return Array{shape: shapeOf(len(values), dims), ints: values}
}

func shapeOf(n int, dims []int) []int {
	if len(dims) == 0 {
		return []int{n}
	}
	return slices.Clone(dims)
}

// Shape returns the dimensions.
func (a Array) Shape() []int { return slices.Clone(a.shape) }

// perRow is the number of elements of an example.
func (a Array) perRow() int {
	n := 1
	for _, d := range a.shape[1:] {
		n *= d
	}
	return n
}

func (a Array) check() error {
	for _, d := range a.shape {
		if d <= 0 {
			return fmt.Errorf("shape %v, want dimensions of 1 or more", a.shape)
		}
	}
	if want, got := a.shape[0]*a.perRow(), len(a.floats)+len(a.ints); got != want {
		return fmt.Errorf("shape %v has %d elements, got %d", a.shape, want, got)
	}
	for i, v := range a.floats {
		if v != v || math.IsInf(float64(v), 0) {
			return fmt.Errorf("element %d is %g", i, v)
		}
	}
	return nil
}

// rows returns a copy of the examples at the given indices.
func (a Array) rows(indices []int) Array {
	n := a.perRow()
	out := Array{shape: append([]int{len(indices)}, a.shape[1:]...)}
	for _, i := range indices {
		if a.floats != nil {
			out.floats = append(out.floats, a.floats[i*n:(i+1)*n]...)
		} else {
			out.ints = append(out.ints, a.ints[i*n:(i+1)*n]...)
		}
	}
	return out
}

// cut returns the examples from and before to.
func (a Array) cut(from, to int) Array {
	n := a.perRow()
	out := Array{shape: append([]int{to - from}, a.shape[1:]...)}
	if a.floats != nil {
		out.floats = a.floats[from*n : to*n]
	} else {
		out.ints = a.ints[from*n : to*n]
	}
	return out
}

func (a Array) tensor() *tensors.Tensor {
	if a.floats != nil {
		return tensors.FromFlatDataAndDimensions(a.floats, a.shape...)
	}
	return tensors.FromFlatDataAndDimensions(a.ints, a.shape...)
}

// arrays are the inputs and the targets of a model that is a plain function, a
// site.Function.
type arrays struct {
	inputs, targets []Array
}

func (a arrays) all() []Array { return slices.Concat(a.inputs, a.targets) }

// each applies f to all arrays.
func (a arrays) each(f func(Array) Array) arrays {
	var out arrays
	for _, in := range a.inputs {
		out.inputs = append(out.inputs, f(in))
	}
	for _, target := range a.targets {
		out.targets = append(out.targets, f(target))
	}
	return out
}

func (a arrays) tensors() []*tensors.Tensor {
	var out []*tensors.Tensor
	for _, array := range a.all() {
		out = append(out, array.tensor())
	}
	return out
}

func (a arrays) hash() uint64 {
	h := newHash()
	h.add(uint64(len(a.inputs)), uint64(len(a.targets)))
	for _, array := range a.all() {
		for _, d := range array.shape {
			h.add(uint64(d))
		}
		for _, v := range array.floats {
			h.add(uint64(math.Float32bits(v)))
		}
		for _, v := range array.ints {
			h.add(uint64(uint32(v)))
		}
	}
	return h.sum
}

// NewArrays makes a data set for models that are plain functions (peft.WrapModel): the
// inputs of the model, and the targets that its loss compares the outputs with. Axis 0 of
// all of them is the example, and what batches are cut from; a last batch that is not
// full is a smaller one, for which programs are compiled again.
func NewArrays(inputs, targets []Array) (*Dataset, error) {
	d, err := newArrays(arrays{inputs, targets})
	if err != nil {
		return nil, fmt.Errorf("train: new data set of arrays: %w", err)
	}
	return d, nil
}

func newArrays(a arrays) (*Dataset, error) {
	if len(a.inputs) == 0 {
		return nil, errors.New("no inputs")
	}
	n := 0
	for i, array := range a.all() {
		if len(array.shape) == 0 {
			return nil, fmt.Errorf("array %d is empty", i)
		}
		if err := array.check(); err != nil {
			return nil, fmt.Errorf("array %d: %w", i, err)
		}
		if i == 0 {
			n = array.shape[0]
		}
		if array.shape[0] != n {
			return nil, fmt.Errorf("array %d has %d examples, array 0 has %d", i, array.shape[0], n)
		}
	}
	d := &Dataset{arrays: &a, examples: make([]Example, n), report: Report{Examples: n, Rows: n, Targets: n}}
	d.hash = sync.OnceValue(a.hash)
	return d, nil
}

// arrayBatch makes the batch of the examples at the given indices.
func (d *Dataset) arrayBatch(indices []int) Batch {
	return Batch{Rows: len(indices), arrays: d.arrays.each(func(a Array) Array { return a.rows(indices) })}
}

// checkArrays refuses arrays for a base that takes tokens, the other way round, and what
// arrays do not have.
func (t *Trainer) checkArrays(d *Dataset) error {
	_, function := t.pm.Base().(site.Function)
	switch {
	case !function:
		return errors.New("it has arrays, but the base takes tokens")
	case d.arrays == nil:
		return errors.New("it has tokens, but the base is a plain function: see NewArrays")
	case t.args.GroupByLength:
		return errors.New("its examples have no length to group by")
	case t.args.GradientCheckpointing:
		return errors.New("GradientCheckpointing needs a base that was made for it: put Node.Checkpoint into the model function")
	}
	return nil
}
