package train

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// expiring is a context that is cancelled at the n-th look at it, and so at every
// place where a training can be interrupted.
type expiring struct {
	context.Context
	left int
}

func (c *expiring) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

// timing are the parts of a checkpoint that a clock decides.
var timing = regexp.MustCompile(`"(seconds|time|tokens_per_second|(?:peak|device)_memory_bytes)": [^,\n]*`)

// contents are the files of a checkpoint without what a clock decides.
func contents(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, name := range namesIn(t, dir) {
		data, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		if name == stateFile {
			data = timing.ReplaceAll(data, []byte(`"$1": 0`))
		}
		out[name] = string(data)
	}
	return out
}

func resumeArguments(t testing.TB) Arguments {
	args := toyArguments(t)
	args.SaveStrategy, args.SaveSteps = SaveSteps, 4
	args.EvalStrategy, args.EvalSteps, args.EvalDataset = EvalSteps, 3, toyData(t, 7, 2)
	return args
}

// A training interrupted at any point and resumed ends with the same bytes.
func TestResumeIsBitEqual(t *testing.T) {
	args := resumeArguments(t)
	trainer := newToyTrainer(t, toyModel(t), args)
	initial := valuesOf(t, trainer.pm)
	// One trainer for all, so that its programs are compiled once; nothing else of a
	// training may be left for the next.
	train := func(ctx context.Context, args Arguments) (*Result, error) {
		setValues(t, trainer.pm, initial)
		trainer.args = args.withDefaults()
		return trainer.Train(ctx)
	}
	whole, err := train(t.Context(), args)
	require.NoError(t, err)
	want := contents(t, whole.Checkpoint)
	require.Contains(t, want[stateFile], `"eval_loss"`)

	steps := map[int]bool{}
	for n := 0; ; n++ {
		require.Less(t, n, 200)
		args := resumeArguments(t)
		result, err := train(&expiring{t.Context(), n}, args)
		if err == nil {
			break
		}
		require.ErrorIs(t, err, context.Canceled)
		steps[result.GlobalStep] = true
		if result.GlobalStep == 0 {
			require.ErrorContains(t, err, "no checkpoint was written")
			continue
		}
		require.ErrorContains(t, err, result.Checkpoint)
		require.Equal(t, filepath.Join(args.OutputDir, checkpointName(result.GlobalStep)), result.Checkpoint)

		args.ResumeFromCheckpoint = ResumeLast
		resumed, err := train(t.Context(), args)
		require.NoError(t, err, "interrupted at look %d, step %d", n, result.GlobalStep)
		require.Equal(t, whole.Evaluations, resumed.Evaluations)
		require.Equal(t, want, contents(t, resumed.Checkpoint), "interrupted at look %d, step %d", n, result.GlobalStep)
		requireSameLog(t, filepath.Dir(whole.Checkpoint), args.OutputDir)
	}
	require.Len(t, steps, 11, "every step from 0 to 10")
}

// changedToy is a toy one of whose parameters has one other value.
func changedToy(t testing.TB, parameter string) *toy {
	t.Helper()
	m := newToy(t, false)
	v := m.store.GetVariable(site.VariablePath(parameter))
	values := tensors.MustCopyFlatData[float32](v.MustValue())
	values[len(values)-1] += 1
	require.NoError(t, v.SetValue(tensors.FromFlatDataAndDimensions(values, v.Shape().Dimensions...)))
	return m
}

func setValues(t testing.TB, pm *peft.PeftModel, values map[string][]float32) {
	t.Helper()
	layout, err := pm.Layout(pm.Active()[0])
	require.NoError(t, err)
	list, err := layout.FromHost(values)
	require.NoError(t, err)
	require.NoError(t, pm.SetValues(pm.Active()[0], list))
}

func requireSameLog(t *testing.T, dirs ...string) {
	t.Helper()
	var texts []string
	for _, dir := range dirs {
		data, err := os.ReadFile(filepath.Join(dir, logFile))
		require.NoError(t, err)
		texts = append(texts, regexp.MustCompile(`"(time|tokens_per_second|(?:peak|device)_memory_bytes)":[^,}]*`).ReplaceAllString(string(data), ""))
	}
	require.Equal(t, texts[0], texts[1])
}

// Large tensors and methods without a file of their own are resumed as well.
func TestResumeFullFineTuning(t *testing.T) {
	train := func(args Arguments, ctx context.Context) (*Result, error) {
		pm, err := peft.GetPeftModel(newToy(t, false), peft.Full{})
		require.NoError(t, err)
		return newToyTrainer(t, pm, args).Train(ctx)
	}
	args := resumeArguments(t)
	whole, err := train(args, t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{optimizerFile, stateFile}, namesIn(t, whole.Checkpoint))

	args = resumeArguments(t)
	stopped, err := train(args, &expiring{t.Context(), 20})
	require.ErrorIs(t, err, context.Canceled)
	require.Positive(t, stopped.GlobalStep)
	args.ResumeFromCheckpoint = ResumeLast
	resumed, err := train(args, t.Context())
	require.NoError(t, err)
	require.Equal(t, contents(t, whole.Checkpoint), contents(t, resumed.Checkpoint))
}

// Two adapters trained together.
func TestResumeSeveralAdapters(t *testing.T) {
	model := func() *peft.PeftModel {
		pm := newToyPeft(t, false, toyConfig{Targets: mixTargets})
		require.NoError(t, pm.AddAdapter(toyConfig{Targets: []string{"lm_head"}}, peft.Options{Name: "head"}))
		both, err := pm.With(peft.DefaultAdapter, "head")
		require.NoError(t, err)
		return both
	}
	args := resumeArguments(t)
	whole, err := newToyTrainer(t, model(), args).Train(t.Context())
	require.NoError(t, err)
	require.Contains(t, namesIn(t, whole.Checkpoint), "head")

	args = resumeArguments(t)
	stopped, err := newToyTrainer(t, model(), args).Train(&expiring{t.Context(), 20})
	require.ErrorIs(t, err, context.Canceled)
	args.ResumeFromCheckpoint = stopped.Checkpoint
	resumed, err := newToyTrainer(t, model(), args).Train(t.Context())
	require.NoError(t, err)
	for _, name := range []string{optimizerFile, "adapter_model.safetensors", "head/adapter_model.safetensors"} {
		want, err := os.ReadFile(filepath.Join(whole.Checkpoint, name))
		require.NoError(t, err)
		got, err := os.ReadFile(filepath.Join(resumed.Checkpoint, name))
		require.NoError(t, err)
		require.Equal(t, want, got, name)
	}
}

func TestResumeRefusesAnotherTraining(t *testing.T) {
	args := toyArguments(t)
	args.SaveStrategy = SaveSteps
	args.MaxSteps = 3
	saved, err := newToyTrainer(t, toyModel(t), args).Train(t.Context())
	require.NoError(t, err)

	other := toyConfig{Targets: mixTargets, Dropout: 0.3, ZeroB: true}
	for _, c := range []struct {
		name   string
		config toyConfig
		data   *Dataset
		change func(*Arguments)
		want   []string
	}{
		{"lora+", other, nil, func(a *Arguments) { a.LoraPlusLRRatio = 16 }, []string{"loraplus_lr_ratio: only one of checkpoint and program knows it"}},
		{"rate", other, nil, func(a *Arguments) { a.LearningRate = 0.5 }, []string{"learning_rate is 0.5, it was 0.03"}},
		{"several", other, nil, func(a *Arguments) { a.Seed, a.PerDeviceTrainBatchSize = 4, 2 },
			[]string{"seed is 4, it was 3", "per_device_train_batch_size is 2, it was 3"}},
		{"longer", other, nil, func(a *Arguments) { a.MaxSteps = 9 }, []string{"max_steps is 9, it was 3"}},
		{"loss", other, nil, func(a *Arguments) { a.Loss = plainLoss{} }, []string{"loss is train.plainLoss, it was train.CausalLM"}},
		{"fewer rows", other, toyData(t, 21, 1), nil, []string{"the data set has 21 rows, it had 22"}},
		{"other rows", other, toyData(t, 22, 9), nil, []string{"the data set has other content"}},
		{"dropout", toyConfig{Targets: mixTargets, ZeroB: true}, nil, nil, []string{`adapter "default": dropout is 0, it was 0.3`}},
		{"targets", toyConfig{Targets: mixTargets[:1], Dropout: 0.3, ZeroB: true}, nil, nil, []string{`target_modules is ["layers.0.mix"], it was ["layers.0.mix","layers.1.mix"]`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := args
			args.ResumeFromCheckpoint = saved.Checkpoint
			if c.change != nil {
				c.change(&args)
			}
			data := c.data
			if data == nil {
				data = toyData(t, 22, 1)
			}
			pm := newToyPeft(t, false, c.config)
			before := valuesOf(t, pm)
			trainer, err := NewTrainer(pm, data, args)
			require.NoError(t, err)
			_, err = trainer.Train(t.Context())
			for _, want := range c.want {
				require.ErrorContains(t, err, want)
			}
			require.Equal(t, before, valuesOf(t, pm))
		})
	}
	for name, c := range map[string]struct {
		base *toy
		want string
	}{
		"another base's weights": {changedToy(t, "layers.1.mix.weight"), "the base is another model"},
		"another base's shapes":  {newToy(t, true), "the base is another model"},
		"another type of base":   {&toy{backend: testBackend(t), store: newToy(t, false).store, modelType: "other"}, `the base is of type "other", it was "toy"`},
	} {
		t.Run(name, func(t *testing.T) {
			pm, err := peft.GetPeftModel(c.base, other)
			require.NoError(t, err)
			args := args
			args.ResumeFromCheckpoint = saved.Checkpoint
			_, err = newToyTrainer(t, pm, args).Train(t.Context())
			require.ErrorContains(t, err, c.want)
		})
	}
	t.Run("another adapter's name", func(t *testing.T) {
		pm := toyModel(t)
		require.NoError(t, pm.AddAdapter(other, peft.Options{Name: "second"}))
		second, err := pm.With("second")
		require.NoError(t, err)
		args := args
		args.ResumeFromCheckpoint = saved.Checkpoint
		_, err = newToyTrainer(t, second, args).Train(t.Context())
		require.ErrorContains(t, err, "the active adapters are second, they were default")
	})
}

// A constant rate does not depend on the number of steps: such a training can be
// made longer, and equals one that was long from the start.
func TestResumeLonger(t *testing.T) {
	args := toyArguments(t)
	args.SaveStrategy, args.LrSchedulerType = SaveSteps, SchedulerConstant
	whole, err := newToyTrainer(t, toyModel(t), args).Train(t.Context())
	require.NoError(t, err)

	longer := args
	longer.OutputDir = filepath.Join(t.TempDir(), "longer")
	longer.MaxSteps = 6
	_, err = newToyTrainer(t, toyModel(t), longer).Train(t.Context())
	require.NoError(t, err)
	longer.MaxSteps, longer.ResumeFromCheckpoint = 10, ResumeLast
	resumed, err := newToyTrainer(t, toyModel(t), longer).Train(t.Context())
	require.NoError(t, err)
	require.Equal(t, contents(t, whole.Checkpoint)[optimizerFile], contents(t, resumed.Checkpoint)[optimizerFile])

	again, err := newToyTrainer(t, toyModel(t), longer).Train(t.Context())
	require.NoError(t, err, "a finished training has nothing left to do")
	require.Equal(t, resumed.GlobalStep, again.GlobalStep)
	require.Equal(t, resumed.TrainingLoss, again.TrainingLoss)
}

// Damage of any file is an error that names it, and the checkpoint before is "last".
func TestResumeDamagedCheckpoint(t *testing.T) {
	args := toyArguments(t)
	args.SaveStrategy, args.SaveSteps, args.MaxSteps = SaveSteps, 2, 4
	saved, err := newToyTrainer(t, toyModel(t), args).Train(t.Context())
	require.NoError(t, err)
	state := filepath.Join(saved.Checkpoint, stateFile)
	optimizer := filepath.Join(saved.Checkpoint, optimizerFile)
	good := map[string][]byte{}
	for _, path := range []string{state, optimizer} {
		good[path], err = os.ReadFile(path)
		require.NoError(t, err)
	}
	edit := func(change func(m map[string]any)) []byte {
		var m map[string]any
		require.NoError(t, json.Unmarshal(good[state], &m))
		change(m)
		data, err := json.Marshal(m)
		require.NoError(t, err)
		return data
	}
	for _, c := range []struct {
		name       string
		path       string
		data       []byte // nil: removed
		incomplete bool
		want       string
	}{
		{"no state", state, nil, true, stateFile},
		{"half a state", state, good[state][:100], true, stateFile},
		{"no tensors", optimizer, nil, true, optimizerFile},
		{"half the tensors", optimizer, good[optimizer][:len(good[optimizer])-4], true, optimizerFile},
		{"later version", state, edit(func(m map[string]any) { m["version"] = 2 }), true, "version 2, want 1"},
		{"no base", state, edit(func(m map[string]any) { delete(m, "base") }), true, "base.fingerprint is missing"},
		{"negative step", state, edit(func(m map[string]any) { m["global_step"] = -2 }), true, "negative counts"},
		{"place outside the data", state, edit(func(m map[string]any) { m["sampler"].(map[string]any)["cursor"] = 99 }), false, "batch 99 of epoch 0"},
		{"other tensors", optimizer, []byte(strings.Replace(string(good[optimizer]), "exp_avg_sq", "exp_avg_xx", 1)), false, "exp_avg_sq"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.data == nil {
				require.NoError(t, os.Remove(c.path))
			} else {
				require.NoError(t, os.WriteFile(c.path, c.data, 0o666))
			}
			defer func() { require.NoError(t, os.WriteFile(c.path, good[c.path], 0o666)) }()
			args := args
			args.ResumeFromCheckpoint = saved.Checkpoint
			_, err := newToyTrainer(t, toyModel(t), args).Train(t.Context())
			require.ErrorContains(t, err, c.want)
			last, err := LastCheckpoint(args.OutputDir)
			require.NoError(t, err)
			require.Equal(t, c.incomplete, last != saved.Checkpoint)
		})
	}
}

func TestNoCheckpoint(t *testing.T) {
	args := toyArguments(t)
	args.ResumeFromCheckpoint = ResumeLast
	_, err := newToyTrainer(t, toyModel(t), args).Train(t.Context())
	require.ErrorIs(t, err, ErrNoCheckpoint)
	args.ResumeFromCheckpoint = filepath.Join(t.TempDir(), "nothing")
	_, err = newToyTrainer(t, toyModel(t), args).Train(t.Context())
	require.ErrorIs(t, err, os.ErrNotExist)
}

func FuzzTrainerState(f *testing.F) {
	f.Add([]byte(`{"version":1,"global_step":4,"base":{"model_type":"llama","fingerprint":"x"},"sampler":{"epoch":0,"cursor":2,"fingerprint":"x"},"adapters":[{"name":"default","config":{}}]}`))
	f.Add([]byte(`{"version":1,"base":{"fingerprint":"x"},"log_history":[{"step":1,"loss":1e999}]}`))
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := parseState(data)
		if err != nil {
			return
		}
		again, err := json.Marshal(s)
		require.NoError(t, err)
		back, err := parseState(again)
		require.NoError(t, err)
		text, err := json.Marshal(back)
		require.NoError(t, err)
		require.Equal(t, string(again), string(text))
	})
}
