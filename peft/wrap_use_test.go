package peft_test

import (
	"sync"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	. "github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/quant"
)

// recurrent has two weights in one scope and uses both at every step.
func recurrent(scope *model.Scope, in []*Node) []*Node {
	cell := scope.In("cell")
	g := in[0].Graph()
	input, state := variable(cell, g, "w_ih", 4, 5), variable(cell, g, "w_hh", 5, 5)
	h := Zeros(g, shapes.Make(dtypes.Float32, in[0].Shape().Dim(0), 5))
	for step := range in[0].Shape().Dim(1) {
		x := Squeeze(Slice(in[0], AxisRange(), AxisElem(step)), 1)
		h = Tanh(Add(Dot(x, input).Product(), Dot(h, state).Product()))
	}
	return []*Node{h}
}

// Modules of one scope have the names of their weights, and other names if asked; each is
// one module however often it is used.
func TestWrappedNames(t *testing.T) {
	input := foreign{input: float32s(2, 3, 4)}
	base := wrap(t, recurrent, input.input, peft.WrapOptions{Names: map[string]string{"cell.w_hh": "memory"}})
	require.Equal(t, "wrapped model of 2 parameters\ncell.w_ih: linear 4 -> 5\nmemory: linear 5 -> 5", base.String())
	x := example(input, 1)
	pm := attachRandom(t, base, peft.Modules("w_ih", "memory"))
	got, gradient := outputsAndGradient(t, base, pm, x, rewritten(base, pm))
	want, wantGradient := outputsAndGradient(t, base, pm, x, mergedInGraph(base, recurrent, pm))
	require.Less(t, distance(t, want, got), 1e-5)
	require.Less(t, distance(t, wantGradient, gradient), 1e-4)
	values, err := pm.TensorValues(peft.DefaultAdapter)
	require.NoError(t, err)
	require.Contains(t, values, "memory.lora_A.weight")
	require.Contains(t, values, "cell.w_ih.lora_B.weight")

	full, err := peft.GetPeftModel(base, peft.Full{TargetModules: peft.Modules("memory")})
	require.NoError(t, err)
	require.Equal(t, int64(25), full.TrainableParameters().Trainable)
	saved, err := peft.GetPeftModel(base, lora.LoraConfig{R: 2, TargetModules: peft.Modules("w_ih"), ModulesToSave: peft.Strings{"memory"}})
	require.NoError(t, err)
	require.Equal(t, int64(2*(4+5)+25), saved.TrainableParameters().Trainable)

	// A longer input uses the same modules more often.
	longer := example(foreign{input: float32s(3, 6, 4)}, 2)
	require.Greater(t, distance(t, run(t, base, nil, longer), run(t, base, pm, longer)), 1e-2)
}

// A wrapped model runs in several views, on inputs of several shapes, side by side.
func TestWrappedConcurrently(t *testing.T) {
	quantised, decoded := quantisedPair(t, foreign{fn: recurrent, input: float32s(1, 3, 4)}, quant.NF4{})
	t.Run("plain", func(t *testing.T) { concurrently(t, decoded) })
	t.Run("quantised", func(t *testing.T) { concurrently(t, quantised) })
}

func concurrently(t *testing.T, base *peft.WrappedModel) {
	pm := attachRandom(t, base, peft.AllLinear)
	require.NoError(t, pm.AddAdapter(lora.LoraConfig{R: 3, TargetModules: peft.Modules("w_ih"), InitLoraWeights: lora.InitRandom}, peft.Options{Name: "second"}))
	views := []*peft.PeftModel{nil, pm, must(pm.With("second")), must(pm.With(peft.DefaultAdapter, "second")), must(pm.With())}
	type result struct {
		view, rows int
		values     []float32
	}
	once := func() []result {
		results := make([]result, 0, 10)
		var mu sync.Mutex
		var wait sync.WaitGroup
		for i, view := range views {
			for rows := 1; rows <= 2; rows++ {
				wait.Go(func() {
					out, err := base.Run(view, example(foreign{input: float32s(rows, 3, 4)}, 3))
					if err != nil {
						t.Error(err)
						return
					}
					values, err := tensors.CopyFlatData[float32](out[0])
					if err != nil {
						t.Error(err)
					}
					mu.Lock()
					defer mu.Unlock()
					results = append(results, result{i, rows, values})
				})
			}
		}
		wait.Wait()
		return results
	}
	first := once()
	require.Len(t, first, 10)
	require.ElementsMatch(t, first, once())
	byView := map[int][]float32{}
	for _, r := range first {
		if r.rows == 1 {
			byView[r.view] = r.values
		}
	}
	require.Equal(t, byView[0], byView[4], "no adapter is active")
	require.NotEqual(t, byView[1], byView[0])
	require.NotEqual(t, byView[1], byView[3])
}

// What a merged value cannot hold is an error, not an infinity.
func TestWrappedMergeRefusesOverflow(t *testing.T) {
	half := func(scope *model.Scope, in []*Node) []*Node {
		w := scope.In("half").VariableWithShape("w", shapes.Make(dtypes.Float16, 3, 2)).NodeValue(in[0].Graph())
		return []*Node{Dot(ConvertDType(in[0], dtypes.Float16), w).Product()}
	}
	store := model.NewStore()
	base, err := peft.WrapModel(backendtest.Open(t), store, half, []shapes.Shape{float32s(4, 3)})
	require.NoError(t, err)
	defer base.Close()
	config := lora.LoraConfig{R: 1, LoraAlpha: 1e9, TargetModules: peft.AllLinear, InitLoraWeights: lora.InitRandom}
	pm, err := peft.GetPeftModel(base, config)
	require.NoError(t, err)
	_, _, err = base.Merged(pm)
	require.ErrorContains(t, err, "which is more than its dtype F16 holds")
	dir := t.TempDir()
	_, err = pm.Merge(t.Context(), dir)
	require.ErrorContains(t, err, "which is more than its dtype F16 holds")
	require.Empty(t, names(t, dir))
}
