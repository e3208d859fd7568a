package lora

import (
	"math"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/peft"
)

// noisy attaches an adapter whose values were moved.
func noisy(t testing.TB, family string, config peft.Config) *peft.PeftModel {
	t.Helper()
	base := basetest.Load(t, filepath.Join(basetest.Fixtures, "families", family))
	pm, err := peft.GetPeftModel(base, config)
	require.NoError(t, err)
	layout, err := pm.Layout(peft.DefaultAdapter)
	require.NoError(t, err)
	values, err := pm.TensorValues(peft.DefaultAdapter)
	require.NoError(t, err)
	x := 1.0
	for _, p := range layout.Params() {
		for i := range values[p.Name] {
			x = 3.7 * x * (1 - x/8) // chaotic in (0, 8)
			values[p.Name][i] += float32(0.1 * (x - 4))
		}
	}
	arguments, err := layout.FromHost(values)
	require.NoError(t, err)
	require.NoError(t, pm.SetValues(peft.DefaultAdapter, arguments))
	return pm
}

// A LoRA made of one on repeated layers belongs on the same layers, and so says its file.
func TestConvertReplicated(t *testing.T) {
	ranges := [][2]int{{0, 1}, {0, 2}, {1, 2}}
	pm := noisy(t, "llama", LoraConfig{R: 2, LayerReplication: ranges})
	report, err := Convert(pm, peft.DefaultAdapter, "lora", Conversion{Rank: 2})
	require.NoError(t, err)
	require.Len(t, report.Modules, 8)
	config, err := pm.Config("lora")
	require.NoError(t, err)
	require.Equal(t, ranges, config.(LoraConfig).LayerReplication)
}

// Adapters of any additive method become LoRAs: the error shrinks with the rank, and a
// whole rank or energy loses nothing (peft.md 8.62).
func TestConvert(t *testing.T) {
	for name, c := range map[string]struct {
		family string
		config peft.Config
	}{
		"loha":         {"llama", LohaConfig{R: 3, TargetModules: peft.Modules("q_proj", "up_proj")}},
		"lokr":         {"llama", LokrConfig{R: 2, TargetModules: peft.Modules("v_proj", "down_proj")}},
		"vera":         {"llama", VeraConfig{R: 8, TargetModules: peft.Modules("v_proj")}},
		"miss":         {"llama", MissConfig{R: 4, TargetModules: peft.Modules("v_proj", "o_proj")}},
		"dora":         {"llama", LoraConfig{R: 4, UseDora: true, TargetModules: peft.Modules("v_proj", "o_proj")}},
		"pissa":        {"llama", LoraConfig{R: 4, InitLoraWeights: "pissa"}},
		"saved":        {"llama_tied", LoraConfig{R: 4, TargetModules: peft.Modules("embed_tokens", "v_proj"), ModulesToSave: peft.Strings{"model.norm"}}},
		"whole":        {"llama", LohaConfig{R: 3, TargetModules: peft.Modules("q_proj"), ModulesToSave: peft.Strings{"lm_head"}}},
		"transposed":   {"gpt2", LoraConfig{R: 4, TargetModules: peft.Modules("c_attn", "wte")}},
		"transposed 2": {"gpt2", LohaConfig{R: 2, TargetModules: peft.Modules("c_fc")}},
	} {
		t.Run(name, func(t *testing.T) {
			backendtest.Sample(t, 5)
			pm := noisy(t, c.family, c.config)
			rows := peft.DefaultAdapter
			run := func(name string) []float32 {
				t.Helper()
				view, err := pm.With(name)
				require.NoError(t, err)
				g := basetest.GoldenCases(t)[0]
				return basetest.Evaluate(t, view, g.Tensor(t, "input_ids"), g.Tensor(t, "labels")).Logits
			}
			want := run(rows)
			before, lost := math.Inf(1), 0.0
			for i, rank := range []int{1, 2, 4, 8} {
				to := string(rune('a' + i))
				report, err := Convert(pm, rows, to, Conversion{Rank: rank})
				require.NoError(t, err)
				require.Equal(t, rank, report.Rank)
				require.LessOrEqual(t, report.Frobenius, before+1e-6)
				before, lost = report.Frobenius, report.Frobenius/report.Norm
				if lost < 1e-5 {
					basetest.RequireClose(t, want, run(to), 1e-4, to)
				}
			}
			report, err := Convert(pm, rows, "energy", Conversion{Energy: 0.9})
			require.NoError(t, err)
			for _, m := range report.Modules {
				require.LessOrEqual(t, m.Frobenius*m.Frobenius, (0.1+1e-6)*m.Norm*m.Norm, m.Module)
			}
			report, err = Convert(pm, rows, "all", Conversion{Energy: 1})
			require.NoError(t, err)
			require.Less(t, report.Frobenius, 1e-5*report.Norm)
			basetest.RequireClose(t, want, run("all"), 1e-4, "all")
			require.Equal(t, []string{"default", "a", "b", "c", "d", "energy", "all"}, pm.Adapters())
			require.Equal(t, []string{"default"}, pm.Active())

			// What was made can be saved and read.
			view, err := pm.With("energy")
			require.NoError(t, err)
			dir := t.TempDir()
			require.NoError(t, view.SavePretrained(dir))
			again, err := peft.LoadAdapter(pm.Base(), filepath.Join(dir, "energy"))
			require.NoError(t, err)
			g := basetest.GoldenCases(t)[0]
			basetest.RequireClose(t, run("energy"), basetest.Evaluate(t, again, g.Tensor(t, "input_ids"), g.Tensor(t, "labels")).Logits, 1e-6, "loaded")
		})
	}
}

// Ranks and shares that make no sense, and methods that do not add to weights, are errors
// (peft.md 8.62).
func TestConvertErrors(t *testing.T) {
	pm := noisy(t, "llama", LohaConfig{R: 2, TargetModules: peft.Modules("v_proj")})
	require.NoError(t, pm.AddAdapter(peft.Full{}, peft.Options{Name: "full"}))
	require.NoError(t, pm.AddAdapter(LoraConfig{R: 2, LoraBias: true, InitLoraWeights: InitRandom, TargetModules: peft.Modules("v_proj")}, peft.Options{Name: "bias"}))
	before := pm.Adapters()
	for want, c := range map[string]struct {
		name string
		Conversion
	}{
		"want either a Rank or an Energy":             {"default", Conversion{}},
		"lora: convert adapter \"default\": want eit": {"default", Conversion{Rank: 2, Energy: 0.5}},
		"Rank is -1":                             {"default", Conversion{Rank: -1}},
		"Energy is 1.5":                          {"default", Conversion{Energy: 1.5}},
		"Energy is -0.5":                         {"default", Conversion{Energy: -0.5}},
		"Energy is NaN":                          {"default", Conversion{Energy: math.NaN()}},
		"the rank 17 is larger than the weight":  {"default", Conversion{Rank: 17}},
		"unknown adapter \"x\"":                  {"x", Conversion{Rank: 1}},
		"its method, FULL, changes":              {"full", Conversion{Rank: 1}},
		"v_proj.bias\" otherwise than by adding": {"bias", Conversion{Rank: 1}},
	} {
		_, err := Convert(pm, c.name, "to", c.Conversion)
		require.ErrorContains(t, err, want)
		require.Equal(t, before, pm.Adapters())
	}
	_, err := Convert(pm, "default", "full", Conversion{Rank: 1})
	require.ErrorContains(t, err, `adapter "full" already exists`)
}
