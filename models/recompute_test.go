package models

import (
	"testing"

	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/quant"
	"github.com/gopeft/gopeft/site"
)

// lowRank adds x·a·b to every linear, with the a and b of all of them from one vector.
type lowRank struct {
	*recorder
	factors *graph.Node
	taken   int
}

func (h *lowRank) take(rows, columns int) *graph.Node {
	h.taken += rows * columns
	return graph.Reshape(graph.Slice(h.factors, graph.AxisRange(h.taken-rows*columns, h.taken)), rows, columns)
}

func (h *lowRank) Apply(p *site.Pass, s *site.Site) *graph.Node {
	if s.Kind != site.Linear {
		return s.Base(s.X)
	}
	low := graphx.MatMulT(s.X, h.take(1, s.In))
	return graph.Add(s.Base(s.X), graphx.MatMulT(low, h.take(s.Out, 1)))
}

// The gradients of what an adapter has at a linear are those without recomputation: its
// input is made again, and a quantised weight too.
func TestRecomputedInputs(t *testing.T) {
	for name, scheme := range map[string]quant.Scheme{"full": nil, "nf4": quant.NF4{DoubleQuant: true}, "int8": quant.INT8{}} {
		for _, family := range []string{"llama", "qwen3", "gpt2"} {
			m := loadQuantised(t, family, scheme)
			size := 0
			for _, module := range m.Modules() {
				if module.Kind == site.Linear {
					size += module.In + module.Out
				}
			}
			factors := make([]float32, size)
			for i := range factors {
				factors[i] = float32(i%7-3) / 40
			}
			run := func(recompute, checkpoint, training bool) (float32, []float32) {
				m.recompute = recompute
				e := exec(t, m, func(in []*graph.Node) []*graph.Node {
					p := &site.Pass{Graph: in[0].Graph(), DType: m.DType(), Hook: &lowRank{recorder: newRecorder(nil), factors: in[1]}, Checkpoint: checkpoint}
					if training {
						p.Random = &site.Random{}
					}
					out := m.Logits(p, m.Hidden(p, site.Tokens{IDs: in[0]}))
					loss := graph.ReduceAllMean(graph.Square(out))
					return append([]*graph.Node{loss}, graph.Gradient(loss, in[1])...)
				})
				out, err := e.Exec([][]int32{{4, 5, 6, 7, 8}, {13, 5, 9, 10, 11}}, factors)
				require.NoError(t, err)
				return tensors.ToScalar[float32](out[0]), tensors.MustCopyFlatData[float32](out[1])
			}
			loss, plain := run(false, false, false)
			for _, mode := range [][3]bool{{false, false, true}, {true, false, true}, {true, true, true}} {
				gotLoss, got := run(mode[0], mode[1], mode[2])
				require.InEpsilon(t, loss, gotLoss, 1e-5, "%s %s %v", family, name, mode)
				for i := range plain {
					require.InDelta(t, plain[i], got[i], 1e-5*(1+float64(max(plain[i], -plain[i]))), "%s %s %v, %d", family, name, mode, i)
				}
			}
		}
	}
}
