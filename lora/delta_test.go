package lora_test

import (
	"math"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// deltaOf runs one site whose base is zero: what comes out is the adapter's addend,
// and the dropped input.
func deltaOf(t *testing.T, config lora.LoraConfig, x [][]float32, dtype dtypes.DType, training bool) (delta, dropped []float32) {
	t.Helper()
	m := site.Module{Path: "fc", Kind: site.Linear, In: len(x[0]), Out: 3}
	base := &basetest.Shape{}
	base.Add(m)
	config.TargetModules = peft.Modules("fc")
	pm, err := peft.GetPeftModel(base, config)
	require.NoError(t, err)
	arguments, err := pm.Arguments()
	require.NoError(t, err)
	exec, err := graph.NewExec(backendtest.Open(t), func(in []*graph.Node) []*graph.Node {
		g := in[0].Graph()
		pass := &site.Pass{Graph: g, DType: dtype, Hook: pm.Hook(in[1:])}
		if training {
			at := func(v uint32) *graph.Node { return graph.Const(g, v) }
			pass.Random = &site.Random{Seed: at(1), Step: at(2), MicroStep: at(0), RowOffset: at(0)}
		}
		X := graph.ConvertDType(in[0], dtype)
		y := pass.Apply(&site.Site{Module: m, X: X, Base: func(x *graph.Node) *graph.Node {
			return graph.Zeros(g, shapes.Make(dtype, x.Shape().Dim(0), m.Out))
		}})
		if y.DType() != dtype {
			panic("the delta has another dtype")
		}
		return []*graph.Node{graph.ConvertDType(y, dtypes.Float32), graph.ConvertDType(pass.Dropout("fc", X, config.LoraDropout), dtypes.Float32)}
	})
	require.NoError(t, err)
	defer exec.Finalize()
	in := []any{x}
	for _, a := range arguments {
		in = append(in, a)
	}
	out, err := exec.Call(in...)
	require.NoError(t, err)
	delta, dropped = basetest.Flat(t, out[0]), basetest.Flat(t, out[1])

	// s·B·A of the dropped input, by hand.
	values, err := pm.TensorValues(peft.DefaultAdapter)
	require.NoError(t, err)
	a, bb := values["fc.lora_A.weight"], values["fc.lora_B.weight"]
	s := lora.Scaling(config.LoraAlpha, config.R, config.UseRSLoRA)
	want := make([]float32, len(x)*m.Out)
	for row := range x {
		for o := range m.Out {
			for k := range config.R {
				for i := range m.In {
					want[row*m.Out+o] += float32(s) * bb[o*config.R+k] * a[k*m.In+i] * dropped[row*m.In+i]
				}
			}
		}
	}
	tolerance := 1e-5
	if dtype == dtypes.BFloat16 {
		tolerance = 0.03
	}
	basetest.RequireClose(t, want, delta, tolerance, "delta")
	return delta, dropped
}

// Dropout acts on the input of A, in training only, and scales what it keeps.
func TestDelta(t *testing.T) {
	x := make([][]float32, 64)
	for row := range x {
		x[row] = make([]float32, 50)
		for i := range x[row] {
			x[row][i] = float32(math.Sin(float64(row*50+i))) + 2
		}
	}
	config := lora.LoraConfig{R: 4, LoraAlpha: 6, UseRSLoRA: true, LoraDropout: 0.25, InitLoraWeights: lora.InitRandom}
	still, kept := deltaOf(t, config, x, dtypes.Float32, false)
	zeros := 0
	for i, v := range kept {
		require.Equal(t, x[i/50][i%50], v)
	}
	trained, dropped := deltaOf(t, config, x, dtypes.Float32, true)
	require.NotEqual(t, still, trained)
	for i, v := range dropped {
		if v == 0 {
			zeros++
			continue
		}
		require.InEpsilon(t, x[i/50][i%50]/0.75, v, 1e-6)
	}
	require.InDelta(t, 0.25, float64(zeros)/float64(len(dropped)), 4*math.Sqrt(0.25*0.75/3200))
	deltaOf(t, config, x, dtypes.BFloat16, true)
	config.LoraDropout = 0
	without, _ := deltaOf(t, config, x, dtypes.Float32, true)
	require.Equal(t, still, without)
}
