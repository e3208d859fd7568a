package models

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/site"
)

// contents returns dtype and bytes of every tensor of a folder.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	src, err := safetensors.OpenIndexed(dir)
	require.NoError(t, err)
	defer src.Close()
	all := map[string]string{}
	for _, name := range src.Names() {
		info, _ := src.Info(name)
		data, err := src.Bytes(name)
		require.NoError(t, err)
		all[name] = string(info.DType) + string(data)
	}
	return all
}

// TestExportUnchanged: every dtype comes out bit for bit, from one file or shards,
// with tied weights once.
func TestExportUnchanged(t *testing.T) {
	for _, name := range []string{"llama", "llama_tied", "smollm2", "llama_f16", "llama_f64", "llama_sharded", "qwen2",
		"gpt2", "gpt2_scaling", "opt", "opt_post", "opt_bare", "gpt_neox", "gpt_neox_sequential"} {
		t.Run(name, func(t *testing.T) {
			dir := copyOf(t, name)
			require.NoError(t, os.WriteFile(filepath.Join(dir, generationFile), []byte(`{"eos_token_id": [2, 7]}`), 0o644))
			m, err := Load(context.Background(), dir, float32Options(t))
			require.NoError(t, err)
			defer m.Close()
			require.Equal(t, []int{2, 7}, m.Config().EOSTokenIDs)
			to := filepath.Join(t.TempDir(), "out")
			seen := 0
			require.NoError(t, m.Export(context.Background(), to, func(p site.Parameter, values []float32) (bool, error) {
				seen++
				require.Len(t, values, p.Size())
				return false, nil
			}))
			require.Equal(t, len(m.Parameters()), seen)
			require.Equal(t, contents(t, dir), contents(t, to))
			for _, file := range []string{configFile, generationFile} {
				want, err := os.ReadFile(filepath.Join(dir, file))
				require.NoError(t, err)
				got, err := os.ReadFile(filepath.Join(to, file))
				require.NoError(t, err)
				require.Equal(t, string(want), string(got))
			}
		})
	}
}

// TestExportChanged: a changed tensor is rounded once, and a tied one changes the
// embedding and the head.
func TestExportChanged(t *testing.T) {
	dir := filepath.Join(fixtures, "smollm2") // bfloat16, tied
	m, err := Load(context.Background(), dir, float32Options(t))
	require.NoError(t, err)
	defer m.Close()
	to := filepath.Join(t.TempDir(), "out")
	require.NoError(t, m.Export(context.Background(), to, func(p site.Parameter, values []float32) (bool, error) {
		if p.Name != "model.embed_tokens.weight" {
			return false, nil
		}
		for i := range values {
			values[i] = values[i]*2 + 1.0/512 // 1/512 is lost beside numbers above 1
		}
		return true, nil
	}))
	before, after := contents(t, dir), contents(t, to)
	require.NotContains(t, after, "lm_head.weight")
	for name := range before {
		require.Equal(t, name != "model.embed_tokens.weight", before[name] == after[name], name)
	}
	out, err := Load(context.Background(), to, float32Options(t))
	require.NoError(t, err)
	defer out.Close()
	ids := call{ids: tensors.FromValue([][]int32{{5, 9, 33}})}
	require.NotEqual(t, tensors.MustCopyFlatData[float32](logits(t, m, ids)[0]), tensors.MustCopyFlatData[float32](logits(t, out, ids)[0]))
}

func TestExportErrors(t *testing.T) {
	dir := copyOf(t, "llama_tied")
	m, err := Load(context.Background(), dir, float32Options(t))
	require.NoError(t, err)
	defer m.Close()
	require.ErrorContains(t, m.Export(context.Background(), dir, nil), "loaded from this folder")
	to := filepath.Join(t.TempDir(), "out")
	broken := errors.New("broken")
	err = m.Export(context.Background(), to, func(p site.Parameter, _ []float32) (bool, error) { return false, broken })
	require.ErrorIs(t, err, broken)
	require.NoDirExists(t, to)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	require.ErrorIs(t, m.Export(ctx, to, nil), context.Canceled)
	require.NoDirExists(t, to)
	require.NoError(t, os.WriteFile(to, nil, 0o644))
	require.ErrorContains(t, m.Export(context.Background(), to, nil), "it is a file")
}

// TestExportReplaces: a model folder is replaced, but for what people add to one; a
// folder with anything else is left alone.
func TestExportReplaces(t *testing.T) {
	m, err := Load(context.Background(), filepath.Join(fixtures, "llama_tied"), float32Options(t))
	require.NoError(t, err)
	defer m.Close()
	to := filepath.Join(t.TempDir(), "out")
	put := func(name string) {
		path := filepath.Join(to, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte("mine"), 0o644))
	}
	for _, name := range []string{"README.md", "model-00001-of-00002.safetensors", "tokenizer.model"} {
		put(name)
	}
	for range 2 {
		require.NoError(t, m.Export(context.Background(), to, nil))
		readme, err := os.ReadFile(filepath.Join(to, "README.md"))
		require.NoError(t, err)
		require.Equal(t, "mine", string(readme))
		require.NoFileExists(t, filepath.Join(to, "model-00001-of-00002.safetensors"))
		require.NoFileExists(t, filepath.Join(to, "tokenizer.model"))
	}
	for _, name := range []string{"log.jsonl", "checkpoint-8/trainer_state.json", "config.json.d/x"} {
		put(name)
		first, _, _ := strings.Cut(name, "/")
		require.ErrorContains(t, m.Export(context.Background(), to, nil), `the folder has "`+first+`", which is no part of a model`)
		require.FileExists(t, filepath.Join(to, name))
		require.NoError(t, os.RemoveAll(filepath.Join(to, first)))
	}
	require.NoError(t, m.Export(context.Background(), to, nil))
}

// TestExportInMemory: a model made here can be written and loaded again.
func TestExportInMemory(t *testing.T) {
	config, err := os.ReadFile(filepath.Join(fixtures, "llama_tied", configFile))
	require.NoError(t, err)
	m, err := New(context.Background(), config, 7, float32Options(t))
	require.NoError(t, err)
	defer m.Close()
	to := filepath.Join(t.TempDir(), "out")
	require.NoError(t, m.Export(context.Background(), to, nil))
	again, err := Load(context.Background(), to, float32Options(t))
	require.NoError(t, err)
	defer again.Close()
	ids := call{ids: tensors.FromValue([][]int32{{5, 9, 33}})}
	require.Equal(t, tensors.MustCopyFlatData[float32](logits(t, m, ids)[0]), tensors.MustCopyFlatData[float32](logits(t, again, ids)[0]))
}
