package train_test

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/layers"
	"github.com/gomlx/gomlx/ml/layers/activation"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/train"
)

// classifierOfPoints is a GoMLX model with dropout of its own: [batch, 2] -> [batch, 3].
func classifierOfPoints(scope *model.Scope, in []*graph.Node) []*graph.Node {
	x := activation.Relu(layers.Dense(scope.In("first"), in[0], true, 16))
	x = layers.DropoutStatic(scope, x, 0.1)
	x = activation.Relu(layers.Dense(scope.In("second"), x, true, 16))
	return []*graph.Node{layers.Dense(scope.In("readout"), x, true, 3)}
}

// points are in one of three sectors around the origin.
func points(n int, seed uint64) (xy []float32, classes []int32) {
	r := rand.New(rand.NewPCG(seed, 1))
	for range n {
		angle := r.Float64() * 2 * math.Pi
		xy = append(xy, float32(math.Cos(angle)), float32(math.Sin(angle)))
		classes = append(classes, int32(angle/(2*math.Pi)*3))
	}
	return xy, classes
}

// pointArrays are points as a data set has them.
func pointArrays(n int, seed uint64) (inputs, targets []train.Array) {
	xy, classes := points(n, seed)
	return []train.Array{train.Floats(xy, n, 2)}, []train.Array{train.Ints(classes)}
}

func wrapPoints(t testing.TB) *peft.WrappedModel {
	t.Helper()
	store := model.NewStore()
	store.SetParam("/initializer_seed", int64(7))
	base, err := peft.WrapModel(backendtest.Open(t), store, classifierOfPoints, []shapes.Shape{shapes.Make(dtypes.Float32, 1, 2)})
	require.NoError(t, err)
	t.Cleanup(base.Close)
	return base
}

func adaptPoints(t testing.TB, base *peft.WrappedModel) *peft.PeftModel {
	t.Helper()
	pm, err := peft.GetPeftModel(base, lora.LoraConfig{R: 4, LoraAlpha: 8, LoraDropout: 0.05, TargetModules: peft.AllLinear})
	require.NoError(t, err)
	return pm
}

// flatValues are all values of the default adapter.
func flatValues(t testing.TB, pm *peft.PeftModel) []float32 {
	t.Helper()
	values, err := pm.Values(peft.DefaultAdapter)
	require.NoError(t, err)
	flat, err := tensors.CopyFlatData[float32](values[0])
	require.NoError(t, err)
	return flat
}

// A foreign model learns, its own dropout included; a training that was interrupted
// and resumed gives what one in one go gives; evaluation has no dropout.
func TestTrainWrappedModel(t *testing.T) {
	base := wrapPoints(t)
	inputs, targets := pointArrays(200, 1)
	data, err := train.NewArrays(inputs, targets)
	require.NoError(t, err)
	data, held, err := data.Split(0.2, 3)
	require.NoError(t, err)
	require.Equal(t, 160, data.Len())
	arguments := func(dir string) train.Arguments {
		return train.Arguments{OutputDir: dir, NumTrainEpochs: 15, PerDeviceTrainBatchSize: 24, PerDeviceEvalBatchSize: 16, LearningRate: 0.02,
			Loss: train.CrossEntropy{}, EvalDataset: held, SaveStrategy: train.SaveSteps, SaveSteps: 20, Quiet: true}
	}

	whole := adaptPoints(t, base)
	trainer, err := train.NewTrainer(whole, data, arguments(t.TempDir()))
	require.NoError(t, err)
	defer trainer.Close()
	before, err := trainer.Measure(context.Background(), held)
	require.NoError(t, err)
	result, err := trainer.Train(context.Background())
	require.NoError(t, err)
	require.Equal(t, 15*7, result.GlobalStep, "160 examples make 7 batches, the last of 16")
	after, err := trainer.Measure(context.Background(), held)
	require.NoError(t, err)
	require.Less(t, after.Loss, before.Loss/2)
	require.Greater(t, after.Accuracy, 0.85)
	again, err := trainer.Evaluate(context.Background(), held)
	require.NoError(t, err)
	require.Equal(t, after.Loss, again)

	parted, dir := adaptPoints(t, base), t.TempDir()
	args := arguments(dir)
	args.Callback = func(e train.Event) error {
		if e.Kind == train.EventStep && e.Step == 47 {
			return errors.New("the power fails")
		}
		return nil
	}
	first, err := train.NewTrainer(parted, data, args)
	require.NoError(t, err)
	defer first.Close()
	_, err = first.Train(context.Background())
	require.ErrorContains(t, err, "the power fails")

	resumed := adaptPoints(t, base)
	args = arguments(dir)
	args.ResumeFromCheckpoint = train.ResumeLast
	second, err := train.NewTrainer(resumed, data, args)
	require.NoError(t, err)
	defer second.Close()
	_, err = second.Train(context.Background())
	require.NoError(t, err)
	require.Equal(t, flatValues(t, whole), flatValues(t, resumed))

	// The file of the adapter makes the same model.
	file := filepath.Join(t.TempDir(), "adapter")
	require.NoError(t, whole.SavePretrained(file))
	loaded, err := peft.LoadAdapter(base, file)
	require.NoError(t, err)
	require.Equal(t, flatValues(t, whole), flatValues(t, loaded))
}

func TestArraysAreChecked(t *testing.T) {
	one, two := train.Floats([]float32{1, 2}), train.Ints([]int32{1, 2, 3, 4}, 2, 2)
	for want, c := range map[string]struct{ inputs, targets []train.Array }{
		"no inputs":                               {nil, []train.Array{one}},
		"array 1 has 4 examples, array 0 has 2":   {[]train.Array{one}, []train.Array{train.Ints(make([]int32, 4))}},
		"shape [3 2] has 6 elements, got 4":       {[]train.Array{train.Floats(make([]float32, 4), 3, 2)}, nil},
		"shape [0], want dimensions of 1 or more": {[]train.Array{train.Floats(nil)}, nil},
		"element 1 is NaN":                        {[]train.Array{train.Floats([]float32{1, float32(math.NaN())})}, nil},
		"array 0 is empty":                        {[]train.Array{{}}, nil},
	} {
		_, err := train.NewArrays(c.inputs, c.targets)
		require.ErrorContains(t, err, want)
	}
	data, err := train.NewArrays([]train.Array{one, two}, nil)
	require.NoError(t, err)
	require.Equal(t, "2 examples", data.Report().String())
	_, err = data.Pack(8)
	require.ErrorContains(t, err, "cannot be packed")
}

func TestWrappedModelNeedsArraysAndLoss(t *testing.T) {
	base := wrapPoints(t)
	pm := adaptPoints(t, base)
	inputs, targets := pointArrays(20, 2)
	data, err := train.NewArrays(inputs, targets)
	require.NoError(t, err)
	tokens, err := train.NewDataset([]train.Example{{IDs: []int32{1, 2}, Labels: []int32{1, 2}}})
	require.NoError(t, err)
	good := train.Arguments{OutputDir: t.TempDir(), Loss: train.CrossEntropy{}, MaxSteps: 1, Quiet: true}
	for want, c := range map[string]struct {
		data *train.Dataset
		edit func(*train.Arguments)
	}{
		"Arguments.Loss must say what is learned": {data, func(a *train.Arguments) { a.Loss = nil }},
		"the base is a plain function":            {tokens, func(*train.Arguments) {}},
		"no length to group by":                   {data, func(a *train.Arguments) { a.GroupByLength = true }},
		"GradientCheckpointing needs a base":      {data, func(a *train.Arguments) { a.GradientCheckpointing = true }},
		"is none":                                 {data, func(a *train.Arguments) { a.Loss = train.Classification{} }},
	} {
		args := good
		c.edit(&args)
		_, err := train.NewTrainer(pm, c.data, args)
		require.ErrorContains(t, err, want)
	}

	// What only the graph shows is an error of the step, not a panic.
	args := good
	args.Loss = train.MeanSquaredError{}
	trainer, err := train.NewTrainer(pm, data, args)
	require.NoError(t, err)
	defer trainer.Close()
	_, err = trainer.Train(context.Background())
	require.ErrorContains(t, err, "the model's output has shape")
}

// The losses are what they say, whatever the pieces that a batch is computed in.
func TestLossesOfArrays(t *testing.T) {
	base := wrapPoints(t)
	pm := adaptPoints(t, base)
	xy, classes := points(13, 3)
	inputs := []train.Array{train.Floats(xy, 13, 2)}
	outputs, err := base.Run(pm, tensors.FromFlatDataAndDimensions(xy, 13, 2))
	require.NoError(t, err)
	scores, err := tensors.CopyFlatData[float32](outputs[0])
	require.NoError(t, err)
	classes[4] = train.IgnoreIndex
	wanted := make([]float32, 39)
	var entropy, squares, hits float64
	for row := range 13 {
		s := scores[3*row : 3*row+3]
		for i := range s {
			wanted[3*row+i] = float32(i)
			squares += math.Pow(float64(s[i])-float64(i), 2) / 39
		}
		if class := classes[row]; class >= 0 {
			entropy += (math.Log(math.Exp(float64(s[0]))+math.Exp(float64(s[1]))+math.Exp(float64(s[2]))) - float64(s[class])) / 12
			if s[class] == max(s[0], s[1], s[2]) {
				hits += 1. / 12
			}
		}
	}
	double := train.LossFunc(func(outputs, targets []*graph.Node) (sum, count *graph.Node) {
		return graph.MulScalar(graph.ReduceAllSum(graph.Square(graph.Sub(outputs[0], targets[0]))), 2), graph.Const(outputs[0].Graph(), int32(outputs[0].Shape().Size()))
	})
	for _, c := range []struct {
		loss       train.Loss
		targets    train.Array
		want, hits float64
	}{
		{train.CrossEntropy{}, train.Ints(classes), entropy, hits},
		{train.MeanSquaredError{}, train.Floats(wanted, 13, 3), squares, 0},
		{double, train.Floats(wanted, 13, 3), 2 * squares, 0},
	} {
		data, err := train.NewArrays(inputs, []train.Array{c.targets})
		require.NoError(t, err)
		trainer, err := train.NewTrainer(pm, data, train.Arguments{OutputDir: t.TempDir(), Loss: c.loss, MaxSteps: 1, PerDeviceEvalBatchSize: 8, Quiet: true})
		require.NoError(t, err)
		got, err := trainer.Measure(context.Background(), data)
		require.NoError(t, err)
		trainer.Close()
		require.InEpsilon(t, c.want, got.Loss, 1e-5)
		require.InDelta(t, c.hits, got.Accuracy, 1e-6)
	}
}

// An evaluation of nothing is no number.
func TestMeasureWithoutTargets(t *testing.T) {
	pm := adaptPoints(t, wrapPoints(t))
	data, err := train.NewArrays([]train.Array{train.Floats(make([]float32, 4), 2, 2)}, []train.Array{train.Ints([]int32{train.IgnoreIndex, train.IgnoreIndex})})
	require.NoError(t, err)
	trainer, err := train.NewTrainer(pm, data, train.Arguments{OutputDir: t.TempDir(), Loss: train.CrossEntropy{}, MaxSteps: 1, Quiet: true})
	require.NoError(t, err)
	defer trainer.Close()
	_, err = trainer.Measure(t.Context(), data)
	require.EqualError(t, err, "train: evaluation: nothing to measure: none of the 2 examples has a target")
}

// A class that the model has no score for is not passed over.
func TestCrossEntropyOfUnknownClass(t *testing.T) {
	pm := adaptPoints(t, wrapPoints(t))
	data, err := train.NewArrays([]train.Array{train.Floats(make([]float32, 8), 4, 2)}, []train.Array{train.Ints([]int32{0, 1, 3, 2})})
	require.NoError(t, err)
	trainer, err := train.NewTrainer(pm, data, train.Arguments{OutputDir: t.TempDir(), Loss: train.CrossEntropy{}, MaxSteps: 1, Quiet: true})
	require.NoError(t, err)
	defer trainer.Close()
	_, err = trainer.Evaluate(context.Background(), data)
	require.ErrorIs(t, err, train.ErrNotFinite)
	_, err = trainer.Train(context.Background())
	require.ErrorIs(t, err, train.ErrNotFinite)
}
