package peft_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// deep is a model of 32 layers, narrow so that building its graph is all that takes time.
func deep(t testing.TB) *models.Model {
	t.Helper()
	base, err := models.New(t.Context(), []byte(`{"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 32, "num_attention_heads": 2,
		"intermediate_size": 16, "vocab_size": 64, "max_position_embeddings": 64, "hidden_act": "silu", "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2}`),
		1, models.Options{On: backendtest.Open(t), DType: dtypes.Float32})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, base.Close()) })
	return base
}

// built builds a view's forward graph and returns how long that took, without compiling, and
// the number of nodes.
func built(t testing.TB, base *models.Model, view site.View) (took time.Duration, nodes int) {
	t.Helper()
	arguments, err := view.Arguments()
	require.NoError(t, err)
	exec, err := model.NewExec(base.Backend(), base.Store(), func(_ *model.Scope, in []*graph.Node) []*graph.Node {
		start := time.Now()
		pass := &site.Pass{Graph: in[0].Graph(), DType: base.DType(), Hook: view.Hook(in[1:])}
		out := base.Logits(pass, base.Hidden(pass, site.Tokens{IDs: in[0]}))
		took, nodes = time.Since(start), len(in[0].Graph().Nodes())
		return []*graph.Node{out}
	})
	require.NoError(t, err)
	defer exec.Finalize()
	in := []shapes.Shape{shapes.Make(dtypes.Int32, 2, 8)}
	for _, a := range arguments {
		in = append(in, a.Shape())
	}
	_, err = exec.Compile(in...)
	require.NoError(t, err)
	return took, nodes
}

// What is loaded beside the active adapter is no part of its programs (issue: what must hold).
func TestTenLoadedAdaptersCostNothing(t *testing.T) {
	base := deep(t)
	pm := attach(t, base, lora.LoraConfig{R: 4, TargetModules: peft.AllLinear})
	_, before := built(t, base, pm)
	structure := pm.Structure()
	for i := range 10 {
		require.NoError(t, pm.AddAdapter(lora.LoraConfig{R: 4, TargetModules: peft.AllLinear}, peft.Options{Name: fmt.Sprint(i)}))
	}
	_, after := built(t, base, pm)
	require.Equal(t, before, after)
	require.Equal(t, structure, pm.Structure())
	arguments, err := pm.Arguments()
	require.NoError(t, err)
	require.Len(t, arguments, 1)
}

// BenchmarkAttach is attaching to 32 layers of seven linear layers and building the forward
// graph, beyond the base's own: under 100 ms is what must hold.
func BenchmarkAttach(b *testing.B) {
	base := deep(b)
	var sum time.Duration
	for b.Loop() {
		plain, _ := built(b, base, base)
		start := time.Now()
		pm := attach(b, base, lora.LoraConfig{R: 4, TargetModules: peft.AllLinear})
		planned := time.Since(start)
		adapted, _ := built(b, base, pm)
		sum += planned + adapted - plain
	}
	b.ReportMetric(float64(sum.Microseconds())/1000/float64(b.N), "ms-beyond-base/op")
}

// BenchmarkLoaded runs the active adapter with others loaded.
func BenchmarkLoaded(b *testing.B) {
	for _, loaded := range []int{0, 10} {
		b.Run(fmt.Sprint(loaded), func(b *testing.B) {
			base := deep(b)
			pm := attach(b, base, lora.LoraConfig{R: 4, TargetModules: peft.AllLinear})
			for i := range loaded {
				require.NoError(b, pm.AddAdapter(lora.LoraConfig{R: 4, TargetModules: peft.AllLinear}, peft.Options{Name: fmt.Sprint(i)}))
			}
			g, err := models.NewGenerator(pm)
			require.NoError(b, err)
			for b.Loop() {
				_, err := g.Generate(b.Context(), [][]int32{{3, 4, 5}}, models.GenerateOptions{MaxNewTokens: 16, StopTokens: []int32{}})
				require.NoError(b, err)
			}
		})
	}
}

// BenchmarkMixed runs rows with four adapters, and the same rows with one.
func BenchmarkMixed(b *testing.B) {
	base := deep(b)
	pm := attach(b, base, lora.LoraConfig{R: 4, TargetModules: peft.AllLinear}, peft.Options{Name: "0"})
	for _, name := range []string{"1", "2", "3"} {
		require.NoError(b, pm.AddAdapter(lora.LoraConfig{R: 4, TargetModules: peft.AllLinear}, peft.Options{Name: name}))
	}
	mixed, err := pm.Mixed("0", "1", "2", "3")
	require.NoError(b, err)
	for name, view := range map[string]site.View{"one": pm, "four": mixed, "base": base} {
		b.Run(name, func(b *testing.B) {
			g, err := models.NewGenerator(view)
			require.NoError(b, err)
			for b.Loop() {
				_, err := g.Generate(b.Context(), fourRows, models.GenerateOptions{MaxNewTokens: 16, StopTokens: []int32{}})
				require.NoError(b, err)
			}
		})
	}
}
