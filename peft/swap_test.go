package peft_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
)

// Laid out for a larger rank an adapter starts, computes, counts, merges and is written as
// with its own.
func TestMaxRankChangesNothing(t *testing.T) {
	base := family(t, "llama")
	ids, labels := batch()
	for name, config := range map[string]lora.LoraConfig{
		"linear":    {R: 2, LoraAlpha: 7, TargetModules: peft.AllLinear},
		"embedding": {R: 3, TargetModules: peft.Modules("embed_tokens", "lm_head")},
		"patterns": {R: 2, UseRSLoRA: true, RankPattern: peft.Patterns{{Pattern: `layers\.1\..*`, Value: 5}},
			AlphaPattern: peft.Patterns{{Pattern: "q_proj", Value: 3}}},
	} {
		t.Run(name, func(t *testing.T) {
			backendtest.Sample(t, 5)
			config.InitLoraWeights = lora.InitRandom
			plain := attach(t, base, config, peft.Options{Seed: 4})
			padded := attach(t, base, config, peft.Options{Seed: 4, MaxRank: 6})
			require.Equal(t, plain.TrainableParameters(), padded.TrainableParameters())
			a, b := basetest.Evaluate(t, plain, ids, labels), basetest.Evaluate(t, padded, ids, labels)
			basetest.RequireClose(t, a.Logits, b.Logits, 1e-6, "logits")
			zeros := 0
			for tensor, gradient := range b.Gradients {
				n := 0
				for _, g := range gradient {
					if g == 0 {
						n++
					}
				}
				require.GreaterOrEqual(t, n, len(gradient)-len(a.Gradients[tensor]), tensor) // the padding stays zero
				zeros += n
			}
			require.NotZero(t, zeros)
			one, other := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
			require.NoError(t, plain.SavePretrained(one))
			require.NoError(t, padded.SavePretrained(other))
			for _, file := range []string{configFile, weightsFile} {
				require.Equal(t, read(t, one, file), read(t, other, file))
			}
			require.NoError(t, plain.LoadAdapter(other, peft.Options{Name: "again", MaxRank: 7}))
			require.Equal(t, a.Logits, basetest.Evaluate(t, plain, ids, labels).Logits)
			basetest.RequireClose(t, a.Logits, basetest.Evaluate(t, selected(t, plain, "again"), ids, labels).Logits, 1e-6, "loaded")
			plan, err := padded.Plan(peft.DefaultAdapter)
			require.NoError(t, err)
			unpadded, err := plain.Plan(peft.DefaultAdapter)
			require.NoError(t, err)
			require.Equal(t, unpadded.String(), plan.String())
			dir := t.TempDir()
			_, err = padded.Merge(t.Context(), dir)
			require.NoError(t, err)
			ids, labels := batch()
			basetest.RequireClose(t, a.Logits, basetest.Evaluate(t, view(t, basetest.Load(t, dir)), ids, labels).Logits, 1e-5, "merged")
		})
	}
}

// SwapAdapter puts a file in the place of an adapter: its values, and zero where it has
// none. What it cannot do is an error that changes nothing (peft.md 8.57).
func TestSwapAdapter(t *testing.T) {
	base := family(t, "llama")
	save := func(config peft.Config) string {
		t.Helper()
		dir := filepath.Join(t.TempDir(), "adapter")
		require.NoError(t, attach(t, base, config).SavePretrained(dir))
		return dir
	}
	random := func(r int, targets ...string) lora.LoraConfig {
		return lora.LoraConfig{R: r, LoraAlpha: 3, InitLoraWeights: lora.InitRandom, TargetModules: peft.Modules(targets...)}
	}
	pm := attach(t, base, random(2, "q_proj", "v_proj"), peft.Options{MaxRank: 4, Name: "a"})
	before := logitsOf(t, base, pm, fourRows)
	require.NoError(t, pm.AddAdapter(random(2, "q_proj"), peft.Options{Name: "fixed"}))
	for want, swap := range map[string]func() error{
		"unknown adapter":                         func() error { return pm.SwapAdapter("b", save(random(2, "q_proj"))) },
		"made without Options.MaxRank":            func() error { return pm.SwapAdapter("fixed", save(random(2, "q_proj"))) },
		"has rank 5, more than MaxRank 4":         func() error { return pm.SwapAdapter("a", save(random(5, "q_proj"))) },
		"2 targets that the old one was not made": func() error { return pm.SwapAdapter("a", save(random(2, "q_proj", "up_proj"))) },
		"model.layers.0.mlp.up_proj":              func() error { return pm.SwapAdapter("a", save(random(2, "q_proj", "up_proj"))) },
		"there is no such folder":                 func() error { return pm.SwapAdapter("a", filepath.Join(t.TempDir(), "none")) },
		"cannot be swapped": func() error {
			c := random(2, "q_proj")
			c.ModulesToSave = peft.Strings{"lm_head"}
			return pm.SwapAdapter("a", save(c))
		},
		"first \"model.layers.0.self_attn.q_proj.lora_A.weight\"": func() error {
			dir := save(random(2, "q_proj"))
			other := save(random(2, "v_proj"))
			require.NoError(t, os.Rename(filepath.Join(dir, configFile), filepath.Join(other, configFile)))
			config := read(t, other, configFile)
			require.Contains(t, string(config), "q_proj")
			return pm.SwapAdapter("a", other)
		},
	} {
		err := swap()
		if want == "first \"model.layers.0.self_attn.q_proj.lora_A.weight\"" {
			require.ErrorContains(t, err, "no tensor of the file fits the base")
		} else {
			require.ErrorContains(t, err, want)
		}
		require.Equal(t, before, logitsOf(t, base, pm, fourRows))
	}
	require.ErrorContains(t, pm.AddAdapter(peft.Full{}, peft.Options{Name: "f", MaxRank: 4}), "method FULL have no rank that can be padded")
	require.ErrorContains(t, pm.AddAdapter(random(2, "q_proj"), peft.Options{Name: "f", MaxRank: -1}), "MaxRank is -1")

	smaller := save(random(1, "v_proj"))
	want, err := peft.LoadAdapter(base, smaller)
	require.NoError(t, err)
	require.NoError(t, pm.SwapAdapter("a", smaller))
	basetest.RequireClose(t, logitsOf(t, base, want, fourRows), logitsOf(t, base, pm, fourRows), 1e-6, "swapped")
	report, err := pm.LoadReport("a")
	require.NoError(t, err)
	require.Len(t, report.Loaded, 4)
	// What is saved is what was put in.
	dir := filepath.Join(t.TempDir(), "again")
	require.NoError(t, pm.SavePretrained(dir))
	for _, file := range []string{configFile, weightsFile} {
		require.Equal(t, read(t, smaller, file), read(t, filepath.Join(dir, "a"), file))
	}
	require.Equal(t, want.TrainableParameters().Trainable, pm.TrainableParameters().Trainable)
	// And back: targets that the smaller one lacked are there still.
	larger := save(random(4, "q_proj", "v_proj"))
	require.NoError(t, pm.SwapAdapter("a", larger))
	want, err = peft.LoadAdapter(base, larger)
	require.NoError(t, err)
	basetest.RequireClose(t, logitsOf(t, base, want, fourRows), logitsOf(t, base, pm, fourRows), 1e-6, "swapped back")
}
