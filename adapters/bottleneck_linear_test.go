package adapters

import (
	"math"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/layers"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
	"github.com/gopeft/gopeft/train"
)

// oneLinear is a GoMLX model that knows nothing of adapters.
func oneLinear(scope *model.Scope, inputs []*graph.Node) []*graph.Node {
	return []*graph.Node{layers.DenseWithBias(scope.In("only"), inputs[0], 6)}
}

func wrapOneLinear(t *testing.T) *peft.WrappedModel {
	t.Helper()
	store := model.NewStore()
	store.SetParam("/initializer_seed", int64(1))
	base, err := peft.WrapModel(backendtest.Open(t), store, oneLinear, []shapes.Shape{shapes.Make(dtypes.Float32, 1, 4)})
	require.NoError(t, err)
	t.Cleanup(base.Close)
	return base
}

// On a model of any other kind adapters stand at the outputs of named linear layers: y + f(y).
func TestBottleneckOnWrappedModel(t *testing.T) {
	base := wrapOneLinear(t)
	pm, err := peft.GetPeftModel(base, BottleneckConfig{
		TargetModules: peft.AllLinear, ReductionFactor: ReductionFactor{Default: 2}, NonLinearity: "tanh", Scaling: Scaling{Factor: 0.5},
	}, peft.Options{Name: "task"})
	require.NoError(t, err)
	layout, err := pm.Layout("task")
	require.NoError(t, err)
	values := hostValues(t, pm)
	for _, list := range values {
		for i := range list {
			list[i] += 0.1 * float32(1+i%5)
		}
	}
	arguments, err := layout.FromHost(values)
	require.NoError(t, err)
	require.NoError(t, pm.SetValues("task", arguments))

	run := func(view *peft.PeftModel) []float32 {
		arguments, err := view.Arguments()
		require.NoError(t, err)
		exec, err := model.NewExec(base.Backend(), base.Store(), func(_ *model.Scope, in []*graph.Node) *graph.Node {
			binding, err := view.Bind(in[1:])
			require.NoError(t, err)
			return base.Call(&site.Pass{Graph: in[0].Graph(), DType: dtypes.Float32, Hook: binding}, in[:1])[0]
		})
		require.NoError(t, err)
		defer exec.Finalize()
		in := []any{tensors.FromValue([][]float32{{1, -2, 0.5, 3}, {0.1, 0.2, -0.3, 0.4}})}
		for _, a := range arguments {
			in = append(in, a)
		}
		out, err := exec.Exec(in...)
		require.NoError(t, err)
		return basetest.Flat(t, out[0])
	}
	none, err := pm.With()
	require.NoError(t, err)
	y, got := run(none), run(pm)
	path := base.Modules()[0].Path
	down, downB, up, upB := values[path+".adapter_down.weight"], values[path+".adapter_down.bias"], values[path+".adapter_up.weight"], values[path+".adapter_up.bias"]
	require.Len(t, down, 3*6)
	for row := range 2 {
		x := y[row*6 : row*6+6]
		for i := range 6 {
			sum := float64(upB[i])
			for k := range 3 {
				hidden := float64(downB[k])
				for j, v := range x {
					hidden += float64(down[k*6+j]) * float64(v)
				}
				sum += float64(up[i*3+k]) * math.Tanh(hidden)
			}
			require.InDelta(t, float64(x[i])+0.5*sum, got[row*6+i], 1e-5)
		}
	}
	trainOneLinear(t, pm)
}

// trainOneLinear fits outputs that the base does not have.
func trainOneLinear(t *testing.T, pm *peft.PeftModel) {
	x, y := make([]float32, 16*4), make([]float32, 16*6)
	for i := range x {
		x[i] = float32(i%7) / 3
	}
	data, err := train.NewArrays([]train.Array{train.Floats(x, 16, 4)}, []train.Array{train.Floats(y, 16, 6)})
	require.NoError(t, err)
	trainer, err := train.NewTrainer(pm, data, train.Arguments{
		OutputDir: t.TempDir(), Loss: train.MeanSquaredError{}, NumTrainEpochs: 60, LearningRate: 0.05, SaveStrategy: train.SaveNo, Quiet: true,
	})
	require.NoError(t, err)
	defer trainer.Close()
	before, err := trainer.Evaluate(t.Context(), data)
	require.NoError(t, err)
	_, err = trainer.Train(t.Context())
	require.NoError(t, err)
	after, err := trainer.Evaluate(t.Context(), data)
	require.NoError(t, err)
	require.Less(t, after, before/2)
}
