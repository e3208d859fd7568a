package models

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/site"
)

// prefixHook is a hook with virtual tokens alone.
type prefixHook struct{ prefix site.Prefix }

func (h prefixHook) Apply(_ *site.Pass, s *site.Site) *graph.Node { return s.Base(s.X) }

func (h prefixHook) Parameter(_ *site.Pass, _ string, base func() *graph.Node) *graph.Node {
	return base()
}

func (h prefixHook) Sublayer(_ *site.Pass, s *site.Sublayer) *graph.Node { return s.Join(s.Output) }

func (h prefixHook) Prefix(*site.Pass, site.Tokens) site.Prefix { return h.prefix }

func (h prefixHook) Adapts(string) bool { return false }

// virtualIDs are tokens whose embeddings, or keys and values, are virtual ones in the tests
// below: then every model must do what it does with the tokens themselves.
var virtualIDs = []int32{7, 21, 13}

// virtually is a prefix that stands for virtualIDs: the first slots of them as keys and
// values, as the model computes them, and the others as embeddings.
func virtually(m *Model, g *graph.Graph, slots int) site.Prefix {
	var prefix site.Prefix
	plain := &site.Pass{Graph: g, DType: m.DType()}
	if slots > 0 {
		cache := &site.Cache{}
		m.Hidden(plain, site.Tokens{IDs: graph.Const(g, [][]int32{virtualIDs[:slots]}), Cache: cache})
		squeeze := func(x *graph.Node) *graph.Node { return graph.Squeeze(x, 0) }
		for i := range cache.Keys {
			prefix.Keys = append(prefix.Keys, squeeze(cache.Keys[i]))
			prefix.Values = append(prefix.Values, squeeze(cache.Values[i]))
		}
	}
	if slots < len(virtualIDs) {
		b := m.blocks(plain)
		prefix.Embeddings = b.Embedding(m.Words().Path, graph.Const(g, virtualIDs[slots:]))
		if l, ok := m.arch.(*llama); ok && l.embedScale != 0 { // it belongs to the embedding, as in transformers
			prefix.Embeddings = graph.MulScalar(prefix.Embeddings, l.embedScale)
		}
	}
	return prefix
}

// TestVirtualTokens: keys and values of real tokens as slots, and embeddings of real
// tokens as rows, give what the tokens themselves give; with rows padded on the left, with
// several texts in a row, with checkpoints, and continued through a cache.
func TestVirtualTokens(t *testing.T) {
	rows := [][]int32{{5, 9, 33, 7, 12, 41}, {8, 3, 60, 22, 17, 29}}
	long := make([][]int32, len(rows))
	for i, row := range rows {
		long[i] = append(append([]int32{}, virtualIDs...), row...)
	}
	n := len(virtualIDs)
	for _, name := range []string{"llama", "qwen2", "qwen3", "gemma_untied", "gemma2", "gemma3_text", "phi3", "gpt2", "opt", "opt_post", "gpt_neox", "gpt_neox_sequential"} {
		t.Run(name, func(t *testing.T) {
			backendtest.Sample(t, 4)
			m, err := Load(context.Background(), filepath.Join(fixtures, name), float32Options(t))
			require.NoError(t, err)
			defer m.Close()
			run := func(build func(g *graph.Graph) *graph.Node) [][][]float32 {
				out, err := exec(t, m, func(in []*graph.Node) []*graph.Node {
					return []*graph.Node{graph.ConvertDType(build(in[0].Graph()), dtypes.Float32)}
				}).Exec(int32(0))
				require.NoError(t, err)
				return out[0].Value().([][][]float32)
			}
			want := run(func(g *graph.Graph) *graph.Node {
				p := &site.Pass{Graph: g, DType: m.DType()}
				return graph.SliceAxis(m.Hidden(p, site.Tokens{IDs: graph.Const(g, long)}), 1, graph.AxisRange(n))
			})
			// same compares to rows that stand at column from of what build gives.
			same := func(what string, from int, build func(g *graph.Graph, p *site.Pass) *graph.Node) {
				for _, slots := range []int{0, 1, n} {
					got := run(func(g *graph.Graph) *graph.Node {
						return build(g, &site.Pass{Graph: g, DType: m.DType(), Hook: prefixHook{virtually(m, g, slots)}})
					})
					for r := range rows {
						for i := range rows[r] {
							require.InDeltaSlicef(t, want[r][i], got[r][from+i], 2e-5, "%s, %d slots, row %d, token %d", what, slots, r, i)
						}
					}
				}
			}
			same("plain", 0, func(g *graph.Graph, p *site.Pass) *graph.Node {
				return m.Hidden(p, site.Tokens{IDs: graph.Const(g, rows)})
			})
			same("checkpoint", 0, func(g *graph.Graph, p *site.Pass) *graph.Node {
				p.Checkpoint = true
				return m.Hidden(p, site.Tokens{IDs: graph.Const(g, rows)})
			})
			same("segments", 2, func(g *graph.Graph, p *site.Pass) *graph.Node {
				positions := [][]int32{{0, 1, 0, 1, 2, 3, 4, 5}, {0, 1, 0, 1, 2, 3, 4, 5}}
				segments := [][]int32{{1, 1, 2, 2, 2, 2, 2, 2}, {1, 1, 2, 2, 2, 2, 2, 2}}
				return m.Hidden(p, site.Tokens{IDs: graph.Const(g, padded(rows)), Positions: graph.Const(g, positions), Segments: graph.Const(g, segments)})
			})
			same("padded on the left", 2, func(g *graph.Graph, p *site.Pass) *graph.Node {
				cache := &site.Cache{Starts: graph.Const(g, []int32{2, 2})}
				return m.Hidden(p, site.Tokens{IDs: graph.Const(g, padded(rows)), Cache: cache})
			})
			same("continued", 2, func(g *graph.Graph, p *site.Pass) *graph.Node {
				ids, starts := graph.Const(g, padded(rows)), graph.Const(g, []int32{2, 2})
				cache := &site.Cache{Starts: starts}
				first := m.Hidden(p, site.Tokens{IDs: graph.SliceAxis(ids, 1, graph.AxisRange(0, 5)), Cache: cache})
				for i, x := range cache.Keys {
					room := graph.PadAxis{End: 4}
					cache.Keys[i] = graph.Pad(x, graph.ScalarZero(g, x.DType()), graph.PadAxis{}, room)
					cache.Values[i] = graph.Pad(cache.Values[i], graph.ScalarZero(g, x.DType()), graph.PadAxis{}, room)
				}
				cache.Index = graph.Const(g, int32(n+5))
				rest := m.Hidden(p, site.Tokens{IDs: graph.SliceAxis(ids, 1, graph.AxisRange(5)), Cache: cache})
				return graph.Concatenate([]*graph.Node{first, rest}, 1)
			})
		})
	}
}

// padded puts two tokens before each row.
func padded(rows [][]int32) [][]int32 {
	out := make([][]int32, len(rows))
	for i, row := range rows {
		out[i] = append([]int32{0, 0}, row...)
	}
	return out
}

// TestVirtualTokensOfEncoders is TestVirtualTokens for models that read in both directions,
// where keys and values of a text depend on what follows: embeddings alone.
func TestVirtualTokensOfEncoders(t *testing.T) {
	rows := [][]int32{{5, 9, 33, 7, 12, 41}}
	long := [][]int32{append(append([]int32{}, virtualIDs...), rows[0]...)}
	for _, name := range []string{"bert_masked", "roberta_masked", "distilbert_masked", "albert_masked", "albert_groups_masked"} {
		t.Run(name, func(t *testing.T) {
			m, err := Load(context.Background(), filepath.Join(encoderFixtures, name), float32Options(t))
			require.NoError(t, err)
			defer m.Close()
			out, err := exec(t, m, func(in []*graph.Node) []*graph.Node {
				g := in[0].Graph()
				p := &site.Pass{Graph: g, DType: m.DType()}
				segments := func(n int) *graph.Node { return graph.Ones(g, shapes.Make(dtypes.Int32, 1, n)) }
				want := m.Hidden(p, site.Tokens{IDs: graph.Const(g, long), Segments: segments(len(long[0]))})
				p.Hook = prefixHook{virtually(m, g, 0)}
				got := m.Hidden(p, site.Tokens{IDs: graph.Const(g, rows), Segments: segments(len(rows[0]))})
				return []*graph.Node{graph.SliceAxis(want, 1, graph.AxisRange(len(virtualIDs))), got}
			}).Exec(int32(0))
			require.NoError(t, err)
			want, got := out[0].Value().([][][]float32), out[1].Value().([][][]float32)
			for i := range rows[0] {
				require.InDeltaSlice(t, want[0][i], got[0][i], 2e-5)
			}
		})
	}
}

// Layers names each sublayer once, and its words are what the ids are looked up in.
func TestLayers(t *testing.T) {
	for _, name := range []string{"families/llama", "families/gpt2", "families/opt", "families/gpt_neox", "families/gemma2",
		"encoders/bert_masked", "encoders/roberta_masked", "encoders/distilbert_masked"} {
		m, err := Load(context.Background(), filepath.Join(fixtures, "..", name), float32Options(t))
		require.NoError(t, err)
		seen := map[string]bool{}
		for _, layer := range m.Layers() {
			for _, sublayer := range []site.Module{layer.Attention, layer.FeedForward} {
				require.False(t, seen[sublayer.Path], sublayer.Path)
				seen[sublayer.Path] = true
				require.Equal(t, m.Config().HiddenSize, sublayer.Out)
			}
			require.Positive(t, layer.KVHeads*layer.HeadDim)
		}
		require.Len(t, seen, 2*m.Config().NumLayers)
		require.Equal(t, m.VocabSize(), m.Words().In)
		m.Close()
	}
}
