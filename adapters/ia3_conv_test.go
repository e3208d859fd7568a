package adapters_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// Convolutions with groups and biases, over two and three axes and in both orders of their
// axes, give the outputs, gradients and merged weights of peft.
func TestIA3Convolutions(t *testing.T) {
	root := filepath.Join(basetest.Fixtures, "ia3")
	var geometries map[string]struct {
		In, Out, Groups int
		Kernel          []int
	}
	data, err := os.ReadFile(filepath.Join(root, "geometry.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &geometries))
	for _, name := range []string{"conv_inputs", "conv_outputs"} {
		for _, last := range []bool{false, true} {
			t.Run(name+map[bool]string{true: " channels last"}[last], func(t *testing.T) {
				c := convolutions{base: &basetest.Shape{}}
				c.Dir = filepath.Join(root, name)
				c.File, err = safetensors.Open(filepath.Join(c.Dir, "golden.safetensors"))
				require.NoError(t, err)
				defer c.File.Close()
				for path, g := range geometries {
					c.base.Add(site.Module{Path: path, Kind: site.Convolution, In: g.In, Out: g.Out, Transposed: last, Bias: true,
						Conv: &site.Conv{Kernel: g.Kernel, Groups: g.Groups, ChannelsLast: last}})
				}
				pm, err := peft.LoadAdapter(c.base, c.Dir)
				require.NoError(t, err)
				c.outputs(t, pm)
				c.merged(t, pm)
			})
		}
	}
}

type convolutions struct {
	basetest.Golden
	base *basetest.Shape
}

// outputs compares each module's output, and the gradients of all of them.
func (c convolutions) outputs(t *testing.T, pm *peft.PeftModel) {
	modules := c.base.Modules()
	var in []any
	for _, m := range modules {
		for _, what := range []string{"x.", "weight.", "bias.", "g."} {
			in = append(in, c.Tensor(t, what+m.Path))
		}
	}
	arguments, err := pm.Arguments()
	require.NoError(t, err)
	for _, a := range arguments {
		in = append(in, a)
	}
	exec, err := model.NewExec(backendtest.Open(t), model.NewStore(), func(_ *model.Scope, in []*graph.Node) []*graph.Node {
		binding, err := pm.Bind(in[4*len(modules):])
		require.NoError(t, err)
		pass := &site.Pass{Graph: in[0].Graph(), DType: dtypes.Float32, Hook: binding}
		var out, terms []*graph.Node
		for i, m := range modules {
			y := convolve(pass, m, in[4*i], in[4*i+1], in[4*i+2])
			out, terms = append(out, y), append(terms, graph.ReduceAllSum(graph.Mul(y, in[4*i+3])))
		}
		return append(out, graph.Gradient(graph.Add(graph.Add(terms[0], terms[1]), terms[2]), binding.Views()...)...)
	})
	require.NoError(t, err)
	defer exec.Finalize()
	out, err := exec.Exec(in...)
	require.NoError(t, err)
	for i, m := range modules {
		basetest.RequireClose(t, basetest.Flat(t, c.Tensor(t, "y."+m.Path)), basetest.Flat(t, out[i]), 1e-5, m.Path)
	}
	layout, err := pm.Layout(peft.DefaultAdapter)
	require.NoError(t, err)
	require.Len(t, layout.Params(), len(modules))
	for i, p := range layout.Params() {
		basetest.RequireClose(t, basetest.Flat(t, c.Tensor(t, "grad.base_model.model."+p.Name)), basetest.Flat(t, out[len(modules)+i]), 1e-5, p.Name)
	}
}

// convolve is one use of a module on PyTorch's input, [batch, channels, spatial...], and weight.
func convolve(pass *site.Pass, m site.Module, x, weight, bias *graph.Node) *graph.Node {
	rank := x.Rank()
	last, first := make([]int, rank), make([]int, rank)
	last[rank-1], first[1] = 1, rank-1
	for i := 1; i < rank-1; i++ {
		last[i], first[i+1] = i+1, i
	}
	kernel := m
	kernel.Transposed = true
	with := func(x, _ *graph.Node) *graph.Node { // in the order that the module has
		if !m.Conv.ChannelsLast {
			x = graph.TransposeAllAxes(x, last...)
		}
		y := graph.Convolve(x, kernel.Stored(weight)).NoPadding().ChannelGroupCount(m.Conv.Groups).Done()
		y = graph.Add(y, graph.ExpandLeftToRank(bias, rank))
		if !m.Conv.ChannelsLast {
			y = graph.TransposeAllAxes(y, first...)
		}
		return y
	}
	if m.Conv.ChannelsLast {
		x = graph.TransposeAllAxes(x, last...)
	}
	y := pass.Apply(&site.Site{
		Module: m, X: x, With: with, Base: func(x *graph.Node) *graph.Node { return with(x, weight) },
		FrozenWeight: func() *graph.Node { return weight },
	})
	if m.Conv.ChannelsLast {
		y = graph.TransposeAllAxes(y, first...)
	}
	return y
}

// merged compares the weights and biases that merging gives.
func (c convolutions) merged(t *testing.T, pm *peft.PeftModel) {
	parts, err := pm.Parts(peft.DefaultAdapter)
	require.NoError(t, err)
	values, err := pm.TensorValues(peft.DefaultAdapter)
	require.NoError(t, err)
	for _, m := range c.base.Modules() {
		weight, bias := c.stored(t, m, "weight."), basetest.Flat(t, c.Tensor(t, "bias."+m.Path))
		for _, part := range parts {
			merger := part.(peft.Merger)
			for name, parameter := range map[string][]float32{m.Weight(): weight, m.BiasName(): bias} {
				if slices.Contains(merger.Merges(), name) {
					require.NoError(t, merger.Merge(name, parameter, slices.Clone(parameter), func(name string) []float32 { return values[name] }))
				}
			}
		}
		basetest.RequireClose(t, c.stored(t, m, "merged."), weight, 1e-6, m.Path)
		basetest.RequireClose(t, basetest.Flat(t, c.Tensor(t, "merged_bias."+m.Path)), bias, 1e-6, m.Path)
	}
}

// stored is one of the fixture's weights as the module stores it.
func (c convolutions) stored(t *testing.T, m site.Module, prefix string) []float32 {
	out, err := graph.CallOnce(backendtest.Open(t), func(w *graph.Node) *graph.Node { return m.Stored(w) }, c.Tensor(t, prefix+m.Path))
	require.NoError(t, err)
	return basetest.Flat(t, out)
}
