package lora_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// geometry is a convolution of internal/golden/methods_relatives.py.
type geometry struct {
	In, Out, Groups         int
	Kernel, Stride, Padding []int
}

// with is the convolution with any weight, both as the module stores and orders them. GoMLX's
// is that of the orders [batch, spatial..., channels] and [kernel..., in, out].
func (g geometry) with(m site.Module, x, weight *graph.Node) *graph.Node {
	stored := m
	stored.Transposed = true
	if !m.Transposed {
		weight = stored.Stored(weight)
	}
	rank := x.Rank()
	first, last := make([]int, rank), make([]int, rank)
	last[rank-1], first[1] = 1, rank-1
	for i := 1; i < rank-1; i++ {
		last[i], first[i+1] = i+1, i
	}
	if !m.Conv.ChannelsLast {
		x = graph.TransposeAllAxes(x, last...)
	}
	var padding [][2]int
	for _, p := range g.Padding {
		padding = append(padding, [2]int{p, p})
	}
	y := graph.Convolve(x, weight).StridePerAxis(g.Stride...).PaddingPerDim(padding).ChannelGroupCount(g.Groups).Done()
	if !m.Conv.ChannelsLast {
		y = graph.TransposeAllAxes(y, first...)
	}
	return y
}

// Adapters of convolutions over one and two axes, with groups and with cores, give the
// outputs and gradients of peft, and its merged weights.
func TestConvolutionsEqualPeft(t *testing.T) {
	root := filepath.Join(basetest.Fixtures, "relatives")
	var geometries map[string]geometry
	data, err := os.ReadFile(filepath.Join(root, "geometry.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &geometries))
	for _, name := range []string{"loha", "loha_cores", "lokr", "lokr_full", "lokr_cores", "adalora"} {
		for _, last := range []bool{false, true} {
			t.Run(name+map[bool]string{true: " channels last"}[last], func(t *testing.T) {
				backendtest.Sample(t, 5)
				c := convolutionCase{geometries: geometries, base: &basetest.Shape{}}
				c.Dir = filepath.Join(root, name)
				c.File, err = safetensors.Open(filepath.Join(c.Dir, "golden.safetensors"))
				require.NoError(t, err)
				defer c.File.Close()
				for _, path := range []string{"grouped", "one", "point", "two"} {
					if _, ok := c.File.Info("x." + path); ok {
						g := geometries[path]
						c.base.Add(site.Module{Path: path, Kind: site.Convolution, In: g.In, Out: g.Out, Transposed: last,
							Conv: &site.Conv{Kernel: g.Kernel, Groups: g.Groups, ChannelsLast: last}})
					}
				}
				pm, err := peft.LoadAdapter(c.base, c.Dir)
				require.NoError(t, err)
				c.outputs(t, pm)
				c.merged(t, pm)
			})
		}
	}
}

type convolutionCase struct {
	basetest.Golden
	geometries map[string]geometry
	base       *basetest.Shape
}

func (c convolutionCase) outputs(t *testing.T, pm *peft.PeftModel) {
	arguments, err := pm.Arguments()
	require.NoError(t, err)
	modules := c.base.Modules()
	var in []any
	for _, m := range modules {
		in = append(in, c.Tensor(t, "x."+m.Path), c.Tensor(t, "weight."+m.Path), c.Tensor(t, "g."+m.Path))
	}
	for _, a := range arguments {
		in = append(in, a)
	}
	exec, err := model.NewExec(backendtest.Open(t), model.NewStore(), func(_ *model.Scope, in []*graph.Node) []*graph.Node {
		binding, err := pm.Bind(in[3*len(modules):])
		require.NoError(t, err)
		pass := &site.Pass{Graph: in[0].Graph(), DType: dtypes.Float32, Hook: binding}
		var out []*graph.Node
		var total *graph.Node
		for i, m := range modules {
			y := c.apply(pass, m, in[3*i], in[3*i+1])
			out = append(out, y)
			if term := graph.ReduceAllSum(graph.Mul(y, in[3*i+2])); total == nil {
				total = term
			} else {
				total = graph.Add(total, term)
			}
		}
		return append(out, graph.Gradient(total, binding.Views()...)...)
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
	compared := 0
	for i, p := range layout.Params() {
		want := basetest.Flat(t, c.Tensor(t, "grad.base_model.model."+p.Name))
		basetest.RequireClose(t, want, basetest.Flat(t, out[len(modules)+i]), 1e-4, p.Name)
		compared++
	}
	require.NotZero(t, compared)
	for _, name := range c.File.Names() {
		if strings.HasPrefix(name, "grad.") {
			compared--
		}
	}
	require.Zero(t, compared)
}

// apply is one use of a module on PyTorch's input and weight.
func (c convolutionCase) apply(pass *site.Pass, m site.Module, x, weight *graph.Node) *graph.Node {
	rank := x.Rank()
	back, there := []int{0, rank - 1}, []int{0}
	for i := 1; i < rank-1; i++ {
		back, there = append(back, i), append(there, i+1)
	}
	there = append(there, 1)
	if m.Conv.ChannelsLast {
		x = graph.TransposeAllAxes(x, there...)
	}
	weight = m.Stored(weight)
	with := func(x, w *graph.Node) *graph.Node { return c.geometries[m.Path].with(m, x, w) }
	y := pass.Apply(&site.Site{
		Module: m, X: x, With: with, Base: func(x *graph.Node) *graph.Node { return with(x, weight) },
		FrozenWeight: func() *graph.Node { return weight },
	})
	if m.Conv.ChannelsLast {
		y = graph.TransposeAllAxes(y, back...)
	}
	return y
}

func (c convolutionCase) merged(t *testing.T, pm *peft.PeftModel) {
	config, err := pm.Config(peft.DefaultAdapter)
	require.NoError(t, err)
	adapter, err := config.Attach(c.base)
	require.NoError(t, err)
	values, err := pm.TensorValues(peft.DefaultAdapter)
	require.NoError(t, err)
	merger := adapter.(peft.Merger)
	require.Len(t, merger.Merges(), len(c.base.Modules()))
	for _, m := range c.base.Modules() {
		weight := c.stored(t, m, "weight.")
		frozen := append([]float32{}, weight...)
		require.NoError(t, merger.Merge(m.Weight(), weight, frozen, func(name string) []float32 { return values[name] }))
		basetest.RequireClose(t, c.stored(t, m, "merged."), weight, 1e-6, m.Path)
	}
}

// stored is one of the fixture's weights as the module stores it.
func (c convolutionCase) stored(t *testing.T, m site.Module, prefix string) []float32 {
	out, err := graph.CallOnce(backendtest.Open(t), func(w *graph.Node) *graph.Node { return m.Stored(w) }, c.Tensor(t, prefix+m.Path))
	require.NoError(t, err)
	values, err := tensors.CopyFlatData[float32](out)
	require.NoError(t, err)
	return values
}
