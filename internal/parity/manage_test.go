package parity

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
)

// TestGoManaged: what comes of untying, combining, swapping and padding means the same in
// Python.
func TestGoManaged(t *testing.T) {
	python := need(t, envPython)
	var q questions
	out := t.TempDir()
	random := func(r int, targets ...string) lora.LoraConfig {
		return lora.LoraConfig{R: r, InitLoraWeights: lora.InitRandom, TargetModules: peft.Modules(targets...)}
	}
	open := func(family string, config peft.Config, options ...peft.Options) (folder string, pm *peft.PeftModel) {
		folder, err := filepath.Abs(filepath.Join(fixtures, "families", family))
		require.NoError(t, err)
		pm, err = peft.GetPeftModel(basetest.Load(t, folder), config, options...)
		require.NoError(t, err)
		return folder, pm
	}
	for family, targets := range map[string][]string{"llama_tied": {"lm_head", "q_proj"}, "gpt2": {"wte", "c_attn"}, "gemma2": {"embed_tokens", "lm_head"}} {
		folder, pm := open(family, random(2, targets...))
		merged, answer := filepath.Join(out, family), filepath.Join(out, family+".safetensors")
		ids := goldenIDs(t, folder)
		report, err := pm.Merge(t.Context(), merged)
		require.NoError(t, err)
		require.NotEmpty(t, report.Untied)
		writeAnswer(t, answer, ids, forward(t, pm, ids))
		q.ask(t, "check_merged", merged, answer)
	}

	folder, pm := open("llama", random(3, "q_proj", "down_proj"), peft.Options{Name: "a"})
	ids := goldenIDs(t, folder)
	check := func(name string) {
		t.Helper()
		view, err := pm.With(name)
		require.NoError(t, err)
		dir, answer := filepath.Join(out, "adapters"), filepath.Join(out, name+".safetensors")
		require.NoError(t, view.SavePretrained(dir))
		writeAnswer(t, answer, ids, forward(t, view, ids))
		q.ask(t, "check_adapter", folder, filepath.Join(dir, name), answer)
	}
	require.NoError(t, pm.AddAdapter(random(3, "q_proj", "v_proj"), peft.Options{Name: "b", Seed: 1}))
	for _, c := range []lora.Combination{
		{Type: lora.Cat}, {Type: lora.Linear}, {Type: lora.SVD}, {Type: lora.Ties, Density: 0.6}, {Type: lora.TiesSVD, Density: 0.6, Rank: 5},
		{Type: lora.DareLinear, Density: 0.6}, {Type: lora.DareLinearSVD, Density: 0.6}, {Type: lora.DareTies, Density: 0.6}, {Type: lora.DareTiesSVD, Density: 0.6},
		{Type: lora.MagnitudePrune, Density: 0.6}, {Type: lora.MagnitudePruneSVD, Density: 0.6},
	} {
		c.Adapters, c.Weights = []string{"a", "b"}, []float64{1.5, -0.5}
		_, err := lora.AddWeightedAdapter(pm, string(c.Type), c)
		require.NoError(t, err)
		check(string(c.Type))
	}
	check("b")
	require.NoError(t, pm.AddAdapter(random(2, "q_proj", "v_proj", "embed_tokens"), peft.Options{Name: "padded", MaxRank: 8}))
	check("padded")
	require.NoError(t, pm.AddAdapter(random(2, "q_proj", "v_proj", "embed_tokens"), peft.Options{Name: "swapped", MaxRank: 8}))
	require.NoError(t, pm.SwapAdapter("swapped", filepath.Join(out, "adapters", "b")))
	check("swapped")
	require.NoError(t, pm.AddAdapter(lora.LoraConfig{R: 4, UseDora: true, InitLoraWeights: lora.InitRandom, TargetModules: peft.Modules("v_proj", "embed_tokens"), ModulesToSave: peft.Strings{"model.norm"}}, peft.Options{Name: "dora"}))
	_, err := lora.Convert(pm, "dora", "converted", lora.Conversion{Energy: 0.8})
	require.NoError(t, err)
	check("converted")
	q.answer(t, python)
}
