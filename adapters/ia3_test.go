package adapters_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/adapters"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/peft/pefttest"
	"github.com/gopeft/gopeft/site"
)

func TestIA3Conformance(t *testing.T) {
	for name, s := range map[string]pefttest.Suite{
		"default":        {Config: adapters.IA3Config{}},
		"quantised base": {Config: adapters.IA3Config{}, Family: "llama_nf4"},
		"biases":         {Config: adapters.IA3Config{TargetModules: peft.Modules("q_proj", "up_proj", "v_proj")}, Family: "llama_bias"},
		"transposed":     {Config: adapters.IA3Config{}, Family: "gpt2"},
		"inputs alone":   {Config: adapters.IA3Config{TargetModules: peft.AllLinear, FeedforwardModules: peft.Regex(".*")}},
		"random, with the head": {Config: adapters.IA3Config{
			TargetModules: peft.Modules("q_proj", "lm_head", "down_proj"), FeedforwardModules: peft.Modules("lm_head"), InitIA3Weights: peft.Off,
		}, Family: "llama_tied", NotIdentity: true},
		"a layer trained as a whole": {Config: adapters.IA3Config{ModulesToSave: peft.Strings{"o_proj"}}, Alone: true},
	} {
		t.Run(name, func(t *testing.T) { pefttest.Run(t, s) })
	}
}

// What is chosen by default is what peft chooses.
func TestIA3Defaults(t *testing.T) {
	var want struct{ Targets, Feedforward map[string][]string }
	data, err := os.ReadFile(filepath.Join(basetest.Fixtures, "ia3", "defaults.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &want))
	require.Greater(t, len(want.Targets), 20)
	for modelType, names := range want.Targets {
		targets, ok := adapters.DefaultIA3Targets(modelType)
		require.True(t, ok, modelType)
		require.Equal(t, peft.Modules(names...).String(), targets.String(), modelType)
		feedforward, ok := adapters.DefaultIA3Feedforward(modelType)
		require.True(t, ok, modelType)
		require.Equal(t, peft.Modules(want.Feedforward[modelType]...).String(), feedforward.String(), modelType)
	}
	_, ok := adapters.DefaultIA3Targets("no such model")
	require.False(t, ok)
	// The count that peft prints for Llama-3.2-3B (peft.md, method comparison).
	plan, err := peft.DryRun(basetest.Llama(3072, 28, 24, 8, 128, 8192, 128256), adapters.IA3Config{})
	require.NoError(t, err)
	require.Equal(t, int64(286_720), plan.Count.Trainable)
}

// gpt2 is a base of two blocks with GPT-2's names, in which c_proj stands for two layers.
func gpt2() *basetest.Shape {
	base := &basetest.Shape{Type: "gpt2"}
	for i := range 2 {
		for name, shape := range map[string][2]int{"attn.c_attn": {8, 24}, "attn.c_proj": {8, 8}, "mlp.c_fc": {8, 32}, "mlp.c_proj": {32, 8}} {
			base.Add(site.Module{Path: fmt.Sprintf("transformer.h.%d.%s", i, name), Kind: site.Linear, In: shape[0], Out: shape[1], Transposed: true, Bias: true})
		}
	}
	return base
}

// Which targets are feed-forward, and by what names the file says so.
func TestIA3Feedforward(t *testing.T) {
	llama := basetest.Llama(8, 2, 2, 2, 4, 16, 32)
	large := basetest.Llama(8, 4, 2, 2, 4, 16, 32)
	none := peft.Modules()
	for name, c := range map[string]struct {
		base                 site.Base
		config               adapters.IA3Config
		inputs               []string // of layer 0
		targets, feedforward string
	}{
		"default": {llama, adapters.IA3Config{}, []string{"mlp.down_proj"}, `["down_proj","k_proj","v_proj"]`, `["down_proj"]`},
		"default for a part of the targets": {llama, adapters.IA3Config{TargetModules: peft.Modules("q_proj")}, nil,
			`["q_proj"]`, `[]`},
		"default for a longer name": {llama, adapters.IA3Config{TargetModules: peft.Modules("mlp.down_proj", "q_proj")}, []string{"mlp.down_proj"},
			`["mlp.down_proj","q_proj"]`, `["mlp.down_proj"]`},
		"default for an expression": {llama, adapters.IA3Config{TargetModules: peft.Regex(`.*\.(q|up)_proj`)}, nil, `".*\\.(q|up)_proj"`, `[]`},
		"default for a mixture": {gpt2(), adapters.IA3Config{TargetModules: peft.Modules("c_proj", "mlp.c_proj")}, []string{"mlp.c_proj"},
			`["c_proj","mlp.c_proj"]`, `["mlp.c_proj"]`},
		"none":               {llama, adapters.IA3Config{FeedforwardModules: none}, nil, `["down_proj","k_proj","v_proj"]`, `[]`},
		"given":              {llama, adapters.IA3Config{FeedforwardModules: peft.Modules("k_proj")}, []string{"self_attn.k_proj"}, `["down_proj","k_proj","v_proj"]`, `["k_proj"]`},
		"an expression":      {llama, adapters.IA3Config{FeedforwardModules: peft.Regex(`model\.layers\.0\..*k_proj`)}, []string{"self_attn.k_proj"}, `["down_proj","k_proj","v_proj"]`, `"model\\.layers\\.0\\..*k_proj"`},
		"an end without dot": {llama, adapters.IA3Config{TargetModules: peft.Regex(`.*(up|q)_proj`), FeedforwardModules: peft.Modules("p_proj")}, []string{"mlp.up_proj"}, `".*(up|q)_proj"`, `["p_proj"]`},
		"all linear":         {large, adapters.IA3Config{TargetModules: peft.AllLinear}, []string{"mlp.down_proj"}, `["down_proj","gate_proj","k_proj","o_proj","q_proj","up_proj","v_proj"]`, `["down_proj"]`},
		"all linear, one of them": {large, adapters.IA3Config{TargetModules: peft.AllLinear, FeedforwardModules: peft.Modules("layers.0.mlp.up_proj")},
			[]string{"mlp.up_proj"}, ``, `["model.layers.0.mlp.up_proj"]`},
	} {
		t.Run(name, func(t *testing.T) {
			plan, err := peft.DryRun(c.base, c.config)
			require.NoError(t, err)
			var inputs []string
			for _, target := range plan.Targets {
				require.Len(t, target.Settings, 1)
				path := strings.TrimPrefix(strings.TrimPrefix(target.Module.Path, "model.layers.0."), "transformer.h.0.")
				if path != target.Module.Path && target.Settings[0].Value == "inputs" {
					inputs = append(inputs, path)
				}
			}
			require.Equal(t, c.inputs, inputs)
			config := plan.Config.(adapters.IA3Config)
			if c.targets != "" {
				require.Equal(t, c.targets, config.TargetModules.String())
			}
			require.Equal(t, c.feedforward, config.FeedforwardModules.String())
			require.NoError(t, config.Validate()) // Python has the same rule
			// What is saved means the same.
			again, err := peft.DryRun(c.base, config)
			require.NoError(t, err)
			require.Equal(t, plan.Targets, again.Targets)
		})
	}
}

func TestIA3Errors(t *testing.T) {
	base := basetest.Llama(8, 2, 2, 2, 4, 16, 32)
	unknown := &basetest.Shape{Type: "phi3"}
	unknown.Add(site.Module{Path: "proj", Kind: site.Linear, In: 8, Out: 8})
	conv := &basetest.Shape{Type: "llama"}
	conv.Add(site.Module{Path: "conv", Kind: site.Convolution, In: 4, Out: 4, Conv: &site.Conv{Kernel: []int{3}, Groups: 1}})
	some := peft.Modules("q_proj", "down_proj")
	for _, c := range []struct {
		base   site.Base
		config adapters.IA3Config
		want   string
	}{
		{base, adapters.IA3Config{TargetModules: peft.Modules("q_porj")}, `ia3: target module "q_porj" matches nothing; did you mean "q_proj"?`},
		{base, adapters.IA3Config{TargetModules: some, FeedforwardModules: peft.Modules("down_porj")}, `ia3: feedforward_modules: "down_porj" is not among target_modules ["down_proj","q_proj"]; did you mean "down_proj"?`},
		{base, adapters.IA3Config{FeedforwardModules: peft.Modules("mlp.down_proj")}, `ia3: feedforward_modules: "mlp.down_proj" is not among target_modules ["down_proj","k_proj","v_proj"]`},
		{base, adapters.IA3Config{FeedforwardModules: peft.Modules("up_proj")}, `ia3: feedforward module "up_proj" matches none of the target modules`},
		{base, adapters.IA3Config{TargetModules: peft.AllLinear, FeedforwardModules: peft.Modules("down_porj")}, `ia3: feedforward module "down_porj" matches none of the target modules; did you mean "down_proj"?`},
		{base, adapters.IA3Config{TargetModules: some, FeedforwardModules: peft.Regex("down_proj")}, `ia3: feedforward module pattern "down_proj" matches none of the target modules; it must match a whole path such as "model.layers.0.self_attn.q_proj"`},
		{base, adapters.IA3Config{TargetModules: some, FeedforwardModules: peft.Regex("(")}, `ia3: feedforward_modules: regular expression "("`},
		{base, adapters.IA3Config{TargetModules: some, FeedforwardModules: peft.AllLinear}, `ia3: feedforward_modules cannot be "all-linear"`},
		{base, adapters.IA3Config{TargetModules: some, FeedforwardModules: peft.Modules("")}, `ia3: feedforward_modules: a module name is empty`},
		{base, adapters.IA3Config{TargetModules: peft.Modules("embed_tokens")}, `ia3: target module "model.embed_tokens" is of kind embedding, want a linear layer or a convolution`},
		{base, adapters.IA3Config{TargetModules: peft.Modules("norm")}, `ia3: target module "model.norm" is of kind norm, want a linear layer or a convolution`},
		{conv, adapters.IA3Config{TargetModules: peft.Modules("conv")}, `ia3: target module "conv" is a convolution over one axis, want two or three`},
		{gpt2(), adapters.IA3Config{TargetModules: peft.Modules("c_proj")}, `ia3: target_modules ["c_proj"] do not tell "transformer.h.0.mlp.c_proj" from others, and only some of them are feed-forward modules (model_type "gpt2"): set FeedforwardModules, or name them apart`},
		{unknown, adapters.IA3Config{}, `ia3: no default target modules for model_type "phi3": set TargetModules`},
		{unknown, adapters.IA3Config{TargetModules: peft.Modules("proj")}, `ia3: no default feed-forward modules for model_type "phi3": set FeedforwardModules (peft.Modules() for none)`},
		{base, adapters.IA3Config{ModulesToSave: peft.Strings{"nrom"}}, `ia3: modules_to_save: "nrom" matches nothing`},
		{base, adapters.IA3Config{ExcludeModules: peft.AllLinear}, `ia3: exclude_modules cannot be "all-linear"`},
	} {
		_, err := peft.DryRun(c.base, c.config)
		require.ErrorContains(t, err, c.want)
	}
	_, err := peft.GetPeftModel(family(t, "llama"), adapters.IA3Config{}, peft.Options{MaxRank: 4})
	require.ErrorContains(t, err, "have no rank that can be padded")
}

// A file whose feed-forward modules are no targets is peft's own doing (its defaults); it says
// what its tensors are. One whose vectors stand the other way is refused.
func TestIA3Files(t *testing.T) {
	base := family(t, "llama")
	pm, err := peft.GetPeftModel(base, adapters.IA3Config{TargetModules: peft.Modules("q_proj", "k_proj", "down_proj")})
	require.NoError(t, err)
	shift(t, pm, peft.DefaultAdapter, 0.1)
	want := basetest.Evaluate(t, pm, someIDs, someLabels).Logits
	dir := t.TempDir()
	require.NoError(t, pm.SavePretrained(dir))
	path := filepath.Join(dir, "adapter_config.json")
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	write := func(targets, feedforward string) {
		var fields map[string]json.RawMessage
		require.NoError(t, json.Unmarshal(data, &fields))
		fields["target_modules"], fields["feedforward_modules"] = []byte(targets), []byte(feedforward)
		changed, err := json.Marshal(fields)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(path, changed, 0o600))
	}
	for _, feedforward := range []string{`["down_proj", "fc2"]`, `["mlp.down_proj"]`, `null`, `"model.layers.\\d+.mlp.down_proj"`} {
		write(`["q_proj", "k_proj", "down_proj"]`, feedforward)
		again, err := peft.LoadAdapter(base, dir)
		require.NoError(t, err, feedforward)
		require.Equal(t, want, basetest.Evaluate(t, again, someIDs, someLabels).Logits, feedforward)
	}
	for _, feedforward := range []string{`[]`, `["q_proj"]`, `["q_proj", "down_proj"]`, `"nothing"`} {
		write(`["q_proj", "k_proj", "down_proj"]`, feedforward)
		_, err = peft.LoadAdapter(base, dir)
		require.ErrorContains(t, err, "do not fit", feedforward)
		require.ErrorContains(t, err, "ia3_l", feedforward)
	}
	write(`["q_proj", "k_proj", "down_proj"]`, `"("`)
	_, err = peft.LoadAdapter(base, dir)
	require.ErrorContains(t, err, `regular expression "("`)
}

// The vectors of several active adapters multiply, beside a LoRA they act on its sum, and
// merging gives what they compute together (peft.md 8, item 52).
func TestIA3Together(t *testing.T) {
	base := family(t, "llama_bias")
	targets := peft.Modules("q_proj", "down_proj")
	config := adapters.IA3Config{TargetModules: targets}
	pm, err := peft.GetPeftModel(base, config)
	require.NoError(t, err)
	require.NoError(t, pm.AddAdapter(config, peft.Options{Name: "b"}))
	require.NoError(t, pm.AddAdapter(lora.LoraConfig{R: 2, TargetModules: targets, InitLoraWeights: lora.InitRandom}, peft.Options{Name: "lora", Seed: 2}))
	require.NoError(t, pm.AddAdapter(lora.OftConfig{R: 2, TargetModules: targets, InitWeights: lora.Off, UseCayleyNeumann: lora.Off}, peft.Options{Name: "oft", Seed: 3}))
	shift(t, pm, peft.DefaultAdapter, 0.2)
	shift(t, pm, "b", -0.3)

	// One adapter with the products is both.
	values, err := pm.TensorValues(peft.DefaultAdapter)
	require.NoError(t, err)
	others, err := pm.TensorValues("b")
	require.NoError(t, err)
	for name, list := range values {
		for i := range list {
			list[i] *= others[name][i]
		}
	}
	require.NoError(t, pm.AddAdapterWith(config, func(name string) []float32 { return values[name] }, peft.Options{Name: "product"}))
	both, err := pm.With(peft.DefaultAdapter, "b")
	require.NoError(t, err)
	product, err := pm.With("product")
	require.NoError(t, err)
	basetest.RequireClose(t, basetest.Evaluate(t, product, someIDs, someLabels).Logits, basetest.Evaluate(t, both, someIDs, someLabels).Logits, 2e-5, "product")

	for _, names := range [][]string{{"default", "b"}, {"default", "lora"}, {"lora", "default"}, {"oft", "default"}, {"default", "b", "oft"}, {"b", "oft", "lora", "default"}} {
		view, err := pm.With(names...)
		require.NoError(t, err)
		dir := t.TempDir()
		_, err = view.Merge(t.Context(), dir)
		require.NoError(t, err)
		merged, err := peft.GetPeftModel(basetest.Load(t, dir), peft.Full{})
		require.NoError(t, err)
		basetest.RequireClose(t, basetest.Evaluate(t, view, someIDs, someLabels).Logits, basetest.Evaluate(t, merged, someIDs, someLabels).Logits, 5e-5, fmt.Sprint(names))
	}
}

// Weighted sums are those of peft's add_weighted_adapter (peft.md 8, item 54).
func TestAddWeightedIA3EqualsPeft(t *testing.T) {
	root := filepath.Join(basetest.Fixtures, "ia3")
	pm, err := peft.LoadAdapter(family(t, "llama"), filepath.Join(root, "a"), peft.Options{Name: "a"})
	require.NoError(t, err)
	for _, name := range []string{"b", "c"} {
		require.NoError(t, pm.LoadAdapter(filepath.Join(root, name), peft.Options{Name: name}))
	}
	var cases map[string]adapters.IA3Combination
	data, err := os.ReadFile(filepath.Join(root, "sums.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &cases))
	file, err := safetensors.Open(filepath.Join(root, "sums.safetensors"))
	require.NoError(t, err)
	defer file.Close()
	seen := 0
	for name, c := range cases {
		require.NoError(t, adapters.AddWeightedIA3(pm, name, c))
		require.Equal(t, []string{"a"}, pm.Active())
		values, err := pm.TensorValues(name)
		require.NoError(t, err)
		for tensor, got := range values {
			key := name + "/base_model.model." + tensor
			want := make([]float32, len(got))
			require.NoError(t, file.Float32s(key, want))
			basetest.RequireClose(t, want, got, 1e-6, key)
			seen++
		}
	}
	require.Len(t, file.Names(), seen)
	view, err := pm.With("halves")
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, view.SavePretrained(dir))
	again, err := peft.LoadAdapter(family(t, "llama"), filepath.Join(dir, "halves"))
	require.NoError(t, err)
	ids := tensors.FromValue([][]int32{{5, 9, 17, 33}})
	require.Equal(t, basetest.Evaluate(t, view, ids, ids).Logits, basetest.Evaluate(t, again, ids, ids).Logits)
}

func TestAddWeightedIA3Errors(t *testing.T) {
	pm, err := peft.GetPeftModel(family(t, "llama"), adapters.IA3Config{}, peft.Options{Name: "a"})
	require.NoError(t, err)
	for name, c := range map[string]peft.Config{
		"fewer":  adapters.IA3Config{TargetModules: peft.Modules("k_proj", "down_proj")},
		"other":  adapters.IA3Config{FeedforwardModules: peft.Modules("k_proj", "down_proj")},
		"saved":  adapters.IA3Config{ModulesToSave: peft.Strings{"lm_head"}},
		"lora":   lora.LoraConfig{R: 2},
		"second": adapters.IA3Config{},
	} {
		require.NoError(t, pm.AddAdapter(c, peft.Options{Name: name}))
	}
	before := pm.Adapters()
	one := []float64{1}
	for _, c := range []struct {
		name    string
		what    adapters.IA3Combination
		message string
	}{
		{"a", adapters.IA3Combination{Adapters: []string{"a"}, Weights: one}, `adapter "a" already exists`},
		{"sum", adapters.IA3Combination{}, `no adapter is named`},
		{"sum", adapters.IA3Combination{Adapters: []string{"a", "second"}, Weights: one}, `ia3: combine adapters a, second: 2 adapters have 1 weights`},
		{"sum", adapters.IA3Combination{Adapters: []string{"a", "a"}, Weights: []float64{1, 2}}, `adapter "a" is named twice`},
		{"sum", adapters.IA3Combination{Adapters: []string{"nobody"}, Weights: one}, `unknown adapter "nobody"`},
		{"sum", adapters.IA3Combination{Adapters: []string{"lora"}, Weights: one}, `adapter "lora": its method is LORA, want IA3`},
		{"sum", adapters.IA3Combination{Adapters: []string{"saved"}, Weights: one}, `adapter "saved" also trains whole modules`},
		{"sum", adapters.IA3Combination{Adapters: []string{"a", "fewer"}, Weights: []float64{1, 1}}, `v_proj", but adapter "fewer" does not`},
		{"sum", adapters.IA3Combination{Adapters: []string{"fewer", "a"}, Weights: []float64{1, 1}}, `adapter "a" scales`},
		{"sum", adapters.IA3Combination{Adapters: []string{"a", "other"}, Weights: []float64{1, 1}}, `k_proj" is a feed-forward module for one of the adapters "a" and "other" alone`},
		{"sum", adapters.IA3Combination{Adapters: []string{"a", "second"}, Weights: []float64{1e39, 1}}, `too large for float32`},
		{"../sum", adapters.IA3Combination{Adapters: []string{"a"}, Weights: one}, `not usable as a folder name`},
	} {
		require.ErrorContains(t, adapters.AddWeightedIA3(pm, c.name, c.what), c.message)
		require.Equal(t, before, pm.Adapters())
	}
}
