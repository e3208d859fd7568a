package lora_test

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// doraCase is one linear layer with DoRA, run by itself.
type doraCase struct {
	W, A, B, m, x []float32
	out, in, r    int
	s             float64
}

func newDoraCase(seed uint64, size float64) doraCase {
	c := doraCase{out: 12, in: 64, r: 4, s: 1.5}
	random := rand.New(rand.NewPCG(seed, 3))
	draw := func(n int, std float64) []float32 {
		values := make([]float32, n)
		for i := range values {
			values[i] = float32(std * random.NormFloat64())
		}
		return values
	}
	c.W, c.A, c.B, c.m, c.x = draw(c.out*c.in, 1), draw(c.r*c.in, 1), draw(c.out*c.r, size), draw(c.out, 1), draw(3*c.in, 1)
	return c
}

// oneLinear is a base of the linear layer "fc" with a weight [out, in].
func oneLinear(t *testing.T, W []float32, out, in int) *peft.WrappedModel {
	t.Helper()
	store := model.NewStore()
	_, err := store.CreateVariable("/fc/weight", tensors.FromFlatDataAndDimensions(W, out, in))
	require.NoError(t, err)
	base, err := peft.WrapModel(backendtest.Open(t), store, func(scope *model.Scope, in []*graph.Node) []*graph.Node {
		w := scope.Store().GetVariable("/fc/weight").NodeValue(in[0].Graph())
		return []*graph.Node{graphx.MatMulT(in[0], w)}
	}, []shapes.Shape{shapes.Make(dtypes.Float32, 1, in)})
	require.NoError(t, err)
	require.Equal(t, []int{out, in}, base.Modules()[0].WeightShape())
	return base
}

// set replaces some of an adapter's tensors.
func set(t *testing.T, pm *peft.PeftModel, values map[string][]float32) {
	t.Helper()
	all, err := pm.TensorValues(peft.DefaultAdapter)
	require.NoError(t, err)
	for name, v := range values {
		require.Len(t, all[name], len(v), name)
		all[name] = v
	}
	layout, err := pm.Layout(peft.DefaultAdapter)
	require.NoError(t, err)
	arguments, err := layout.FromHost(all)
	require.NoError(t, err)
	require.NoError(t, pm.SetValues(peft.DefaultAdapter, arguments))
}

// run returns the output with the adapter, in training with dropout.
func (c doraCase) run(t *testing.T, dtype dtypes.DType, rate float64) (y, dropped []float32) {
	t.Helper()
	base := oneLinear(t, c.W, c.out, c.in)
	m := base.Modules()[0]
	pm, err := peft.GetPeftModel(base, lora.LoraConfig{R: c.r, LoraAlpha: c.s * float64(c.r), UseDora: true, LoraDropout: rate, TargetModules: peft.Modules("fc")})
	require.NoError(t, err)
	set(t, pm, map[string][]float32{"fc.lora_A.weight": c.A, "fc.lora_B.weight": c.B, "fc.lora_magnitude_vector": c.m})
	arguments, err := pm.Arguments()
	require.NoError(t, err)
	exec, err := graph.NewExec(backendtest.Open(t), func(in []*graph.Node) []*graph.Node {
		g := in[0].Graph()
		at := func(v uint32) *graph.Node { return graph.Const(g, v) }
		pass := &site.Pass{Graph: g, DType: dtype, Hook: pm.Hook(in[2:]), Random: &site.Random{Seed: at(1), Step: at(2), MicroStep: at(0), RowOffset: at(0)}}
		x, w := graph.ConvertDType(in[0], dtype), graph.ConvertDType(in[1], dtype)
		product := graphx.MatMulT
		y := pass.Apply(&site.Site{
			Module: m, X: x, With: product,
			Base:         func(x *graph.Node) *graph.Node { return product(x, w) },
			FrozenWeight: func() *graph.Node { return graph.StopGradient(w) },
		})
		return []*graph.Node{graph.ConvertDType(y, dtypes.Float32), graph.ConvertDType(pass.Dropout("fc", x, rate), dtypes.Float32)}
	})
	require.NoError(t, err)
	defer exec.Finalize()
	in := []any{tensors.FromFlatDataAndDimensions(c.x, 3, c.in), tensors.FromFlatDataAndDimensions(c.W, c.out, c.in)}
	for _, a := range arguments {
		in = append(in, a)
	}
	result, err := exec.Call(in...)
	require.NoError(t, err)
	return basetest.Flat(t, result[0]), basetest.Flat(t, result[1])
}

// want computes peft's formula in float64, with the direct norm.
func (c doraCase) want(dropped []float32) []float32 {
	y := make([]float32, 3*c.out)
	for o := range c.out {
		delta := make([]float64, c.in)
		var square float64
		for i := range c.in {
			for k := range c.r {
				delta[i] += c.s * float64(c.B[o*c.r+k]) * float64(c.A[k*c.in+i])
			}
			v := float64(c.W[o*c.in+i]) + delta[i]
			square += v * v
		}
		f := float64(c.m[o]) / math.Sqrt(square)
		for row := range 3 {
			var sum float64
			for i := range c.in {
				w, x, d := float64(c.W[o*c.in+i]), float64(c.x[row*c.in+i]), float64(dropped[row*c.in+i])
				sum += w*x + (f-1)*w*d + f*delta[i]*d
			}
			y[row*c.out+o] = float32(sum)
		}
	}
	return y
}

// The norm without B·A is the norm, however large the update, with dropout and without.
func TestDoraNorm(t *testing.T) {
	for _, size := range []float64{1e-4, 0.1, 1, 30} {
		for _, rate := range []float64{0, 0.3} {
			c := newDoraCase(5, size)
			y, dropped := c.run(t, dtypes.Float32, rate)
			basetest.RequireClose(t, c.want(dropped), y, 2e-5, "output")
			if rate > 0 {
				require.NotEqual(t, c.x, dropped)
			}
		}
	}
}

// Where the update cancels most of a row, the length loses as many digits as the row does:
// what is left here is 1/100 of it, so its square is off by 1e-7/1e-4.
func TestDoraNormCancellation(t *testing.T) {
	c := newDoraCase(6, 0)
	c.r, c.s = 4, 1
	for o := range c.out { // row o of W is nearly a row of A
		for i := range c.in {
			c.W[o*c.in+i] = c.A[(o%4)*c.in+i] + 0.01*c.W[o*c.in+i]
		}
		c.B[o*c.r+o%4] = -1
	}
	y, dropped := c.run(t, dtypes.Float32, 0)
	basetest.RequireClose(t, c.want(dropped), y, 1e-2, "output")
}

// On a bfloat16 base the norm is that of the rounded weight, to float32's accuracy: with
// m = n, where nothing must change, nothing does.
func TestDoraBFloat16(t *testing.T) {
	c := newDoraCase(7, 0.1)
	for i, w := range c.W { // exact in bfloat16
		c.W[i] = math.Float32frombits(math.Float32bits(w) &^ 0xFFFF)
	}
	for o := range c.out {
		var square float64
		for i := range c.in {
			v := float64(c.W[o*c.in+i])
			for k := range c.r {
				v += c.s * float64(c.B[o*c.r+k]) * float64(c.A[k*c.in+i])
			}
			square += v * v
		}
		c.m[o] = float32(math.Sqrt(square))
	}
	y, dropped := c.run(t, dtypes.BFloat16, 0)
	basetest.RequireClose(t, c.want(dropped), y, 0.02, "output")
}
