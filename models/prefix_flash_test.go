package models

import (
	"context"
	"math"
	"testing"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/site"
)

const flashConfig = `{"model_type": "llama", "vocab_size": 64, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2,
	"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "max_position_embeddings": 512, "rms_norm_eps": 1e-5}`

// prefixOutputs returns the hidden states behind a prefix of 16 slots and 8 rows, the gradient
// with respect to both, and the number of fused attentions.
func prefixOutputs(t *testing.T, dtype dtypes.DType) (values [][]float32, fused int) {
	t.Helper()
	m, err := New(context.Background(), []byte(flashConfig), 1, Options{On: backendtest.Open(t), DType: dtype})
	require.NoError(t, err)
	defer m.Close()
	ids := make([][]int32, 2)
	for i := range 2 * 40 {
		ids[i/40] = append(ids[i/40], int32(7*i%61))
	}
	wave := func(n int, step float64) []float32 {
		out := make([]float32, n)
		for i := range out {
			out[i] = float32(math.Sin(step * float64(i)))
		}
		return out
	}
	// Keys and values of both layers, then the embeddings.
	kv := tensors.FromFlatDataAndDimensions(wave(4*16*64, 0.37), 4, 16, 1, 64)
	rows := tensors.FromFlatDataAndDimensions(wave(8*128, 0.11), 8, 128)
	out, err := exec(t, m, func(in []*graph.Node) []*graph.Node {
		g := in[0].Graph()
		part := func(i int) *graph.Node { return graph.Reshape(graph.Slice(in[0], graph.AxisElem(i)), 16, 1, 64) }
		prefix := site.Prefix{Keys: []*graph.Node{part(0), part(1)}, Values: []*graph.Node{part(2), part(3)}, Embeddings: in[1]}
		p := &site.Pass{Graph: g, DType: dtype, Hook: prefixHook{prefix}}
		hidden := graph.ConvertDType(m.Hidden(p, site.Tokens{IDs: graph.Const(g, ids)}), dtypes.Float32)
		for _, n := range g.Nodes() {
			if n.Type() == graph.NodeTypeFusedScaledDotProductAttention {
				fused++
			}
		}
		weights := graph.Sin(graph.Iota(g, shapes.Make(dtypes.Float32, hidden.Shape().Dimensions...), 1))
		gradients := graph.Gradient(graph.ReduceAllSum(graph.Mul(hidden, weights)), in[0], in[1])
		return append([]*graph.Node{hidden}, gradients...)
	}).Exec(kv, rows)
	require.NoError(t, err)
	for _, x := range out {
		flat, err := tensors.CopyFlatData[float32](x)
		require.NoError(t, err)
		values = append(values, flat)
	}
	return values, fused
}

// A prefix keeps the fused attention of a GPU, and it computes what the plain one does.
func TestFlashPrefix(t *testing.T) {
	if !backendtest.Open(t).Capabilities().Operations[compute.OpTypeFusedScaledDotProductAttention] {
		t.Skip("the backend has no fused attention")
	}
	want, fused := prefixOutputs(t, dtypes.Float32)
	require.Zero(t, fused)
	got, fused := prefixOutputs(t, dtypes.BFloat16)
	require.Equal(t, 2, fused)
	for i, what := range []string{"hidden states", "gradient of keys and values", "gradient of embeddings"} {
		var difference, size float64
		for k := range want[i] {
			difference += math.Pow(float64(want[i][k]-got[i][k]), 2)
			size += math.Pow(float64(want[i][k]), 2)
		}
		// bfloat16 has 8 bits: some 2^-8 for each of a dozen roundings in a row.
		require.Less(t, math.Sqrt(difference/size), 3e-2, what)
		t.Logf("%s: relative distance %.1e", what, math.Sqrt(difference/size))
	}
}
