package prefixtuning_test

import (
	"path/filepath"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/prefixtuning"
	"github.com/gopeft/gopeft/train"
)

// A prefix and a LoRA, a prompt and a prefix, are active together and trained together; two
// prefixes, or two prompts, are not.
func TestTogether(t *testing.T) {
	pm := attach(t, family(t, "llama"), prefixtuning.PrefixTuningConfig{NumVirtualTokens: 3})
	add := func(name string, c peft.Config) {
		require.NoError(t, pm.AddAdapter(c, peft.Options{Name: name, Seed: 1}))
	}
	add("lora", lora.LoraConfig{R: 2})
	add("prompt", prefixtuning.PromptTuningConfig{NumVirtualTokens: 2})
	add("prefix2", prefixtuning.PrefixTuningConfig{NumVirtualTokens: 1})
	add("prompt2", prefixtuning.PromptEncoderConfig{NumVirtualTokens: 1})
	_, err := pm.With(peft.DefaultAdapter, "prefix2")
	require.ErrorContains(t, err, "only one can be active")
	_, err = pm.With("prompt", "lora", "prompt2")
	require.ErrorContains(t, err, "only one can be active")
	all, err := pm.With(peft.DefaultAdapter, "lora", "prompt")
	require.NoError(t, err)
	require.Equal(t, 5, all.VirtualTokens())
	before := map[string]map[string][]float32{}
	for _, name := range all.Active() {
		before[name], err = all.TensorValues(name)
		require.NoError(t, err)
	}
	fit(t, all, 3, "")
	for name, was := range before {
		now, err := all.TensorValues(name)
		require.NoError(t, err)
		for tensor := range was {
			require.NotEqual(t, was[tensor], now[tensor], "%s: %s", name, tensor)
		}
	}
	_, err = all.Merge(t.Context(), t.TempDir())
	require.ErrorContains(t, err, "cannot be merged")
}

// fit trains for some steps.
func fit(t *testing.T, pm *peft.PeftModel, steps int, resume string) (dir string) {
	t.Helper()
	var examples []train.Example
	for _, text := range [][]int32{texts[0], texts[1], {4, 8, 15, 16, 23, 42}, {3, 3, 5, 8}} {
		examples = append(examples, train.Example{IDs: text, Labels: text})
	}
	data, err := train.NewDataset(examples)
	require.NoError(t, err)
	dir = t.TempDir()
	trainer, err := train.NewTrainer(pm, data, train.Arguments{
		OutputDir: dir, MaxSteps: steps, PerDeviceTrainBatchSize: 2, Quiet: true, LearningRate: 0.01, LrSchedulerType: train.SchedulerConstant,
		SaveStrategy: train.SaveSteps, SaveSteps: 2, ResumeFromCheckpoint: resume, Seed: 5,
	})
	require.NoError(t, err)
	defer trainer.Close()
	_, err = trainer.Train(t.Context())
	require.NoError(t, err)
	return dir
}

// A half precision base computes with the prefix in its own precision.
func TestBFloat16(t *testing.T) {
	for name, c := range methods(3) {
		t.Run(name, func(t *testing.T) {
			backendtest.Sample(t, 3)
			dir := fixture(t, "families", "llama")
			half, err := models.Load(t.Context(), dir, models.Options{On: backendtest.Open(t), DType: dtypes.BFloat16})
			require.NoError(t, err)
			defer half.Close()
			in := input{ids: tensors.FromValue(texts[:1]), labels: tensors.FromValue(texts[:1])}
			want, got := run(t, attach(t, family(t, "llama"), c), in), run(t, attach(t, half, c), in)
			basetest.RequireClose(t, want.scores, got.scores, 0.05, "scores")
			for i := range want.gradients {
				basetest.RequireClose(t, want.gradients[i], got.gradients[i], 0.2, "gradient")
			}
		})
	}
}

// Training that is resumed from a checkpoint ends where one without a break does, the
// network of a projection and dropout in it included; and an adapter that was saved with its
// network goes on from there.
func TestResume(t *testing.T) {
	for name, c := range map[string]peft.Config{
		"projection": prefixtuning.PrefixTuningConfig{NumVirtualTokens: 3, PrefixProjection: true, EncoderHiddenSize: 8},
		"LSTM":       prefixtuning.PromptEncoderConfig{NumVirtualTokens: 3, EncoderReparameterizationType: prefixtuning.LSTM, EncoderHiddenSize: 6, EncoderDropout: 0.3},
	} {
		t.Run(name, func(t *testing.T) {
			base := family(t, "llama")
			whole := attach(t, base, c)
			dir := fit(t, whole, 4, "")
			again := attach(t, base, c)
			fit(t, again, 4, filepath.Join(dir, "checkpoint-2"))
			want, err := whole.TensorValues(peft.DefaultAdapter)
			require.NoError(t, err)
			got, err := again.TensorValues(peft.DefaultAdapter)
			require.NoError(t, err)
			require.Equal(t, want, got)

			saved := filepath.Join(t.TempDir(), "saved")
			require.NoError(t, whole.SavePretrained(saved))
			read, err := peft.LoadAdapter(base, saved)
			require.NoError(t, err)
			got, err = read.TensorValues(peft.DefaultAdapter)
			require.NoError(t, err)
			require.Equal(t, want, got)
		})
	}
}

// Rows that take all positions but those of the virtual tokens train, and no others: padding
// is no reason to refuse them.
func TestFullLength(t *testing.T) {
	const n = 5
	for name, c := range methods(n) {
		t.Run(name, func(t *testing.T) {
			backendtest.Sample(t, 3)
			for _, sequence := range []bool{false, true} {
				row := func(length int) train.Example {
					e := train.Example{IDs: make([]int32, length)}
					for i := range e.IDs {
						e.IDs[i] = int32(4 + i)
					}
					e.Labels = e.IDs
					if sequence {
						e.Labels = []int32{1}
					}
					return e
				}
				var pm *peft.PeftModel
				positions := 48
				if sequence {
					pm, positions = attach(t, loadClassifier(t, fixture(t, "encoders", "bert_sequence"), false), c), 40
				} else {
					pm = attach(t, family(t, "gpt2"), c)
				}
				for extra := range 2 {
					examples := []train.Example{row(positions - n + extra), row(3)}
					data, err := train.NewDataset(examples)
					if sequence {
						data, err = train.NewClassDataset(train.LabelRow, examples, []string{"yes", "no", "maybe"})
					}
					require.NoError(t, err)
					trainer, err := train.NewTrainer(pm, data, train.Arguments{
						OutputDir: t.TempDir(), MaxSteps: 1, PerDeviceTrainBatchSize: 2, Quiet: true, EvalDataset: data, SaveStrategy: train.SaveNo})
					if extra > 0 {
						require.ErrorContains(t, err, "5 of which the adapters take: lower MaxLength")
						continue
					}
					require.NoError(t, err)
					_, err = trainer.Train(t.Context())
					require.NoError(t, err)
					_, err = trainer.Evaluate(t.Context(), data)
					require.NoError(t, err)
					trainer.Close()
				}
			}
		})
	}
}
