package models

import (
	"testing"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/site"
)

// TestFlash: which layers take the backend's fused attention in half precision: those
// that are merely causal, whose scores have no soft bound.
func TestFlash(t *testing.T) {
	if !backendtest.Open(t).Capabilities().Operations[compute.OpTypeFusedScaledDotProductAttention] {
		t.Skipf("the backend has no fused attention: set %s to a CUDA one", backendtest.Env)
	}
	ids := map[int][][]int32{8: {{5, 9, 33, 7, 12, 41, 8, 3}}, 12: {{5, 9, 33, 7, 12, 41, 8, 3, 60, 22, 17, 29}}}
	for _, c := range []struct {
		name         string
		length, want int
	}{
		{"llama", 12, 2},
		{"mistral", 8, 2}, {"mistral", 12, 0}, // a window of 8
		{"gemma", 12, 2},
		{"gemma2", 8, 0},
		{"gemma2_uncapped", 8, 2}, {"gemma2_uncapped", 12, 1}, // a window of 8 in one layer
		{"gemma3_text", 8, 2}, {"gemma3_text", 12, 1},
		{"phi3", 8, 2}, {"phi3_partial", 12, 2}, {"phi3_longrope", 12, 2},
	} {
		m := loadFixture(t, c.name)
		got := 0
		e := exec(t, m, func(in []*graph.Node) []*graph.Node {
			p := &site.Pass{Graph: in[0].Graph(), DType: dtypes.BFloat16}
			out := m.Logits(p, m.Hidden(p, site.Tokens{IDs: in[0]}))
			for _, node := range p.Graph.Nodes() {
				if node.Type() == graph.NodeTypeFusedScaledDotProductAttention {
					got++
				}
			}
			return []*graph.Node{out}
		})
		_, err := e.Exec(ids[c.length])
		require.NoError(t, err, c.name)
		require.Equal(t, c.want, got, "%s with %d tokens", c.name, c.length)
	}
}
