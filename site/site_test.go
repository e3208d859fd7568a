package site

import (
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
)

func TestNames(t *testing.T) {
	for _, name := range []string{"lm_head.weight", "model.layers.0.self_attn.q_proj.weight", "x"} {
		require.Equal(t, name, ParameterName(VariablePath(name)))
	}
	require.Equal(t, "/model/norm/weight", VariablePath("model.norm.weight"))
	require.Equal(t, "lm_head.weight", Module{Path: "lm_head"}.Weight())
	require.Equal(t, "embed.weight", Module{Path: "lm_head", TiedTo: "embed"}.Weight())
	require.Equal(t, 24, Parameter{Shape: []int{2, 3, 4}}.Size())
	require.Equal(t, 1, Parameter{}.Size())
}

// plusOne is a hook that adds one to the module it knows and replaces one parameter.
type plusOne struct{ module, parameter string }

func (h plusOne) Adapts(path string) bool { return path == h.module }

func (h plusOne) Apply(_ *Pass, s *Site) *graph.Node {
	y := s.Base(s.X)
	if s.Path == h.module {
		y = graph.AddScalar(y, 1)
	}
	return y
}

func (h plusOne) Sublayer(_ *Pass, s *Sublayer) *graph.Node { return s.Join(s.Output) }

func (h plusOne) Prefix(*Pass, Tokens) Prefix { return Prefix{} }

func (h plusOne) Parameter(p *Pass, name string, base func() *graph.Node) *graph.Node {
	if name == h.parameter {
		return graph.Const(p.Graph, float32(100))
	}
	return base()
}

func TestPassAsksItsHook(t *testing.T) {
	run := func(hook Hook) float32 {
		out, err := graph.CallOnce(backendtest.Open(t), func(x *graph.Node) *graph.Node {
			p := &Pass{Graph: x.Graph(), DType: dtypes.Float32, Hook: hook}
			scale := p.Parameter("scale", func() *graph.Node { return graph.Const(x.Graph(), float32(2)) })
			double := func(x *graph.Node) *graph.Node { return graph.Mul(x, scale) }
			y := p.Apply(&Site{Module: Module{Path: "double"}, X: x, Base: double})
			require.Equal(t, hook != nil && hook.Adapts("double"), p.Adapts("double"))
			return y
		}, float32(3))
		require.NoError(t, err)
		return tensors.ToScalar[float32](out)
	}
	require.Equal(t, float32(6), run(nil))
	require.Equal(t, float32(6), run(plusOne{}))
	require.Equal(t, float32(7), run(plusOne{module: "double"}))
	require.Equal(t, float32(301), run(plusOne{module: "double", parameter: "scale"}))
}

// Outside training and at rate 0 dropout is not even a node of the graph.
func TestNoDropout(t *testing.T) {
	_, err := graph.CallOnce(backendtest.Open(t), func(x *graph.Node) *graph.Node {
		zero := graph.Const(x.Graph(), uint32(0))
		training := &Pass{Graph: x.Graph(), Random: &Random{Seed: zero, Step: zero, MicroStep: zero, RowOffset: zero}}
		require.True(t, training.Training())
		require.Same(t, x, training.Dropout("k", x, 0))
		require.NotSame(t, x, training.Dropout("k", x, 0.5))
		evaluation := &Pass{Graph: x.Graph()}
		require.False(t, evaluation.Training())
		require.Same(t, x, evaluation.Dropout("k", x, 0.5))
		return x
	}, [][]float32{{1, 2}, {3, 4}})
	require.NoError(t, err)
}

// A model that is not Hugging Face's names its parameters itself.
func TestOtherParameterNames(t *testing.T) {
	m := Module{Path: "dense", Bias: true, WeightParameter: "dense.kernel", BiasParameter: "shift"}
	require.Equal(t, "dense.kernel", m.Weight())
	require.Equal(t, "shift", m.BiasName())
	require.Equal(t, "dense.bias", Module{Path: "dense", Bias: true}.BiasName())
}

func TestExpand(t *testing.T) {
	_, err := graph.CallOnce(backendtest.Open(t), func(v *graph.Node) *graph.Node {
		require.Equal(t, []int{1, 1, 3}, Module{}.Expand(v, 3).Shape().Dimensions)
		require.Equal(t, []int{1, 3, 1, 1}, Module{Kind: Convolution, Conv: &Conv{}}.Expand(v, 4).Shape().Dimensions)
		require.Equal(t, []int{1, 1, 1, 3}, Module{Kind: Convolution, Conv: &Conv{ChannelsLast: true}}.Expand(v, 4).Shape().Dimensions)
		return v
	}, []float32{1, 2, 3})
	require.NoError(t, err)
}
