package peft_test

import (
	"path/filepath"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// peft.md 8, item 42: embeddings in adapter files, see embeddings_golden.py. Python saves
// those that are targets, and those of a vocabulary that was resized, with the adapter. Here
// nothing of the base is ever written, as the base is where it was.

// A base's embedding that a file holds too is recognised, and not written again.
func TestEmbeddingsSavedAlong(t *testing.T) {
	for name, c := range map[string]struct {
		family string
		copies []string
	}{
		"targeted":      {"llama", []string{"model.embed_tokens.base_layer.weight"}},
		"head_targeted": {"llama", []string{"lm_head.base_layer.weight"}},
		"asked":         {"llama_tied", []string{"lm_head.weight", "model.embed_tokens.weight"}},
		"refused":       {"llama", nil},
		"untargeted":    {"llama", nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(basetest.Fixtures, "embeddings", name)
			pm, err := peft.LoadAdapter(family(t, c.family), dir)
			require.NoError(t, err)
			report, err := pm.LoadReport(peft.DefaultAdapter)
			require.NoError(t, err)
			require.Equal(t, c.copies, report.Copies)
			require.Empty(t, report.Unexpected)

			ids, want := goldenLogits(t, filepath.Join(dir, "logits.safetensors"))
			basetest.RequireClose(t, want, basetest.Evaluate(t, pm, ids, ids).Logits, 1e-4, "logits")
			again := filepath.Join(t.TempDir(), "again")
			require.NoError(t, pm.SavePretrained(again))
			file, err := safetensors.Open(filepath.Join(again, weightsFile))
			require.NoError(t, err)
			defer file.Close()
			require.ElementsMatch(t, report.Loaded, withoutPrefix(file.Names()))
		})
	}
}

func withoutPrefix(names []string) []string {
	var out []string
	for _, name := range names {
		out = append(out, name[len("base_model.model."):])
	}
	return out
}

func goldenLogits(t *testing.T, path string) (ids *tensors.Tensor, logits []float32) {
	t.Helper()
	file, err := safetensors.Open(path)
	require.NoError(t, err)
	defer file.Close()
	info, ok := file.Info("input_ids")
	require.True(t, ok)
	data, err := file.Bytes("input_ids")
	require.NoError(t, err)
	ids, err = tensors.FromRaw(nil, 0, shapes.Make(dtypes.Int32, info.Shape...), data)
	require.NoError(t, err)
	info, ok = file.Info("logits")
	require.True(t, ok)
	logits = make([]float32, site.Parameter{Shape: info.Shape}.Size())
	require.NoError(t, file.Float32s("logits", logits))
	return ids, logits
}

// An embedding of another size, or other values, is that of another base: an error, where
// peft would put it in the base's place or, if told to, ignore it.
func TestEmbeddingsOfAnotherVocabulary(t *testing.T) {
	_, err := peft.LoadAdapter(family(t, "llama"), filepath.Join(basetest.Fixtures, "embeddings", "resized"))
	require.ErrorContains(t, err, `2 tensors unexpected`)
	var report *peft.LoadError
	require.ErrorAs(t, err, &report)
	require.Equal(t, []string{"lm_head.weight", "model.embed_tokens.weight"}, report.Report.Unexpected)
	require.Len(t, report.Report.Loaded, 4) // the adapter itself fits
}

// A module whose name ends like an embedding's is another module: neither adapted nor saved.
func TestModulesNamedLikeEmbeddings(t *testing.T) {
	base := &basetest.Shape{}
	base.Add(
		site.Module{Path: "embed_tokens", Kind: site.Embedding, In: 8, Out: 4},
		site.Module{Path: "my_embed_tokens", Kind: site.Embedding, In: 8, Out: 4},
		site.Module{Path: "embed_tokens_2", Kind: site.Embedding, In: 8, Out: 4},
	)
	pm, err := peft.GetPeftModel(base, lora.LoraConfig{R: 2, TargetModules: peft.Modules("embed_tokens")})
	require.NoError(t, err)
	dir := filepath.Join(t.TempDir(), "adapter")
	require.NoError(t, pm.SavePretrained(dir))
	file, err := safetensors.Open(filepath.Join(dir, weightsFile))
	require.NoError(t, err)
	defer file.Close()
	require.ElementsMatch(t, []string{"base_model.model.embed_tokens.lora_embedding_A", "base_model.model.embed_tokens.lora_embedding_B"}, file.Names())
}
