package peft_test

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	. "github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/core/tensors/images"
	"github.com/gomlx/gomlx/ml/layers/norm"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend"
	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// double is a variable in float64, in which differences are exact enough.
func double(scope *model.Scope, g *Graph, name string, dims ...int) *Node {
	return scope.VariableWithShape(name, shapes.Make(dtypes.Float64, dims...)).NodeValue(g)
}

// kernel is a convolution with a kernel of the given shape.
func kernel(configure func(*ConvolutionBuilder) *ConvolutionBuilder, dims ...int) peft.ModelFunc {
	return func(scope *model.Scope, in []*Node) []*Node {
		return []*Node{configure(Convolve(in[0], double(scope.In("conv"), in[0].Graph(), "weights", dims...))).Done()}
	}
}

// pooled is any function of the input.
func pooled(fn func(x *Node) *Node) peft.ModelFunc {
	return func(_ *model.Scope, in []*Node) []*Node { return []*Node{fn(in[0])} }
}

// windows are layers behind what an adapter changes: sizes even and odd, with strides,
// dilations, groups, and padding that differs between the ends or is wider than the kernel.
var windows = []struct {
	name string
	dims []int
	fn   peft.ModelFunc
}{
	{"conv 2", []int{2, 7, 3}, kernel((*ConvolutionBuilder).NoPadding, 2, 3, 2)},
	{"conv 3", []int{2, 7, 3}, kernel((*ConvolutionBuilder).PadSame, 3, 3, 2)},
	{"conv 2 same", []int{2, 7, 3}, kernel((*ConvolutionBuilder).PadSame, 2, 3, 2)},
	{"conv 2 stride 2", []int{2, 7, 3}, kernel(func(c *ConvolutionBuilder) *ConvolutionBuilder { return c.Strides(2) }, 2, 3, 2)},
	{"conv 4 stride 3", []int{1, 12, 2}, kernel(func(c *ConvolutionBuilder) *ConvolutionBuilder { return c.Strides(3) }, 4, 2, 2)},
	{"conv 2 dilated by 2", []int{1, 7, 2}, kernel(func(c *ConvolutionBuilder) *ConvolutionBuilder { return c.Dilations(2) }, 2, 2, 2)},
	{"conv 4 dilated by 3", []int{1, 12, 2}, kernel(func(c *ConvolutionBuilder) *ConvolutionBuilder {
		return c.Dilations(3).PaddingPerDim([][2]int{{4, 1}})
	}, 4, 2, 2)},
	{"conv 4 in groups", []int{1, 7, 4}, kernel(func(c *ConvolutionBuilder) *ConvolutionBuilder {
		return c.ChannelGroupCount(2).Strides(2).PaddingPerDim([][2]int{{1, 0}})
	}, 4, 2, 6)},
	{"conv 2 of groups of the batch", []int{4, 5, 2}, kernel(func(c *ConvolutionBuilder) *ConvolutionBuilder { return c.BatchGroupCount(2) }, 2, 2, 4)},
	{"conv 2 padded more at the start", []int{1, 6, 2}, kernel(func(c *ConvolutionBuilder) *ConvolutionBuilder { return c.PaddingPerDim([][2]int{{4, 1}}) }, 2, 2, 2)},
	{"conv 2 padded more at the end", []int{1, 6, 2}, kernel(func(c *ConvolutionBuilder) *ConvolutionBuilder { return c.PaddingPerDim([][2]int{{0, 3}}) }, 2, 2, 2)},
	{"conv 1 padded", []int{1, 6, 2}, kernel(func(c *ConvolutionBuilder) *ConvolutionBuilder { return c.PaddingPerDim([][2]int{{1, 2}}) }, 1, 2, 2)},
	{"conv 2 dilated by 2 padded", []int{1, 6, 2}, kernel(func(c *ConvolutionBuilder) *ConvolutionBuilder {
		return c.Dilations(2).PaddingPerDim([][2]int{{5, 4}})
	}, 2, 2, 2)},
	{"conv 2x3", []int{1, 4, 6, 2}, kernel(func(c *ConvolutionBuilder) *ConvolutionBuilder {
		return c.StridePerAxis(1, 2).PaddingPerDim([][2]int{{0, 1}, {2, 1}})
	}, 2, 3, 2, 2)},
	{"conv 4x2 channels first", []int{1, 2, 5, 4}, kernel(func(c *ConvolutionBuilder) *ConvolutionBuilder {
		return c.ChannelsAxis(images.ChannelsFirst).StridePerAxis(2, 1)
	}, 3, 2, 4, 2)},
	{"conv 2x1x4", []int{1, 3, 2, 4, 2}, kernel((*ConvolutionBuilder).PadSame, 2, 1, 4, 2, 2)},
	{"conv of a computed kernel", []int{1, 6, 2}, func(scope *model.Scope, in []*Node) []*Node {
		weight := Tanh(double(scope.In("conv"), in[0].Graph(), "weights", 2, 2, 3))
		return []*Node{Convolve(in[0], weight).Done()}
	}},
	{"max 2", []int{2, 7, 2}, pooled(func(x *Node) *Node { return MaxPool(x).Window(2).Done() })},
	{"max 4 stride 2 same", []int{1, 5, 4, 2}, pooled(func(x *Node) *Node { return MaxPool(x).Window(4).Strides(2).PadSame().Done() })},
	{"min 2x3 channels first", []int{1, 2, 5, 6}, pooled(func(x *Node) *Node {
		return MinPool(x).ChannelsAxis(images.ChannelsFirst).WindowPerAxis(2, 3).Done()
	})},
	{"sum 4 stride 3", []int{1, 9, 2}, pooled(func(x *Node) *Node { return SumPool(x).Window(4).Strides(3).Done() })},
	{"sum 2 same", []int{1, 4, 3, 2}, pooled(func(x *Node) *Node { return SumPool(x).Window(2).PadSame().Done() })},
	{"mean 2", []int{1, 5, 4, 2}, pooled(func(x *Node) *Node { return MeanPool(x).Window(2).Done() })},
	{"mean 4 stride 2 padded", []int{1, 7, 2}, pooled(func(x *Node) *Node {
		return MeanPool(x).Window(4).Strides(2).PaddingPerDim([][2]int{{1, 2}}).Done()
	})},
	{"mean 3 same channels first", []int{1, 2, 4, 3}, pooled(func(x *Node) *Node {
		return MeanPool(x).ChannelsAxis(images.ChannelsFirst).Window(3).PadSame().Done()
	})},
	{"concatenated 2", []int{1, 5, 2}, pooled(func(x *Node) *Node { return ConcatPool(x).Window(2).Done() })},
	{"interpolated", []int{1, 4, 2}, pooled(func(x *Node) *Node { return Interpolate(x, -1, 7, -1).Bilinear().Done() })},
	{"batch norm", []int{3, 4, 2}, func(scope *model.Scope, in []*Node) []*Node {
		fused := !backend.IsGo(in[0].Graph().Backend()) // it has no such operation
		return []*Node{norm.BatchNorm(scope, in[0], -1).UseBackendInference(fused).Done()}
	}},
	{"batch norm channels first", []int{3, 2, 4}, func(scope *model.Scope, in []*Node) []*Node {
		return []*Node{norm.BatchNorm(scope, in[0], 1).UseBackendInference(false).Done()}
	}},
	{"layer norm", []int{3, 4, 5}, func(scope *model.Scope, in []*Node) []*Node {
		return []*Node{norm.LayerNorm(scope, in[0], -1).Done()}
	}},
}

// Convolutions, pooling and norms behind what an adapter changes give the outputs of the
// model, and gradients that finite differences confirm: by their input, by their
// parameters, and by a kernel given to [site.Site.With]. So do convolutions of the input.
func TestWrappedDifferences(t *testing.T) {
	for _, w := range windows {
		t.Run(w.name, func(t *testing.T) {
			backendtest.Sample(t, 6)
			confirm(t, w.dims, func(scope *model.Scope, in []*Node) []*Node {
				shift := double(scope.In("before"), in[0].Graph(), "shift", w.dims...)
				return w.fn(scope.In("behind"), []*Node{Add(in[0], shift)})
			})
		})
		if strings.HasPrefix(w.name, "conv ") {
			t.Run(w.name+" of the input", func(t *testing.T) {
				backendtest.Sample(t, 6)
				confirm(t, w.dims, w.fn)
			})
		}
	}
}

// confirm compares a model that is built again, all its parameters changed, with the model
// as it is and its gradients with differences.
func confirm(t *testing.T, dims []int, fn peft.ModelFunc) {
	r := rand.New(rand.NewPCG(3, 4))
	store := model.NewStore()
	base, err := peft.WrapModel(backendtest.Open(t), store, fn, []shapes.Shape{shapes.Make(dtypes.Float64, dims...)})
	require.NoError(t, err)
	defer base.Close()
	var changes [][]int
	for _, p := range base.Parameters() {
		changes = append(changes, p.Shape)
		require.NoError(t, store.GetVariable(site.VariablePath(p.Name)).SetValue(doubles(r, 0.2, 1, p.Shape...)))
	}
	for _, m := range base.Modules() {
		if m.Kind == site.Convolution {
			changes = append(changes, m.StoredShape())
		}
	}
	x := doubles(r, 1, 0, dims...)
	zero, some := []*tensors.Tensor{x}, []*tensors.Tensor{x}
	for _, dims := range changes {
		zero, some = append(zero, doubles(r, 0, 0, dims...)), append(some, doubles(r, 0.2, 0, dims...))
	}
	exec, err := model.NewExec(base.Backend(), store, func(_ *model.Scope, in []*Node) []*Node {
		pass := site.Pass{Graph: in[0].Graph(), DType: base.DType()}
		plain := base.Call(&pass, in[:1])[0]
		pass.Hook = addTo(base, in[1:])
		changed := base.Call(&pass, in[:1])[0]
		loss := ReduceAllSum(Mul(changed, Sin(AddScalar(IotaFull(pass.Graph, changed.Shape()), 1))))
		return append([]*Node{plain, changed, loss}, Gradient(loss, in[1:]...)...)
	})
	require.NoError(t, err)
	defer exec.Finalize()
	run := func(in []*tensors.Tensor) []*tensors.Tensor {
		var arguments []any
		for _, t := range in {
			arguments = append(arguments, t)
		}
		out, err := exec.Exec(arguments...)
		require.NoError(t, err)
		return out
	}
	same := run(zero)
	requireNear(t, flat64(t, same[0]), flat64(t, same[1]), 1e-12, "output")
	out := run(some)
	require.NotEqual(t, flat64(t, out[0]), flat64(t, out[1]), "the changes have no effect")
	for i := range changes {
		want := differences(t, some, i+1, func(in []*tensors.Tensor) float64 { return tensors.ToScalar[float64](run(in)[2]) })
		requireNear(t, want, flat64(t, out[3+i]), 1e-7, "gradient")
	}
}

// addTo adds changes to all parameters, and to every convolution one of another kernel.
func addTo(base *peft.WrappedModel, changes []*Node) hookFuncs {
	by := map[string]*Node{}
	for i, p := range base.Parameters() {
		by[p.Name] = changes[i]
	}
	return hookFuncs{
		parameter: func(name string, base func() *Node) *Node { return Add(base(), by[name]) },
		apply: func(_ *site.Pass, s *site.Site) *Node {
			if s.Kind != site.Convolution {
				return s.Base(s.X)
			}
			return Add(s.Base(MulScalar(s.X, 1)), s.With(s.X, changes[len(changes)-1])) // as IA3 and LoRA do
		},
	}
}

// differences are central ones, by the values of one of the inputs.
func differences(t *testing.T, in []*tensors.Tensor, by int, loss func([]*tensors.Tensor) float64) []float64 {
	const step = 1e-4
	values := flat64(t, in[by])
	gradient := make([]float64, len(values))
	for i, v := range values {
		at := func(value float64) float64 {
			moved, all := append([]float64{}, values...), append([]*tensors.Tensor{}, in...)
			moved[i] = value
			all[by] = tensors.FromFlatDataAndDimensions(moved, in[by].Shape().Dimensions...)
			return loss(all)
		}
		gradient[i] = (at(v+step) - at(v-step)) / (2 * step)
	}
	return gradient
}

func doubles(r *rand.Rand, scale, mean float64, dims ...int) *tensors.Tensor {
	values := make([]float64, shapes.Make(dtypes.Float64, dims...).Size())
	for i := range values {
		values[i] = mean + scale*max(-2, min(r.NormFloat64(), 2))
	}
	return tensors.FromFlatDataAndDimensions(values, dims...)
}

func flat64(t *testing.T, x *tensors.Tensor) []float64 {
	t.Helper()
	values, err := tensors.CopyFlatData[float64](x)
	require.NoError(t, err)
	return values
}

// requireNear compares relative to the largest value.
func requireNear(t *testing.T, want, got []float64, tolerance float64, what string) {
	t.Helper()
	require.Len(t, got, len(want))
	largest := 0.0
	for _, v := range want {
		largest = max(largest, math.Abs(v))
	}
	require.NotZero(t, largest, what)
	for i := range want {
		require.InDelta(t, want[i], got[i], tolerance*largest, "%s at %d", what, i)
	}
}
