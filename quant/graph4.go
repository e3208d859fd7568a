package quant

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/internal/safetensors"
)

// The arrays of a four-bit weight, named as in bitsandbytes' checkpoints.
const (
	arrayAbsmax       = "absmax"
	arrayNestedAbsmax = "nested_absmax"
	arrayNestedMap    = "nested_quant_map"
	arrayOffset       = "nested_offset"
)

// layout4 is a [Tensor4] without its data.
type layout4 struct {
	FourBit
	shape       []int
	dtype       safetensors.DType
	nestedBlock int
}

// Layout implements [Stored].
func (t *Tensor4) Layout() Layout {
	l := &layout4{FourBit: t.FourBit, shape: t.Shape, dtype: t.DType}
	l.DoubleQuant = t.Nested != nil
	if t.Nested != nil {
		l.nestedBlock = t.Nested.BlockSize
	}
	return l
}

// layout is what a weight quantised here has.
func (f FourBit) layout(shape []int, dtype safetensors.DType) *layout4 {
	l := &layout4{FourBit: f, shape: shape, dtype: dtype}
	l.BlockSize = f.block()
	if f.DoubleQuant {
		l.nestedBlock = nestedBlock
	}
	return l
}

// Arrays implements [Stored].
func (t *Tensor4) Arrays() []Array {
	list := []Array{{"", dtypes.Uint8, []int{len(t.Packed)}, t.Packed}}
	n := t.Nested
	if n == nil {
		return append(list, floatArray(arrayAbsmax, t.Absmax))
	}
	return append(list, Array{arrayAbsmax, dtypes.Uint8, []int{len(n.Codes)}, n.Codes}, floatArray(arrayNestedAbsmax, n.Absmax),
		floatArray(arrayNestedMap, n.Code[:]), floatArray(arrayOffset, []float32{n.Offset}))
}

func floatArray(name string, values []float32) Array {
	data := make([]byte, 0, 4*len(values))
	for _, v := range values {
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(v))
	}
	return Array{name, dtypes.Float32, []int{len(values)}, data}
}

func floatsFrom(data []byte) []float32 {
	values := make([]float32, len(data)/4)
	for i := range values {
		values[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:]))
	}
	return values
}

// Names implements [Layout].
func (l *layout4) Names() []string {
	if l.DoubleQuant {
		return []string{"", arrayAbsmax, arrayNestedAbsmax, arrayNestedMap, arrayOffset}
	}
	return []string{"", arrayAbsmax}
}

// Shape implements [Layout].
func (l *layout4) Shape() []int { return l.shape }

// DType implements [Layout].
func (l *layout4) DType() safetensors.DType { return l.dtype }

// Bytes implements [Layout].
func (l *layout4) Bytes() int {
	return ((&Tensor4{Shape: l.shape}).Size()+1)/2 + l.Statistics()
}

// Statistics implements [Layout].
func (l *layout4) Statistics() int {
	blocks := (&Tensor4{FourBit: l.FourBit, Shape: l.shape}).Blocks()
	if !l.DoubleQuant {
		return 4 * blocks
	}
	return blocks + 4*((blocks+l.nestedBlock-1)/l.nestedBlock) + 4*256 + 4
}

// Store implements [Layout].
func (l *layout4) Store(values []float32) (Stored, error) {
	if err := roundTo(l.dtype, values); err != nil {
		return nil, err
	}
	return stored4(l.Quantise(values, l.shape, l.dtype))
}

// roundTo rounds values to what a dtype can hold.
func roundTo(dtype safetensors.DType, values []float32) error {
	if dtype == safetensors.F32 {
		return nil
	}
	data := make([]byte, len(values)*dtype.Bits()/8)
	if err := safetensors.EncodeFloat32s(data, values, dtype); err != nil {
		return fmt.Errorf("quant: %w", err)
	}
	return safetensors.DecodeFloat32s(values, data, dtype)
}

// Restore implements [Layout].
func (l *layout4) Restore(data func(name string) ([]byte, error)) (Stored, error) {
	read := map[string][]byte{}
	for _, name := range l.Names() {
		var err error
		if read[name], err = data(name); err != nil {
			return nil, err
		}
	}
	t := &Tensor4{FourBit: l.FourBit, Shape: l.shape, DType: l.dtype, Packed: read[""]}
	if !l.DoubleQuant {
		t.Absmax = floatsFrom(read[arrayAbsmax])
		return t, t.check()
	}
	code, offset := floatsFrom(read[arrayNestedMap]), floatsFrom(read[arrayOffset])
	if len(code) != 256 || len(offset) != 1 {
		return nil, fmt.Errorf("nested map of %d values and %d offsets, want 256 and 1", len(code), len(offset))
	}
	t.Nested = &Nested{Codes: read[arrayAbsmax], Absmax: floatsFrom(read[arrayNestedAbsmax]), Code: [256]float32(code), Offset: offset[0], BlockSize: l.nestedBlock}
	return t, t.check()
}

// Weight implements [Layout]: each code's level from a table, times the block's absmax in
// float32, rounded once to dtype as bitsandbytes does.
//
// The tie is on the table: on the packed bytes it would make XLA copy them.
func (l *layout4) Weight(array func(name string) *graph.Node, dtype dtypes.DType, tie *graph.Node) *graph.Node {
	codes, absmax, size := array(""), l.absmax(array), (&Tensor4{Shape: l.shape}).Size()
	tied := func(table any) *graph.Node {
		t := graph.Const(codes.Graph(), table)
		if tie != nil {
			t = graph.SchedulingBarrier(t, tie)
		}
		return t
	}
	var values *graph.Node
	if whole := size == absmax.Shape().Size()*l.block(); whole && dtype.Size() == 2 && !graphx.Fused(codes) {
		values = l.words(codes, absmax, tied(codes4[l.Type].levels[:]), dtype)
	} else {
		levels := graph.Gather(tied(l.pairTable()), graph.InsertAxes(codes, -1)) // [bytes, 2]
		values = graph.ConvertDType(scaleBlocks(levels, absmax, l.block(), size), dtype)
	}
	return graph.StopGradient(graph.Reshape(values, l.shape...))
}

// words decodes each byte to a word of two 16-bit values. On a GPU that writes whole words
// and reads a table of 64 bytes in one piece for all of a warp: 39 us for 11008 x 4096 on an
// H200, where a table of pairs takes 70.
func (l *layout4) words(codes, absmax, levels *graph.Node, dtype dtypes.DType) *graph.Node {
	blocks := absmax.Shape().Size()
	codes = graph.Reshape(codes, blocks, l.block()/2)
	absmax = graph.Reshape(absmax, blocks, 1)
	half := func(code *graph.Node) *graph.Node {
		level := graph.Gather(levels, graph.InsertAxes(graph.ConvertDType(code, dtypes.Int32), -1))
		value := graph.ConvertDType(graph.Mul(level, absmax), dtype)
		return graph.ConvertDType(graph.Bitcast(value, dtypes.Uint16), dtypes.Uint32)
	}
	constant := func(v any) *graph.Node { return graph.Const(codes.Graph(), v) }
	first := half(graph.BitwiseShiftRightLogical(codes, constant(uint8(4))))
	second := half(graph.BitwiseAnd(codes, constant(uint8(15))))
	word := graph.BitwiseOr(first, graph.BitwiseShiftLeft(second, constant(uint32(16))))
	return graph.Bitcast(word, dtype) // little-endian: the low half comes first
}

// pairTable holds the two levels of each byte.
func (l *layout4) pairTable() [][]float32 {
	levels := codes4[l.Type].levels
	table := make([][]float32, 256)
	for b := range table {
		table[b] = []float32{levels[b>>4], levels[b&15]}
	}
	return table
}

// absmax is one value for each block.
func (l *layout4) absmax(array func(name string) *graph.Node) *graph.Node {
	absmax := array(arrayAbsmax)
	if !l.DoubleQuant {
		return absmax
	}
	decoded := graph.Gather(array(arrayNestedMap), graph.InsertAxes(absmax, -1))
	scaled := scaleBlocks(decoded, array(arrayNestedAbsmax), l.nestedBlock, absmax.Shape().Size())
	return graph.Add(scaled, array(arrayOffset))
}

// scaleBlocks multiplies each block of the first size elements of values by its scale.
func scaleBlocks(values, scales *graph.Node, block, size int) *graph.Node {
	blocks := scales.Shape().Size()
	scales = graph.Reshape(scales, blocks, 1)
	if size == blocks*block {
		return graph.Reshape(graph.Mul(graph.Reshape(values, blocks, block), scales), size)
	}
	// The last block is partial: each element gets its own copy of the scale.
	each := graph.Reshape(graph.BroadcastToDims(scales, blocks, block), blocks*block)
	flat := graph.Reshape(values, values.Shape().Size())
	return graph.Mul(graph.Slice(flat, graph.AxisRange(0, size)), graph.Slice(each, graph.AxisRange(0, size)))
}
