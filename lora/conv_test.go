package lora_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// convolution is one of internal/golden/methods_conv.py, laid out as PyTorch does
// ([batch, channels, spatial...], kernels [out, in/groups, kernel...]) or as GoMLX does
// (channels last, kernels [kernel..., in/groups, out]).
type convolution struct {
	basetest.Golden
	Kernel, Padding, Stride []int
	Groups                  int
	Bias                    bool

	gomlx bool
}

func openConvolution(t *testing.T, dir string, gomlx bool) *convolution {
	data, err := os.ReadFile(filepath.Join(dir, "info.json"))
	require.NoError(t, err)
	c := &convolution{Golden: basetest.Golden{Dir: dir}, gomlx: gomlx}
	require.NoError(t, json.Unmarshal(data, c))
	c.File, err = safetensors.Open(filepath.Join(dir, "golden.safetensors"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.File.Close()) })
	return c
}

// permuted copies a tensor with other axes.
func permuted(t *testing.T, x *tensors.Tensor, axes []int) *tensors.Tensor {
	exec := graph.MustNewExec(backendtest.Open(t), func(x *graph.Node) *graph.Node { return graph.TransposeAllAxes(x, axes...) })
	defer exec.Finalize()
	out, err := exec.Call(x)
	require.NoError(t, err)
	return out[0]
}

// kernelAxes and imageAxes turn PyTorch's layout into that of the case.
func (c *convolution) kernelAxes() []int {
	if c.gomlx {
		return append([]int{2, 3, 4}[:len(c.Kernel):len(c.Kernel)], 1, 0)
	}
	return []int{0, 1, 2, 3, 4}[:len(c.Kernel)+2]
}

func (c *convolution) imageAxes() []int {
	if c.gomlx {
		return append(append([]int{0}, []int{2, 3, 4}[:len(c.Kernel)]...), 1)
	}
	return []int{0, 1, 2, 3, 4}[:len(c.Kernel)+2]
}

func (c *convolution) build(scope *model.Scope, in []*graph.Node) []*graph.Node {
	g, n := in[0].Graph(), len(c.Kernel)
	v := func(name string) *graph.Node { return scope.Store().GetVariable("/conv/" + name).NodeValue(g) }
	spatial := func(from int) (axes []int) {
		for i := range n {
			axes = append(axes, from+i)
		}
		return axes
	}
	axes := compute.ConvolveAxesConfig{
		InputBatch: 0, InputChannels: 1, InputSpatial: spatial(2), OutputBatch: 0, OutputChannels: 1, OutputSpatial: spatial(2),
		KernelOutputChannels: 0, KernelInputChannels: 1, KernelSpatial: spatial(2),
	}
	if c.gomlx {
		axes = compute.ConvolveAxesConfig{
			InputBatch: 0, InputChannels: n + 1, InputSpatial: spatial(1), OutputBatch: 0, OutputChannels: n + 1, OutputSpatial: spatial(1),
			KernelOutputChannels: n + 1, KernelInputChannels: n, KernelSpatial: spatial(0),
		}
	}
	var paddings [][2]int
	for _, p := range c.Padding {
		paddings = append(paddings, [2]int{p, p})
	}
	y := graph.ConvGeneral(in[0], v("weight"), axes, c.Stride, paddings, nil, nil, c.Groups, 1)
	if c.Bias {
		shape := slices.Repeat([]int{1}, y.Rank())
		shape[axes.OutputChannels] = y.Shape().Dim(axes.OutputChannels)
		y = graph.Add(y, graph.Reshape(v("bias"), shape...))
	}
	return []*graph.Node{y}
}

func (c *convolution) base(t *testing.T) *peft.WrappedModel {
	store := model.NewStore()
	create := func(name string, value *tensors.Tensor) {
		_, err := store.CreateVariable("/conv/"+name, value)
		require.NoError(t, err)
	}
	create("weight", permuted(t, c.Tensor(t, "weight"), c.kernelAxes()))
	if c.Bias {
		create("bias", c.Tensor(t, "bias"))
	}
	x := permuted(t, c.Tensor(t, "x"), c.imageAxes())
	base, err := peft.WrapModel(backendtest.Open(t), store, c.build, []shapes.Shape{x.Shape()})
	require.NoError(t, err)
	m := base.Modules()[0]
	require.Equal(t, site.Convolution, m.Kind)
	require.Equal(t, c.gomlx, m.Transposed)
	require.Equal(t, c.Groups, m.Conv.Groups)
	return base
}

// An adapter of a convolution computes what it does in Python, however the base lays out
// its kernels and images: output, gradients, file and merged weight.
func TestConvolutions(t *testing.T) {
	dirs, err := filepath.Glob("../internal/golden/testdata/convolutions/*")
	require.NoError(t, err)
	require.Len(t, dirs, 9)
	for _, dir := range dirs {
		for _, gomlx := range []bool{false, true} {
			name := filepath.Base(dir) + map[bool]string{false: " first", true: " last"}[gomlx]
			t.Run(name, func(t *testing.T) { backendtest.Sample(t, 5); openConvolution(t, dir, gomlx).check(t) })
		}
	}
}

func (c *convolution) check(t *testing.T) {
	base := c.base(t)
	pm, err := peft.LoadAdapter(base, c.Dir)
	require.NoError(t, err)
	layout, err := pm.Layout(peft.DefaultAdapter)
	require.NoError(t, err)
	arguments, err := pm.Arguments()
	require.NoError(t, err)
	exec, err := model.NewExec(base.Backend(), base.Store(), func(_ *model.Scope, in []*graph.Node) []*graph.Node {
		binding, err := pm.Bind(in[2:])
		require.NoError(t, err)
		y := base.Call(&site.Pass{Graph: in[0].Graph(), DType: in[0].DType(), Hook: binding}, in[:1])[0]
		return append([]*graph.Node{y}, graph.Gradient(graph.ReduceAllSum(graph.Mul(y, in[1])), binding.Views()...)...)
	})
	require.NoError(t, err)
	defer exec.Finalize()
	in := []any{permuted(t, c.Tensor(t, "x"), c.imageAxes()), permuted(t, c.Tensor(t, "probe"), c.imageAxes())}
	for _, a := range arguments {
		in = append(in, a)
	}
	out, err := exec.Exec(in...)
	require.NoError(t, err)
	basetest.RequireClose(t, basetest.Flat(t, permuted(t, c.Tensor(t, "y"), c.imageAxes())), basetest.Flat(t, out[0]), 1e-5, "y")
	for i, p := range layout.Params() {
		basetest.RequireClose(t, basetest.Flat(t, c.Tensor(t, "grad.base_model.model."+p.Name)), basetest.Flat(t, out[1+i]), 1e-5, "gradient of "+p.Name)
	}
	c.files(t, pm)
	c.merge(t, base, pm)
}

func (c *convolution) files(t *testing.T, pm *peft.PeftModel) {
	dir := filepath.Join(t.TempDir(), "again")
	require.NoError(t, pm.SavePretrained(dir))
	was, err := os.ReadFile(filepath.Join(c.Dir, "adapter_model.safetensors"))
	require.NoError(t, err)
	is, err := os.ReadFile(filepath.Join(dir, "adapter_model.safetensors"))
	require.NoError(t, err)
	require.Equal(t, was, is)
}

func (c *convolution) merge(t *testing.T, base *peft.WrappedModel, pm *peft.PeftModel) {
	dir := filepath.Join(t.TempDir(), "merged")
	_, err := pm.Merge(t.Context(), dir)
	if c.Groups > 1 {
		require.ErrorContains(t, err, "groups cannot be merged")
		return
	}
	require.NoError(t, err)
	file, err := safetensors.Open(filepath.Join(dir, "model.safetensors"))
	require.NoError(t, err)
	defer file.Close()
	for _, name := range []string{"weight", "bias"} {
		if _, ok := c.File.Info("merged." + name); !ok {
			continue
		}
		want := c.Tensor(t, "merged."+name)
		if name == "weight" {
			want = permuted(t, want, c.kernelAxes())
		}
		values := basetest.Flat(t, want)
		got := make([]float32, len(values))
		require.NoError(t, file.Float32s("conv."+name, got))
		basetest.RequireClose(t, values, got, 1e-5, name)
	}
}

// What cannot be done to a convolution is refused, naming it.
func TestConvolutionErrors(t *testing.T) {
	base := openConvolution(t, "../internal/golden/testdata/convolutions/conv2d_grouped", false).base(t)
	for _, c := range []struct {
		config lora.LoraConfig
		want   string
	}{
		{lora.LoraConfig{R: 6}, `lora: target module "conv" has 4 groups: want a rank that they divide, got 6`},
		{lora.LoraConfig{R: 4, UseDora: true}, `lora: use_dora is not supported for target module "conv", a convolution with 4 groups`},
		{lora.LoraConfig{R: 4, InitLoraWeights: lora.InitPissa}, `lora: init_lora_weights "pissa" is for linear layers, not for target module "conv" of kind convolution`},
	} {
		c.config.TargetModules = peft.Modules("conv")
		_, err := peft.GetPeftModel(base, c.config)
		require.ErrorContains(t, err, c.want)
	}
	fresh, err := peft.GetPeftModel(base, lora.LoraConfig{R: 4, TargetModules: peft.Modules("conv")})
	require.NoError(t, err)
	layout, err := fresh.Layout(peft.DefaultAdapter)
	require.NoError(t, err)
	require.Equal(t, []int{4, 4, 3, 3}, layout.Params()[0].Shape)
	require.Equal(t, []int{8, 1, 1, 1}, layout.Params()[1].Shape)
}
