package models

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/site"
)

// copyOf copies a fixture to a folder that a test may change.
func copyOf(t testing.TB, name string) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(dir, os.DirFS(filepath.Join(fixtures, name))))
	return dir
}

// editConfig changes members of a folder's config.json; nil removes one.
func editConfig(t testing.TB, dir string, change map[string]any) {
	t.Helper()
	path := filepath.Join(dir, configFile)
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	var values map[string]any
	require.NoError(t, json.Unmarshal(data, &values))
	for name, v := range change {
		values[name] = v
		if v == nil {
			delete(values, name)
		}
	}
	data, err = json.Marshal(values)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, data, 0o644))
}

// editWeights rewrites a folder's model.safetensors.
func editWeights(t testing.TB, dir string, change func(all map[string]safetensors.Tensor)) {
	t.Helper()
	src, err := safetensors.OpenIndexed(dir)
	require.NoError(t, err)
	all := map[string]safetensors.Tensor{}
	for _, name := range src.Names() {
		info, _ := src.Info(name)
		data, err := src.Bytes(name)
		require.NoError(t, err)
		all[name] = safetensors.Tensor{Name: name, DType: info.DType, Shape: info.Shape, Bytes: append([]byte(nil), data...)}
	}
	require.NoError(t, src.Close())
	change(all)
	var list []safetensors.Tensor
	for _, x := range all {
		list = append(list, x)
	}
	require.NoError(t, safetensors.Write(filepath.Join(dir, safetensors.SingleName), nil, list))
}

// rename moves a tensor.
func rename(all map[string]safetensors.Tensor, from, to string) {
	x := all[from]
	x.Name = to
	delete(all, from)
	all[to] = x
}

func TestLoadErrors(t *testing.T) {
	const q = "model.layers.0.self_attn.q_proj.weight"
	cases := []struct {
		name   string
		change func(dir string)
		want   []string
	}{
		{"no config", func(dir string) { os.Remove(filepath.Join(dir, configFile)) }, []string{"has no config.json"}},
		{"config is no JSON", func(dir string) { os.WriteFile(filepath.Join(dir, configFile), []byte("{,"), 0o644) }, []string{"config.json: not a JSON object"}},
		{"model_type missing", func(dir string) { editConfig(t, dir, map[string]any{"model_type": nil}) }, []string{"model_type is missing: wanted a string"}},
		{"model_type unknown", func(dir string) { editConfig(t, dir, map[string]any{"model_type": "mamba"}) },
			[]string{`model_type "mamba" is not supported`, "llama, mistral, "}},
		{"fields missing and wrong", func(dir string) {
			editConfig(t, dir, map[string]any{"hidden_size": nil, "num_hidden_layers": "two", "rms_norm_eps": -1, "vocab_size": 1.5})
		}, []string{"hidden_size is missing: wanted a positive integer", `num_hidden_layers: wanted a positive integer, got "two"`,
			"rms_norm_eps: wanted a positive number, got -1", "vocab_size: wanted a positive integer, got 1.5"}},
		{"heads", func(dir string) { editConfig(t, dir, map[string]any{"num_key_value_heads": 3}) }, []string{"num_key_value_heads: wanted a divisor of num_attention_heads 4, got 3"}},
		{"hidden_act", func(dir string) { editConfig(t, dir, map[string]any{"hidden_act": "prelu"}) }, []string{`hidden_act "prelu" is not supported; supported are [gelu`}},
		{"pretraining_tp", func(dir string) { editConfig(t, dir, map[string]any{"pretraining_tp": 2}) }, []string{"pretraining_tp 2 is not supported"}},
		{"quantised", func(dir string) { editConfig(t, dir, map[string]any{"quantization_config": map[string]any{"bits": 4}}) }, []string{`quantization_config: quant_method "" is not supported`}},
		{"partial rotary", func(dir string) { editConfig(t, dir, map[string]any{"partial_rotary_factor": 0.5}) }, []string{"partial_rotary_factor 0.5 is not supported"}},
		{"rope type", func(dir string) {
			editConfig(t, dir, map[string]any{"rope_parameters": map[string]any{"rope_type": "proportional", "rope_theta": 1e4}})
		}, []string{`rope_parameters: rope_type "proportional" is not supported; supported are default, linear, dynamic, llama3, yarn, longrope`}},
		{"rope option", func(dir string) {
			editConfig(t, dir, map[string]any{"rope_parameters": map[string]any{"rope_type": "default", "mrope_section": []int{1, 1, 2}}})
		}, []string{`option "mrope_section" is not supported`}},
		{"rope factor", func(dir string) {
			editConfig(t, dir, map[string]any{"rope_parameters": map[string]any{"rope_type": "linear"}})
		}, []string{"rope_parameters: factor is missing: wanted a positive number"}},
		{"no weights", func(dir string) { os.Remove(filepath.Join(dir, safetensors.SingleName)) }, []string{"model.safetensors"}},
		{"truncated weights", func(dir string) { require.NoError(t, os.Truncate(filepath.Join(dir, safetensors.SingleName), 5000)) }, []string{"model.safetensors"}},
		{"renamed tensors", func(dir string) {
			editWeights(t, dir, func(all map[string]safetensors.Tensor) {
				rename(all, q, "transformer."+q)
				rename(all, "model.norm.weight", "norm")
			})
		}, []string{"19 tensors loaded, 2 missing, 2 unexpected, 0 of the wrong shape", `wanted "` + q + `"`, `found "transformer.` + q + `"`}},
		{"wrong shape", func(dir string) {
			editWeights(t, dir, func(all map[string]safetensors.Tensor) {
				x := all[q]
				x.Shape = []int{16, 64}
				all[q] = x
			})
		}, []string{"1 of the wrong shape or dtype", `"` + q + `": wanted [32 32], got F32[16 64]`}},
		{"wrong dtype", func(dir string) {
			editWeights(t, dir, func(all map[string]safetensors.Tensor) {
				x := all[q]
				x.DType = safetensors.I32
				all[q] = x
			})
		}, []string{`wanted F64, F32, F16 or BF16 [32 32], got I32[32 32]`}},
		{"untied head of a tied model", func(dir string) { editConfig(t, dir, map[string]any{"tie_word_embeddings": true}) },
			[]string{"0 missing, 1 unexpected", `found "lm_head.weight"`}},
		{"tokenizer larger than the embedding", func(dir string) {
			vocab := map[string]int{}
			for i := range 70 {
				vocab[string(rune('A'+i))] = i
			}
			data, err := json.Marshal(map[string]any{"version": "1.0", "model": map[string]any{"type": "BPE", "vocab": vocab, "merges": []string{}}})
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(dir, tokenizerFile), data, 0o644))
		}, []string{"tokenizer.json has 70 tokens but the model's embedding has only 64 rows"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := copyOf(t, "llama")
			c.change(dir)
			_, err := Load(context.Background(), dir, float32Options(t))
			require.Error(t, err)
			for _, want := range append(c.want, "models: load "+`"`+dir+`"`) {
				require.ErrorContains(t, err, want)
			}
		})
	}
}

func TestLoadErrorIsTyped(t *testing.T) {
	dir := copyOf(t, "llama")
	editWeights(t, dir, func(all map[string]safetensors.Tensor) {
		rename(all, "model.norm.weight", "model.final.weight")
		all["model.layers.0.self_attn.rotary_emb.inv_freq"] = safetensors.Tensor{
			Name: "model.layers.0.self_attn.rotary_emb.inv_freq", DType: safetensors.F32, Shape: []int{1}, Bytes: make([]byte, 4)}
	})
	_, err := Load(context.Background(), dir, float32Options(t))
	var report *LoadError
	require.True(t, errors.As(err, &report), "%v", err)
	require.Equal(t, LoadReport{
		Loaded: 20, Missing: []string{"model.norm.weight"}, Unexpected: []string{"model.final.weight"},
		Ignored: []string{"model.layers.0.self_attn.rotary_emb.inv_freq"},
	}, report.Report)
	_, err = Load(context.Background(), filepath.Join(dir, "missing"), float32Options(t))
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = Load(context.Background(), filepath.Join(dir, configFile), float32Options(t))
	require.ErrorContains(t, err, "it is a file, want a folder")
}

// TestTiedCopy: a second copy of a tied weight is no head of its own.
func TestTiedCopy(t *testing.T) {
	dir := copyOf(t, "llama_tied")
	editWeights(t, dir, func(all map[string]safetensors.Tensor) {
		x := all["model.embed_tokens.weight"]
		x.Name = "lm_head.weight"
		all["lm_head.weight"] = x
	})
	m, err := Load(context.Background(), dir, float32Options(t))
	require.NoError(t, err)
	require.Nil(t, m.Store().GetVariable("/lm_head/weight"))
	require.NoError(t, m.Close())
	editWeights(t, dir, func(all map[string]safetensors.Tensor) { all["lm_head.weight"].Bytes[5] ^= 1 })
	_, err = Load(context.Background(), dir, float32Options(t))
	require.ErrorContains(t, err, `found "lm_head.weight"`)
}

// countingSource notes how many tensors are held at once.
type countingSource struct {
	source
	reads        map[string]int
	held, atOnce int
}

func (s *countingSource) Bytes(name string) ([]byte, error) {
	s.reads[name]++
	s.held++
	s.atOnce = max(s.atOnce, s.held)
	return s.source.Bytes(name)
}

func (s *countingSource) Release(name string) { s.held--; s.source.Release(name) }

// TestLoadOneTensorAtATime: each tensor is read once and let go before the next.
func TestLoadOneTensorAtATime(t *testing.T) {
	f := diskFolder(filepath.Join(fixtures, "llama_sharded"))
	counting := &countingSource{reads: map[string]int{}}
	open := f.open
	f.open = func() (source, error) {
		var err error
		counting.source, err = open()
		return counting, err
	}
	m, err := f.load(context.Background(), "x", float32Options(t))
	require.NoError(t, err)
	defer m.Close()
	require.Equal(t, 1, counting.atOnce)
	require.Zero(t, counting.held)
	for _, p := range m.Parameters() {
		require.Equal(t, 1, counting.reads[p.Name], p.Name)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = f.load(ctx, "x", float32Options(t))
	require.ErrorIs(t, err, context.Canceled)
}

// TestDTypes: parameters are stored in the compute dtype, rounded to nearest even.
func TestDTypes(t *testing.T) {
	dir := filepath.Join(fixtures, "llama_tied")
	m, err := Load(context.Background(), dir, Options{On: backendtest.Open(t), DType: dtypes.BFloat16})
	require.NoError(t, err)
	defer m.Close()
	src, err := safetensors.OpenIndexed(dir)
	require.NoError(t, err)
	defer src.Close()
	const name = "model.embed_tokens.weight"
	data, err := src.Bytes(name)
	require.NoError(t, err)
	value := m.Store().GetVariable(site.VariablePath(name)).MustValue()
	require.Equal(t, dtypes.BFloat16, value.DType())
	require.NoError(t, value.ConstBytes(func(got []byte) {
		for i := range len(got) / 2 {
			wide := binary.LittleEndian.Uint32(data[4*i:])
			want := math.Float32frombits(wide)
			have := math.Float32frombits(uint32(binary.LittleEndian.Uint16(got[2*i:])) << 16)
			require.LessOrEqual(t, math.Abs(float64(want-have)), math.Abs(float64(want))/256)
		}
	}))
	_, err = Load(context.Background(), dir, Options{On: backendtest.Open(t), DType: dtypes.Int32})
	require.ErrorContains(t, err, "wanted Float32, BFloat16 or Float16, got Int32")
}

// TestFromFS: a model from another file system, as an embedded one, is the same
// model, exported too.
func TestFromFS(t *testing.T) {
	m, err := FromFS(context.Background(), os.DirFS(fixtures), "qwen3", float32Options(t))
	require.NoError(t, err)
	defer m.Close()
	require.Equal(t, "qwen3", m.NameOrPath())
	to := filepath.Join(t.TempDir(), "out")
	require.NoError(t, m.Export(context.Background(), to, nil))
	require.Equal(t, contents(t, filepath.Join(fixtures, "qwen3")), contents(t, to))
	_, err = FromFS(context.Background(), os.DirFS(fixtures), "missing", float32Options(t))
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = FromFS(context.Background(), os.DirFS(fixtures), "llama_sharded", float32Options(t))
	require.ErrorContains(t, err, "weights in shards are read from disk only")
}

func TestAligned(t *testing.T) {
	data := make([]byte, 64)
	require.Same(t, &data[8], &aligned(data[8:], safetensors.F32)[0])
	require.NotSame(t, &data[1], &aligned(data[1:9], safetensors.F32)[0])
}

func TestReportString(t *testing.T) {
	r := LoadReport{Loaded: 3, Missing: []string{"model.a.weight", "model.b.weight"}, Unexpected: []string{"x.b.bias", "x.a.weight"}}
	require.False(t, r.OK())
	require.Equal(t, `3 tensors loaded, 2 missing, 2 unexpected, 0 of the wrong shape or dtype; wanted "model.a.weight"; found "x.a.weight"`, r.String())
	require.True(t, strings.HasPrefix((&LoadError{Path: "p", Report: r}).Error(), "models: p: the checkpoint does not fit its config.json: 3 tensors"))
}
