package pefttest

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
	"github.com/gopeft/gopeft/train"
)

// arguments are those of a short training.
func arguments(t *testing.T, steps int) train.Arguments {
	return train.Arguments{
		OutputDir: t.TempDir(), MaxSteps: steps, PerDeviceTrainBatchSize: 2, Quiet: true, LoggingSteps: 1,
		LearningRate: 0.01, LrSchedulerType: train.SchedulerConstant, SaveStrategy: train.SaveNo, Seed: 3,
	}
}

// dataset are n examples for a base, see batch.
func dataset(t *testing.T, base site.Base, n int) *train.Dataset {
	t.Helper()
	ids, labels := examples(n)
	list := make([]train.Example, n)
	for i := range ids {
		list[i] = train.Example{IDs: ids[i], Labels: labels[i]}
	}
	if c, ok := base.(*models.Classifier); ok {
		for i := range list {
			list[i].Labels = []int32{class(list[i].IDs)}
		}
		data, err := train.NewClassDataset(train.LabelRow, list, c.Labels())
		require.NoError(t, err)
		return data
	}
	data, err := train.NewDataset(list)
	require.NoError(t, err)
	return data
}

// fit trains a view.
func fit(t *testing.T, pm *peft.PeftModel, data *train.Dataset, args train.Arguments) *train.Result {
	t.Helper()
	trainer, err := train.NewTrainer(pm, data, args)
	require.NoError(t, err)
	defer trainer.Close()
	result, err := trainer.Train(t.Context())
	require.NoError(t, err)
	return result
}

func loss(t *testing.T, pm *peft.PeftModel, data *train.Dataset) float64 {
	t.Helper()
	trainer, err := train.NewTrainer(pm, data, arguments(t, 1))
	require.NoError(t, err)
	defer trainer.Close()
	l, err := trainer.Evaluate(t.Context(), data)
	require.NoError(t, err)
	return l
}

func (s Suite) training(t *testing.T) {
	base := s.base(t)
	prints := fingerprint(t, base)
	pm := s.moved(t, base)
	require.NoError(t, pm.AddAdapter(s.Config, peft.Options{Name: "bystander", Seed: 9}))
	before, bystander := tensorsOf(t, pm, peft.DefaultAdapter), tensorsOf(t, pm, "bystander")
	data := dataset(t, base, 4)
	start := loss(t, pm, data)
	fit(t, pm, data, arguments(t, 8))
	require.Less(t, loss(t, pm, data), start, "the loss after eight steps")
	layout, err := pm.Layout(peft.DefaultAdapter)
	require.NoError(t, err)
	after := tensorsOf(t, pm, peft.DefaultAdapter)
	for _, p := range layout.Params() {
		require.NotEqual(t, before[p.Name], after[p.Name], "%s did not move", p.Name)
	}
	require.Equal(t, bystander, tensorsOf(t, pm, "bystander"))
	require.Equal(t, prints, fingerprint(t, base), "the base")
}

func (s Suite) checkpointing(t *testing.T) {
	data := dataset(t, s.base(t), 4)
	var losses [2]float64
	var values [2]map[string][]float32
	for i := range losses {
		pm := s.moved(t, s.base(t))
		args := arguments(t, 2)
		args.GradientCheckpointing = i == 1
		losses[i] = fit(t, pm, data, args).TrainingLoss
		values[i] = tensorsOf(t, pm, peft.DefaultAdapter)
	}
	require.InEpsilon(t, losses[0], losses[1], 1e-5)
	for name, want := range values[0] {
		// Adam divides by the gradient's size: rounding of a small one shows as a part of the rate.
		require.LessOrEqual(t, meanDistance(want, values[1][name]), 1e-4, name)
	}
}

func meanDistance(a, b []float32) float64 {
	sum := 0.0
	for i := range a {
		sum += math.Abs(float64(a[i] - b[i]))
	}
	return sum / float64(len(a))
}

func (s Suite) resume(t *testing.T) {
	data := dataset(t, s.base(t), 6)
	args := arguments(t, 4)
	args.SaveStrategy, args.SaveSteps = train.SaveSteps, 2
	whole := s.moved(t, s.base(t))
	fit(t, whole, data, args)

	again := s.moved(t, s.base(t))
	resumed := arguments(t, 4)
	resumed.ResumeFromCheckpoint = args.OutputDir + "/checkpoint-2"
	fit(t, again, data, resumed)
	require.Equal(t, tensorsOf(t, whole, peft.DefaultAdapter), tensorsOf(t, again, peft.DefaultAdapter))
	basetest.RequireClose(t, logits(t, whole), logits(t, again), 0, "logits")
}
