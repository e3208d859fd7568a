package quant

import (
	"fmt"
	"slices"
	"strings"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/safetensors"
)

// Scheme says how the weights of a base's linear layers are stored: [NF4], [FP4] or [INT8].
type Scheme interface {
	// Validate reports a setting that makes no sense.
	Validate() error
	// Skips reports whether the linear layer at path keeps its weight as it is. Heads do
	// in any case, as with bitsandbytes.
	Skips(path string) bool
	// Layout is that of what Store returns for a weight of this shape and dtype.
	Layout(shape []int, dtype safetensors.DType) Layout
	// Config describes the scheme as transformers does.
	Config() Config
	// Store quantises one weight [out, in]; see [FourBit.Quantise].
	Store(values []float32, shape []int, dtype safetensors.DType) (Stored, error)
}

// NF4 stores weights as 4-bit NormalFloat: QLoRA's choice.
type NF4 struct {
	// BlockSize and DoubleQuant are those of [FourBit].
	BlockSize   int
	DoubleQuant bool
	// Skip lists linear layers that keep their weights, each by its path or an end of it.
	Skip []string
}

// FP4 stores weights as 4-bit floating-point numbers.
type FP4 struct {
	// BlockSize and DoubleQuant are those of [FourBit].
	BlockSize   int
	DoubleQuant bool
	// Skip lists linear layers that keep their weights, each by its path or an end of it.
	Skip []string
}

// INT8 stores weights by rows in eight bits, as LLM.int8() does; products are computed
// with the weights in the base's dtype.
type INT8 struct {
	// Skip lists linear layers that keep their weights, each by its path or an end of it.
	Skip []string
}

func (s NF4) format() FourBit { return FourBit{NormalFloat, s.BlockSize, s.DoubleQuant} }
func (s FP4) format() FourBit { return FourBit{Float4, s.BlockSize, s.DoubleQuant} }

// Validate implements [Scheme].
func (s NF4) Validate() error { return s.format().Validate() }

// Validate implements [Scheme].
func (s FP4) Validate() error { return s.format().Validate() }

// Validate implements [Scheme].
func (s INT8) Validate() error { return nil }

// Skips implements [Scheme].
func (s NF4) Skips(path string) bool { return endsIn(path, s.Skip) }

// Skips implements [Scheme].
func (s FP4) Skips(path string) bool { return endsIn(path, s.Skip) }

// Skips implements [Scheme].
func (s INT8) Skips(path string) bool { return endsIn(path, s.Skip) }

func endsIn(path string, ends []string) bool {
	for _, end := range ends {
		if strings.HasSuffix("."+path, "."+end) {
			return true
		}
	}
	return false
}

// Layout implements [Scheme].
func (s NF4) Layout(shape []int, dtype safetensors.DType) Layout {
	return s.format().layout(shape, dtype)
}

// Layout implements [Scheme].
func (s FP4) Layout(shape []int, dtype safetensors.DType) Layout {
	return s.format().layout(shape, dtype)
}

// Layout implements [Scheme].
func (s INT8) Layout(shape []int, _ safetensors.DType) Layout {
	return &layout8{shape, safetensors.F16}
}

// Store implements [Scheme].
func (s NF4) Store(values []float32, shape []int, dtype safetensors.DType) (Stored, error) {
	return stored4(s.format().Quantise(values, shape, dtype))
}

// Store implements [Scheme].
func (s FP4) Store(values []float32, shape []int, dtype safetensors.DType) (Stored, error) {
	return stored4(s.format().Quantise(values, shape, dtype))
}

func stored4(t *Tensor4, err error) (Stored, error) {
	if err != nil {
		return nil, err // not a nil *Tensor4 in an interface
	}
	return t, nil
}

// Store implements [Scheme]. Like bitsandbytes' layer it rounds values to float16 before it
// quantises them; it is an error if one is too large for that.
func (s INT8) Store(values []float32, shape []int, dtype safetensors.DType) (Stored, error) {
	if err := checkWeight(values, shape, dtype); err != nil {
		return nil, fmt.Errorf("quant: int8: %w", err)
	}
	if dtype != safetensors.F16 {
		half := slices.Clone(values)
		if err := roundTo(safetensors.F16, half); err != nil {
			return nil, err
		}
		for i, v := range half {
			if notFinite(v) && !notFinite(values[i]) {
				return nil, fmt.Errorf("quant: int8: element %d is %v, too large for float16", i, values[i])
			}
		}
		values = half
	}
	t, err := QuantiseInt8(values, shape, safetensors.F16)
	if err != nil {
		return nil, err
	}
	return t, nil
}

// Stored is a quantised weight: [*Tensor4] or [*Tensor8].
type Stored interface {
	// Layout describes it without its data.
	Layout() Layout
	// Arrays are its data, for a device.
	Arrays() []Array
	// Dequantise returns the weight's values in float32.
	Dequantise() ([]float32, error)
	// Tensors are what bitsandbytes stores it as under the weight's name.
	Tensors(weight string) ([]safetensors.Tensor, error)
}

// Array is a part of a quantised weight.
type Array struct {
	// Name is what follows the weight's name, without its dot; "" for the codes.
	Name  string
	DType dtypes.DType
	Shape []int
	Data  []byte
}

// Layout is how a quantised weight is laid out in arrays.
type Layout interface {
	// Names lists the arrays by [Array].Name.
	Names() []string
	// Shape is that of the weight, [out, in].
	Shape() []int
	// DType is what the weight was made from.
	DType() safetensors.DType
	// Weight builds the weight in dtype from the nodes of its arrays. With a tie it is not
	// built before that node, and need not outlive its use: see docs/quant.md. It is cut
	// off from gradients, and graph building code that panics on errors.
	Weight(array func(name string) *graph.Node, dtype dtypes.DType, tie *graph.Node) *graph.Node
	// Store quantises other values of the weight in the same way, rounded to DType first.
	Store(values []float32) (Stored, error)
	// Restore is the inverse of [Stored].Arrays: data are the arrays' bytes, which the
	// result may keep.
	Restore(data func(name string) ([]byte, error)) (Stored, error)
	// Bytes is the memory of all arrays, Statistics that of all but the codes.
	Bytes() int
	Statistics() int
}
