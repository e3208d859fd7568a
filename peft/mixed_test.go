package peft_test

import (
	"slices"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/adapters"
	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// disturb adds noise to an adapter's values, so that it changes the model.
func disturb(t testing.TB, pm *peft.PeftModel, name string) {
	t.Helper()
	layout, err := pm.Layout(name)
	require.NoError(t, err)
	values, err := pm.TensorValues(name)
	require.NoError(t, err)
	k := float32(1)
	for _, p := range layout.Params() {
		for i := range values[p.Name] {
			k = 3.7 * k * (1 - k/8) // chaotic in (0, 8)
			values[p.Name][i] += 0.05 * (k - 4)
		}
	}
	arguments, err := layout.FromHost(values)
	require.NoError(t, err)
	require.NoError(t, pm.SetValues(name, arguments))
}

// zoo is a model with adapters of several kinds.
func zoo(t testing.TB, family string) (*models.Model, *peft.PeftModel) {
	t.Helper()
	base := basetest.Load(t, basetest.Fixtures+"/families/"+family)
	random := func(r int, targets ...string) lora.LoraConfig {
		return lora.LoraConfig{R: r, InitLoraWeights: lora.InitRandom, TargetModules: peft.Modules(targets...)}
	}
	pm := attach(t, base, random(2, "q_proj", "v_proj"), peft.Options{Name: "a"})
	for i, c := range []struct {
		name   string
		config peft.Config
	}{
		{"b", random(2, "q_proj", "v_proj")},
		{"c", random(2, "q_proj", "v_proj")},
		{"larger", random(3, "v_proj", "down_proj")}, // partly the same targets
		{"embedding", random(2, "embed_tokens", "o_proj", "lm_head")},
		{"saved", lora.LoraConfig{R: 2, InitLoraWeights: lora.InitRandom, ModulesToSave: peft.Strings{"lm_head", "model.norm"}}},
		{"norms", peft.Full{TargetModules: peft.Modules("input_layernorm", "k_proj")}},
		{"all", peft.Full{}},
		{"dora", lora.LoraConfig{R: 2, UseDora: true, InitLoraWeights: lora.InitRandom, TargetModules: peft.Modules("v_proj", "up_proj")}},
		{"pissa", lora.LoraConfig{R: 2, InitLoraWeights: "pissa", TargetModules: peft.Modules("o_proj")}},
		{"vera", lora.VeraConfig{R: 4, TargetModules: peft.Modules("up_proj")}},
		{"ia3", adapters.IA3Config{}},
		{"houlsby", adapters.Houlsby()},
		{"pfeiffer", adapters.Pfeiffer()},
		{"biases", lora.LoraConfig{R: 2, Bias: lora.BiasAll, InitLoraWeights: lora.InitRandom}},
	} {
		if c.name == "biases" && family != "qwen2" {
			continue
		}
		require.NoError(t, pm.AddAdapter(c.config, peft.Options{Name: c.name, Seed: uint64(i)}))
	}
	for _, name := range []string{"saved", "norms", "all", "pissa", "vera", "ia3", "houlsby", "pfeiffer"} {
		disturb(t, pm, name)
	}
	return base, pm
}

// Rows with the base, LoRAs, partly overlapping targets, embeddings, whole modules, norms
// and replaced weights equal the runs of one selection (peft.md 8.55).
func TestMixedRowsEqualUnmixed(t *testing.T) {
	for _, family := range []string{"llama_tied", "qwen2"} {
		t.Run(family, func(t *testing.T) {
			backendtest.Sample(t, 5)
			base, pm := zoo(t, family)
			want := map[string][]float32{peft.BaseModel: logitsOf(t, base, selected(t, pm), fourRows)}
			alone := func(name string) []float32 {
				if want[name] == nil {
					want[name] = logitsOf(t, base, selected(t, pm, name), fourRows)
					require.NotEqual(t, want[peft.BaseModel], want[name], name)
				}
				return want[name]
			}
			for _, rows := range [][]string{
				{"a", "b", "c", "a"},
				{"a", peft.BaseModel, "c", "larger"},
				{"embedding", "a", peft.BaseModel, "embedding"},
				{"saved", "a", "norms", peft.BaseModel},
				{"all", "saved", "embedding", "b"},
				{"norms", "norms", "all", "larger"},
				{"dora", "a", "vera", "pissa"},
				{"biases", peft.BaseModel, "biases", "dora"},
				{"ia3", "a", peft.BaseModel, "ia3"},
				{"houlsby", "pfeiffer", peft.BaseModel, "houlsby"},
				{"a", "houlsby", "ia3", "norms"},
				{"b", "b", "b", "b"},
				{peft.BaseModel, peft.BaseModel, peft.BaseModel, peft.BaseModel},
			} {
				if family != "qwen2" && rows[0] != "embedding" && rows[0] != "all" {
					continue // the shared weight is what that family is for
				}
				view, err := pm.Mixed(rows...)
				require.NoError(t, err)
				got := logitsOf(t, base, view, fourRows)
				each := len(got) / len(rows)
				for i, name := range rows {
					basetest.RequireClose(t, alone(name)[i*each:(i+1)*each], got[i*each:(i+1)*each], 1e-5, name)
				}
			}
		})
	}
}

// Another assignment, other adapters of the same structure, other values and adapters of
// other ranks with one MaxRank run in the program that was compiled.
func TestMixedCompilesOnce(t *testing.T) {
	base, pm := zoo(t, "llama")
	r := newRunner(t, base)
	want := map[string][]float32{peft.BaseModel: logitsOf(t, base, selected(t, pm), fourRows)}
	check := func(builds int, rows ...string) {
		t.Helper()
		view, err := pm.Mixed(rows...)
		require.NoError(t, err)
		got, err := r.run(view, fourRows)
		require.NoError(t, err)
		require.Equal(t, builds, r.builds, "%v", rows)
		each := len(got) / len(rows)
		for i, name := range rows {
			if want[name] == nil {
				want[name] = logitsOf(t, base, selected(t, pm, name), fourRows)
			}
			basetest.RequireClose(t, want[name][i*each:(i+1)*each], got[i*each:(i+1)*each], 1e-5, name)
		}
	}
	check(1, "a", "b", peft.BaseModel, "a")
	check(1, "b", "b", "c", peft.BaseModel)
	check(1, "c", "a", "a", "a")
	disturb(t, pm, "a")
	delete(want, "a")
	check(1, "a", "c", peft.BaseModel, "a")
	require.NoError(t, pm.AddAdapter(lora.LoraConfig{R: 2, LoraDropout: 0.1, TargetModules: peft.Regex(`.*[qv]_proj`), InitLoraWeights: lora.InitRandom}, peft.Options{Name: "d", Seed: 9}))
	check(1, "d", "c", peft.BaseModel, "a")
	check(1, "d", "b", "c", "a")
	check(1, "b", "b", "b", "b")
	// Ranks, scales and patterns differ.
	for i, c := range []lora.LoraConfig{
		{R: 1, LoraAlpha: 3}, {R: 4, LoraAlpha: 32, UseRSLoRA: true},
		{R: 2, RankPattern: peft.Patterns{{Pattern: `layers\.1\..*`, Value: 3}}, AlphaPattern: peft.Patterns{{Pattern: "v_proj", Value: 5}}},
	} {
		c.InitLoraWeights, c.TargetModules = lora.InitRandom, peft.Modules("q_proj", "v_proj", "embed_tokens")
		require.NoError(t, pm.AddAdapter(c, peft.Options{Name: []string{"x", "y", "z"}[i], Seed: uint64(i), MaxRank: 4}))
	}
	check(2, "x", "y", peft.BaseModel, "x")
	check(2, "y", "z", "z", peft.BaseModel)
	check(2, peft.BaseModel, "z", "x", "x")
}

// Unknown names, the number of rows, training and parameters outside of modules are errors
// that say what is wrong (peft.md 8.55).
func TestMixedErrors(t *testing.T) {
	base, pm := zoo(t, "llama")
	_, err := pm.Mixed()
	require.ErrorContains(t, err, "no row is given")
	_, err = pm.Mixed("a", "z", "base", "z")
	require.ErrorIs(t, err, peft.ErrUnknownAdapter)
	require.ErrorContains(t, err, `unknown adapter "z", "base" (the model has a, b, c`)
	require.ErrorContains(t, err, `"__base__" for the base`)
	require.ErrorContains(t, pm.AddAdapter(lora.LoraConfig{R: 2}, peft.Options{Name: peft.BaseModel}), "stands for the base")

	view, err := pm.Mixed("a", "b", "saved")
	require.NoError(t, err)
	_, err = newRunner(t, base).run(view, fourRows)
	require.ErrorContains(t, err, `the view is for 3 rows, the input of "model.layers.0.self_attn.q_proj" has shape [4 6 32]`)

	// A pass with dropout is one of training.
	view, err = pm.Mixed("a", "b", "c", "a")
	require.NoError(t, err)
	arguments, err := view.Arguments()
	require.NoError(t, err)
	exec, err := model.NewExec(base.Backend(), base.Store(), func(_ *model.Scope, in []*graph.Node) []*graph.Node {
		zero := graph.Scalar(in[0].Graph(), dtypes.Uint32, 0)
		pass := &site.Pass{Graph: in[0].Graph(), DType: base.DType(), Hook: view.Hook(in[1:]), Random: &site.Random{Seed: zero, Step: zero, MicroStep: zero, RowOffset: zero}}
		return []*graph.Node{base.Hidden(pass, site.Tokens{IDs: in[0]})}
	})
	require.NoError(t, err)
	defer exec.Finalize()
	in := []any{fourRows}
	for _, a := range arguments {
		in = append(in, a)
	}
	_, err = exec.Exec(in...)
	require.ErrorContains(t, err, "a mixed batch cannot be trained on")
}

// A mixed view keeps its adapters, whatever happens to their names.
func TestMixedViewIsFixed(t *testing.T) {
	base, pm := zoo(t, "llama")
	view, err := pm.Mixed("a", "b", peft.BaseModel, "norms")
	require.NoError(t, err)
	before := logitsOf(t, base, view, fourRows)
	none := selected(t, pm)
	for _, name := range []string{"a", "b", "norms"} {
		require.NoError(t, none.DeleteAdapter(name))
	}
	require.NoError(t, none.RenameAdapter("c", "a"))
	require.Equal(t, before, logitsOf(t, base, view, fourRows))
	require.False(t, slices.Contains(none.Adapters(), "b"))

	// The view pm still calls "a" what was deleted; the model calls another one so.
	require.Equal(t, []string{"a"}, pm.Active())
	again, err := pm.Mixed("a", "a", peft.BaseModel, peft.BaseModel)
	require.NoError(t, err)
	got := logitsOf(t, base, again, fourRows)
	basetest.RequireClose(t, before[:len(before)/4], got[:len(got)/4], 1e-6, "the deleted one")
	other, err := none.Mixed("a", "a", peft.BaseModel, peft.BaseModel)
	require.NoError(t, err)
	require.NotEqual(t, got, logitsOf(t, base, other, fourRows))
}

// Rows of models that know nothing of adapters have their own too. What replaces a
// parameter there cannot, and is an error.
func TestMixedWrapped(t *testing.T) {
	for _, m := range foreignModels {
		t.Run(m.name, func(t *testing.T) {
			backendtest.Sample(t, 5)
			base := wrap(t, m.fn, m.input)
			pm := attachRandom(t, base, m.target)
			require.NoError(t, pm.AddAdapter(lora.LoraConfig{R: 2, LoraAlpha: 3, TargetModules: m.target, InitLoraWeights: lora.InitRandom}, peft.Options{Name: "b", Seed: 5}))
			require.NoError(t, pm.AddAdapter(lora.LoraConfig{R: 1, LoraAlpha: 9, TargetModules: m.target, InitLoraWeights: lora.InitRandom}, peft.Options{Name: "c"}))
			require.NoError(t, pm.AddAdapter(peft.Full{}, peft.Options{Name: "full"}))
			rows := []string{"b", "c", peft.BaseModel, "default"}[:m.input.Dimensions[0]]
			run := func(view *peft.MixedView) ([]float32, error) {
				arguments, err := view.Arguments()
				require.NoError(t, err)
				exec, err := model.NewExec(base.Backend(), base.Store(), func(_ *model.Scope, in []*graph.Node) []*graph.Node {
					n := len(in) - 1
					return base.Call(&site.Pass{Graph: in[0].Graph(), DType: base.DType(), Hook: view.Hook(in[:n])}, in[n:])
				})
				require.NoError(t, err)
				defer exec.Finalize()
				var in []any
				for _, a := range append(arguments, example(m, 3)) {
					in = append(in, a)
				}
				out, err := exec.Exec(in...)
				if err != nil {
					return nil, err
				}
				return basetest.Flat(t, out[0]), nil
			}
			view, err := pm.Mixed(rows...)
			require.NoError(t, err)
			got, err := run(view)
			require.NoError(t, err)
			each := len(got) / len(rows)
			for i, name := range rows {
				var names []string
				if name != peft.BaseModel {
					names = []string{name}
				}
				out, err := base.Run(selected(t, pm, names...), example(m, 3))
				require.NoError(t, err)
				basetest.RequireClose(t, basetest.Flat(t, out[0])[i*each:(i+1)*each], got[i*each:(i+1)*each], 1e-5, name)
			}
			rows[0] = "full"
			view, err = pm.Mixed(rows...)
			require.NoError(t, err)
			_, err = run(view)
			require.ErrorContains(t, err, `adapter "full" replaces the parameter`)
		})
	}
}
