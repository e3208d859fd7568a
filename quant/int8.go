package quant

import (
	"fmt"
	"math"
	"slices"

	"github.com/gopeft/gopeft/internal/safetensors"
)

// Tensor8 is a weight [out, in] in LLM.int8()'s storage: each row has the scale
// SCB = its largest magnitude, an element is Codes·SCB/127.
type Tensor8 struct {
	Shape []int
	DType safetensors.DType
	Codes []int8
	SCB   []float32
}

// QuantiseInt8 stores a weight by rows in eight bits, rounding halves to even, on all
// cores. values and dtype are as in [FourBit.Quantise]. (bitsandbytes' layer rounds them to
// float16 first, as [INT8] does.)
func QuantiseInt8(values []float32, shape []int, dtype safetensors.DType) (*Tensor8, error) {
	if len(shape) != 2 {
		return nil, fmt.Errorf("quant: int8: shape %v, want two axes", shape)
	}
	if err := checkWeight(values, shape, dtype); err != nil {
		return nil, fmt.Errorf("quant: int8: %w", err)
	}
	t := &Tensor8{Shape: slices.Clone(shape), DType: dtype, Codes: make([]int8, len(values)), SCB: make([]float32, shape[0])}
	in := shape[1]
	inParallel(shape[0], func(from, to int) {
		for r := from; r < to; r++ {
			row := values[r*in : (r+1)*in]
			if t.SCB[r] = maxAbs(row); t.SCB[r] == 0 || notFinite(t.SCB[r]) {
				continue
			}
			scale := float32(1/t.SCB[r]) * 127 // as torch divides a number by a tensor
			codesOfRow(row, scale, t.Codes[r*in:(r+1)*in])
		}
	})
	if slices.ContainsFunc(t.SCB, notFinite) {
		return nil, fmt.Errorf("quant: int8: %w", errNotFinite(values))
	}
	return t, nil
}

// codesOfRow rounds values·scale, none beyond ±127, with halves to even.
func codesOfRow(row []float32, scale float32, codes []int8) {
	// Around 1.5·2^23 the distance of floats is 1: the sum is rounded to an integer, which
	// its lowest bits are.
	const shift = 1.5 * (1 << 23)
	codes = codes[:len(row)]
	for i, v := range row {
		codes[i] = int8(math.Float32bits(float32(v*scale) + shift))
	}
}

// perCode is 1/127 as bitsandbytes writes it.
const perCode = 7.874015718698502e-3

// Dequantise returns the weight's values in float32.
func (t *Tensor8) Dequantise() ([]float32, error) {
	if err := t.check(); err != nil {
		return nil, fmt.Errorf("quant: %w", err)
	}
	values := make([]float32, len(t.Codes))
	in := t.Shape[1]
	for i, c := range t.Codes {
		values[i] = float32(c) * t.SCB[i/in] * perCode
	}
	return values, nil
}

// check reports codes and scales that do not fit the shape.
func (t *Tensor8) check() error {
	if len(t.Shape) != 2 || len(t.Codes) != t.Shape[0]*t.Shape[1] || len(t.SCB) != t.Shape[0] {
		return fmt.Errorf("int8: shape %v, but %d codes and %d scales", t.Shape, len(t.Codes), len(t.SCB))
	}
	if i := slices.IndexFunc(t.SCB, notFinite); i >= 0 {
		return fmt.Errorf("int8: scale %d is %v", i, t.SCB[i])
	}
	return nil
}
