package models

import (
	"context"
	"math"
	"path/filepath"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/site"
)

// recorder is a hook that adds its own offset to every module's output and
// notes what it saw, so that the gradient reaches each module.
type recorder struct {
	sites      []*site.Site
	outputs    []shapes.Shape
	parameters map[string]int
	offsets    *graph.Node // a number per module; nil: none
}

func newRecorder(offsets *graph.Node) *recorder {
	return &recorder{parameters: map[string]int{}, offsets: offsets}
}

func (r *recorder) Apply(_ *site.Pass, s *site.Site) *graph.Node {
	y := s.Base(s.X)
	if i := len(r.sites); r.offsets != nil {
		offset := graph.Reshape(graph.SliceAxis(r.offsets, 0, graph.AxisElem(i)))
		y = graph.Add(y, graph.ConvertDType(offset, y.DType()))
	}
	r.sites, r.outputs = append(r.sites, s), append(r.outputs, y.Shape())
	return y
}

func (r *recorder) Parameter(_ *site.Pass, name string, base func() *graph.Node) *graph.Node {
	r.parameters[name]++
	return base()
}

func (r *recorder) Sublayer(_ *site.Pass, s *site.Sublayer) *graph.Node { return s.Join(s.Output) }

func (r *recorder) Prefix(*site.Pass, site.Tokens) site.Prefix { return site.Prefix{} }

func (r *recorder) Adapts(string) bool { return true }

// TestSites: the hook sees each module once, in order, with inputs and outputs of
// the described shapes, and each parameter once (a tied one twice).
func TestSites(t *testing.T) {
	for _, name := range []string{"llama", "llama_tied", "llama_bias", "qwen2", "qwen3", "gemma_untied", "gemma2", "gemma3_text", "phi3",
		"gpt2", "gpt2_scaling", "opt", "opt_post", "opt_bare", "gpt_neox", "gpt_neox_sequential"} {
		t.Run(name, func(t *testing.T) {
			backendtest.Sample(t, 5)
			m, err := Load(context.Background(), filepath.Join(fixtures, name), float32Options(t))
			require.NoError(t, err)
			defer m.Close()
			var r *recorder
			e := exec(t, m, func(in []*graph.Node) []*graph.Node {
				r = newRecorder(nil)
				p := &site.Pass{Graph: in[0].Graph(), DType: m.DType(), Hook: r}
				return []*graph.Node{m.Logits(p, m.Hidden(p, site.Tokens{IDs: in[0]}))}
			})
			_, err = e.Exec([][]int32{{4, 5, 6}, {7, 8, 9}})
			require.NoError(t, err)
			modules := m.Modules()
			require.Len(t, r.sites, len(modules))
			for i, s := range r.sites {
				require.Equal(t, modules[i], s.Module)
				dims := s.X.Shape().Dimensions
				if s.Kind == site.Embedding {
					require.Equal(t, []int{2, 3}, dims)
					require.Equal(t, []int{2, 3, s.Out}, r.outputs[i].Dimensions)
					continue
				}
				require.Equal(t, s.In, dims[len(dims)-1], s.Path)
				require.Equal(t, s.Out, r.outputs[i].Dimensions[len(dims)-1], s.Path)
			}
			uses := 0
			for _, p := range m.Parameters() {
				require.Contains(t, r.parameters, p.Name)
				uses += r.parameters[p.Name]
				require.Equal(t, p.Shape, m.Store().GetVariable(site.VariablePath(p.Name)).Shape().Dimensions)
			}
			wanted := len(m.Parameters())
			if m.Config().TieWordEmbeddings {
				wanted++
				require.Nil(t, m.Store().GetVariable("/lm_head/weight"), "a tied head has no variable of its own")
			}
			require.Equal(t, wanted, uses)
			require.Equal(t, len(m.Parameters()), m.Store().NumVariables())
			for v := range m.Store().IterVariables() {
				require.False(t, v.Trainable, v.Path())
			}
		})
	}
}

// TestWeightsAreNotCopied: parameters go into the products as they are.
func TestWeightsAreNotCopied(t *testing.T) {
	m, err := Load(context.Background(), filepath.Join(fixtures, "qwen3"), float32Options(t))
	require.NoError(t, err)
	defer m.Close()
	e := exec(t, m, func(in []*graph.Node) []*graph.Node {
		g := in[0].Graph()
		p := &site.Pass{Graph: g, DType: m.DType()}
		out := m.Logits(p, m.Hidden(p, site.Tokens{IDs: in[0]}))
		weights := 0
		for _, node := range g.Nodes() {
			for _, input := range node.Inputs() {
				if input.Type() == graph.NodeTypeParameter && input != in[0] {
					weights++
					require.NotContains(t, []graph.NodeType{graph.NodeTypeIdentity, graph.NodeTypeConvertDType}, node.Type(), node.String())
				}
			}
		}
		require.GreaterOrEqual(t, weights, len(m.Parameters()))
		return []*graph.Node{out}
	})
	_, err = e.Exec([][]int32{{4, 5, 6}})
	require.NoError(t, err)
}

// lossProgram returns the mean square of the logits and its gradient by an offset
// to each module's output.
func lossProgram(t *testing.T, m *Model, checkpoint, training bool, segments [][]int32) func(offsets []float32) (float64, []float32) {
	e := exec(t, m, func(in []*graph.Node) []*graph.Node {
		p := &site.Pass{Graph: in[0].Graph(), DType: m.DType(), Hook: newRecorder(in[len(in)-1]), Checkpoint: checkpoint}
		if training {
			p.Random = &site.Random{}
		}
		tokens := site.Tokens{IDs: in[0]}
		if segments != nil {
			tokens.Segments = in[1]
		}
		out := m.Logits(p, m.Hidden(p, tokens))
		loss := graph.ReduceAllMean(graph.Square(graph.ConvertDType(out, dtypes.Float32)))
		return append([]*graph.Node{loss}, graph.Gradient(loss, in[len(in)-1])...)
	})
	return func(offsets []float32) (float64, []float32) {
		args := []any{[][]int32{{4, 5, 6, 7, 8}, {13, 5, 9, 10, 11}}}
		if segments != nil {
			args = append(args, segments)
		}
		out, err := e.Exec(append(args, offsets)...)
		require.NoError(t, err)
		return float64(tensors.ToScalar[float32](out[0])), tensors.MustCopyFlatData[float32](out[1])
	}
}

// packed are segments for the ids of lossProgram.
var packed = [][]int32{{1, 1, 2, 2, 2}, {1, 1, 1, 1, 1}}

// TestGradients: the gradient through every module agrees with finite differences
// and is the same with blocks checkpointed or cheap parts recomputed.
func TestGradients(t *testing.T) {
	for _, name := range []string{"llama", "mistral", "qwen2", "qwen3", "dynamic_rope", "llama_gelu", "llama_gelu_tanh",
		"gemma2", "gemma3_text", "phi3_longrope",
		"gpt2", "gpt2_scaling", "opt", "opt_post", "opt_bare", "gpt_neox", "gpt_neox_sequential"} {
		t.Run(name, func(t *testing.T) {
			backendtest.Sample(t, 5)
			m, err := Load(context.Background(), filepath.Join(fixtures, name), float32Options(t))
			require.NoError(t, err)
			defer m.Close()
			modules := m.Modules()
			zeros := make([]float32, len(modules))
			run := lossProgram(t, m, false, false, packed)
			_, plain := run(zeros)
			for i, module := range modules {
				at := func(offset float32) float64 {
					moved := make([]float32, len(modules))
					moved[i] = offset
					loss, _ := run(moved)
					return loss
				}
				const h = 4e-3 // the error of this formula is of the order of h⁴
				numeric := (8*(at(h)-at(-h)) - (at(2*h) - at(-2*h))) / (12 * h)
				require.InDelta(t, numeric, plain[i], 3e-2*(0.2+math.Abs(numeric)), module.Path)
			}
			m.recompute = true
			others := []struct{ checkpoint, training bool }{{true, false}, {true, true}, {false, true}}
			if name != "llama" && name != "qwen3" {
				others = others[1:]
			}
			for _, other := range others {
				_, got := lossProgram(t, m, other.checkpoint, other.training, packed)(zeros)
				for i, module := range modules {
					require.InDelta(t, plain[i], got[i], 1e-5*(1+math.Abs(float64(plain[i]))), "%v %s", other, module.Path)
				}
			}
		})
	}
}

// TestHalfPrecision: bfloat16 agrees with float32 within its 8 bits, forward and
// backward. On CUDA this is the way through fused attention.
func TestHalfPrecision(t *testing.T) {
	for _, name := range []string{"llama", "mistral", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2", "opt", "opt_post", "gpt_neox"} {
		t.Run(name, func(t *testing.T) {
			backendtest.Sample(t, 5)
			wide, err := Load(context.Background(), filepath.Join(fixtures, name), float32Options(t))
			require.NoError(t, err)
			defer wide.Close()
			half, err := Load(context.Background(), filepath.Join(fixtures, name), Options{On: backendtest.Open(t), DType: dtypes.BFloat16})
			require.NoError(t, err)
			defer half.Close()
			require.Equal(t, dtypes.BFloat16, half.DType())
			ids := tensors.FromValue([][]int32{{5, 9, 33, 7, 12, 41, 8, 3, 60, 22, 17, 29}, {11, 4, 62, 19, 27, 35, 6, 44, 53, 15, 38, 21}})
			want := tensors.MustCopyFlatData[float32](logits(t, wide, call{ids: ids})[0])
			requireRelative(t, want, tensors.MustCopyFlatData[float32](logits(t, half, call{ids: ids})[0]), 0.05)

			zeros := make([]float32, len(wide.Modules()))
			_, exact := lossProgram(t, wide, false, false, nil)(zeros)
			half.recompute = true
			modes := []struct{ checkpoint, training bool }{{false, true}, {false, false}, {true, true}}
			if name != "llama" {
				modes = modes[:1]
			}
			for _, mode := range modes {
				_, got := lossProgram(t, half, mode.checkpoint, mode.training, nil)(zeros)
				requireRelative(t, exact, got, 0.1)
			}
		})
	}
}

// requireRelative compares two vectors by the norm of their difference.
func requireRelative(t *testing.T, want, got []float32, tolerance float64) {
	t.Helper()
	require.Len(t, got, len(want))
	var norm, off float64
	for i := range want {
		norm += float64(want[i]) * float64(want[i])
		off += math.Pow(float64(want[i]-got[i]), 2)
	}
	require.Less(t, math.Sqrt(off/norm), tolerance)
}
