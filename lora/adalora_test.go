package lora_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/peft/pefttest"
	"github.com/gopeft/gopeft/train"
)

// One step, with what it prunes.
func TestAdaLoraGolden(t *testing.T) { pefttest.Golden(t, "*-adalora_*") }

func TestAdaLoraConformance(t *testing.T) {
	for name, s := range map[string]pefttest.Suite{
		"pruning":    {Config: lora.AdaLoraConfig{InitR: 4, TargetR: 2, TotalStep: 4, LoraDropout: 0.1, TargetModules: peft.AllLinear}},
		"transposed": {Config: lora.AdaLoraConfig{InitR: 4, TargetR: 2, TotalStep: 9}, Family: "gpt2"},
		"saved":      {Config: lora.AdaLoraConfig{InitR: 4, TargetR: 2, TotalStep: 9, ModulesToSave: peft.Strings{"lm_head"}}, Alone: true},
	} {
		t.Run(name, func(t *testing.T) { pefttest.Run(t, s) })
	}
}

// adaLoraSteps is a training in peft, see adalora_steps in internal/golden/methods_relatives.py.
type adaLoraSteps struct {
	basetest.Golden
	Steps int
}

func openAdaLoraSteps(t *testing.T, name string) adaLoraSteps {
	g := adaLoraSteps{Golden: basetest.Golden{Dir: filepath.Join(basetest.Fixtures, "adalora", name)}}
	data, err := os.ReadFile(filepath.Join(g.Dir, "info.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &g))
	g.File, err = safetensors.Open(filepath.Join(g.Dir, "golden.safetensors"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, g.File.Close()) })
	return g
}

// train makes the whole training from the adapter that it started with. Beside the model it
// returns the losses and the folder of a checkpoint for each step.
func (g adaLoraSteps) train(t *testing.T, accumulation int) (*peft.PeftModel, []float64, string) {
	pm, err := peft.LoadAdapter(basetest.Load(t, filepath.Join(basetest.Fixtures, "families", "llama")), filepath.Join(g.Dir, "start"))
	require.NoError(t, err)
	rows := func(name string) [][]int32 {
		x := g.Tensor(t, name)
		return slices.Collect(slices.Chunk(basetest.Ints(t, x), x.Shape().Dim(1)))
	}
	ids, labels := rows("input_ids"), rows("labels")
	var examples []train.Example
	for i := range ids {
		examples = append(examples, train.Example{IDs: ids[i], Labels: labels[i]})
	}
	data, err := train.NewDataset(examples)
	require.NoError(t, err)
	var losses []float64
	out := t.TempDir()
	trainer, err := train.NewTrainer(pm, data, train.Arguments{
		OutputDir: out, MaxSteps: g.Steps, SaveSteps: 1, PerDeviceTrainBatchSize: len(examples) / accumulation, GradientAccumulationSteps: accumulation,
		NoShuffle: true, Quiet: true, LearningRate: 0.01, LrSchedulerType: train.SchedulerConstant, AdamEpsilon: 1e-3, MaxGradNorm: 1,
		Callback: func(e train.Event) error {
			if e.Kind == train.EventStep {
				losses = append(losses, e.Loss)
			}
			return nil
		},
	})
	require.NoError(t, err)
	defer trainer.Close()
	_, err = trainer.Train(t.Context())
	require.NoError(t, err)
	return pm, losses, out
}

// A whole training equals peft's with update_and_allocate after every step: the losses with
// their orthogonality term, E and what is left after each step, and the file at the end.
func TestAdaLoraTrainingEqualsPeft(t *testing.T) {
	for _, name := range []string{"schedule", "deltaT"} {
		t.Run(name, func(t *testing.T) {
			backendtest.Sample(t, 5)
			g := openAdaLoraSteps(t, name)
			pm, losses, out := g.train(t, 1)
			require.Len(t, losses, g.Steps)
			for step := 1; step <= g.Steps; step++ {
				require.InDelta(t, basetest.Flat(t, g.Tensor(t, fmt.Sprintf("loss.%d", step)))[0], losses[step-1], 2e-4)
				g.sameTriplets(t, filepath.Join(out, fmt.Sprintf("checkpoint-%d", step)), step)
			}
			g.sameEnd(t, pm)
		})
	}
	t.Run("accumulation", func(t *testing.T) {
		g := openAdaLoraSteps(t, "schedule")
		pm, _, _ := g.train(t, 2)
		g.sameEnd(t, pm)
	})
}

// sameTriplets compares E and which triplets are left in the file of a step. A triplet whose
// value came back since it was pruned is kept in the file.
func (g adaLoraSteps) sameTriplets(t *testing.T, dir string, step int) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "adapter_config.json"))
	require.NoError(t, err)
	config, err := peft.DecodeConfig(data)
	require.NoError(t, err)
	file, err := safetensors.Open(filepath.Join(dir, "adapter_model.safetensors"))
	require.NoError(t, err)
	defer file.Close()
	left, all := 0, 0
	for _, key := range g.File.Names() {
		module, ok := strings.CutPrefix(key, fmt.Sprintf("E.%d.", step))
		if !ok {
			continue
		}
		want := basetest.Flat(t, g.Tensor(t, key))
		mask := basetest.Flat(t, g.Tensor(t, fmt.Sprintf("mask.%d.%s", step, module)))
		kept := config.(lora.AdaLoraConfig).RankPattern[module+".lora_E"]
		if kept == nil {
			kept = slices.Repeat([]bool{true}, len(want))
		}
		info, ok := file.Info("base_model.model." + module + ".lora_E")
		require.True(t, ok, module)
		values := make([]float32, info.Shape[0])
		require.NoError(t, file.Float32s("base_model.model."+module+".lora_E", values))
		got := make([]float32, len(want))
		for i := range want {
			require.Equal(t, mask[i] == 1 || want[i] != 0, kept[i], "step %d %s %d", step, module, i)
			if all++; kept[i] {
				left++
				got[i], values = values[0], values[1:]
			}
		}
		require.Empty(t, values)
		basetest.RequireClose(t, want, got, 1e-4, key)
	}
	require.NotZero(t, all)
	if step == g.Steps {
		require.Less(t, left, all)
	}
}

// sameEnd: the file holds what peft's holds, and means the same.
func (g adaLoraSteps) sameEnd(t *testing.T, pm *peft.PeftModel) {
	t.Helper()
	out, theirs := filepath.Join(t.TempDir(), "out"), filepath.Join(g.Dir, "end")
	require.NoError(t, pm.SavePretrained(out))
	pefttest.SameConfig(t, theirs, out)
	want, err := safetensors.Open(filepath.Join(theirs, "adapter_model.safetensors"))
	require.NoError(t, err)
	defer want.Close()
	got, err := safetensors.Open(filepath.Join(out, "adapter_model.safetensors"))
	require.NoError(t, err)
	defer got.Close()
	require.ElementsMatch(t, want.Names(), got.Names())
	for _, name := range want.Names() {
		info, _ := want.Info(name)
		ours, _ := got.Info(name)
		require.Equal(t, info.Shape, ours.Shape, name)
		size := 1
		for _, d := range info.Shape {
			size *= d
		}
		a, b := make([]float32, size), make([]float32, size)
		require.NoError(t, want.Float32s(name, a))
		require.NoError(t, got.Float32s(name, b))
		basetest.RequireClose(t, a, b, 1e-3, name)
	}
	before := basetest.Evaluate(t, pm, g.Tensor(t, "input_ids"), g.Tensor(t, "labels"))
	for _, dir := range []string{out, theirs} {
		again, err := peft.LoadAdapter(basetest.Load(t, filepath.Join(basetest.Fixtures, "families", "llama")), dir)
		require.NoError(t, err)
		require.Less(t, again.TrainableParameters().Trainable, pm.TrainableParameters().Trainable)
		after := basetest.Evaluate(t, again, g.Tensor(t, "input_ids"), g.Tensor(t, "labels"))
		basetest.RequireClose(t, basetest.Flat(t, g.Tensor(t, "logits")), after.Logits, 1e-3, "logits after loading")
		if dir == out {
			basetest.RequireClose(t, before.Logits, after.Logits, 1e-5, "logits before and after")
		}
		// What is left can be merged, and saved once more.
		_, err = again.Merge(t.Context(), filepath.Join(t.TempDir(), "merged"))
		require.NoError(t, err)
		once := filepath.Join(t.TempDir(), "once")
		require.NoError(t, again.SavePretrained(once))
		pefttest.SameConfig(t, dir, once)
	}
}

// Where nothing is left, the adapter is the identity, and what else it trains can be trained.
func TestAdaLoraRankZero(t *testing.T) {
	base := basetest.Load(t, filepath.Join(basetest.Fixtures, "families", "llama"))
	config := lora.AdaLoraConfig{InitR: 2, TargetR: 1, TotalStep: 3, TargetModules: peft.Modules("q_proj"), ModulesToSave: peft.Strings{"lm_head"}, RankPattern: map[string][]bool{
		"model.layers.0.self_attn.q_proj.lora_E": {false, false}, "model.layers.1.self_attn.q_proj.lora_E": {false, false},
	}}
	pm, err := peft.GetPeftModel(base, config)
	require.NoError(t, err)
	g := openAdaLoraSteps(t, "schedule")
	ids, labels := g.Tensor(t, "input_ids"), g.Tensor(t, "labels")
	plain := basetest.Evaluate(t, pm, ids, labels)
	bare, err := pm.With()
	require.NoError(t, err)
	require.Equal(t, basetest.Evaluate(t, bare, ids, labels).Logits, plain.Logits)
	row := basetest.Ints(t, ids)[:12]
	data, err := train.NewDataset([]train.Example{{IDs: row, Labels: row}})
	require.NoError(t, err)
	trainer, err := train.NewTrainer(pm, data, train.Arguments{OutputDir: t.TempDir(), MaxSteps: 3, Quiet: true, SaveStrategy: train.SaveNo})
	require.NoError(t, err)
	defer trainer.Close()
	_, err = trainer.Train(t.Context())
	require.NoError(t, err)
	dir := filepath.Join(t.TempDir(), "out")
	require.NoError(t, pm.SavePretrained(dir))
	again, err := peft.LoadAdapter(base, dir)
	require.NoError(t, err)
	moved := basetest.Evaluate(t, pm, ids, labels)
	require.NotEqual(t, plain.Logits, moved.Logits)
	require.Equal(t, moved.Logits, basetest.Evaluate(t, again, ids, labels).Logits)

	config.ModulesToSave = nil
	_, err = peft.GetPeftModel(base, config)
	require.EqualError(t, err, "peft: ADALORA adapter has no trainable tensor")
}

// A training of another length than the schedule's is reported.
func TestAdaLoraTotalStep(t *testing.T) {
	data, err := train.NewDataset([]train.Example{{IDs: []int32{1, 2, 3}, Labels: []int32{1, 2, 3}}})
	require.NoError(t, err)
	for steps, want := range map[int]bool{2: false, 3: true} {
		pm, err := peft.GetPeftModel(basetest.Load(t, filepath.Join(basetest.Fixtures, "families", "llama")), lora.AdaLoraConfig{InitR: 2, TargetR: 1, TotalStep: 2})
		require.NoError(t, err)
		var shown strings.Builder
		trainer, err := train.NewTrainer(pm, data, train.Arguments{OutputDir: t.TempDir(), MaxSteps: steps, Progress: &shown, SaveStrategy: train.SaveNo})
		require.NoError(t, err)
		_, err = trainer.Train(t.Context())
		trainer.Close()
		require.NoError(t, err)
		require.Equal(t, want, strings.Contains(shown.String(), `WARNING: adapter "default" is made for a training of 2 steps (its total_step), but this one has 3`), shown.String())
	}
}

func TestAdaLoraErrors(t *testing.T) {
	base := basetest.Llama(64, 2, 4, 2, 16, 96, 100)
	good := lora.AdaLoraConfig{InitR: 4, TargetR: 2, TotalStep: 10}
	for _, c := range []struct {
		change func(c *lora.AdaLoraConfig)
		want   string
	}{
		{func(c *lora.AdaLoraConfig) { c.TotalStep = 0 }, `adalora: total_step is 0, want the number of optimizer steps of the training`},
		{func(c *lora.AdaLoraConfig) { c.TInit, c.TFinal = 4, 6 }, `adalora: tinit 4 and tfinal 6 leave none of the 10 steps (total_step) for pruning`},
		{func(c *lora.AdaLoraConfig) { c.InitR = 1 << 30 }, `adalora: init_r is 1073741824 for 4 modules, want at most 16777216 triplets in all`},
		{func(c *lora.AdaLoraConfig) { c.TFinal = 9 }, `adalora: tfinal 9 of 10 steps (total_step) prunes with the first step`},
		{func(c *lora.AdaLoraConfig) { c.TargetR = 4 }, `adalora: target_r is 4, want less than init_r, 4: there would be nothing to prune`},
		{func(c *lora.AdaLoraConfig) { c.R = 4 }, `adalora: r is 4, but AdaLoRA does not use it: set init_r and target_r`},
		{func(c *lora.AdaLoraConfig) { c.Beta1 = 1 }, `adalora: beta1 is 1 and beta2 0.85, want numbers in (0, 1)`},
		{func(c *lora.AdaLoraConfig) { c.LoraAlpha = -1 }, `adalora: lora_alpha is -1, want a positive number`},
		{func(c *lora.AdaLoraConfig) { c.LoraDropout = 1 }, `adalora: lora_dropout is 1, want a rate in [0, 1)`},
		{func(c *lora.AdaLoraConfig) { c.DeltaT = -1 }, `adalora: tinit is 0, tfinal 0 and deltaT -1, want none negative`},
		{func(c *lora.AdaLoraConfig) { c.InitLoraWeights = "olora" }, `adalora: init_lora_weights "olora" is not supported`},
		{func(c *lora.AdaLoraConfig) { c.TargetModules = peft.Modules("norm") }, `adalora: target module "model.norm" is of kind norm, want a linear layer or a convolution`},
		{func(c *lora.AdaLoraConfig) {
			c.RankPattern = map[string][]bool{"model.layers.0.self_attn.q_proj.lora_E": {true}}
		}, `adalora: rank_pattern: "model.layers.0.self_attn.q_proj.lora_E" has 1 entries, want init_r, 4`},
		{func(c *lora.AdaLoraConfig) { c.RankPattern = map[string][]bool{"q_proj": nil} }, `adalora: rank_pattern: "q_proj" is no tensor of the adapted modules`},
	} {
		config := good
		c.change(&config)
		_, err := peft.GetPeftModel(base, config)
		require.ErrorContains(t, err, c.want)
	}
	for options, want := range map[string]string{
		`"use_dora": true`:        `adalora: option "use_dora" = true is not supported`,
		`"loftq_config": {"a":1}`: `adalora: option "loftq_config" = {"a":1} is not supported`,
	} {
		config, err := peft.DecodeConfig([]byte(`{"peft_type": "ADALORA", "total_step": 10, ` + options + `}`))
		require.NoError(t, err)
		require.EqualError(t, config.Validate(), want)
	}
	_, err := peft.DecodeConfig([]byte(`{"peft_type": "ADALORA", "orth_reg_weight": -0.5}`))
	require.EqualError(t, err, `peft: adalora: orth_reg_weight is -0.5, want 0 or more`)
}
