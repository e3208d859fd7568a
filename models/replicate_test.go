package models

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend"
	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/site"
)

// ofTwo are ranges of the fixtures' two layers, and what they list.
var ofTwo = []struct {
	ranges [][2]int
	layers []int
}{
	{[][2]int{{0, 1}, {0, 2}, {1, 2}}, []int{0, 0, 1, 1}},
	{[][2]int{{1, 2}}, []int{1}},
	{[][2]int{{1, 2}, {0, 1}}, []int{1, 0}},
}

// withLayersCopied writes a fixture's checkpoint anew, its layers being those listed.
func withLayersCopied(t *testing.T, name, prefix string, layers []int) string {
	t.Helper()
	dir := copyOf(t, name)
	editWeights(t, dir, func(all map[string]safetensors.Tensor) {
		old := map[string]safetensors.Tensor{}
		for tensor, data := range all {
			if strings.HasPrefix(tensor, prefix) {
				old[tensor] = data
				delete(all, tensor)
			}
		}
		for i, from := range layers {
			for tensor, data := range old {
				if rest, ok := strings.CutPrefix(tensor, prefix+string(rune('0'+from))+"."); ok {
					data.Name = prefix + string(rune('0'+i)) + "." + rest
					all[data.Name] = data
				}
			}
		}
	})
	var config map[string]any
	data, err := os.ReadFile(filepath.Join(dir, configFile))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &config))
	change := map[string]any{}
	for _, member := range []string{"num_hidden_layers", "n_layer"} {
		if _, ok := config[member]; ok {
			change[member] = len(layers)
		}
	}
	if kinds, ok := config["layer_types"].([]any); ok {
		change["layer_types"] = picked(kinds, layers)
	}
	editConfig(t, dir, change)
	return dir
}

// TestReplicate: repeated layers give what a checkpoint with copies of them gives, in
// logits and in generation, and nothing is stored twice.
func TestReplicate(t *testing.T) {
	for name, prefix := range map[string]string{"llama": "model.layers.", "llama_bias": "model.layers.", "qwen2_sliding": "model.layers.",
		"gemma2": "model.layers.", "gemma3_text": "model.layers.", "phi3": "model.layers.",
		"gpt2": "transformer.h.", "opt_post": "model.decoder.layers.", "gpt_neox": "gpt_neox.layers."} {
		t.Run(name, func(t *testing.T) {
			backendtest.Sample(t, 5)
			m := loadFixture(t, name)
			cases := ofTwo
			if !backend.IsGo(m.Backend()) { // compiling is dear
				cases = cases[:1]
			}
			for _, c := range cases {
				base, err := m.Replicate(c.ranges)
				require.NoError(t, err)
				replicated := base.(*Model)
				copied, err := Load(context.Background(), withLayersCopied(t, name, prefix, c.layers), Options{On: m.Backend(), DType: m.DType()})
				require.NoError(t, err)
				defer copied.Close()

				require.Equal(t, copied.Config().NumLayers, replicated.Config().NumLayers)
				require.Equal(t, copied.CacheShape(), replicated.CacheShape())
				ids := tensors.FromValue([][]int32{{5, 9, 33, 7, 12, 41, 8, 3, 60, 22, 17, 29}})
				want := logits(t, copied, call{ids: ids})[0]
				requireClose(t, "logits", want, logits(t, replicated, call{ids: ids})[0], nil, 1e-6)
				prompts := [][]int32{{5, 9, 33, 7}, {11, 4}}
				wanted, err := newGenerator(t, copied).Generate(context.Background(), prompts, GenerateOptions{MaxNewTokens: 12, StopTokens: []int32{}})
				require.NoError(t, err)
				got, err := newGenerator(t, replicated).Generate(context.Background(), prompts, GenerateOptions{MaxNewTokens: 12, StopTokens: []int32{}})
				require.NoError(t, err)
				require.Equal(t, idsOf(wanted), idsOf(got))
				requireReplica(t, m, replicated, copied, c.layers, prefix)
				require.NoError(t, replicated.Close())
			}
			// The original is whole after all its replicas were closed.
			require.Equal(t, len(m.Parameters()), m.Store().NumVariables())
			logits(t, m, call{ids: tensors.FromValue([][]int32{{5, 9}})})
		})
	}
}

// requireReplica compares modules and parameters.
func requireReplica(t *testing.T, m, replicated, copied *Model, layers []int, prefix string) {
	t.Helper()
	stored := map[string]bool{}
	for _, p := range m.Parameters() {
		stored[p.Name] = true
	}
	modules := replicated.Modules()
	require.Len(t, modules, len(copied.Modules()))
	used := map[string]bool{}
	for i, module := range modules {
		require.Equal(t, copied.Modules()[i].Path, module.Path)
		require.True(t, stored[module.Weight()], module.Weight())
		used[module.Weight()] = true
		if module.Bias {
			require.True(t, stored[module.BiasName()], module.BiasName())
			used[module.BiasName()] = true
		}
		for at, from := range layers {
			if rest, ok := strings.CutPrefix(module.Path, prefix+string(rune('0'+at))); ok && at != from {
				require.Equal(t, prefix+string(rune('0'+from))+rest, module.TiedTo)
			}
		}
	}
	listed := map[string]bool{}
	for _, p := range replicated.Parameters() {
		require.False(t, listed[p.Name], p.Name)
		listed[p.Name] = true
	}
	require.Equal(t, used, listed)
}

// TestReplicaOfReplica: ranges of a replica count its layers.
func TestReplicaOfReplica(t *testing.T) {
	m := loadFixture(t, "llama")
	swapped, err := m.Replicate([][2]int{{1, 2}, {0, 1}})
	require.NoError(t, err)
	back, err := swapped.(*Model).Replicate([][2]int{{1, 2}, {0, 1}, {0, 1}})
	require.NoError(t, err)
	require.Equal(t, []int{0, 1, 1}, back.(*Model).layers)
	require.Empty(t, back.Modules()[1].TiedTo)
	require.Same(t, m.Store(), back.Store())
	require.ErrorContains(t, back.(*Model).Export(context.Background(), t.TempDir()+"/out", nil), "repeats layers")
}

// TestReplicaSites: the hook sees the new layers' paths and the stored parameters.
func TestReplicaSites(t *testing.T) {
	m := loadFixture(t, "llama_bias")
	base, err := m.Replicate([][2]int{{0, 2}, {0, 2}})
	require.NoError(t, err)
	lm := base.(*Model)
	var r *recorder
	e := exec(t, lm, func(in []*graph.Node) []*graph.Node {
		r = newRecorder(nil)
		p := &site.Pass{Graph: in[0].Graph(), DType: lm.DType(), Hook: r}
		return []*graph.Node{lm.Logits(p, lm.Hidden(p, site.Tokens{IDs: in[0]}))}
	})
	_, err = e.Exec([][]int32{{4, 5, 6}})
	require.NoError(t, err)
	for i, s := range r.sites {
		require.Equal(t, lm.Modules()[i], s.Module)
	}
	require.Equal(t, 2, r.parameters["model.layers.1.mlp.up_proj.bias"])
	require.Equal(t, 2, r.parameters["model.layers.0.input_layernorm.weight"])
	require.NotContains(t, r.parameters, "model.layers.2.mlp.up_proj.weight")
}

func TestReplicateErrors(t *testing.T) {
	m := loadFixture(t, "llama")
	for want, ranges := range map[string][][2]int{
		"wanted at least one range, got none":                                    nil,
		"range 0: wanted 0 <= from < to <= 2, the number of layers, got [1, 1)":  {{1, 1}},
		"range 1: wanted 0 <= from < to <= 2, the number of layers, got [2, 1)":  {{0, 2}, {2, 1}},
		"range 0: wanted 0 <= from < to <= 2, the number of layers, got [0, 3)":  {{0, 3}},
		"range 0: wanted 0 <= from < to <= 2, the number of layers, got [-1, 1)": {{-1, 1}},
	} {
		_, err := m.Replicate(ranges)
		require.EqualError(t, err, "models: replicate layers of llama: "+want)
	}
}
