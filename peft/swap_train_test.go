package peft_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/train"
)

// Training with MaxRank is training without: the same losses, and the padding stays zero,
// with weight decay, dropout, clipping and a stop on the way (peft.md 8.57).
func TestTrainingLeavesPadding(t *testing.T) {
	base := family(t, "llama")
	var losses [2][]float64
	var values [2]map[string][]float32
	for i, maxRank := range []int{0, 7} {
		pm := attach(t, base, lora.LoraConfig{R: 3, LoraAlpha: 5, UseRSLoRA: true, LoraDropout: 0.2, TargetModules: peft.Modules("q_proj", "down_proj", "embed_tokens")},
			peft.Options{Seed: 2, MaxRank: maxRank})
		data, err := train.NewDataset([]train.Example{{IDs: fourRows[0], Labels: fourRows[0]}, {IDs: fourRows[1], Labels: fourRows[1]}})
		require.NoError(t, err)
		arguments := train.Arguments{
			OutputDir: t.TempDir(), MaxSteps: 6, PerDeviceTrainBatchSize: 2, LearningRate: 1e-2, WeightDecay: 0.1, MaxGradNorm: 0.5, Seed: 3, Quiet: true,
			LrSchedulerType: train.SchedulerConstant, SaveStrategy: train.SaveSteps, SaveSteps: 3, LoggingSteps: 1,
			Callback: func(e train.Event) error {
				if e.Kind == train.EventStep {
					losses[i] = append(losses[i], e.Loss)
				}
				return nil
			},
		}
		trainer, err := train.NewTrainer(pm, data, arguments)
		require.NoError(t, err)
		_, err = trainer.Train(t.Context())
		require.NoError(t, err)
		trainer.Close()
		tensors, err := pm.FileTensors(peft.DefaultAdapter)
		require.NoError(t, err)
		values[i] = map[string][]float32{}
		for _, tensor := range tensors {
			values[i][tensor.Name] = tensor.Values
		}
		if maxRank == 0 {
			continue
		}
		all, err := pm.TensorValues(peft.DefaultAdapter)
		require.NoError(t, err)
		for name, file := range values[i] {
			nonzero := func(values []float32) (n int) {
				for _, v := range values {
					if v != 0 {
						n++
					}
				}
				return n
			}
			require.Greater(t, len(all[name]), len(file))
			require.Equal(t, nonzero(file), nonzero(all[name]), name)
		}
	}
	require.Len(t, losses[0], 6)
	require.InDeltaSlice(t, losses[0], losses[1], 1e-5)
	for name, want := range values[0] {
		basetest.RequireClose(t, want, values[1][name], 1e-4, name)
	}
}
