package peft_test

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	. "github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/core/tensors/images"
	"github.com/gomlx/gomlx/ml/layers"
	"github.com/gomlx/gomlx/ml/layers/activation"
	"github.com/gomlx/gomlx/ml/layers/norm"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/gomlx/gomlx/ml/nn"
	"github.com/gomlx/gomlx/ml/zoo/transformer"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/peft"
)

// foreign is a GoMLX model that knows nothing of this library.
type foreign struct {
	name   string
	fn     peft.ModelFunc
	input  shapes.Shape
	ids    int // the input holds ids below it; 0: floats
	target peft.Targets
	head   string // the module that is the head, where it shares another's weight
	// modules are the paths that must be found, in order.
	modules []string
	// right is fn with right gradients, where GoMLX's own are wrong.
	right peft.ModelFunc
}

// oracle is the model whose gradients are to be had.
func (m foreign) oracle() peft.ModelFunc {
	if m.right != nil {
		return m.right
	}
	return m.fn
}

func mlp(scope *model.Scope, in []*Node) []*Node {
	x := activation.Gelu(layers.Dense(scope.In("hidden"), in[0], true, 5))
	x = layers.Dense(scope.In("middle"), x, false, 2, 3)
	x = Reshape(x, -1, 6)
	return []*Node{layers.Dense(scope.In("readout"), Tanh(x), true, 3)}
}

// fused is a dense layer with its activation in one node, and a layer norm behind it.
func fused(scope *model.Scope, in []*Node) []*Node {
	g := in[0].Graph()
	weight := scope.In("gate").VariableWithShape("weights", shapes.Make(dtypes.Float32, 5, 4)).NodeValue(g)
	bias := scope.At("gate").VariableWithShape("biases", shapes.Make(dtypes.Float32, 5)).NodeValue(g)
	x := nn.Dense(in[0], weight, bias, compute.DenseLayoutOutputsInput, activation.TypeGelu)
	x = norm.LayerNorm(scope.In("norm"), x, -1).Done()
	return []*Node{layers.Dense(scope.In("readout"), x, true, 3)}
}

// byHand multiplies in all the ways that a linear layer can be written.
func byHand(scope *model.Scope, in []*Node) []*Node {
	g := in[0].Graph()
	weight := func(name string, dims ...int) *Node {
		return scope.VariableWithShape(name, shapes.Make(dtypes.Float32, dims...)).NodeValue(g)
	}
	x := in[0]                                                    // [batch, length, 4]
	heads := Einsum("bsd,dhk->bshk", x, weight("split", 4, 2, 3)) // to heads
	x = Add(x, Einsum("bshk,hkd->bsd", heads, weight("merge", 2, 3, 4)))
	left := Dot(weight("left", 5, 4), x).General([]int{1}, nil, []int{2}, nil) // [5, batch, length]
	x = TransposeAllAxes(left, 1, 2, 0)
	x = Dot(Tanh(x), Transpose(weight("back", 6, 5), 0, 1)).General([]int{2}, nil, []int{0}, nil)
	return []*Node{Add(x, Reshape(weight("shift", 6), 1, 1, 6))}
}

func convolutions(axis images.ChannelsAxisConfig, spatial int) peft.ModelFunc {
	return convolutionNet(axis, spatial, func(scope *model.Scope, x *Node) *Node {
		return layers.Convolution(scope, x).Channels(6).KernelSize(2).Strides(2).UseBias(false).ChannelsAxis(axis).Done()
	})
}

// sliced is convolutions with the second made of slices and products: GoMLX 0.28.3 has a
// wrong gradient for a kernel of even size.
func sliced(axis images.ChannelsAxisConfig, spatial int) peft.ModelFunc {
	return convolutionNet(axis, spatial, func(scope *model.Scope, x *Node) *Node {
		dims := append(slices.Repeat([]int{2}, spatial), 4, 6)
		if axis == images.ChannelsFirst {
			dims = append([]int{6, 4}, dims[:spatial]...)
		}
		w := variable(scope.In("conv"), x.Graph(), "weights", dims...)
		if axis == images.ChannelsFirst {
			x, w = TransposeAllAxes(x, 0, 2, 3, 1), TransposeAllAxes(w, 2, 3, 1, 0)
		}
		var y *Node
		for tap := range 1 << spatial {
			window, at := []SliceAxisSpec{AxisRange()}, []SliceAxisSpec{}
			for i := range spatial {
				start := tap >> i & 1
				window = append(window, AxisRange(start, x.Shape().Dim(1+i)-1+start).Stride(2))
				at = append(at, AxisElem(start))
			}
			term := Dot(Slice(x, window...), Reshape(Slice(w, at...), 4, 6)).General([]int{1 + spatial}, nil, []int{0}, nil)
			if y == nil {
				y = term
			} else {
				y = Add(y, term)
			}
		}
		if axis == images.ChannelsFirst {
			y = TransposeAllAxes(y, 0, 3, 1, 2)
		}
		return y
	})
}

func convolutionNet(axis images.ChannelsAxisConfig, spatial int, second func(scope *model.Scope, x *Node) *Node) peft.ModelFunc {
	return func(scope *model.Scope, in []*Node) []*Node {
		x := layers.Convolution(scope.In("first"), in[0]).Channels(4).KernelSize(3).PadSame().ChannelsAxis(axis).Done()
		x = second(scope.In("second"), activation.Relu(x))
		x = ReduceMean(Square(x), axesOf(axis, spatial)...)
		return []*Node{layers.Dense(scope.In("readout"), x, true, 3)}
	}
}

func axesOf(axis images.ChannelsAxisConfig, spatial int) []int {
	first := 1
	if axis == images.ChannelsFirst {
		first = 2
	}
	var axes []int
	for i := range spatial {
		axes = append(axes, first+i)
	}
	return axes
}

// shared uses its embeddings as the head, and one dense layer twice.
func shared(scope *model.Scope, in []*Node) []*Node {
	g := in[0].Graph()
	table := scope.In("embed").VariableWithShape("embeddings", shapes.Make(dtypes.Float32, 11, 6)).NodeValue(g)
	return untied(scope, in[0], table, table)
}

// untied is shared with a table for either use.
func untied(scope *model.Scope, ids, embeddings, head *Node) []*Node {
	x := Gather(embeddings, InsertAxes(ids, -1))
	for range 2 {
		x = Add(x, Tanh(layers.Dense(scope.At("again"), x, true, 6)))
	}
	return []*Node{Dot(x, head).General([]int{2}, nil, []int{1}, nil)}
}

// batchNormed is a model that GoMLX would change while it trains it.
func batchNormed(scope *model.Scope, in []*Node) []*Node {
	x := layers.Dense(scope.In("hidden"), in[0], true, 5)
	x = norm.BatchNorm(scope.In("bn"), x, -1).UseBackendInference(false).Done()
	return []*Node{layers.Dense(scope.In("readout"), Tanh(x), true, 3)}
}

func zooModel(arch transformer.Architecture, transposed bool, layerCount int) peft.ModelFunc {
	return func(scope *model.Scope, in []*Node) []*Node {
		m := transformer.New(scope).WithVocabSize(17).WithEmbedDim(8).WithNumLayers(layerCount).WithNumHeads(4).WithHeadDim(4).
			WithFFNDim(12).WithMaxPosEmbed(16).WithArchitecture(arch).WithTransposedWeights(transposed)
		if arch == transformer.ArchitectureGemma3 {
			m = m.WithNumKVHeads(2).WithNormalization("rms").WithFinalNormalization("rms").WithBias(false).WithRoPE(10000)
		}
		return []*Node{m.Logits(in[0], transformer.CallOptions{})}
	}
}

func float32s(dims ...int) shapes.Shape { return shapes.Make(dtypes.Float32, dims...) }

func int32s(dims ...int) shapes.Shape { return shapes.Make(dtypes.Int32, dims...) }

var foreignModels = []foreign{
	{name: "mlp", fn: mlp, input: float32s(4, 7), target: peft.AllLinear, modules: []string{"hidden.dense", "middle.dense", "readout.dense"}},
	{name: "fused", fn: fused, input: float32s(4, 4), target: peft.AllLinear, modules: []string{"gate", "readout.dense", "norm.layer_normalization"}},
	{name: "by hand", fn: byHand, input: float32s(2, 3, 4), target: peft.AllLinear, modules: []string{"split", "merge", "left", "back"}},
	{name: "shared", fn: shared, input: int32s(2, 3), ids: 11, target: peft.Modules("embed", "again.dense", "embed.linear"), head: "embed.linear", modules: []string{"embed", "again.dense", "embed.linear"}},
	{name: "conv1d", fn: convolutions(images.ChannelsLast, 1), right: sliced(images.ChannelsLast, 1), input: float32s(2, 9, 3), target: peft.Regex("first.conv|second.conv|readout.dense"), modules: []string{"first.conv", "second.conv", "readout.dense"}},
	{name: "conv2d", fn: convolutions(images.ChannelsLast, 2), right: sliced(images.ChannelsLast, 2), input: float32s(2, 6, 5, 3), target: peft.Regex("first.conv|second.conv|readout.dense"), modules: []string{"first.conv", "second.conv", "readout.dense"}},
	{name: "conv2d channels first", fn: convolutions(images.ChannelsFirst, 2), right: sliced(images.ChannelsFirst, 2), input: float32s(2, 3, 6, 5), target: peft.Regex("first.conv|second.conv|readout.dense"), modules: []string{"first.conv", "second.conv", "readout.dense"}},
	{name: "standard", fn: zooModel(transformer.ArchitectureStandard, false, 1), input: int32s(2, 5), ids: 17, target: peft.Regex(".*dense|token_embed")},
	{name: "standard transposed", fn: zooModel(transformer.ArchitectureStandard, true, 1), input: int32s(2, 5), ids: 17, target: peft.Regex(".*dense|token_embed")},
	{name: "gemma3", fn: zooModel(transformer.ArchitectureGemma3, false, 2), input: int32s(2, 5), ids: 17, target: peft.Regex(".*dense|token_embed")},
	{name: "gemma3 transposed", fn: zooModel(transformer.ArchitectureGemma3, true, 1), input: int32s(2, 5), ids: 17, target: peft.Regex(".*dense|token_embed")},
}

// wrap makes a base of a model with random values.
func wrap(t testing.TB, fn peft.ModelFunc, input shapes.Shape, options ...peft.WrapOptions) *peft.WrappedModel {
	t.Helper()
	store := model.NewStore()
	base, err := peft.WrapModel(backendtest.Open(t), store, fn, []shapes.Shape{input}, options...)
	require.NoError(t, err)
	t.Cleanup(base.Close)
	r := rand.New(rand.NewPCG(1, 2))
	for v := range store.IterVariables() {
		if strings.HasPrefix(v.Name(), "#") {
			continue
		}
		values := make([]float32, v.Shape().Size())
		for i := range values {
			values[i] = float32(0.4 * r.NormFloat64())
			if v.Shape().Rank() == 1 && (v.Name() == "gain" || v.Name() == "scale" || v.Name() == "variance") {
				values[i] = 1 + 0.2*max(-2, min(values[i], 2))
			}
		}
		require.NoError(t, v.SetValue(tensors.FromFlatDataAndDimensions(values, v.Shape().Dimensions...)))
	}
	return base
}

// example is an input of a model.
func example(m foreign, seed uint64) *tensors.Tensor {
	r := rand.New(rand.NewPCG(seed, 5))
	n := m.input.Size()
	if m.ids > 0 {
		ids := make([]int32, n)
		for i := range ids {
			ids[i] = int32(r.IntN(m.ids))
		}
		return tensors.FromFlatDataAndDimensions(ids, m.input.Dimensions...)
	}
	values := make([]float32, n)
	for i := range values {
		values[i] = float32(r.NormFloat64())
	}
	return tensors.FromFlatDataAndDimensions(values, m.input.Dimensions...)
}
