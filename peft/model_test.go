package peft_test

import (
	"fmt"
	"hash/fnv"
	"slices"
	"sync"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// fingerprint hashes the bytes of every parameter in the base's store.
func fingerprint(t testing.TB, base *models.Model) map[string]uint64 {
	t.Helper()
	sums := map[string]uint64{}
	for v := range base.Store().IterVariables() {
		value, err := v.Value()
		require.NoError(t, err)
		h := fnv.New64a()
		require.NoError(t, value.ConstBytes(func(data []byte) { h.Write(data) }))
		sums[v.Path()] = h.Sum64()
		require.False(t, v.Trainable, v.Path())
	}
	return sums
}

// Attaching, running, differentiating, saving, loading and merging leave every
// parameter of the base as it was, bit for bit.
func TestBaseIsNeverMutated(t *testing.T) {
	base := family(t, "llama")
	before := fingerprint(t, base)
	require.Len(t, before, len(base.Parameters()))
	ids, labels := batch()
	for _, config := range []peft.Config{
		lora.LoraConfig{R: 2, TargetModules: peft.Modules("q_proj", "embed_tokens", "lm_head"), InitLoraWeights: lora.InitRandom},
		peft.Full{},
	} {
		pm, err := peft.GetPeftModel(base, config)
		require.NoError(t, err)
		basetest.Evaluate(t, pm, ids, labels)
		if config.PeftType() == lora.PeftType {
			dir := t.TempDir()
			require.NoError(t, pm.SavePretrained(dir))
			require.NoError(t, pm.LoadAdapter(dir, peft.Options{Name: "again"}))
		}
		_, err = pm.Merge(t.Context(), t.TempDir())
		require.NoError(t, err)
		require.Equal(t, before, fingerprint(t, base))
	}
}

// No gradient of a base parameter is computed: in the program of the adapter's
// gradients nothing that depends on the data has the shape of one. With full
// fine-tuning, which does compute them, each is found.
func TestBaseGetsNoGradient(t *testing.T) {
	base := family(t, "llama")
	shapes := map[string]bool{}
	for _, p := range base.Parameters() {
		shapes[fmt.Sprint(p.Shape)] = true
	}
	found := func(config peft.Config) map[string]bool {
		pm, err := peft.GetPeftModel(base, config)
		require.NoError(t, err)
		arguments, err := pm.Arguments()
		require.NoError(t, err)
		ids, _ := batch()
		inProgram := map[string]bool{}
		exec, err := model.NewExec(base.Backend(), base.Store(), func(_ *model.Scope, in []*graph.Node) []*graph.Node {
			pass := &site.Pass{Graph: in[0].Graph(), DType: dtypes.Float32, Hook: pm.Hook(in[1:])}
			loss := graph.ReduceAllSum(graph.Square(base.Logits(pass, base.Hidden(pass, site.Tokens{IDs: in[0]}))))
			gradients := graph.Gradient(loss, in[1:]...)
			for node := range dependents(gradients, in[0]) {
				if shape := fmt.Sprint(node.Shape().Dimensions); shapes[shape] {
					inProgram[shape] = true
				}
			}
			for v := range base.Store().IterVariables() {
				require.False(t, v.ChangedInGraph(in[0].Graph()), v.Path())
			}
			return gradients
		})
		require.NoError(t, err)
		defer exec.Finalize()
		in := []any{ids}
		for _, a := range arguments {
			in = append(in, a)
		}
		out, err := exec.Exec(in...)
		require.NoError(t, err)
		require.False(t, allZero(basetest.Flat(t, out[0])))
		return inProgram
	}
	require.Empty(t, found(lora.LoraConfig{R: 2, TargetModules: peft.Modules("q_proj", "down_proj", "embed_tokens", "lm_head"), InitLoraWeights: lora.InitRandom}))
	require.Equal(t, shapes, found(peft.Full{}))
}

// dependents returns what the outputs are computed from that depends on input.
func dependents(outputs []*graph.Node, input *graph.Node) map[*graph.Node]bool {
	depends, known := map[*graph.Node]bool{input: true}, map[*graph.Node]bool{input: true}
	var visit func(n *graph.Node) bool
	visit = func(n *graph.Node) bool {
		if known[n] {
			return depends[n]
		}
		known[n] = true
		for _, in := range n.Inputs() {
			if visit(in) {
				depends[n] = true
			}
		}
		return depends[n]
	}
	for _, n := range outputs {
		visit(n)
	}
	return depends
}

// Initial values depend on the seed and the tensor's name, and on nothing else.
func TestSeeds(t *testing.T) {
	base := family(t, "llama")
	values := func(seed uint64, r int, targets ...string) map[string][]float32 {
		pm, err := peft.GetPeftModel(base, lora.LoraConfig{R: r, TargetModules: peft.Modules(targets...)}, peft.Options{Seed: seed})
		require.NoError(t, err)
		v, err := pm.TensorValues(peft.DefaultAdapter)
		require.NoError(t, err)
		return v
	}
	const q0, q1 = "model.layers.0.self_attn.q_proj.lora_A.weight", "model.layers.1.self_attn.q_proj.lora_A.weight"
	first := values(1, 4, "q_proj", "v_proj")
	require.Equal(t, first, values(1, 4, "v_proj", "q_proj"))
	require.Equal(t, first[q0], values(1, 4, "q_proj", "k_proj", "down_proj")[q0])
	require.NotEqual(t, first[q0], first[q1])
	require.NotEqual(t, first[q0], values(2, 4, "q_proj")[q0])
	require.NotEqual(t, values(0, 4, "q_proj")[q0], values(1<<63, 4, "q_proj")[q0])
}

// A view is fixed; several goroutines may add, select, read and replace at once.
func TestConcurrentUse(t *testing.T) {
	base := family(t, "llama")
	pm, err := peft.GetPeftModel(base, lora.LoraConfig{R: 2})
	require.NoError(t, err)
	start, err := pm.Values(peft.DefaultAdapter)
	require.NoError(t, err)
	var wait sync.WaitGroup
	for i := range 8 {
		wait.Go(func() {
			name := fmt.Sprintf("a%d", i)
			if err := pm.AddAdapter(lora.LoraConfig{R: 1 + i}, peft.Options{Name: name}); err != nil {
				t.Error(err)
				return
			}
			for range 20 {
				view, err := pm.With(name, peft.DefaultAdapter)
				if err != nil {
					t.Error(err)
					return
				}
				values, err := view.Values(peft.DefaultAdapter)
				if err == nil {
					err = view.SetValues(peft.DefaultAdapter, values)
				}
				if err == nil {
					_, err = view.TensorValues(peft.DefaultAdapter)
				}
				if err == nil {
					_, err = view.Arguments()
				}
				if err != nil || !slices.Equal(view.Active(), []string{name, peft.DefaultAdapter}) {
					t.Errorf("%v %v", err, view.Active())
				}
				view.TrainableParameters()
			}
		})
	}
	wait.Wait()
	require.Len(t, pm.Adapters(), 9)
	require.Equal(t, []string{peft.DefaultAdapter}, pm.Active())
	end, err := pm.Values(peft.DefaultAdapter)
	require.NoError(t, err)
	require.Equal(t, start, end)
}

func TestViews(t *testing.T) {
	base := family(t, "llama")
	pm, err := peft.GetPeftModel(base, lora.LoraConfig{R: 2, InitLoraWeights: lora.InitRandom})
	require.NoError(t, err)
	require.NoError(t, pm.AddAdapter(lora.LoraConfig{R: 3, InitLoraWeights: lora.InitRandom}, peft.Options{Name: "b"}))
	_, err = pm.With("c")
	require.ErrorIs(t, err, peft.ErrUnknownAdapter)
	require.ErrorContains(t, err, `unknown adapter "c" (the model has default, b)`)
	_, err = pm.With("b", "b")
	require.ErrorContains(t, err, "named twice")
	for _, name := range []string{"..", "a/b", `a\b`, "."} {
		require.ErrorContains(t, pm.AddAdapter(lora.LoraConfig{R: 2}, peft.Options{Name: name}), "not usable as a folder name")
	}
	require.ErrorContains(t, pm.AddAdapter(lora.LoraConfig{R: 2}), "already exists")
	require.ErrorContains(t, pm.AddAdapter(lora.LoraConfig{}, peft.Options{Name: "d"}), "r is 0")
	require.Equal(t, []string{"default", "b"}, pm.Adapters())
	_, err = peft.GetPeftModel(nil, lora.LoraConfig{R: 2})
	require.ErrorContains(t, err, "base model is nil")
	_, err = peft.GetPeftModel(pm.Base(), nil)
	require.ErrorContains(t, err, "configuration is nil")
	_, err = peft.DryRun(pm.Base(), nil)
	require.ErrorContains(t, err, "configuration is nil")
	require.ErrorContains(t, pm.AddAdapter(nil), "configuration is nil")
	require.ErrorContains(t, pm.SetValues("b", []*tensors.Tensor{nil}), "tensor 0 is nil")

	// Deltas add up in any order; without adapters the base answers.
	ids, labels := batch()
	logits := func(names ...string) []float32 {
		view, err := pm.With(names...)
		require.NoError(t, err)
		return basetest.Evaluate(t, view, ids, labels).Logits
	}
	require.Equal(t, logits(), basetest.Evaluate(t, view(t, base), ids, labels).Logits)
	basetest.RequireClose(t, logits("default", "b"), logits("b", "default"), 1e-6, "order")
	require.NotEqual(t, logits("default"), logits("b"))
	require.NotEqual(t, logits("default"), logits("default", "b"))
}

// view is a model without active adapters.
func view(t testing.TB, base *models.Model) *peft.PeftModel {
	pm, err := peft.GetPeftModel(base, peft.Full{})
	require.NoError(t, err)
	none, err := pm.With()
	require.NoError(t, err)
	return none
}

func TestDryRun(t *testing.T) {
	base := family(t, "llama")
	plan, err := peft.DryRun(base, lora.LoraConfig{
		R: 4, LoraAlpha: 8, TargetModules: peft.Modules("q_proj", "lm_head"),
		RankPattern: peft.Patterns{{Pattern: `layers\.1\..*`, Value: 2}},
	})
	require.NoError(t, err)
	require.Equal(t, `module                           kind    in  out  r  alpha  scaling  parameters
model.layers.0.self_attn.q_proj  linear  32  32   4  8      2        256
model.layers.1.self_attn.q_proj  linear  32  32   2  8      4        128
lm_head                          linear  32  64   4  8      2        384
target_modules "q_proj": 2 modules
target_modules "lm_head": 1 modules
rank_pattern "layers\\.1\\..*": 1 modules
trainable params: 768 || all params: 20,384 || trainable%: 3.7677`, plan.String())
}

func TestMergeRefuses(t *testing.T) {
	tied := family(t, "llama_tied")
	pm, err := peft.GetPeftModel(tied, lora.LoraConfig{R: 2})
	require.NoError(t, err)
	none, err := pm.With()
	require.NoError(t, err)
	_, err = none.Merge(t.Context(), t.TempDir())
	require.ErrorContains(t, err, "no adapter is active")
	shape := basetest.Llama(8, 1, 2, 1, 4, 16, 32)
	pm, err = peft.GetPeftModel(shape, lora.LoraConfig{R: 2})
	require.NoError(t, err)
	_, err = pm.Merge(t.Context(), t.TempDir())
	require.ErrorContains(t, err, "cannot be written as a checkpoint")
}

// Two adapters merge into the sum of what each does; full fine-tuning merges into itself.
func TestMergeSeveral(t *testing.T) {
	base := family(t, "llama")
	pm, err := peft.GetPeftModel(base, lora.LoraConfig{R: 2, InitLoraWeights: lora.InitRandom})
	require.NoError(t, err)
	require.NoError(t, pm.AddAdapter(lora.LoraConfig{R: 3, TargetModules: peft.AllLinear, InitLoraWeights: lora.InitRandom}, peft.Options{Name: "b"}))
	require.NoError(t, pm.AddAdapter(peft.Full{TargetModules: peft.Modules("q_proj", "norm")}, peft.Options{Name: "full"}))
	layout, err := pm.Layout("full")
	require.NoError(t, err)
	values, err := pm.TensorValues("full")
	require.NoError(t, err)
	for _, v := range values {
		for i := range v {
			v[i] *= 1.25
		}
	}
	arguments, err := layout.FromHost(values)
	require.NoError(t, err)
	require.NoError(t, pm.SetValues("full", arguments))
	both, err := pm.With("default", "full", "b")
	require.NoError(t, err)
	dir := t.TempDir()
	report, err := both.Merge(t.Context(), dir)
	require.NoError(t, err)
	require.Len(t, report.Tensors, 2*7+1)
	ids, labels := batch()
	want := basetest.Evaluate(t, both, ids, labels).Logits
	merged := basetest.Load(t, dir)
	ids, labels = batch() // a tensor belongs to one backend
	basetest.RequireClose(t, want, basetest.Evaluate(t, view(t, merged), ids, labels).Logits, 1e-5, "merged")
}

// Attaching to Llama-2-7B, 32 layers with seven targets each, is bookkeeping and the
// drawing of 20 million initial values.
func BenchmarkGetPeftModel(b *testing.B) {
	base := basetest.Llama(4096, 32, 32, 32, 128, 11008, 32000)
	for b.Loop() {
		pm, err := peft.GetPeftModel(base, lora.LoraConfig{R: 8, TargetModules: peft.AllLinear})
		if err != nil || pm.TrainableParameters().Trainable == 0 {
			b.Fatal(err)
		}
	}
}
