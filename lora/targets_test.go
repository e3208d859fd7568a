package lora

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/internal/pyjson"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// truthTable is what peft adapts, see internal/golden/targets_golden.py.
type truthTable struct {
	Models map[string][]struct {
		Path, Kind string
		Weight     []int
	}
	DefaultTargets map[string]peft.Targets `json:"default_targets"`
	Cases          []truthCase
}

type truthCase struct {
	Model     string
	Options   json.RawMessage
	Want      map[string][3]float64 // r, alpha, scaling
	Trainable int64
	Error     json.RawMessage
	Saved     *peft.Targets `json:"saved_target_modules"`
	Unmatched map[string]json.RawMessage
	Warnings  json.RawMessage
}

func readTruth(t *testing.T) (truthTable, map[string]site.Base) {
	data, err := os.ReadFile(filepath.FromSlash("../internal/golden/testdata/targets/targets.json"))
	require.NoError(t, err)
	var table truthTable
	require.NoError(t, json.Unmarshal(data, &table))
	bases := map[string]site.Base{}
	for name, modules := range table.Models {
		base := &basetest.Shape{Type: map[string]string{"llama": "llama", "gpt2": "gpt2"}[name]}
		for _, m := range modules {
			if len(m.Weight) == 0 || m.Kind == "Dropout" {
				continue
			}
			base.Add(siteModule(m.Path, m.Kind, m.Weight))
		}
		bases[name] = base
	}
	return table, bases
}

func siteModule(path, kind string, weight []int) site.Module {
	m := site.Module{Path: path, Kind: site.Norm, In: weight[0], Out: weight[0], Head: path == "lm_head"}
	switch kind {
	case "Linear":
		m.Kind, m.Out, m.In = site.Linear, weight[0], weight[1]
	case "Conv1D":
		m.Kind, m.In, m.Out, m.Transposed = site.Linear, weight[0], weight[1], true
	case "Embedding":
		m.Kind, m.In, m.Out = site.Embedding, weight[0], weight[1]
	}
	return m
}

// decodeOptions reads a case's options as adapter_config.json.
func decodeOptions(t *testing.T, options json.RawMessage) (LoraConfig, error) {
	object, err := pyjson.Parse(options)
	require.NoError(t, err)
	object["peft_type"] = json.RawMessage(`"LORA"`)
	data, err := json.Marshal(object)
	require.NoError(t, err)
	c, err := peft.DecodeConfig(data)
	if err != nil {
		return LoraConfig{}, err
	}
	return c.(LoraConfig), nil
}

// refused lists what is an error here and passes in peft, with the item of
// peft.md's section 8 or anchors.md's section 1 that calls for it. Where the table
// says "unmatched" (an entry without effect, which peft passes over) no line is
// needed: every such entry is an error here.
var refused = map[string]string{
	`{"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["h", "layers"]}`: `layers_pattern: "h" matches no target's path`,       // anchors 1b, 8
	`{"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["v_proj"]}`:                       `exclude_modules and layers_to_transform leave none`, // anchors 1b, 8
	`{"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["self_attn"]}`:                    `"self_attn" is no layer itself`,                     // excludes nothing in peft either
	// Modules without weights are no modules of a base here.
	`{"target_modules": "transformer\\.h\\.0\\.mlp\\..*", "exclude_modules": ["act", "dropout"], "fan_in_fan_out": true}`: `excluded module "act" matches nothing`,
	// Everything would be dropped: nothing could be learnt.
	`{"target_modules": ["q_proj"], "lora_dropout": 1.0}`:                   `lora_dropout is 1`,
	`{"modules_to_save": ["classifier"], "target_modules": ["q", "dense"]}`: `"dense" matches 1 modules, but`,
	`{"lora_dropout": -0.5, "target_modules": ["q_proj"]}`:                  `lora_dropout is -0.5`,
}

func TestTargetsEqualPeft(t *testing.T) {
	table, bases := readTruth(t)
	for model, targets := range table.DefaultTargets {
		got, ok := DefaultTargets(model)
		require.True(t, ok, model)
		require.Equal(t, targets.String(), got.String(), model)
	}
	require.Len(t, defaultTargets, len(table.DefaultTargets))

	seen := 0
	for _, c := range table.Cases {
		t.Run(c.Model+" "+string(c.Options), func(t *testing.T) {
			config, err := decodeOptions(t, c.Options)
			var plan *peft.Plan
			if err == nil {
				plan, err = peft.DryRun(bases[c.Model], config)
			}
			if len(c.Error) > 0 {
				require.Error(t, err, "peft says %s", c.Error)
				t.Log(err)
				return
			}
			why, listed := lookUp(refused, c.Options)
			if listed || len(c.Unmatched) > 0 {
				seen++
				require.Error(t, err, "unmatched: %s", c.Unmatched)
				require.ErrorContains(t, err, why)
				t.Log(err)
				return
			}
			require.NoError(t, err)
			got := map[string][3]float64{}
			for _, target := range plan.Targets {
				var v [3]float64
				for i, s := range target.Settings {
					_, err := fmt.Sscan(s.Value, &v[i])
					require.NoError(t, err)
				}
				got[target.Module.Path] = v
			}
			require.ElementsMatch(t, keys(c.Want), keys(got))
			for path, want := range c.Want {
				have := got[path]
				require.InDeltaSlice(t, want[:], have[:], 1e-5*want[2], path)
			}
			require.Equal(t, c.Trainable, plan.Count.Trainable)
			saved := plan.Config.(LoraConfig)
			if c.Saved != nil && saved.ExcludeModules.IsZero() { // peft's list holds excluded modules too
				require.Equal(t, c.Saved.String(), saved.TargetModules.String())
			}
			again, err := peft.DryRun(bases[c.Model], saved)
			require.NoError(t, err)
			require.Equal(t, plan.Targets, again.Targets)
		})
	}
	require.Greater(t, seen, len(refused))
}

func keys[V any](m map[string]V) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	return out
}

// lookUp finds options in a table of JSON texts.
func lookUp(table map[string]string, options json.RawMessage) (string, bool) {
	compact := func(s string) string {
		var v any
		if err := json.Unmarshal([]byte(s), &v); err != nil {
			panic(err)
		}
		out, _ := json.Marshal(v)
		return string(out)
	}
	for k, v := range table {
		if compact(k) == compact(string(options)) {
			return v, true
		}
	}
	return "", false
}

func TestTargetErrors(t *testing.T) {
	_, bases := readTruth(t)
	for _, c := range []struct {
		config LoraConfig
		want   string
	}{
		{LoraConfig{R: 8, TargetModules: peft.Modules("q_porj")}, `lora: target module "q_porj" matches nothing; did you mean "q_proj"?`},
		{LoraConfig{R: 8, TargetModules: peft.Modules("self_atn.q_proj")}, `lora: target module "self_atn.q_proj" matches nothing; did you mean "self_attn.q_proj"?`},
		{LoraConfig{R: 8, TargetModules: peft.Modules("c_attn")}, `lora: target module "c_attn" matches nothing; the base has embed_tokens, q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, input_layernorm, post_attention_layernorm, norm, lm_head`},
		{LoraConfig{R: 8, TargetModules: peft.Modules("mlp")}, `lora: target module "mlp" is no layer itself: it holds "model.layers.0.mlp.gate_proj" and others`},
		{LoraConfig{R: 8, TargetModules: peft.Modules("norm")}, `lora: target module "model.norm" is a norm, want a linear layer, an embedding or a convolution`},
		{LoraConfig{R: 8, TargetModules: peft.Regex("q_proj")}, `lora: target module pattern "q_proj" matches nothing; it must match a whole path such as`},
		{LoraConfig{R: 8, TargetModules: peft.Regex("(")}, `lora: target_modules: regular expression "(": `},
		{LoraConfig{R: 8, ExcludeModules: peft.Modules("k_porj")}, `lora: excluded module "k_porj" matches nothing; did you mean "k_proj"?`},
		{LoraConfig{R: 8, LayersToTransform: []int{3}}, `lora: target module "q_proj" matches 3 modules, but exclude_modules and layers_to_transform leave none of them`},
		{LoraConfig{R: 8, TargetModules: peft.Modules("q_proj"), LayersToTransform: []int{1, 3}}, `lora: layers_to_transform: no target lies in layer 3 (targets lie in layers 0 to 2)`},
		{LoraConfig{R: 8, RankPattern: peft.Patterns{{Pattern: "q_prj", Value: 2}}}, `lora: rank_pattern: "q_prj" matches none of the adapted modules; did you mean "q_proj"?`},
		{LoraConfig{R: 8, RankPattern: peft.Patterns{{Pattern: "q_proj", Value: 2}, {Pattern: "layers.1.self_attn.q_proj", Value: 3}}}, `never applies`},
		{LoraConfig{R: 8, RankPattern: peft.Patterns{{Pattern: "q_proj", Value: 2.5}}}, `lora: rank_pattern: "q_proj" is 2.5, want a rank of at least 1`},
		{LoraConfig{}, `lora: r is 0, want a rank of at least 1 (peft's default is 8)`},
		{LoraConfig{R: -3}, `lora: r is -3`},
		{LoraConfig{R: 8, LoraDropout: 1}, `lora: lora_dropout is 1, want a rate in [0, 1)`},
		{LoraConfig{R: 8, InitLoraWeights: "pisa"}, `lora: init_lora_weights "pisa" is not supported`},
		{LoraConfig{R: 8, InitLoraWeights: "eva"}, `lora: init_lora_weights "eva" needs data: use the configuration that CalibrateEVA returns`},
		{LoraConfig{R: 8, InitLoraWeights: "corda"}, `lora: init_lora_weights "corda" needs data: use the configuration that CalibrateCorDA returns`},
		{LoraConfig{R: 8, InitLoraWeights: "pissa_niter_-1"}, `lora: init_lora_weights "pissa_niter_-1" is not supported`},
		{LoraConfig{R: 8, InitLoraWeights: "pissa", UseRSLoRA: true, RankPattern: peft.Patterns{{Pattern: "q_proj", Value: 2}}}, `with use_rslora and rank_pattern or alpha_pattern cannot be saved`},
		{LoraConfig{R: 8, InitLoraWeights: "olora", LoraBias: true}, `lora: lora_bias is only supported with init_lora_weights true or false, got "olora"`},
		{LoraConfig{R: 8, UseDora: true, LoraBias: true}, `lora: lora_bias is not supported with use_dora`},
		{LoraConfig{R: 8, Bias: "some"}, `lora: bias is "some", want "none", "all" or "lora_only"`},
		{LoraConfig{R: 8, Bias: BiasAll}, `lora: bias is "all", but the base has no bias`},
		{LoraConfig{R: 8, Bias: BiasLoraOnly}, `lora: bias is "lora_only", but no target module has a bias`},
		{LoraConfig{R: 7, InitLoraWeights: InitOrthogonal}, `lora: init_lora_weights "orthogonal" needs an even rank, but that of "model.layers.0.self_attn.q_proj" is 7`},
		{LoraConfig{R: 8, LoraBias: true, TargetModules: peft.Modules("embed_tokens")}, `lora: lora_bias is not supported for target module "model.embed_tokens", an embedding`},
		{LoraConfig{R: 8, InitLoraWeights: InitLoftq, LoftqConfig: LoftqConfig{Bits: 3}}, `lora: loftq_bits is 3, want 4 (nf4) or 8`},
		{LoraConfig{R: 8, InitLoraWeights: InitLoftq, TargetModules: peft.Modules("embed_tokens")}, `lora: init_lora_weights "loftq" is for linear layers, not for target module "model.embed_tokens" of kind embedding`},
	} {
		_, err := peft.GetPeftModel(bases["llama"], c.config)
		require.ErrorContains(t, err, c.want)
	}
	_, err := peft.GetPeftModel(bases["deep"], LoraConfig{R: 8})
	require.EqualError(t, err, `lora: no default target modules for model_type "": set TargetModules`)
	// All entries without effect are named at once.
	_, err = peft.GetPeftModel(bases["llama"], LoraConfig{R: 8, TargetModules: peft.Modules("q_porj", "v_porj", "o_proj")})
	require.Equal(t, 2, strings.Count(err.Error(), "matches nothing"))
}
