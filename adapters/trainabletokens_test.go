package adapters_test

import (
	"math"
	"path/filepath"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/adapters"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
	"github.com/gopeft/gopeft/train"
)

func family(t *testing.T, name string) basetest.Model {
	return basetest.Load(t, filepath.Join(basetest.Fixtures, "families", name))
}

var (
	someIDs    = tensors.FromValue([][]int32{{5, 9, 17, 33, 5, 40, 9, 12}, {7, 5, 60, 61, 9, 17, 3, 4}})
	someLabels = tensors.FromValue([][]int32{{5, 9, 17, 33, 5, 40, 9, 12}, {-100, 5, 60, 61, 9, 17, 3, 4}})
)

// shift adds a constant to every value of an adapter.
func shift(t *testing.T, pm *peft.PeftModel, name string, by float32) {
	t.Helper()
	layout, err := pm.Layout(name)
	require.NoError(t, err)
	values, err := pm.TensorValues(name)
	require.NoError(t, err)
	for _, list := range values {
		for i := range list {
			list[i] += by * float32(1+i%3)
		}
	}
	arguments, err := layout.FromHost(values)
	require.NoError(t, err)
	require.NoError(t, pm.SetValues(name, arguments))
}

// parameter reads a parameter of a base.
func parameter(t *testing.T, base site.Base, name string) []float32 {
	t.Helper()
	value, err := base.Store().GetVariable(site.VariablePath(name)).Value()
	require.NoError(t, err)
	return basetest.Flat(t, value)
}

// The trained rows are those of the merged weight, all others are the base's to the bit,
// and a tied head has them too (peft.md 8, items 30 and 31).
func TestTrainableTokensChangeTheirRowsOnly(t *testing.T) {
	indices := []int{40, 5, 9}
	for _, name := range []string{"llama", "llama_tied"} {
		t.Run(name, func(t *testing.T) {
			base := family(t, name)
			pm, err := peft.GetPeftModel(base, adapters.TrainableTokensConfig{TokenIndices: indices})
			require.NoError(t, err)
			shift(t, pm, peft.DefaultAdapter, 0.2)
			dir := t.TempDir()
			_, err = pm.Merge(t.Context(), dir)
			require.NoError(t, err)
			merged := basetest.Load(t, dir)
			values, err := pm.TensorValues(peft.DefaultAdapter)
			require.NoError(t, err)
			rows := values["model.embed_tokens.trainable_tokens_delta"]
			was, is := parameter(t, base, "model.embed_tokens.weight"), parameter(t, merged, "model.embed_tokens.weight")
			const features = 32
			for i, row := range indices {
				copy(was[row*features:(row+1)*features], rows[i*features:(i+1)*features])
			}
			require.Equal(t, was, is)

			got := basetest.Evaluate(t, pm, someIDs, someLabels)
			full, err := peft.GetPeftModel(merged, peft.Full{})
			require.NoError(t, err)
			want := basetest.Evaluate(t, full, someIDs, someLabels)
			basetest.RequireClose(t, want.Logits, got.Logits, 1e-5, "logits")
			// The gradient of a row is that of the merged weight's row: of both its uses if it is tied.
			whole := want.Gradients["model.embed_tokens.weight"]
			for i, row := range indices {
				basetest.RequireClose(t, whole[row*features:(row+1)*features], got.Gradients["model.embed_tokens.trainable_tokens_delta"][i*features:(i+1)*features], 1e-5, "gradient")
			}
			// Logits of other tokens after a prefix without trained ones are the base's.
			plain, err := pm.With()
			require.NoError(t, err)
			untouched := tensors.FromValue([][]int32{{3, 4, 6, 7}})
			before, after := basetest.Evaluate(t, plain, untouched, untouched).Logits, basetest.Evaluate(t, pm, untouched, untouched).Logits
			for i := range before {
				if column := i % 64; column != 40 && column != 5 && column != 9 || name == "llama" {
					require.InDelta(t, before[i], after[i], 1e-5, i) // two programs
				} else {
					require.Greater(t, math.Abs(float64(before[i]-after[i])), 1e-3, i)
				}
			}
		})
	}
}

// A file holds the trained rows and nothing else of the embedding (peft.md 8, item 31).
func TestTrainableTokensFile(t *testing.T) {
	pm, err := peft.GetPeftModel(family(t, "llama_tied"), adapters.TrainableTokensConfig{TokenIndices: []int{7, 5}})
	require.NoError(t, err)
	dir := filepath.Join(t.TempDir(), "adapter")
	require.NoError(t, pm.SavePretrained(dir))
	file, err := safetensors.Open(filepath.Join(dir, "adapter_model.safetensors"))
	require.NoError(t, err)
	defer file.Close()
	// Python's file has the head's copy of the same tensor too.
	require.ElementsMatch(t, []string{"base_model.model.model.embed_tokens.trainable_tokens_delta", "base_model.model.lm_head.trainable_tokens_delta"}, file.Names())
	for _, name := range file.Names() {
		info, _ := file.Info(name)
		require.Equal(t, []int{2, 32}, info.Shape)
	}
}

// Several adapters are active together if their tokens are disjoint (peft.md 8, item 31).
func TestTrainableTokensOfSeveralAdapters(t *testing.T) {
	base := family(t, "llama_tied")
	pm, err := peft.GetPeftModel(base, adapters.TrainableTokensConfig{TokenIndices: []int{5, 9}})
	require.NoError(t, err)
	require.NoError(t, pm.AddAdapter(adapters.TrainableTokensConfig{TokenIndices: []int{17, 40, 3}}, peft.Options{Name: "more"}))
	require.NoError(t, pm.AddAdapter(adapters.TrainableTokensConfig{TokenIndices: []int{12, 9}}, peft.Options{Name: "overlaps"}))
	require.NoError(t, pm.AddAdapter(adapters.TrainableTokensConfig{TokenIndices: []int{5, 9, 17, 40, 3}}, peft.Options{Name: "all"}))
	require.NoError(t, pm.AddAdapter(peft.Full{TargetModules: peft.Modules("embed_tokens")}, peft.Options{Name: "full"}))
	shift(t, pm, peft.DefaultAdapter, 0.3)
	shift(t, pm, "more", -0.2)

	_, err = pm.With(peft.DefaultAdapter, "overlaps")
	require.EqualError(t, err, `peft: adapters "default" and "overlaps" both replace row 9 of "model.embed_tokens": token indices of active adapters must be disjoint`)
	_, err = pm.With("full", "more")
	require.ErrorContains(t, err, `adapter "full" replaces "model.embed_tokens.weight", and adapter "more" rows of it: they cannot be active together`)

	both, err := pm.With(peft.DefaultAdapter, "more")
	require.NoError(t, err)
	reversed, err := pm.With("more", peft.DefaultAdapter)
	require.NoError(t, err)
	// The same rows as one adapter.
	values, err := pm.TensorValues(peft.DefaultAdapter)
	require.NoError(t, err)
	more, err := pm.TensorValues("more")
	require.NoError(t, err)
	const name = "model.embed_tokens.trainable_tokens_delta"
	layout, err := pm.Layout("all")
	require.NoError(t, err)
	arguments, err := layout.FromHost(map[string][]float32{name: append(values[name], more[name]...)})
	require.NoError(t, err)
	require.NoError(t, pm.SetValues("all", arguments))
	all, err := pm.With("all")
	require.NoError(t, err)
	want := basetest.Evaluate(t, all, someIDs, someLabels).Logits
	basetest.RequireClose(t, want, basetest.Evaluate(t, both, someIDs, someLabels).Logits, 1e-5, "both")
	basetest.RequireClose(t, want, basetest.Evaluate(t, reversed, someIDs, someLabels).Logits, 1e-5, "in the other order")
	dir := t.TempDir()
	_, err = both.Merge(t.Context(), dir)
	require.NoError(t, err)
	full, err := peft.GetPeftModel(basetest.Load(t, dir), peft.Full{})
	require.NoError(t, err)
	basetest.RequireClose(t, want, basetest.Evaluate(t, full, someIDs, someLabels).Logits, 1e-5, "merged")
}

// The loss in chunks has the same value and gradients as the loss of all logits at once,
// with a head that follows the trained rows and with one that does not.
func TestTrainableTokensChunkedLoss(t *testing.T) {
	for _, name := range []string{"llama", "llama_tied"} {
		base := family(t, name)
		pm, err := peft.GetPeftModel(base, adapters.TrainableTokensConfig{TokenIndices: []int{40, 5, 9, 17}})
		require.NoError(t, err)
		shift(t, pm, peft.DefaultAdapter, 0.2)
		want := basetest.Evaluate(t, pm, someIDs, someLabels)
		for _, chunk := range []int{0, 3} {
			loss, gradient := chunked(t, pm, chunk)
			require.InDelta(t, want.Loss, loss, 1e-5)
			basetest.RequireClose(t, want.Gradients["model.embed_tokens.trainable_tokens_delta"], gradient, 1e-5, "gradient")
		}
	}
}

func chunked(t *testing.T, pm *peft.PeftModel, tokens int) (loss float32, gradient []float32) {
	t.Helper()
	lm := pm.LanguageModel()
	exec, err := model.NewExec(lm.Backend(), lm.Store(), func(_ *model.Scope, in []*graph.Node) []*graph.Node {
		binding, err := pm.Bind(in[2:])
		require.NoError(t, err)
		run := &train.Run{Model: lm, Pass: &site.Pass{Graph: in[0].Graph(), DType: dtypes.Float32, Hook: binding}, Gradient: true}
		sum, count := train.CausalLM{ChunkTokens: tokens}.Loss(run, train.BatchNodes{Tokens: site.Tokens{IDs: in[0]}, Targets: in[1]})
		mean := graph.Div(sum, count)
		return append([]*graph.Node{mean}, graph.Gradient(mean, binding.Views()...)...)
	})
	require.NoError(t, err)
	defer exec.Finalize()
	targets := tensors.FromValue([][]int32{{9, 17, 33, 5, 40, 9, 12, -100}, {5, 60, 61, 9, 17, 3, 4, -100}})
	arguments, err := pm.Arguments()
	require.NoError(t, err)
	in := []any{someIDs, targets}
	for _, a := range arguments {
		in = append(in, a)
	}
	out, err := exec.Exec(in...)
	require.NoError(t, err)
	return basetest.Flat(t, out[0])[0], basetest.Flat(t, out[1])
}

// An embedding of any name can be named; one that is not there is an error (peft.md 8, item 31).
func TestTrainableTokensErrors(t *testing.T) {
	base := basetest.Llama(8, 2, 2, 2, 4, 16, 32)
	custom := &basetest.Shape{}
	custom.Add(site.Module{Path: "words", Kind: site.Embedding, In: 11, Out: 4}, site.Module{Path: "fc", Kind: site.Linear, In: 4, Out: 4})
	none := &basetest.Shape{}
	none.Add(site.Module{Path: "fc", Kind: site.Linear, In: 4, Out: 4})
	for _, c := range []struct {
		base   site.Base
		config adapters.TrainableTokensConfig
		want   string
	}{
		{base, adapters.TrainableTokensConfig{}, `trainable_tokens: token_indices is empty`},
		{base, adapters.TrainableTokensConfig{TokenIndices: []int{3, -1}}, `trainable_tokens: token index -1 is negative`},
		{base, adapters.TrainableTokensConfig{TokenIndices: []int{3, 4, 3}}, `trainable_tokens: token index 3 is named twice`},
		{base, adapters.TrainableTokensConfig{TokenIndices: []int{32}}, `trainable_tokens: "model.embed_tokens": token index 32, want less than the 32 rows of the weight`},
		{base, adapters.TrainableTokensConfig{TokenIndices: []int{3}, TargetModules: peft.Modules("embed_tokns")}, `trainable_tokens: target module "embed_tokns" matches nothing; did you mean "embed_tokens"?`},
		{base, adapters.TrainableTokensConfig{TokenIndices: []int{3}, TargetModules: peft.Modules("q_proj")}, `trainable_tokens: "model.layers.0.self_attn.q_proj" is a linear, want an embedding or the head`},
		{none, adapters.TrainableTokensConfig{TokenIndices: []int{3}}, `trainable_tokens: the base has no embedding`},
	} {
		_, err := peft.GetPeftModel(c.base, c.config)
		require.ErrorContains(t, err, c.want)
	}
	plan, err := peft.DryRun(custom, adapters.TrainableTokensConfig{TokenIndices: []int{10, 0}, TargetModules: peft.Modules("words")})
	require.NoError(t, err)
	require.Equal(t, int64(2*4), plan.Count.Trainable)
	_, err = peft.DecodeConfig([]byte(`{"peft_type": "TRAINABLE_TOKENS", "token_indices": [1.5]}`))
	require.ErrorContains(t, err, "trainable_tokens:")
}

// Random rows do not depend on the base's.
func TestTrainableTokensRandom(t *testing.T) {
	pm, err := peft.GetPeftModel(family(t, "llama"), adapters.TrainableTokensConfig{TokenIndices: []int{5, 9}, InitWeights: peft.Off}, peft.Options{Seed: 3})
	require.NoError(t, err)
	values, err := pm.TensorValues(peft.DefaultAdapter)
	require.NoError(t, err)
	var squares float64
	for _, v := range values["model.embed_tokens.trainable_tokens_delta"] {
		squares += float64(v * v)
	}
	require.InDelta(t, 64, squares, 30) // χ² of 64 values: standard deviation 11
}
