package models

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/models/tokenizer"
	"github.com/gopeft/gopeft/site"
)

// assets finds a folder of other people's files, or skips.
func assets(t testing.TB, name string) string {
	t.Helper()
	root := os.Getenv("GOPEFT_ASSETS")
	if root == "" {
		root = "../../shared/assets"
	}
	dir := filepath.Join(root, name)
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("no %s: set GOPEFT_ASSETS to the folder that has it", dir)
	}
	return dir
}

// tokenLoss is the mean cross entropy of each token given those before it.
func tokenLoss(m *Model, p *site.Pass, ids *graph.Node) *graph.Node {
	length := ids.Shape().Dimensions[1]
	out := m.Logits(p, m.Hidden(p, site.Tokens{IDs: graph.SliceAxis(ids, 1, graph.AxisRange(0, length-1))}))
	logProbs := graph.LogSoftmax(graph.ConvertDType(out, dtypes.Float32), -1)
	targets := graph.OneHot(graph.SliceAxis(ids, 1, graph.AxisRange(1)), m.VocabSize(), dtypes.Float32)
	return graph.Neg(graph.ReduceAllMean(graph.ReduceSum(graph.Mul(logProbs, targets), -1)))
}

// TestStories: the real model's loss on a text like those it was trained on, which
// is the continuation that it gave itself, is known to be about 1 nat a token.
func TestStories(t *testing.T) {
	dir := assets(t, "stories260K")
	m, err := Load(context.Background(), filepath.Join(dir, "hf"), float32Options(t))
	require.NoError(t, err)
	defer m.Close()
	require.Equal(t, 260032, parameterCount(m))
	require.NotNil(t, m.Tokenizer)
	text, err := os.ReadFile(filepath.Join(dir, "expected_greedy_200steps.txt"))
	require.NoError(t, err)
	ids := m.Tokenizer.Encode(strings.TrimSpace(string(text)), tokenizer.EncodeOptions{AddSpecialTokens: true})
	e := exec(t, m, func(in []*graph.Node) []*graph.Node {
		p := &site.Pass{Graph: in[0].Graph(), DType: m.DType()}
		return []*graph.Node{tokenLoss(m, p, in[0])}
	})
	out, err := e.Exec([][]int32{ids})
	require.NoError(t, err)
	loss := tensors.ToScalar[float32](out[0])
	require.Greater(t, len(ids), 150)
	require.InDelta(t, 0.6, loss, 0.5, "%d tokens", len(ids))
	to := filepath.Join(t.TempDir(), "out")
	require.NoError(t, m.Export(context.Background(), to, nil))
	require.Equal(t, contents(t, filepath.Join(dir, "hf")), contents(t, to))
	again, err := Load(context.Background(), to, float32Options(t))
	require.NoError(t, err)
	defer again.Close()
	require.Equal(t, ids, again.Tokenizer.Encode(strings.TrimSpace(string(text)), tokenizer.EncodeOptions{AddSpecialTokens: true}))
	t.Logf("%.3f nats over %d tokens", loss, len(ids))
}

// TestSmolLM2: the last logits of a real chat model as transformers has them.
func TestSmolLM2(t *testing.T) {
	dir := os.Getenv("GOPEFT_SMOLLM2")
	if dir == "" {
		t.Skip("GOPEFT_SMOLLM2 is not set: want the folder of SmolLM2-135M-Instruct with its golden.json")
	}
	data, err := os.ReadFile(filepath.Join(dir, "golden.json"))
	require.NoError(t, err)
	var golden []struct {
		IDs        []int32
		LastLogits []float64 `json:"last_logits_16"`
		LastArgmax int       `json:"last_argmax"`
	}
	require.NoError(t, json.Unmarshal(data, &golden))
	require.NotEmpty(t, golden)
	m, err := Load(context.Background(), dir, float32Options(t))
	require.NoError(t, err)
	defer m.Close()
	require.Equal(t, 134515008, parameterCount(m))
	// One program for all: padded on the right to a common length, which nobody reads.
	const length = 40
	e := exec(t, m, func(in []*graph.Node) []*graph.Node {
		p := &site.Pass{Graph: in[0].Graph(), DType: m.DType()}
		hidden := m.Hidden(p, site.Tokens{IDs: in[0]})
		last := graph.ConvertDType(graph.Equal(graph.Iota(p.Graph, in[0].Shape(), 1), in[1]), hidden.DType())
		return []*graph.Node{m.Logits(p, graph.ReduceSum(graph.Mul(hidden, graph.InsertAxes(last, -1)), 1))}
	})
	for _, g := range golden {
		require.LessOrEqual(t, len(g.IDs), length)
		ids := append(slices.Clone(g.IDs), make([]int32, length-len(g.IDs))...)
		out, err := e.Exec([][]int32{ids}, int32(len(g.IDs)-1))
		require.NoError(t, err)
		got := tensors.MustCopyFlatData[float32](out[0])
		best := 0
		for i, v := range got {
			if v > got[best] {
				best = i
			}
		}
		require.Equal(t, g.LastArgmax, best)
		for i, want := range g.LastLogits {
			require.InDelta(t, want, got[i], 1e-3, "logit %d", i)
		}
	}
}

func parameterCount(m *Model) int {
	n := 0
	for _, p := range m.Parameters() {
		n += p.Size()
	}
	return n
}

func BenchmarkStories(b *testing.B) {
	m, err := Load(context.Background(), assets(b, "stories260K/hf"), float32Options(b))
	require.NoError(b, err)
	defer m.Close()
	const batch, length = 8, 96
	ids := make([][]int32, batch)
	for i := range ids {
		for j := range length + 1 {
			ids[i] = append(ids[i], int32((i*131+j*j*7+j)%512))
		}
	}
	offsets := make([]float32, len(m.Modules()))
	input := tensors.FromValue(ids)
	bench := func(name string, f func(p *site.Pass, ids, offsets *graph.Node) []*graph.Node) {
		b.Run(name, func(b *testing.B) {
			e := exec(b, m, func(in []*graph.Node) []*graph.Node {
				return f(&site.Pass{Graph: in[0].Graph(), DType: m.DType()}, in[0], in[1])
			})
			for range 2 {
				_, err := e.Exec(input, offsets)
				require.NoError(b, err)
			}
			b.ResetTimer()
			for range b.N {
				_, err := e.Exec(input, offsets)
				require.NoError(b, err)
			}
			b.ReportMetric(float64(b.N*batch*length)/b.Elapsed().Seconds(), "tokens/s")
		})
	}
	bench("forward", func(p *site.Pass, ids, offsets *graph.Node) []*graph.Node {
		return []*graph.Node{tokenLoss(m, p, ids), graph.ReduceAllSum(offsets)}
	})
	// The gradient by an offset to every module's output costs what LoRA's needs
	// from the base: that of each activation, of no weight.
	bench("forward+backward", func(p *site.Pass, ids, offsets *graph.Node) []*graph.Node {
		p.Hook = newRecorder(offsets)
		loss := tokenLoss(m, p, ids)
		return append([]*graph.Node{loss}, graph.Gradient(loss, offsets)...)
	})
}
