package models

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/site"
)

// parse reads a configuration given as the base's members and changes to them.
func parse(t *testing.T, change map[string]any) (*llama, error) {
	t.Helper()
	values := map[string]any{"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
		"num_hidden_layers": 3, "num_attention_heads": 4, "rms_norm_eps": 1e-5}
	maps.Copy(values, change)
	data, err := json.Marshal(values)
	require.NoError(t, err)
	arch, err := NewArchitecture(data)
	if err != nil {
		return nil, err
	}
	return arch.(*llama), nil
}

func TestConfigDefaults(t *testing.T) {
	m, err := parse(t, nil)
	require.NoError(t, err)
	c := m.Config()
	require.NotEmpty(t, c.JSON)
	c.JSON = nil
	require.Equal(t, Config{ModelType: "llama", VocabSize: 64, HiddenSize: 32, NumLayers: 3, MaxPositions: 2048,
		InitializerRange: 0.02, BOSTokenID: -1, PadTokenID: -1}, c)
	require.Equal(t, site.CacheShape{Layers: 3, KVHeads: 4, HeadDim: 8}, m.CacheShape())
	m, err = parse(t, map[string]any{"eos_token_id": []int{3, 4}, "bos_token_id": 1, "num_key_value_heads": nil, "rope_scaling": nil})
	require.NoError(t, err)
	require.Equal(t, []int{3, 4}, m.config.EOSTokenIDs)
	require.Equal(t, 1, m.config.BOSTokenID)
}

// TestWindows: which layers see how far, as transformers decides it.
func TestWindows(t *testing.T) {
	cases := []struct {
		change map[string]any
		want   []int
		err    string
	}{
		{map[string]any{"sliding_window": 8}, []int{0, 0, 0}, ""}, // llama has no such option
		{map[string]any{"model_type": "mistral"}, []int{4096, 4096, 4096}, ""},
		{map[string]any{"model_type": "mistral", "sliding_window": nil}, []int{0, 0, 0}, ""},
		{map[string]any{"model_type": "mistral", "sliding_window": 8}, []int{8, 8, 8}, ""},
		{map[string]any{"model_type": "qwen2", "sliding_window": 8}, []int{0, 0, 0}, ""},
		{map[string]any{"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": true, "max_window_layers": 1}, []int{0, 8, 8}, ""},
		{map[string]any{"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": true, "max_window_layers": 0}, []int{8, 8, 8}, ""},
		{map[string]any{"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": true}, []int{0, 0, 0}, ""}, // from layer 28
		{map[string]any{"model_type": "qwen2", "use_sliding_window": true, "max_window_layers": 2}, []int{0, 0, 4096}, ""},
		{map[string]any{"model_type": "qwen2", "sliding_window": nil, "use_sliding_window": true, "max_window_layers": 0}, []int{0, 0, 0}, ""},
		{map[string]any{"model_type": "qwen3", "sliding_window": 8, "use_sliding_window": true, "max_window_layers": 3,
			"layer_types": []string{"sliding_attention", "full_attention", "sliding_attention"}}, []int{8, 0, 8}, ""},
		{map[string]any{"model_type": "qwen3", "layer_types": []string{"sliding_attention", "full_attention", "full_attention"}}, nil,
			"layer_types[0] is sliding_attention but use_sliding_window or sliding_window is not set"},
		{map[string]any{"model_type": "qwen3", "layer_types": []string{"full_attention"}}, nil, "layer_types: wanted 3"},
		{map[string]any{"model_type": "qwen3", "layer_types": []string{"full_attention", "x", "full_attention"}}, nil, `layer_types[1] "x" is not supported`},
	}
	for _, c := range cases {
		m, err := parse(t, c.change)
		if c.err != "" {
			require.ErrorContains(t, err, c.err)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, c.want, m.windows, "%v", c.change)
	}
}

// TestOptionsThatAreRefused: options that would change the mathematics.
func TestOptionsThatAreRefused(t *testing.T) {
	for name, value := range map[string]any{
		"pretraining_tp": 2, "partial_rotary_factor": 0.5, "attn_logit_softcapping": 50.0, "num_experts": 8,
		"quantization_config": map[string]any{}, "embedding_multiplier": 12.0, "use_bidirectional_attention": true,
		"num_hidden_layers": 20000, "head_dim": 1 << 20,
	} {
		_, err := parse(t, map[string]any{name: value})
		require.ErrorContains(t, err, name)
	}
	_, err := parse(t, map[string]any{"head_dim": 5})
	require.ErrorContains(t, err, "rotary embeddings need an even head_dim, got 5")
	_, err = parse(t, map[string]any{"pretraining_tp": 1, "partial_rotary_factor": 1.0, "attn_logit_softcapping": nil, "use_bidirectional_attention": false})
	require.NoError(t, err)
}

// TestRopeOptions: where the options are found, and what is wrong with them.
func TestRopeOptions(t *testing.T) {
	yarn := map[string]any{"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "finetuned": true}
	old, err := parse(t, map[string]any{"rope_theta": 500.0, "rope_scaling": yarn})
	require.NoError(t, err)
	yarn = maps.Clone(yarn)
	delete(yarn, "type")
	yarn["rope_type"], yarn["rope_theta"] = "yarn", 500.0
	fresh, err := parse(t, map[string]any{"rope_parameters": yarn})
	require.NoError(t, err)
	require.Equal(t, old.rope, fresh.rope)
	require.InDelta(t, 1.1386294361, fresh.rope.attentionFactor, 1e-9) // 0.1 ln 4 + 1
	yarn["mscale"], yarn["mscale_all_dim"] = 1.0, 1.0
	deepseek, err := parse(t, map[string]any{"rope_parameters": yarn})
	require.NoError(t, err)
	require.Equal(t, 1.0, deepseek.rope.attentionFactor)
	// The length outside of the dict comes first.
	moved, err := parse(t, map[string]any{"rope_parameters": yarn, "original_max_position_embeddings": 4096})
	require.NoError(t, err)
	require.NotEqual(t, deepseek.rope.invFreq, moved.rope.invFreq)

	// Of both spellings the old one counts, as in transformers 5, unless it is empty.
	theta := map[string]any{"rope_type": "default", "rope_theta": 9000.0}
	linear := map[string]any{"rope_type": "linear", "factor": 2.0}
	both, err := parse(t, map[string]any{"rope_theta": 500.0, "rope_scaling": linear, "rope_parameters": theta})
	require.NoError(t, err)
	alone, err := parse(t, map[string]any{"rope_theta": 500.0, "rope_scaling": linear})
	require.NoError(t, err)
	require.Equal(t, alone.rope, both.rope)
	empty, err := parse(t, map[string]any{"rope_theta": 500.0, "rope_scaling": map[string]any{}, "rope_parameters": theta})
	require.NoError(t, err)
	require.Equal(t, inverseFrequencies(9000, 8), empty.rope.invFreq)

	for _, c := range []struct {
		rope map[string]any
		want string
	}{
		{map[string]any{"rope_type": "llama3", "factor": 8.0}, "low_freq_factor is missing"},
		{map[string]any{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}, "high_freq_factor: wanted more than low_freq_factor 4, got 4"},
		{map[string]any{"rope_type": 3}, "rope_type: wanted a string, got 3"},
		{map[string]any{"rope_type": "dynamic", "factor": "2"}, `factor: wanted a positive number, got "2"`},
		{map[string]any{"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"},
	} {
		_, err := parse(t, map[string]any{"rope_scaling": c.rope})
		require.ErrorContains(t, err, "config.json: rope_scaling: "+c.want)
	}
}

func TestModelTypes(t *testing.T) {
	require.True(t, slices.IsSorted(ModelTypes()))
	require.Subset(t, ModelTypes(), []string{"llama", "mistral", "qwen2", "qwen3"})
	require.PanicsWithValue(t, `models: model_type "llama" registered twice`, func() { Register("llama", nil) })
}

// FuzzConfig: any config.json is an architecture whose lists agree, or an error.
func FuzzConfig(f *testing.F) {
	configs, err := filepath.Glob(fixtures + "/*/config*.json")
	require.NoError(f, err)
	for _, path := range configs {
		data, err := os.ReadFile(path)
		require.NoError(f, err)
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		arch, err := NewArchitecture(data)
		if err != nil {
			return
		}
		names := map[string]bool{}
		for _, p := range arch.Parameters() {
			require.False(t, names[p.Name], p.Name)
			require.Positive(t, p.Size(), p.Name)
			names[p.Name] = true
		}
		heads := 0
		for _, m := range arch.Modules() {
			require.True(t, names[m.Weight()], m.Path)
			if m.Head {
				heads++
			}
		}
		require.Equal(t, 1, heads)
	})
}
