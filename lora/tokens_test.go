package lora_test

import (
	"math"
	"path/filepath"
	"testing"

	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

func TestTrainableTokenIndicesErrors(t *testing.T) {
	tied := basetest.Llama(8, 2, 2, 2, 4, 16, 32)
	untied := &basetest.Shape{Type: "llama"}
	for _, m := range tied.Modules() {
		m.TiedTo = ""
		untied.Add(m)
	}
	input := func(list ...int) peft.TokenIndices { return peft.TokenIndices{Input: list} }
	named := func(name string, list ...int) peft.TokenIndices {
		return peft.TokenIndices{Modules: map[string][]int{name: list}}
	}
	both := func(embedding, head []int) peft.TokenIndices {
		return peft.TokenIndices{Modules: map[string][]int{"embed_tokens": embedding, "lm_head": head}}
	}
	for _, c := range []struct {
		base   site.Base
		config lora.LoraConfig
		want   string // "": no error
	}{
		{tied, lora.LoraConfig{TrainableTokenIndices: input(1, 2)}, ""},
		{tied, lora.LoraConfig{TrainableTokenIndices: both([]int{1, 2}, []int{1, 2}), EnsureWeightTying: true}, ""},
		{tied, lora.LoraConfig{TrainableTokenIndices: both([]int{1, 2}, []int{3})}, ""},
		{untied, lora.LoraConfig{TrainableTokenIndices: both([]int{1, 2}, []int{3})}, ""},
		{tied, lora.LoraConfig{TrainableTokenIndices: both([]int{1, 2}, []int{3}), EnsureWeightTying: true},
			`lora: trainable_token_indices: tied layers must have the same token indices: "model.embed_tokens" has [1 2], "lm_head" has [3] (ensure_weight_tying)`},
		{untied, lora.LoraConfig{TrainableTokenIndices: input(1), EnsureWeightTying: true}, `lora: ensure_weight_tying: no modules of the base share a weight`},
		{tied, lora.LoraConfig{EnsureWeightTying: true}, `lora: ensure_weight_tying has no effect without trainable_token_indices`},
		{tied, lora.LoraConfig{EnsureWeightTying: true, ModulesToSave: peft.Strings{"embed_tokens"}}, `lora: ensure_weight_tying: "model.embed_tokens" shares its weight and is in modules_to_save`},
		{tied, lora.LoraConfig{EnsureWeightTying: true, TargetModules: peft.Modules("embed_tokens")}, `lora: ensure_weight_tying: "model.embed_tokens" shares its weight and is a target`},
		{untied, lora.LoraConfig{TrainableTokenIndices: input(1), ModulesToSave: peft.Strings{"embed_tokens"}},
			`lora: trainable_token_indices: "model.embed_tokens" is trained as a whole already (modules_to_save "embed_tokens"): want one of both`},
		{untied, lora.LoraConfig{TrainableTokenIndices: input(1), TargetModules: peft.Modules("embed_tokens")},
			`lora: trainable_token_indices: "model.embed_tokens" has a LoRA: its rows cannot be trained too`},
		{tied, lora.LoraConfig{TrainableTokenIndices: input(1), TargetModules: peft.Modules("lm_head")}, `"lm_head" has a LoRA`},
		{untied, lora.LoraConfig{TrainableTokenIndices: named("embed_tokns", 1)}, `lora: trainable_token_indices: module "embed_tokns" is not in the base; did you mean "embed_tokens"?`},
		{untied, lora.LoraConfig{TrainableTokenIndices: named("q_proj", 1)}, `"model.layers.0.self_attn.q_proj" is a linear, want an embedding or the head`},
		{untied, lora.LoraConfig{TrainableTokenIndices: named("embed_tokens")}, `lora: "embed_tokens": no token indices`},
		{untied, lora.LoraConfig{TrainableTokenIndices: input(4, 4)}, `lora: token index 4 is named twice`},
		{untied, lora.LoraConfig{TrainableTokenIndices: input(32)}, `token index 32, want less than the 32 rows`},
	} {
		c.config.R = 2
		_, err := peft.DryRun(c.base, c.config)
		if c.want == "" {
			require.NoError(t, err)
		} else {
			require.ErrorContains(t, err, c.want)
		}
	}
}

// Different rows of an embedding and of the head that shares its weight are two sets of
// rows; merging unties the two (peft.md 8, item 31).
func TestTrainableTokenIndicesOfTiedModulesApart(t *testing.T) {
	base := basetest.Load(t, filepath.Join(basetest.Fixtures, "families", "llama_tied"))
	pm, err := peft.GetPeftModel(base, lora.LoraConfig{R: 2, TrainableTokenIndices: peft.TokenIndices{
		Modules: map[string][]int{"embed_tokens": {5, 9}, "lm_head": {9, 7, 5}},
	}})
	require.NoError(t, err)
	layout, err := pm.Layout(peft.DefaultAdapter)
	require.NoError(t, err)
	values, err := pm.TensorValues(peft.DefaultAdapter)
	require.NoError(t, err)
	head := values["lm_head.token_adapter.trainable_tokens_delta"]
	require.Len(t, head, 3*32)
	for i := range head {
		head[i] += 0.3
	}
	arguments, err := layout.FromHost(values)
	require.NoError(t, err)
	require.NoError(t, pm.SetValues(peft.DefaultAdapter, arguments))

	ids := tensors.FromValue([][]int32{{5, 9, 17, 33, 5, 40, 9, 12}})
	plain, err := pm.With()
	require.NoError(t, err)
	was, is := basetest.Evaluate(t, plain, ids, ids).Logits, basetest.Evaluate(t, pm, ids, ids).Logits
	for i := range was {
		if column := i % 64; column == 5 || column == 7 || column == 9 {
			require.Greater(t, math.Abs(float64(was[i]-is[i])), 1e-3, i)
		} else { // the embedding's rows did not move
			require.InDelta(t, was[i], is[i], 1e-5, i) // two programs
		}
	}
	dir := filepath.Join(t.TempDir(), "adapter")
	require.NoError(t, pm.SavePretrained(dir))
	again, err := peft.LoadAdapter(base, dir)
	require.NoError(t, err)
	require.Equal(t, is, basetest.Evaluate(t, again, ids, ids).Logits)

	merged := t.TempDir()
	report, err := pm.Merge(t.Context(), merged)
	require.NoError(t, err)
	require.Equal(t, []string{"lm_head.weight"}, report.Untied)
	full, err := peft.GetPeftModel(basetest.Load(t, merged), peft.Full{})
	require.NoError(t, err)
	basetest.RequireClose(t, is, basetest.Evaluate(t, full, ids, ids).Logits, 1e-5, "merged")
}

// A file holds the trained rows once, nothing for the head that follows, and nothing else
// of the embedding (peft.md 8, item 31).
func TestTrainableTokenIndicesFile(t *testing.T) {
	pm, err := peft.GetPeftModel(basetest.Load(t, filepath.Join(basetest.Fixtures, "families", "llama_tied")), lora.LoraConfig{
		R: 2, TargetModules: peft.Modules("layers.0.self_attn.q_proj"), TrainableTokenIndices: peft.TokenIndices{Input: []int{5, 9, 3}},
	})
	require.NoError(t, err)
	dir := filepath.Join(t.TempDir(), "adapter")
	require.NoError(t, pm.SavePretrained(dir))
	file, err := safetensors.Open(filepath.Join(dir, "adapter_model.safetensors"))
	require.NoError(t, err)
	defer file.Close()
	const q = "base_model.model.model.layers.0.self_attn.q_proj."
	require.ElementsMatch(t, []string{q + "lora_A.weight", q + "lora_B.weight", "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"}, file.Names())
}
