package quant

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/gopeft/gopeft/internal/safetensors"
)

// FourBit says how a weight is stored in four bits. The zero value of all but Type is
// bitsandbytes' default.
type FourBit struct {
	// Type is the format, [NormalFloat] or [Float4].
	Type Type
	// BlockSize is the number of elements that share an absmax: a power of two from 32 to
	// 4096. 0: 64.
	BlockSize int
	// DoubleQuant stores the absmax values as bytes: 4.127 bits a weight in place of 4.5.
	DoubleQuant bool
}

const defaultBlock = 64

func (f FourBit) block() int {
	if f.BlockSize == 0 {
		return defaultBlock
	}
	return f.BlockSize
}

// Validate reports a setting that bitsandbytes does not have.
func (f FourBit) Validate() error {
	if err := f.validate(); err != nil {
		return fmt.Errorf("quant: %w", err)
	}
	return nil
}

func (f FourBit) validate() error {
	if _, ok := codes4[f.Type]; !ok {
		return fmt.Errorf("unknown quant type %q, want %q or %q", f.Type, NormalFloat, Float4)
	}
	if b := f.block(); b < 32 || b > 4096 || b&(b-1) != 0 {
		return fmt.Errorf("block size is %d, want a power of two from 32 to 4096", b)
	}
	return nil
}

// Tensor4 is a weight in four bits.
type Tensor4 struct {
	FourBit
	// Shape is that of the weight, row-major.
	Shape []int
	// DType is what the weight was stored in before, and dequantises to: F32, F16 or BF16.
	DType safetensors.DType
	// Packed holds two codes a byte, the first element in the high half; an odd last
	// element leaves a low half empty.
	Packed []byte
	// Absmax is one value for each block, nil if Nested holds them.
	Absmax []float32
	Nested *Nested
}

// Nested is a vector of absmax values in bytes: value i is
// Code[Codes[i]]·Absmax[i/BlockSize] + Offset.
type Nested struct {
	Codes     []byte
	Absmax    []float32
	Code      [256]float32
	Offset    float32
	BlockSize int
}

// Size is the number of elements.
func (t *Tensor4) Size() int {
	n := 1
	for _, d := range t.Shape {
		n *= d
	}
	return n
}

// Blocks is the number of blocks.
func (t *Tensor4) Blocks() int { return (t.Size() + t.block() - 1) / t.block() }

// Quantise stores a weight in four bits, on all cores. values are row-major and exactly
// those of dtype F32, F16 or BF16. NaN and infinity are errors.
func (f FourBit) Quantise(values []float32, shape []int, dtype safetensors.DType) (*Tensor4, error) {
	t, err := f.quantise(values, shape, dtype)
	if err != nil {
		return nil, fmt.Errorf("quant: %w", err)
	}
	return t, nil
}

func (f FourBit) quantise(values []float32, shape []int, dtype safetensors.DType) (*Tensor4, error) {
	if err := f.validate(); err != nil {
		return nil, err
	}
	f.BlockSize = f.block()
	t := &Tensor4{FourBit: f, Shape: slices.Clone(shape), DType: dtype}
	if err := checkWeight(values, shape, dtype); err != nil {
		return nil, err
	}
	t.Packed, t.Absmax = make([]byte, (len(values)+1)/2), make([]float32, t.Blocks())
	if !codes4[f.Type].quantise4(values, f.BlockSize, t.Packed, t.Absmax) {
		return nil, errNotFinite(values)
	}
	if f.DoubleQuant {
		t.Nested, t.Absmax = nest(t.Absmax), nil
	}
	return t, nil
}

// checkWeight refuses what has no quantised form, whatever the values.
func checkWeight(values []float32, shape []int, dtype safetensors.DType) error {
	size := 1
	for _, d := range shape {
		if d <= 0 {
			return fmt.Errorf("shape %v has an axis of %d", shape, d)
		}
		size *= d
	}
	switch {
	case dtype != safetensors.F32 && dtype != safetensors.F16 && dtype != safetensors.BF16:
		return fmt.Errorf("dtype %s cannot be quantised, want F32, F16 or BF16", dtype)
	case len(shape) == 0 || size != len(values):
		return fmt.Errorf("shape %v has %d elements, got %d values", shape, size, len(values))
	}
	return nil
}

// errNotFinite names the first NaN or infinity among values.
func errNotFinite(values []float32) error {
	i := slices.IndexFunc(values, notFinite)
	return fmt.Errorf("element %d is %v", i, values[i])
}

func notFinite(v float32) bool { return math.Float32bits(v)&0x7f800000 == 0x7f800000 }

// nest is double quantisation.
func nest(absmax []float32) *Nested {
	n := &Nested{
		Codes: make([]byte, len(absmax)), Absmax: make([]float32, (len(absmax)+nestedBlock-1)/nestedBlock),
		Code: *dynamicMap(), Offset: mean(absmax), BlockSize: nestedBlock,
	}
	centred := make([]float32, len(absmax))
	for i, v := range absmax {
		centred[i] = v - n.Offset
	}
	quantise8(centred, n.Codes, n.Absmax)
	return n
}

// values returns the vector.
func (n *Nested) values() []float32 {
	out := make([]float32, len(n.Codes))
	dequantise8(n.Codes, n.Absmax, n.Code[:], n.BlockSize, out)
	for i := range out {
		out[i] += n.Offset
	}
	return out
}

// BlockAbsmax returns the absmax of each block, those of double quantisation decoded.
func (t *Tensor4) BlockAbsmax() []float32 {
	if t.Nested != nil {
		return t.Nested.values()
	}
	return t.Absmax
}

// Dequantise returns the weight's values in float32, before they are rounded to DType, on
// all cores.
func (t *Tensor4) Dequantise() ([]float32, error) {
	if err := t.check(); err != nil {
		return nil, fmt.Errorf("quant: %w", err)
	}
	values := make([]float32, t.Size())
	codes4[t.Type].dequantise4(t.Packed, t.BlockAbsmax(), t.block(), values)
	return values, nil
}

// check reports codes and statistics that do not fit the shape.
func (t *Tensor4) check() error {
	if err := t.validate(); err != nil {
		return err
	}
	if want := (t.Size() + 1) / 2; len(t.Packed) != want {
		return fmt.Errorf("shape %v needs %d bytes of codes, got %d", t.Shape, want, len(t.Packed))
	}
	if t.Nested == nil {
		if len(t.Absmax) != t.Blocks() {
			return fmt.Errorf("shape %v in blocks of %d needs %d absmax values, got %d", t.Shape, t.block(), t.Blocks(), len(t.Absmax))
		}
		return nil
	}
	n := t.Nested
	switch {
	case t.Absmax != nil:
		return errors.New("absmax is there both plain and nested")
	case notFinite(n.Offset):
		return fmt.Errorf("nested offset is %v", n.Offset)
	case n.BlockSize <= 0:
		return fmt.Errorf("nested block size is %d", n.BlockSize)
	case len(n.Codes) != t.Blocks():
		return fmt.Errorf("shape %v in blocks of %d needs %d nested absmax codes, got %d", t.Shape, t.block(), t.Blocks(), len(n.Codes))
	case len(n.Absmax) != (len(n.Codes)+n.BlockSize-1)/n.BlockSize:
		return fmt.Errorf("%d absmax codes in blocks of %d need %d nested absmax values, got %d",
			len(n.Codes), n.BlockSize, (len(n.Codes)+n.BlockSize-1)/n.BlockSize, len(n.Absmax))
	}
	return nil
}
