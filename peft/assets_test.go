package peft_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	_ "github.com/gopeft/gopeft/adapters"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	_ "github.com/gopeft/gopeft/prefixtuning"
	"github.com/gopeft/gopeft/site"
)

// asset returns the folder of other people's files, or skips. What is tested on them
// here is tested on the project's own fixtures in save_test.go.
func asset(t *testing.T, name string) string {
	t.Helper()
	root := os.Getenv("GOPEFT_ASSETS")
	if root == "" {
		root = filepath.FromSlash("../../shared/assets")
	}
	dir := filepath.Join(root, name)
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("no %s: set GOPEFT_ASSETS to the folder that holds %s", dir, name)
	}
	return dir
}

// A real adapter of SmolLM-135M fits a base of that shape with every tensor used.
func TestRealAdapterSmolLM(t *testing.T) {
	dir := asset(t, "lora-smollm135m-llama")
	base := basetest.Llama(576, 30, 9, 3, 64, 1536, 49152)
	pm, err := peft.LoadAdapter(base, dir)
	require.NoError(t, err)
	layout, err := pm.Layout(peft.DefaultAdapter)
	require.NoError(t, err)
	require.Equal(t, fileNames(t, dir), 2*2*30)
	require.Len(t, layout.Params(), 2*2*30)
	// 30 layers of q (576 -> 576) and v (576 -> 192) at rank 16.
	require.Equal(t, "trainable params: 921,600 || all params: 135,436,608 || trainable%: 0.6805", pm.TrainableParameters().String())
	plan, err := pm.Plan(peft.DefaultAdapter)
	require.NoError(t, err)
	require.Equal(t, []peft.Setting{{Name: "r", Value: "16"}, {Name: "alpha", Value: "32"}, {Name: "scaling", Value: "2"}}, plan.Targets[0].Settings)

	out := filepath.Join(t.TempDir(), "out")
	require.NoError(t, pm.SavePretrained(out))
	require.Equal(t, read(t, dir, weightsFile), read(t, out, weightsFile))
	var was, is map[string]any
	require.NoError(t, json.Unmarshal(read(t, dir, configFile), &was))
	require.NoError(t, json.Unmarshal(read(t, out, configFile), &is))
	was["target_modules"] = []any{"q_proj", "v_proj"} // sorted
	for key, value := range was {
		require.Equal(t, value, is[key], key)
	}
}

func fileNames(t *testing.T, dir string) int {
	file, err := safetensors.Open(filepath.Join(dir, weightsFile))
	require.NoError(t, err)
	defer file.Close()
	return len(file.Names())
}

// A real adapter of gpt-neo-125M fits the projections that it names.
func TestRealAdapterGPTNeo(t *testing.T) {
	dir := asset(t, "lora-gptneo125m")
	base := &basetest.Shape{Type: "gpt_neo"}
	for _, i := range []string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11"} {
		for _, name := range []string{"k_proj", "v_proj", "q_proj", "out_proj"} {
			base.Add(site.Module{Path: "transformer.h." + i + ".attn.attention." + name, Kind: site.Linear, In: 768, Out: 768})
		}
	}
	pm, err := peft.LoadAdapter(base, dir)
	require.NoError(t, err)
	layout, err := pm.Layout(peft.DefaultAdapter)
	require.NoError(t, err)
	require.Len(t, layout.Params(), fileNames(t, dir))
	config, err := pm.Config(peft.DefaultAdapter)
	require.NoError(t, err)
	require.Equal(t, 8, config.(lora.LoraConfig).R)
	require.Equal(t, "EleutherAI/gpt-neo-125M", config.Common().BaseModelNameOrPath)

	_, err = peft.LoadAdapter(basetest.Llama(576, 12, 9, 3, 64, 1536, 100), dir)
	require.ErrorContains(t, err, `no tensor of the file fits the base: want names like "model.layers.0.self_attn.q_proj.lora_A.weight", the file has names like "transformer.h.0.attn.attention.`)
}

// Of the real configurations of 39 methods, those of known methods parse, survive being
// written, and build on a base with their targets or say which option is not supported; the
// others are refused by name.
func TestRealConfigs(t *testing.T) {
	dir := asset(t, "peft-adapter-configs")
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	require.NoError(t, err)
	require.Len(t, files, 103)
	parsed, refused := map[string]int{}, map[string]int{}
	for _, file := range files {
		data := read(t, file)
		var head struct {
			PeftType string `json:"peft_type"`
		}
		require.NoError(t, json.Unmarshal(data, &head))
		config, err := peft.DecodeConfig(data)
		if !slices.Contains(methods, head.PeftType) {
			require.ErrorContains(t, err, `peft: unsupported peft_type "`+head.PeftType+`" (this program knows `)
			continue
		}
		require.NoError(t, err, file)
		text, err := peft.EncodeConfig(config)
		require.NoError(t, err)
		again, err := peft.DecodeConfig(text)
		require.NoError(t, err)
		second, err := peft.EncodeConfig(again)
		require.NoError(t, err)
		require.Equal(t, string(text), string(second))
		if err := config.Validate(); err != nil {
			require.ErrorContains(t, err, "is not supported", file)
			t.Log(filepath.Base(file), err)
			refused[head.PeftType]++
			continue
		}
		parsed[head.PeftType]++
		_, err = peft.DryRun(baseOf(t, data), config)
		require.NoError(t, err, file)
	}
	require.Equal(t, map[string]int{"ADALORA": 2, "BOFT": 2, "IA3": 4, "LN_TUNING": 2, "OFT": 2, "TRAINABLE_TOKENS": 1, "LOHA": 2, "LOKR": 2, "LORA": 11, "MISS": 4, "PREFIX_TUNING": 3,
		"PROMPT_TUNING": 3, "P_TUNING": 1, "VERA": 2}, parsed)
	require.Equal(t, map[string]int{"LORA": 4}, refused)
}

// llama3B is the model that the configurations of real adapters are for.
const llama3B = `{"model_type": "llama", "vocab_size": 128256, "hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24,
	"num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 8192, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5}`

// methods are those of the packages that this test imports.
var methods = []string{"ADALORA", "BOFT", "IA3", "LN_TUNING", "LOHA", "LOKR", "LORA", "MISS", "OFT", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "TRAINABLE_TOKENS", "VERA"}

// baseOf is a base that has the targets which a configuration names.
func baseOf(t *testing.T, config []byte) site.Base {
	var fields struct {
		TargetModules    peft.Targets `json:"target_modules"`
		NumVirtualTokens int          `json:"num_virtual_tokens"`
	}
	require.NoError(t, json.Unmarshal(config, &fields))
	if fields.NumVirtualTokens > 0 { // which the layers of a real model are for
		b, err := models.NewBlueprint([]byte(llama3B), models.Options{})
		require.NoError(t, err)
		return b
	}
	base := basetest.Llama(3072, 2, 24, 8, 128, 8192, 128256)
	names := fields.TargetModules.Names()
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		base.Add(site.Module{Path: "transformer_blocks.0." + name, Kind: site.Linear, In: 3072, Out: 3072})
	}
	return base
}
