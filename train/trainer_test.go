package train

import (
	"bytes"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gomlx/gomlx/core/graph"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend"
	"github.com/gopeft/gopeft/peft"
)

// toyData makes ragged rows of a text that can be learned: every token follows from
// the one before, with some noise.
func toyData(t testing.TB, rows int, seed uint64) *Dataset {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 11))
	examples := make([]Example, rows)
	for i := range examples {
		n := 4 + r.IntN(12)
		id := 1 + r.IntN(toyVocab-1)
		for j := range n {
			examples[i].IDs = append(examples[i].IDs, int32(id))
			label := int32(id)
			if j < 2 {
				label = IgnoreIndex
			}
			examples[i].Labels = append(examples[i].Labels, label)
			id = 1 + (id*3+r.IntN(2))%(toyVocab-1)
		}
	}
	d, err := NewDataset(examples)
	require.NoError(t, err)
	return d
}

// toyArguments are settings in which everything that can go wrong in a resumption
// is on: dropout comes from the adapter.
func toyArguments(t testing.TB) Arguments {
	return Arguments{
		OutputDir: filepath.Join(t.TempDir(), "out"), Quiet: true, Seed: 3, MaxSteps: 10,
		PerDeviceTrainBatchSize: 3, GradientAccumulationSteps: 2, LearningRate: 3e-2, WarmupSteps: 2, WeightDecay: 0.01,
		LoggingSteps: 3, SaveStrategy: SaveNo,
	}
}

func toyModel(t testing.TB) *peft.PeftModel {
	return newToyPeft(t, false, toyConfig{Targets: mixTargets, Dropout: 0.3, ZeroB: true})
}

func newToyTrainer(t testing.TB, pm *peft.PeftModel, args Arguments) *Trainer {
	t.Helper()
	trainer, err := NewTrainer(pm, toyData(t, 22, 1), args)
	require.NoError(t, err)
	t.Cleanup(trainer.Close)
	trainer.plotLoss = func(string, []LogRecord) error { return nil } // which takes longer than such a training
	return trainer
}

func TestTrainLearns(t *testing.T) {
	args := toyArguments(t)
	args.MaxSteps, args.NumTrainEpochs, args.WarmupSteps, args.WarmupRatio, args.LearningRate = 0, 20, 0, 0.05, 0.1
	args.EvalDataset, args.EvalStrategy = toyData(t, 9, 2), EvalEpoch
	args.SaveStrategy = SaveEpoch
	args.SaveTotalLimit = 2
	var out bytes.Buffer
	args.Quiet, args.Progress = false, &out
	pm := newToyPeft(t, false, toyConfig{Targets: append(slices.Clone(mixTargets), "lm_head"), Dropout: 0.1, ZeroB: true})
	trainer := newToyTrainer(t, pm, args)
	trainer.plotLoss = PlotLoss
	before, err := trainer.Evaluate(t.Context(), args.EvalDataset)
	require.NoError(t, err)
	result, err := trainer.Train(t.Context())
	require.NoError(t, err)

	// 22 rows in batches of 3 are 8 batches, so 4 steps an epoch.
	require.Equal(t, 80, trainer.MaxSteps())
	require.Equal(t, 80, result.GlobalStep)
	require.Equal(t, 20.0, result.Epoch)
	require.Len(t, result.Evaluations, 20)
	last := result.Evaluations[19]
	require.Equal(t, Evaluation{Step: 80, Epoch: 20, Loss: last.Loss}, last)
	require.Less(t, last.Loss, 0.95*before)
	require.InEpsilon(t, math.Exp(last.Loss), last.Perplexity(), 1e-12)
	after, err := trainer.Evaluate(t.Context(), args.EvalDataset)
	require.NoError(t, err)
	require.Equal(t, last.Loss, after, "the model has the trained values")
	best := slices.MinFunc(result.Evaluations, func(a, b Evaluation) int { return int(math.Copysign(1, a.Loss-b.Loss)) })
	require.Equal(t, best.Step, result.BestStep)
	require.Equal(t, int64(20*trainer.data.Report().Targets), result.Targets)
	require.Equal(t, int64(20*24*trainer.data.Buckets()[0]), result.Tokens)
	require.Positive(t, result.Seconds)
	require.InEpsilon(t, float64(result.Tokens)/result.Seconds, result.TokensPerSecond, 1e-9)
	require.Greater(t, result.PeakMemory, int64(1000))
	require.Contains(t, out.String(), "step 80/80")

	require.Equal(t, filepath.Join(args.OutputDir, "checkpoint-80"), result.Checkpoint)
	require.Equal(t, []string{"checkpoint-76", "checkpoint-80", "log.jsonl", "loss.png"}, namesIn(t, args.OutputDir))
	require.Equal(t, []string{"README.md", "adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "trainer_state.json"},
		namesIn(t, result.Checkpoint))
	loaded, err := peft.LoadAdapter(pm.Base(), result.Checkpoint)
	require.NoError(t, err)
	require.Equal(t, valuesOf(t, pm), valuesOf(t, loaded))

	records, err := ReadLog(filepath.Join(args.OutputDir, "log.jsonl"))
	require.NoError(t, err)
	checkLog(t, records, result, trainer)
}

func checkLog(t *testing.T, records []LogRecord, result *Result, trainer *Trainer) {
	t.Helper()
	var steps []int
	var evals []Evaluation
	for _, r := range records {
		if r.EvalLog != nil {
			evals = append(evals, Evaluation{r.Step, r.Epoch, r.EvalLoss, r.EvalAccuracy})
			continue
		}
		steps = append(steps, r.Step)
		require.Equal(t, trainer.schedule.LR(r.Step-1, trainer.args.LearningRate), r.LearningRate)
		require.Positive(t, r.GradNorm)
		require.Positive(t, r.TokensPerSecond)
		require.Positive(t, r.PeakMemoryBytes)
		if backend.IsGo(trainer.pm.Base().Backend()) {
			require.Zero(t, r.DeviceMemoryBytes)
		} else {
			require.Greater(t, r.DeviceMemoryBytes, int64(1000))
			require.NotEqual(t, r.DeviceMemoryBytes, r.PeakMemoryBytes)
		}
		require.InDelta(t, float64(r.Step)/4, r.Epoch, 1e-9)
	}
	require.Equal(t, result.Evaluations, evals)
	want := []int{1}
	for s := 3; s <= 78; s += 3 {
		want = append(want, s)
	}
	require.Equal(t, append(want, 80), steps)
}

// The logged losses, weighted by their targets, are the loss of all steps.
func TestTrainingLoss(t *testing.T) {
	args := toyArguments(t)
	args.LoggingSteps = 1
	sum, steps := 0.0, 0
	args.Callback = func(e Event) error {
		if e.Kind == EventStep {
			sum += e.Loss
			steps++
		}
		return nil
	}
	result, err := newToyTrainer(t, toyModel(t), args).Train(t.Context())
	require.NoError(t, err)
	require.Equal(t, 10, steps)
	require.InDelta(t, sum/10, result.TrainingLoss, 0.1)
	records, err := ReadLog(filepath.Join(args.OutputDir, "log.jsonl"))
	require.NoError(t, err)
	require.Len(t, records, 10)
	logged := 0.0
	for _, r := range records {
		logged += r.Loss
	}
	require.InDelta(t, sum, logged, 1e-9)
}

func TestStepsAndEvents(t *testing.T) {
	if !backend.IsGo(testBackend(t)) {
		t.Skip("counts steps, which depends on no backend")
	}
	for _, c := range []struct {
		name     string
		change   func(*Arguments)
		maxSteps int
		events   string
	}{
		{"one epoch", func(a *Arguments) { a.NumTrainEpochs = 1 }, 4, "s s s s E"},
		{"half an epoch", func(a *Arguments) { a.NumTrainEpochs = 0.5 }, 2, "s s"},
		{"rounded up", func(a *Arguments) { a.NumTrainEpochs = 1.1 }, 5, "s s s s E s"},
		{"odd group", func(a *Arguments) { a.NumTrainEpochs, a.GradientAccumulationSteps = 2, 3 }, 6, "s s s E s s s E"},
		{"drop last", func(a *Arguments) { a.NumTrainEpochs, a.DataloaderDropLast, a.GradientAccumulationSteps = 1, true, 1 }, 7, "s s s s s s s E"},
		{"save by steps", func(a *Arguments) { a.MaxSteps, a.SaveStrategy, a.SaveSteps = 5, SaveSteps, 2 }, 5, "s s S s s E S s S"},
		{"save by epoch", func(a *Arguments) { a.MaxSteps, a.SaveStrategy = 5, SaveEpoch }, 5, "s s s s E S s S"},
		{"eval by steps", func(a *Arguments) { a.MaxSteps, a.EvalStrategy, a.EvalSteps = 5, EvalSteps, 2 }, 5, "s s V s s E V s V"},
		{"eval and save", func(a *Arguments) {
			a.MaxSteps, a.EvalStrategy, a.SaveStrategy = 4, EvalEpoch, SaveEpoch
		}, 4, "s s s s E V S"},
		{"eval at the end only", func(a *Arguments) { a.MaxSteps = 2 }, 2, "s s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := toyArguments(t)
			args.MaxSteps, args.WarmupSteps = 0, 0
			c.change(&args)
			if args.EvalStrategy != EvalNo {
				args.EvalDataset = toyData(t, 4, 2)
			}
			var events []string
			args.Callback = func(e Event) error {
				events = append(events, map[EventKind]string{EventStep: "s", EventEpoch: "E", EventEvaluate: "V", EventSave: "S"}[e.Kind])
				return nil
			}
			trainer := newToyTrainer(t, toyModel(t), args)
			require.Equal(t, c.maxSteps, trainer.MaxSteps())
			result, err := trainer.Train(t.Context())
			require.NoError(t, err)
			require.Equal(t, c.maxSteps, result.GlobalStep)
			require.Equal(t, c.events, strings.Join(events, " "))
		})
	}
}

func TestCallbackStops(t *testing.T) {
	broken := errors.New("broken callback")
	for _, c := range []struct {
		name string
		err  error
	}{{"asked for", ErrStopTraining}, {"failing", broken}} {
		t.Run(c.name, func(t *testing.T) {
			args := toyArguments(t)
			args.SaveStrategy = SaveSteps
			args.Callback = func(e Event) error {
				if e.Kind == EventStep && e.Step == 5 {
					return c.err
				}
				return nil
			}
			result, err := newToyTrainer(t, toyModel(t), args).Train(t.Context())
			if c.err == broken {
				require.ErrorIs(t, err, broken)
				require.ErrorContains(t, err, "checkpoint-5")
			} else {
				require.NoError(t, err)
			}
			require.Equal(t, 5, result.GlobalStep)
			require.Equal(t, filepath.Join(args.OutputDir, "checkpoint-5"), result.Checkpoint)
		})
	}
}

func TestBadArguments(t *testing.T) {
	pm, data := toyModel(t), toyData(t, 5, 1)
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o666))
	none, err := pm.With()
	require.NoError(t, err)
	foreign, err := NewDataset([]Example{{IDs: []int32{1, toyVocab}, Labels: []int32{1, 2}}})
	require.NoError(t, err)
	long, err := NewDataset([]Example{{IDs: make([]int32, 65), Labels: make([]int32, 65)}})
	require.NoError(t, err)
	for _, c := range []struct {
		name   string
		pm     *peft.PeftModel
		data   *Dataset
		change func(*Arguments)
		want   string
	}{
		{"no model", nil, data, nil, "the model is nil"},
		{"no adapter", none, data, nil, "nothing to train"},
		{"no data", pm, nil, nil, "the data set is empty"},
		{"another vocabulary", pm, foreign, nil, "example 0, token 1: id 11, but the model has a vocabulary of 11"},
		{"too long", pm, long, nil, "65 tokens, the model was made for 64"},
		{"eval of another vocabulary", pm, data, func(a *Arguments) { a.EvalDataset = foreign }, "EvalDataset: example 0"},
		{"no output", pm, data, func(a *Arguments) { a.OutputDir = "" }, "OutputDir is empty"},
		{"output is a file", pm, data, func(a *Arguments) { a.OutputDir = file }, "it is a file, want a folder"},
		{"negative", pm, data, func(a *Arguments) { a.MaxSteps, a.LoggingSteps = -1, -2 }, "MaxSteps is -1, want 0 or more\nLoggingSteps is -2"},
		{"rate", pm, data, func(a *Arguments) { a.LearningRate = math.NaN() }, "LearningRate is NaN"},
		{"epochs", pm, data, func(a *Arguments) { a.NumTrainEpochs = math.Inf(1) }, "NumTrainEpochs is +Inf"},
		{"beta", pm, data, func(a *Arguments) { a.AdamBeta1 = 1 }, "betas must be in [0, 1), got 1"},
		{"beta is no number", pm, data, func(a *Arguments) { a.AdamBeta2 = math.NaN() }, "betas must be in [0, 1), got 0.9 and NaN"},
		{"epsilon", pm, data, func(a *Arguments) { a.AdamEpsilon = math.Inf(1) }, "epsilon must be positive and finite in float32, got +Inf"},
		{"epsilon is no number", pm, data, func(a *Arguments) { a.AdamEpsilon = math.NaN() }, "epsilon must be positive and finite in float32, got NaN"},
		{"epsilon in float32", pm, data, func(a *Arguments) { a.AdamEpsilon = 1e-60 }, "epsilon must be positive and finite in float32, got 1e-60"},
		{"lora+", pm, data, func(a *Arguments) { a.LoraPlusLRRatio = -1 }, "LoraPlusLRRatio is -1, want more than 0"},
		{"lora+ embedding", pm, data, func(a *Arguments) { a.LoraPlusLREmbedding = 1e-3 }, "LoraPlusLREmbedding is 0.001, but LoraPlusLRRatio is 0"},
		{"decay", pm, data, func(a *Arguments) { a.WeightDecay = math.Inf(1) }, "weight decay must be 0 or more and finite, got +Inf"},
		{"decay is no number", pm, data, func(a *Arguments) { a.WeightDecay = math.NaN() }, "weight decay must be 0 or more and finite, got NaN"},
		{"rate in float32", pm, data, func(a *Arguments) { a.LearningRate = 1e300 }, "LearningRate is 1e+300, which with AdamW's constants"},
		{"norm in float32", pm, data, func(a *Arguments) { a.MaxGradNorm = 1e-60 }, "MaxGradNorm is 1e-60"},
		{"norm is no number", pm, data, func(a *Arguments) { a.MaxGradNorm = math.NaN() }, "MaxGradNorm is NaN"},
		{"ratio is no number", pm, data, func(a *Arguments) { a.WarmupRatio = math.NaN() }, "WarmupRatio is NaN"},
		{"empty eval", pm, data, func(a *Arguments) { a.EvalDataset = &Dataset{} }, "EvalDataset is empty"},
		{"ratio", pm, data, func(a *Arguments) { a.WarmupRatio = 2 }, "WarmupRatio is 2"},
		{"warm-up", pm, data, func(a *Arguments) { a.WarmupSteps, a.MaxSteps = 5, 3 }, "5 warm-up steps in a training of 3"},
		{"eval without data", pm, data, func(a *Arguments) { a.EvalStrategy = EvalEpoch }, "EvalDataset is nil"},
		{"unused steps", pm, data, func(a *Arguments) { a.SaveSteps = 3 }, "SaveStrategy is not SaveSteps"},
		{"strategy", pm, data, func(a *Arguments) { a.SaveStrategy = 9 }, "SaveStrategy is 9"},
		{"batch larger than data", pm, data, func(a *Arguments) { a.DataloaderDropLast, a.PerDeviceTrainBatchSize = true, 6 }, "has 5 rows, fewer than a batch of 6"},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := toyArguments(t)
			if c.change != nil {
				c.change(&args)
			}
			_, err := NewTrainer(c.pm, c.data, args)
			require.ErrorContains(t, err, c.want)
		})
	}
}

// breakingLoss is NaN from a step on, counted from 0.
type breakingLoss struct{ step uint32 }

func (l breakingLoss) Loss(r *Run, b BatchNodes) (sum, count *graph.Node) {
	sum, count = CausalLM{}.Loss(r, b)
	if r.Pass.Random == nil {
		return sum, count
	}
	g := r.Pass.Graph
	broken := graph.GreaterOrEqual(r.Pass.Random.Step, graph.Const(g, l.step))
	return graph.Where(broken, graph.Scalar(g, sum.DType(), math.NaN()), sum), count
}

// A training whose loss becomes NaN stops and keeps its last good checkpoint.
func TestNotFiniteStopsTraining(t *testing.T) {
	args := toyArguments(t)
	args.SaveStrategy, args.SaveSteps, args.Loss = SaveSteps, 2, breakingLoss{5}
	pm := toyModel(t)
	result, err := newToyTrainer(t, pm, args).Train(t.Context())
	require.ErrorIs(t, err, ErrNotFinite)
	require.ErrorContains(t, err, "step 6")
	require.Equal(t, 5, result.GlobalStep)
	require.Equal(t, filepath.Join(args.OutputDir, "checkpoint-4"), result.Checkpoint)
	require.ErrorContains(t, err, "the last checkpoint is \""+result.Checkpoint)
	require.Equal(t, []string{"checkpoint-2", "checkpoint-4"}, checkpointsIn(t, args.OutputDir))
	for _, v := range valuesOf(t, pm) {
		for _, x := range v {
			require.True(t, finite(float64(x)))
		}
	}
	found, err := LastCheckpoint(args.OutputDir)
	require.NoError(t, err)
	require.Equal(t, result.Checkpoint, found)
}

func TestEvaluateErrors(t *testing.T) {
	trainer := newToyTrainer(t, toyModel(t), toyArguments(t))
	_, err := trainer.Evaluate(t.Context(), nil)
	require.ErrorContains(t, err, "the data set is empty")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = trainer.Evaluate(ctx, toyData(t, 3, 1))
	require.ErrorIs(t, err, context.Canceled)
}

// Evaluation is the sum over all targets divided by their number, whatever the batches.
func TestEvaluateIgnoresBatching(t *testing.T) {
	data := toyData(t, 13, 4)
	var losses []float64
	for _, size := range []int{1, 3, 13, 20} {
		args := toyArguments(t)
		args.PerDeviceEvalBatchSize = size
		loss, err := newToyTrainer(t, toyModel(t), args).Evaluate(t.Context(), data)
		require.NoError(t, err)
		losses = append(losses, loss)
	}
	for _, loss := range losses[1:] {
		require.InEpsilon(t, losses[0], loss, 1e-6)
	}
}

func valuesOf(t testing.TB, pm *peft.PeftModel) map[string][]float32 {
	t.Helper()
	values, err := pm.TensorValues(pm.Active()[0])
	require.NoError(t, err)
	return values
}

func namesIn(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
