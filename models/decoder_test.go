package models

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/site"
)

// TestOtherNames: checkpoints of the part below the head have no prefix; their
// buffers are known; what is written has the prefix and the head's name of old.
func TestOtherNames(t *testing.T) {
	for _, c := range []struct{ family, prefix, buffer, renamed string }{
		{"gpt2", "transformer.", "h.0.attn.bias", "transformer.h.0.attn.c_attn.weight"},
		{"gpt2_scaling", "transformer.", "h.1.attn.masked_bias", "transformer.wpe.weight"},
		{"opt", "model.", "", "model.decoder.layers.1.fc1.bias"},
		{"gpt_neox", "gpt_neox.", "layers.0.attention.rotary_emb.inv_freq", "lm_head.weight"},
		{"gpt_neox_sequential", "gpt_neox.", "layers.0.attention.masked_bias", "gpt_neox.embed_in.weight"},
	} {
		t.Run(c.family, func(t *testing.T) {
			backendtest.Sample(t, 5)
			plain := loadFixture(t, c.family)
			dir := copyOf(t, c.family)
			editWeights(t, dir, func(all map[string]safetensors.Tensor) {
				for _, name := range sortedKeys(all) {
					if rest, ok := strings.CutPrefix(name, c.prefix); ok {
						rename(all, name, rest)
					}
				}
				if c.buffer != "" {
					all[c.buffer] = safetensors.Tensor{Name: c.buffer, DType: safetensors.F32, Shape: []int{1}, Bytes: make([]byte, 4)}
				}
			})
			m, err := Load(context.Background(), dir, float32Options(t))
			require.NoError(t, err)
			defer m.Close()
			report := m.LoadReport()
			require.Contains(t, report.Renamed, c.renamed)
			require.Equal(t, c.buffer != "", len(report.Ignored) == 1)
			ids := call{ids: tensors.FromValue([][]int32{{5, 9, 33}})}
			require.Equal(t, tensors.MustCopyFlatData[float32](logits(t, plain, ids)[0]), tensors.MustCopyFlatData[float32](logits(t, m, ids)[0]))

			to := filepath.Join(t.TempDir(), "out")
			require.NoError(t, m.Export(context.Background(), to, nil))
			require.Equal(t, contents(t, filepath.Join(fixtures, c.family)), contents(t, to))
		})
	}
}

// TestBothNames: a tensor under either name is an error, not a choice.
func TestBothNames(t *testing.T) {
	dir := copyOf(t, "gpt2")
	editWeights(t, dir, func(all map[string]safetensors.Tensor) {
		x := all["transformer.wpe.weight"]
		x.Name = "wpe.weight"
		all[x.Name] = x
	})
	_, err := Load(context.Background(), dir, float32Options(t))
	require.ErrorContains(t, err, `are both parameter "transformer.wpe.weight"`)
}

// TestNoSuchPosition: a position without a row is an error or NaN, never another
// position's row.
func TestNoSuchPosition(t *testing.T) {
	for _, name := range []string{"gpt2", "opt"} {
		m := loadFixture(t, name)
		limit := m.MaxPositions()
		require.Equal(t, 48, limit)
		at := func(position int32) float64 {
			ids, positions := tensors.FromValue([][]int32{{5}}), tensors.FromValue([][]int32{{position}})
			return float64(tensors.MustCopyFlatData[float32](logits(t, m, call{ids: ids, positions: positions})[0])[0])
		}
		require.False(t, math.IsNaN(at(int32(limit-1))), name)
		require.NotEqual(t, at(int32(limit-2)), at(int32(limit-1)), name)
		require.True(t, math.IsNaN(at(int32(limit))), name)

		run := func(length int) error {
			e, err := model.NewExec(m.Backend(), m.Store(), func(_ *model.Scope, ids *graph.Node) *graph.Node {
				return m.Hidden(&site.Pass{Graph: ids.Graph(), DType: m.DType()}, site.Tokens{IDs: ids})
			})
			require.NoError(t, err)
			defer e.Finalize()
			_, err = e.Exec([][]int32{make([]int32, length)})
			return err
		}
		require.NoError(t, run(limit), name)
		require.ErrorContains(t, run(limit+1), "49 tokens: "+name+" has learned positions for 48 only")
	}
}

// TestDecoderOptions: names that config.json may use instead, and options that nobody
// here computes.
func TestDecoderOptions(t *testing.T) {
	build := func(family string, change map[string]any) (Architecture, error) {
		data, err := os.ReadFile(filepath.Join(fixtures, family, configFile))
		require.NoError(t, err)
		var values map[string]any
		require.NoError(t, json.Unmarshal(data, &values))
		for key, value := range change {
			values[key] = value
		}
		data, err = json.Marshal(values)
		require.NoError(t, err)
		return NewArchitecture(data)
	}
	m, err := build("gpt2", map[string]any{"n_embd": nil, "n_layer": nil, "hidden_size": 64, "num_hidden_layers": 3, "n_inner": nil})
	require.NoError(t, err)
	require.Equal(t, 64, m.Config().HiddenSize)
	require.Equal(t, 3, m.Config().NumLayers)
	require.Equal(t, 256, m.(*gpt2).inner)
	neox, err := build("gpt_neox", map[string]any{"rope_parameters": nil})
	require.NoError(t, err)
	require.Equal(t, inverseFrequencies(10000, 4), neox.(*gptNeoX).rope.invFreq) // a quarter of 16

	for _, c := range []struct {
		family string
		change map[string]any
		want   string
	}{
		{"gpt2", map[string]any{"n_embd": nil}, "hidden_size is missing"},
		{"gpt2", map[string]any{"hidden_size": 16}, "n_embd 32 and hidden_size 16: wanted one value"},
		{"gpt2", map[string]any{"n_head": 5}, "hidden_size 32 is no multiple of num_attention_heads 5"},
		{"gpt2", map[string]any{"add_cross_attention": true}, "add_cross_attention is not supported"},
		{"gpt2", map[string]any{"activation_function": "prelu"}, `activation_function "prelu" is not supported`},
		{"gpt2", map[string]any{"scale_attn_weights": "yes"}, "scale_attn_weights: wanted true or false"},
		{"opt", map[string]any{"ffn_dim": nil}, "ffn_dim is missing"},
		{"opt", map[string]any{"quantization_config": map[string]any{}}, "quant_method"},
		{"opt", map[string]any{"activation_function": "prelu"}, `activation_function "prelu" is not supported`},
		{"gpt_neox", map[string]any{"rope_parameters": map[string]any{"rope_type": "odd"}}, `rope_type "odd" is not supported`},
		{"gpt_neox", map[string]any{"rope_parameters": nil, "rotary_pct": 0.2}, "even"},
		{"gpt_neox", map[string]any{"rope_parameters": nil, "rotary_pct": 1.5}, "partial_rotary_factor: wanted at most 1, got 1.5"},
		{"gpt_neox", map[string]any{"rope_parameters": nil, "rope_theta": 500}, "rope_theta 500 without rotary_emb_base"},
		{"gpt_neox", map[string]any{"rotary_pct": 0.5, "partial_rotary_factor": 0.25}, "rotary_pct 0.5 and partial_rotary_factor 0.25: wanted one value"},
	} {
		_, err := build(c.family, c.change)
		require.ErrorContains(t, err, c.want, c.family)
	}
}

// TestGPT2Initial: what is added to the residual stream starts smaller.
func TestGPT2Initial(t *testing.T) {
	config, err := os.ReadFile(filepath.Join(fixtures, "gpt2", configFile))
	require.NoError(t, err)
	m, err := New(context.Background(), config, 1, float32Options(t))
	require.NoError(t, err)
	defer m.Close()
	for name, std := range map[string]float64{"attn.c_attn": 0.02, "attn.c_proj": 0.01, "mlp.c_fc": 0.02, "mlp.c_proj": 0.01} {
		v := m.Store().GetVariable(site.VariablePath("transformer.h.0." + name + ".weight")).MustValue()
		requireNormal(t, tensors.MustCopyFlatData[float32](v), std)
	}
}
