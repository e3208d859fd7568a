package quant

import (
	"fmt"
	"slices"
	"unsafe"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/safetensors"
)

// arrayScales are the scales of rows.
const arrayScales = "SCB"

// layout8 is a [Tensor8] without its data.
type layout8 struct {
	shape []int
	dtype safetensors.DType
}

// Layout implements [Stored].
func (t *Tensor8) Layout() Layout { return &layout8{t.Shape, t.DType} }

// Arrays implements [Stored].
func (t *Tensor8) Arrays() []Array {
	return []Array{{"", dtypes.Int8, t.Shape, castBytes[byte](t.Codes)}, floatArray(arrayScales, t.SCB)}
}

// castBytes shares the memory: a byte and an int8 are the same bits.
func castBytes[To, From byte | int8](list []From) []To {
	return unsafe.Slice((*To)(unsafe.Pointer(unsafe.SliceData(list))), len(list))
}

// Names implements [Layout].
func (l *layout8) Names() []string { return []string{"", arrayScales} }

// Shape implements [Layout].
func (l *layout8) Shape() []int { return l.shape }

// DType implements [Layout].
func (l *layout8) DType() safetensors.DType { return l.dtype }

// Bytes implements [Layout].
func (l *layout8) Bytes() int { return l.shape[0]*l.shape[1] + l.Statistics() }

// Statistics implements [Layout].
func (l *layout8) Statistics() int { return 4 * l.shape[0] }

// Store implements [Layout].
func (l *layout8) Store(values []float32) (Stored, error) {
	if err := roundTo(l.dtype, values); err != nil {
		return nil, err
	}
	return INT8{}.Store(values, l.shape, l.dtype)
}

// Restore implements [Layout].
func (l *layout8) Restore(data func(name string) ([]byte, error)) (Stored, error) {
	codes, err := data("")
	if err != nil {
		return nil, err
	}
	scales, err := data(arrayScales)
	if err != nil {
		return nil, err
	}
	t := &Tensor8{Shape: slices.Clone(l.shape), DType: l.dtype, Codes: castBytes[int8](codes), SCB: floatsFrom(scales)}
	return t, t.check()
}

// Weight implements [Layout].
func (l *layout8) Weight(array func(name string) *graph.Node, dtype dtypes.DType, tie *graph.Node) *graph.Node {
	scales := array(arrayScales)
	if tie != nil {
		scales = graph.SchedulingBarrier(scales, tie)
	}
	values := graph.ConvertDType(array(""), dtypes.Float32)
	values = graph.MulScalar(graph.Mul(values, graph.Reshape(scales, l.shape[0], 1)), perCode)
	return graph.StopGradient(graph.ConvertDType(values, dtype))
}

// Tensors implements [Stored].
func (t *Tensor8) Tensors(weight string) ([]safetensors.Tensor, error) {
	if err := t.check(); err != nil {
		return nil, fmt.Errorf("quant: writing %q: %w", weight, err)
	}
	scales := floatArray(arrayScales, t.SCB)
	module := moduleOf(weight)
	return []safetensors.Tensor{
		{Name: weight, DType: safetensors.I8, Shape: t.Shape, Bytes: castBytes[byte](t.Codes)},
		{Name: module + arrayScales, DType: safetensors.F32, Shape: scales.Shape, Bytes: scales.Data},
		{Name: module + weightFormat, DType: safetensors.U8, Shape: []int{}, Bytes: []byte{0}},
	}, nil
}

// weightFormat is 0 for codes in rows, the only format that checkpoints have.
const weightFormat = "weight_format"

// moduleOf is the part of a weight's name that its module's other tensors share.
func moduleOf(weight string) string {
	for i := len(weight) - 1; i >= 0; i-- {
		if weight[i] == '.' {
			return weight[:i+1]
		}
	}
	return ""
}
