package models

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/site"
)

// rows of unequal length, padded on the left with 0.
var cacheRows = [][]int32{
	{5, 9, 33, 7, 12, 41, 8, 3, 60, 22, 17, 29},
	{0, 0, 0, 11, 4, 62, 19, 27, 35, 6, 44, 53},
	{0, 0, 0, 0, 0, 0, 0, 0, 15, 38, 21, 50},
}

var cacheStarts = []int32{0, 3, 8}

// cachedLogits feeds ids as a prompt of the given length and then in steps,
// through a cache of 16 slots, as generation does: [batch, length, vocabulary].
func cachedLogits(t *testing.T, m *Model, ids [][]int32, starts []int32, prompt int, steps ...int) [][][]float32 {
	t.Helper()
	const slots = 16
	layers := m.CacheShape().Layers
	headLogits := func(p *site.Pass, in site.Tokens) []*graph.Node {
		out := []*graph.Node{graph.ConvertDType(m.Logits(p, m.Hidden(p, in)), dtypes.Float32)}
		return append(append(out, in.Cache.Keys...), in.Cache.Values...)
	}
	first := exec(t, m, func(in []*graph.Node) []*graph.Node {
		p := &site.Pass{Graph: in[0].Graph(), DType: m.DType()}
		out := headLogits(p, site.Tokens{IDs: in[0], Cache: &site.Cache{Starts: in[1]}})
		for i, x := range out[1:] {
			out[i+1] = graph.Pad(x, graph.ScalarZero(p.Graph, x.DType()), graph.PadAxis{}, graph.PadAxis{End: slots - prompt})
		}
		return out
	})
	next := exec(t, m, func(in []*graph.Node) []*graph.Node {
		p := &site.Pass{Graph: in[0].Graph(), DType: m.DType()}
		cache := &site.Cache{Starts: in[1], Index: in[2], Keys: in[3 : 3+layers], Values: in[3+layers:]}
		return headLogits(p, site.Tokens{IDs: in[0], Cache: cache})
	})
	out := make([][][]float32, len(ids))
	collect := func(x *tensors.Tensor) {
		for row, tokens := range x.Value().([][][]float32) {
			out[row] = append(out[row], tokens...)
		}
	}
	cut := func(from, to int) [][]int32 {
		var part [][]int32
		for _, row := range ids {
			part = append(part, row[from:to])
		}
		return part
	}
	results, err := first.Exec(cut(0, prompt), starts)
	require.NoError(t, err)
	collect(results[0])
	at := prompt
	for _, n := range steps {
		args := []any{cut(at, at+n), starts, int32(at)}
		for _, x := range results[1:] {
			args = append(args, x)
		}
		results, err = next.Exec(args...)
		require.NoError(t, err)
		collect(results[0])
		at += n
	}
	return out
}

// exec compiles a graph function over the model's parameters.
func exec(t testing.TB, m *Model, f func(in []*graph.Node) []*graph.Node) *model.Exec {
	t.Helper()
	e, err := model.NewExec(m.Backend(), m.Store(), func(_ *model.Scope, in []*graph.Node) []*graph.Node { return f(in) })
	require.NoError(t, err)
	t.Cleanup(e.Finalize)
	return e
}

// TestCache: a prompt and then single tokens, or several at once, give the logits
// of each row run alone without padding. mistral and qwen2_sliding have a window
// of 8 that moves over the cache.
func TestCache(t *testing.T) {
	for _, name := range []string{"llama", "mistral", "qwen2_sliding", "qwen3", "gemma2", "gemma3_text", "phi3_partial",
		"gpt2", "gpt2_scaling", "opt", "opt_post", "opt_bare", "gpt_neox", "gpt_neox_sequential"} {
		t.Run(name, func(t *testing.T) {
			backendtest.Sample(t, 5)
			m, err := Load(context.Background(), filepath.Join(fixtures, name), float32Options(t))
			require.NoError(t, err)
			defer m.Close()
			var calls []call
			for row, ids := range cacheRows {
				calls = append(calls, call{ids: tensors.FromValue([][]int32{ids[cacheStarts[row]:]})})
			}
			alone := logits(t, m, calls...)
			for _, plan := range [][]int{{9, 1, 1, 1}, {10, 2}, {12}} {
				got := cachedLogits(t, m, cacheRows, cacheStarts, plan[0], plan[1:]...)
				for row, want := range alone {
					want := want.Value().([][][]float32)[0]
					for i := range want {
						require.InDeltaSlice(t, want[i], got[row][int(cacheStarts[row])+i], 2e-5, "plan %v, row %d, token %d", plan, row, i)
					}
				}
			}
		})
	}
}

func TestCacheErrors(t *testing.T) {
	m, err := Load(context.Background(), filepath.Join(fixtures, "llama"), float32Options(t))
	require.NoError(t, err)
	defer m.Close()
	run := func(change func(in *site.Tokens, g *graph.Graph)) error {
		e, err := model.NewExec(m.Backend(), m.Store(), func(_ *model.Scope, ids *graph.Node) *graph.Node {
			in := site.Tokens{IDs: ids}
			change(&in, ids.Graph())
			return m.Hidden(&site.Pass{Graph: ids.Graph(), DType: dtypes.Float32}, in)
		})
		require.NoError(t, err)
		_, err = e.Exec([][]int32{{1, 2, 3}})
		return err
	}
	require.NoError(t, run(func(*site.Tokens, *graph.Graph) {}))
	err = run(func(in *site.Tokens, g *graph.Graph) { in.Positions = graph.Const(g, []int32{1, 2, 3}) })
	require.ErrorContains(t, err, "positions: wanted (Int32)[1, 3]")
	err = run(func(in *site.Tokens, g *graph.Graph) { in.Cache = &site.Cache{Index: graph.Const(g, int32(3))} })
	require.ErrorContains(t, err, "keys and values of 2 layers, got 0 and 0")
	err = run(func(in *site.Tokens, g *graph.Graph) { in.IDs = graph.ConvertDType(in.IDs, dtypes.Float32) })
	require.ErrorContains(t, err, "wanted [batch, length] int32")
}
