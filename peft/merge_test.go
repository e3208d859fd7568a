package peft_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// requireMerges merges a view into a new folder and compares the logits.
func requireMerges(t *testing.T, pm *peft.PeftModel) (dir string, report peft.MergeReport) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "merged")
	report, err := pm.Merge(t.Context(), dir)
	require.NoError(t, err)
	merged := basetest.Load(t, dir)
	basetest.RequireClose(t, logitsOf(t, pm.Base().(*models.Model), pm, fourRows), logitsOf(t, merged, merged, fourRows), 1e-5, "merged")
	return dir, report
}

// An adapter of the embedding or the head alone unties them, on disk and not in the base
// (peft.md 3.6, 8.52); one that replaces the shared weight leaves them tied.
func TestMergeUnties(t *testing.T) {
	for _, family := range []string{"llama_tied", "gpt2", "gemma2"} {
		base := basetest.Load(t, filepath.Join(basetest.Fixtures, "families", family))
		modules := base.Modules()
		embedding := modules[slices.IndexFunc(modules, func(m site.Module) bool { return m.Path == base.Head().TiedTo })].Path
		head := base.Head().Path
		before := fingerprint(t, base)
		loraOf := func(targets ...string) peft.Config {
			return lora.LoraConfig{R: 2, InitLoraWeights: lora.InitRandom, TargetModules: peft.Modules(targets...)}
		}
		for name, c := range map[string]struct {
			configs []peft.Config
			untied  bool
		}{
			"embedding":         {[]peft.Config{loraOf(embedding)}, true},
			"head":              {[]peft.Config{loraOf(head)}, true},
			"both":              {[]peft.Config{loraOf(embedding, head)}, true},
			"saved head":        {[]peft.Config{lora.LoraConfig{R: 2, TargetModules: peft.AllLinear, ModulesToSave: peft.Strings{head}}}, true},
			"full":              {[]peft.Config{peft.Full{TargetModules: peft.Modules(embedding)}}, false},
			"full and head":     {[]peft.Config{loraOf(head), peft.Full{TargetModules: peft.Modules(embedding)}}, true},
			"neither":           {[]peft.Config{lora.LoraConfig{R: 2, TargetModules: peft.AllLinear, InitLoraWeights: lora.InitRandom}}, false},
			"head, saved later": {[]peft.Config{loraOf(head), lora.LoraConfig{R: 2, TargetModules: peft.AllLinear, ModulesToSave: peft.Strings{embedding}}}, true},
		} {
			if family != "llama_tied" && name != "both" && name != "full and head" {
				continue
			}
			t.Run(family+"/"+name, func(t *testing.T) {
				backendtest.Sample(t, 5)
				pm := attach(t, base, c.configs[0], peft.Options{Name: "0"})
				names := []string{"0"}
				for _, config := range c.configs[1:] {
					require.NoError(t, pm.AddAdapter(config, peft.Options{Name: "1"}))
					names = append(names, "1")
				}
				for _, name := range names {
					disturb(t, pm, name)
				}
				dir, report := requireMerges(t, selected(t, pm, names...))
				var config map[string]any
				require.NoError(t, json.Unmarshal(read(t, dir, "config.json"), &config))
				if c.untied {
					require.Equal(t, []string{head + ".weight"}, report.Untied)
					require.Equal(t, false, config["tie_word_embeddings"])
					require.Contains(t, report.String(), ", untied "+head+".weight")
				} else {
					require.Empty(t, report.Untied)
					require.NotEqual(t, false, config["tie_word_embeddings"])
				}
				require.Equal(t, before, fingerprint(t, base))
			})
		}
	}
}

// Merging once more gives the same files, into another folder and the same one; merging
// into the base's own folder is refused (issue: merging twice; peft.md 8.52).
func TestMergeTwice(t *testing.T) {
	base := family(t, "llama_tied")
	pm := attach(t, base, lora.LoraConfig{R: 2, InitLoraWeights: lora.InitRandom, TargetModules: peft.Modules("q_proj", "lm_head")})
	one, report := requireMerges(t, pm)
	two, again := requireMerges(t, pm)
	require.Equal(t, report, again)
	same := func(a, b string) {
		t.Helper()
		for _, file := range []string{"config.json", "model.safetensors"} {
			require.True(t, bytes.Equal(read(t, a, file), read(t, b, file)), file)
		}
	}
	same(one, two)
	_, err := pm.Merge(t.Context(), two)
	require.NoError(t, err)
	same(one, two)
	_, err = pm.Merge(t.Context(), filepath.Join(basetest.Fixtures, "families", "llama_tied"))
	require.ErrorContains(t, err, "the model was loaded from this folder")
}

// Several adapters merged one after the other, each into what the one before wrote, give
// what they give at once (peft.md 8.23).
func TestMergeOneAfterTheOther(t *testing.T) {
	base := family(t, "llama")
	files := t.TempDir()
	pm := attach(t, base, lora.LoraConfig{R: 2, InitLoraWeights: lora.InitRandom}, peft.Options{Name: "a"})
	require.NoError(t, pm.AddAdapter(lora.LoraConfig{R: 3, TargetModules: peft.AllLinear, InitLoraWeights: lora.InitRandom}, peft.Options{Name: "b", Seed: 2}))
	both := selected(t, pm, "b", "a")
	require.NoError(t, both.SavePretrained(files))
	dir := filepath.Join(t.TempDir(), "1")
	_, err := selected(t, pm, "a").Merge(t.Context(), dir)
	require.NoError(t, err)
	next, err := peft.LoadAdapter(basetest.Load(t, dir), filepath.Join(files, "b"))
	require.NoError(t, err)
	dir2, _ := requireMerges(t, next)
	ids, labels := batch()
	want := basetest.Evaluate(t, both, ids, labels).Logits
	ids, labels = batch()
	basetest.RequireClose(t, want, basetest.Evaluate(t, view(t, basetest.Load(t, dir2)), ids, labels).Logits, 1e-5, "one after the other")
}

// A merged value that the stored dtype cannot hold is an error, and no folder appears.
func TestMergeOverflow(t *testing.T) {
	base := basetest.Load(t, filepath.Join(basetest.Fixtures, "families", "llama_f16"))
	pm := attach(t, base, lora.LoraConfig{R: 1, LoraAlpha: 1e6, InitLoraWeights: lora.InitRandom, TargetModules: peft.Modules("q_proj")})
	dir := filepath.Join(t.TempDir(), "merged")
	_, err := pm.Merge(t.Context(), dir)
	require.ErrorContains(t, err, `parameter "model.layers.0.self_attn.q_proj.weight": element`)
	require.ErrorContains(t, err, "which is more than its dtype F16 holds")
	_, err = os.Stat(dir)
	require.ErrorIs(t, err, os.ErrNotExist)
}

// A masked language model has a bias more when its head is untied, which it is not: an
// adapter of one use of its embedding is refused, and the error says why.
func TestMergeMaskedHead(t *testing.T) {
	base := basetest.Load(t, filepath.Join(basetest.Fixtures, "encoders", "bert_masked"))
	pm := attach(t, base, lora.LoraConfig{R: 2, InitLoraWeights: lora.InitRandom, TargetModules: peft.Modules("word_embeddings", "query")})
	_, err := pm.Merge(t.Context(), filepath.Join(t.TempDir(), "merged"))
	require.ErrorContains(t, err, "with the head untied")
	require.ErrorContains(t, err, "decoder.bias")
}

// spy notes how much of the heap is in use while a model is written.
type spy struct {
	*models.Model
	heap []uint64
}

func (s *spy) Export(ctx context.Context, dir string, edit func(p site.Parameter, values []float32) (bool, error)) error {
	return s.Model.Export(ctx, dir, func(p site.Parameter, values []float32) (bool, error) {
		changed, err := edit(p, values)
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		s.heap = append(s.heap, m.HeapAlloc)
		return changed, err
	})
}

// Merging holds one tensor at a time, whatever the number of tensors (issue: merge).
func TestMergeHoldsOneTensor(t *testing.T) {
	config := []byte(`{"model_type": "llama", "hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4, "intermediate_size": 1024, "vocab_size": 64,
		"max_position_embeddings": 64, "hidden_act": "silu", "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2}`)
	made, err := models.New(t.Context(), config, 1, models.Options{Backend: "go"})
	require.NoError(t, err)
	dir := filepath.Join(t.TempDir(), "base")
	require.NoError(t, made.Export(t.Context(), dir, nil))
	require.NoError(t, made.Close())
	base := &spy{Model: basetest.Load(t, dir)}
	pm := attach(t, base, lora.LoraConfig{R: 4, TargetModules: peft.AllLinear, InitLoraWeights: lora.InitRandom})
	report, err := pm.Merge(t.Context(), filepath.Join(t.TempDir(), "merged"))
	require.NoError(t, err)
	require.Len(t, report.Tensors, 56)
	const largest = 256 * 1024 * 4
	require.Less(t, slices.Max(base.heap)-slices.Min(base.heap), uint64(4*largest)) // all of them are 33 times the largest
}

// DoRA goes by the base's own weight, in a graph and merged, where another adapter replaces it.
func TestMergeDoraOnReplacedWeight(t *testing.T) {
	base := family(t, "llama")
	config := lora.LoraConfig{R: 2, LoraAlpha: 4, InitLoraWeights: lora.InitRandom, TargetModules: peft.Modules("q_proj"), UseDora: true}
	pm := attach(t, base, config)
	require.NoError(t, pm.AddAdapter(peft.Full{TargetModules: peft.Modules("q_proj")}, peft.Options{Name: "full"}))
	for _, name := range pm.Adapters() {
		values, err := pm.TensorValues(name)
		require.NoError(t, err)
		for _, tensor := range values {
			for i := range tensor {
				tensor[i] *= 1 + 0.8*float32(i%3)
			}
		}
		layout, err := pm.Layout(name)
		require.NoError(t, err)
		arguments, err := layout.FromHost(values)
		require.NoError(t, err)
		require.NoError(t, pm.SetValues(name, arguments))
	}
	both := selected(t, pm, "default", "full")
	dir := t.TempDir()
	_, err := both.Merge(t.Context(), dir)
	require.NoError(t, err)
	merged := basetest.Load(t, dir)
	basetest.RequireClose(t, logitsOf(t, base, both, fourRows), logitsOf(t, merged, merged, fourRows), 1e-4, "merged")
}
