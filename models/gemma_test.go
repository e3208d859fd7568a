package models

import (
	"context"
	"encoding/json"
	"maps"
	"math"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/site"
)

// parseAs is parse for a Gemma or Phi-3 of head_dim 8.
func parseAs(t *testing.T, modelType string, change map[string]any) (*llama, error) {
	t.Helper()
	all := map[string]any{"model_type": modelType, "head_dim": 8, "num_key_value_heads": 4}
	maps.Copy(all, change)
	return parse(t, all)
}

func TestGemmaDefaults(t *testing.T) {
	first, err := parseAs(t, "gemma", nil)
	require.NoError(t, err)
	require.True(t, first.config.TieWordEmbeddings)
	require.Equal(t, 8192, first.config.MaxPositions)
	require.Equal(t, []int{0, 0, 0}, first.windows)
	require.InDelta(t, 1/math.Sqrt(8), first.scoreScale, 1e-12)
	wide, err := parseAs(t, "gemma", map[string]any{"head_dim": nil})
	require.NoError(t, err)
	require.Equal(t, 256, wide.headDim)

	second, err := parseAs(t, "gemma2", nil)
	require.NoError(t, err)
	require.Equal(t, []int{4096, 0, 4096}, second.windows)
	require.Equal(t, []float64{50, 30, 1.0 / 16}, []float64{second.scoreCap, second.logitCap, second.scoreScale})
	second, err = parseAs(t, "gemma2", map[string]any{"attn_logit_softcapping": nil, "final_logit_softcapping": nil})
	require.NoError(t, err)
	require.Equal(t, []float64{0, 0}, []float64{second.scoreCap, second.logitCap}) // null is none

	third, err := parseAs(t, "gemma3_text", map[string]any{"num_hidden_layers": 7, "sliding_window": 512})
	require.NoError(t, err)
	require.Equal(t, []int{512, 512, 512, 512, 512, 0, 512}, third.windows)
	require.Equal(t, inverseFrequencies(1e6, 8), third.rope.invFreq)
	require.Equal(t, inverseFrequencies(1e4, 8), third.localRope.invFreq)
	require.Zero(t, third.logitCap)
	require.Equal(t, 131072, third.config.MaxPositions)
	third, err = parseAs(t, "gemma3_text", map[string]any{"sliding_window_pattern": 2})
	require.NoError(t, err)
	require.Equal(t, []int{4096, 0, 4096}, third.windows)
}

// TestGemma3Ropes: where the two rotary embeddings are found.
func TestGemma3Ropes(t *testing.T) {
	linear := map[string]any{"rope_type": "linear", "factor": 8.0}
	old, err := parseAs(t, "gemma3_text", map[string]any{"rope_theta": 5e5, "rope_local_base_freq": 300.0, "rope_scaling": linear})
	require.NoError(t, err)
	fresh, err := parseAs(t, "gemma3_text", map[string]any{"rope_parameters": map[string]any{
		"full_attention":    map[string]any{"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
		"sliding_attention": map[string]any{"rope_type": "default", "rope_theta": 300.0}}})
	require.NoError(t, err)
	require.Equal(t, fresh.rope, old.rope)
	require.Equal(t, fresh.localRope, old.localRope)
	// rope_scaling changes members of what rope_parameters says.
	both, err := parseAs(t, "gemma3_text", map[string]any{"rope_scaling": linear, "rope_parameters": map[string]any{
		"full_attention": map[string]any{"rope_type": "default", "rope_theta": 5e5}}})
	require.NoError(t, err)
	require.Equal(t, fresh.rope, both.rope)
	for want, change := range map[string]map[string]any{
		`rope_parameters: option "rope_theta" is not supported; wanted full_attention`: {"rope_parameters": map[string]any{"rope_theta": 1e4}},
		"rope_scaling: type is not supported: wanted rope_type":                        {"rope_scaling": map[string]any{"type": "linear", "factor": 8.0}},
		"rope_parameters: full_attention: factor is missing": {"rope_parameters": map[string]any{
			"full_attention": map[string]any{"rope_type": "linear"}}},
	} {
		_, err := parseAs(t, "gemma3_text", change)
		require.ErrorContains(t, err, want)
	}
}

// TestOptionsOfOneFamily: what one family knows, another refuses by name.
func TestOptionsOfOneFamily(t *testing.T) {
	for _, c := range []struct {
		modelType string
		change    map[string]any
		want      string
	}{
		{"gemma", map[string]any{"final_logit_softcapping": 30.0}, "final_logit_softcapping 30 is not supported"},
		{"gemma", map[string]any{"num_key_value_heads": nil}, "num_key_value_heads is missing"},
		{"gemma", map[string]any{"hidden_act": "relu", "hidden_activation": "silu"}, `hidden_activation "silu" contradicts hidden_act "relu"`},
		{"gemma", map[string]any{"use_bidirectional_attention": true}, "use_bidirectional_attention is not supported"},
		{"gemma2", map[string]any{"sliding_window": nil}, "sliding_window is null but layer 0 has a window"},
		{"gemma2", map[string]any{"query_pre_attn_scalar": -1}, "query_pre_attn_scalar: wanted a positive number, got -1"},
		{"gemma3_text", map[string]any{"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50 is not supported"},
		{"gemma3", nil, `model_type "gemma3" is not supported; supported are`},
		{"phi3", map[string]any{"partial_rotary_factor": 0.4}, "partial_rotary_factor 0.4 of head_dim 8: wanted an even number of features, at least 2 and at most head_dim, got 3"},
		{"phi3", map[string]any{"partial_rotary_factor": 1.5}, "partial_rotary_factor 1.5 of head_dim 8"},
		{"phi3", map[string]any{"rope_scaling": map[string]any{"type": "linear", "factor": 2.0}}, `rope_type "linear" is not supported; phi3 has default and longrope`},
		{"phi3", map[string]any{"rope_scaling": map[string]any{"type": "su", "short_factor": []float64{1, 1, 1, 1}}}, "long_factor is missing: wanted a list of 4 positive numbers"},
		{"phi3", map[string]any{"rope_scaling": map[string]any{"type": "longrope", "short_factor": []float64{1, 1, 1}, "long_factor": []float64{1, 1, 1, 0}}}, "short_factor: wanted a list of 4 positive numbers, got 3"},
		{"phi3", map[string]any{"attn_logit_softcapping": 2.0}, "attn_logit_softcapping 2 is not supported"},
	} {
		_, err := parseAs(t, c.modelType, c.change)
		require.ErrorContains(t, err, c.want)
	}
}

// TestLongRope: the two lists of frequencies, and what multiplies cos and sin.
func TestLongRope(t *testing.T) {
	m, err := parseAs(t, "phi3", map[string]any{"max_position_embeddings": 131072, "rope_scaling": map[string]any{
		"type": "yarn", "short_factor": []float64{1, 1, 1, 2}, "long_factor": []float64{1, 4, 8, 64}}})
	require.NoError(t, err)
	plain := inverseFrequencies(10000, 8)
	for i, factor := range []float32{1, 4, 8, 64} {
		require.InEpsilon(t, plain[i]/factor, m.rope.long[i], 1e-6)
	}
	require.InEpsilon(t, plain[3]/2, m.rope.invFreq[3], 1e-6)
	require.Equal(t, 4096, m.rope.longAfter)
	require.InDelta(t, 1.1902380714, m.rope.attentionFactor, 1e-9) // √(1 + ln 32 / ln 4096), that of Phi-3-mini-128k
}

// TestGemmaEmbeddingScale: √hidden is rounded to the dtype of the pass: √3072 is 55.43,
// and 55.5 in bfloat16.
func TestGemmaEmbeddingScale(t *testing.T) {
	require.Equal(t, 55.5, rounded(t, dtypes.BFloat16, math.Sqrt(3072)))
	require.Equal(t, 55.4375, rounded(t, dtypes.Float16, math.Sqrt(3072)))
}

func rounded(t *testing.T, dtype dtypes.DType, factor float64) float64 {
	t.Helper()
	e, err := graph.NewExec(backendtest.Open(t), func(x *graph.Node) *graph.Node {
		one := graph.ConvertDType(x, dtype)
		return graph.ConvertDType(graph.MulScalar(one, factor), dtypes.Float32)
	})
	require.NoError(t, err)
	defer e.Finalize()
	out, err := e.Call(float32(1))
	require.NoError(t, err)
	return float64(tensors.ToScalar[float32](out[0]))
}

// TestGemmaStartsNeutral: a fresh model's norms scale by 1, that is their weights are 0.
func TestGemmaStartsNeutral(t *testing.T) {
	config, err := json.Marshal(map[string]any{"model_type": "gemma2", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 16,
		"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "rms_norm_eps": 1e-6})
	require.NoError(t, err)
	m, err := New(context.Background(), config, 1, float32Options(t))
	require.NoError(t, err)
	defer m.Close()
	norms := 0
	for _, module := range m.Modules() {
		if module.Kind == site.Norm {
			v := m.Store().GetVariable(site.VariablePath(module.Weight()))
			require.Equal(t, make([]float32, module.In), tensors.MustCopyFlatData[float32](v.MustValue()))
			norms++
		}
	}
	require.Equal(t, 5, norms)
}
