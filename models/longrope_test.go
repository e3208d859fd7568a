package models

import (
	"context"
	"testing"

	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"
)

// TestGenerateLongRope: with LongRoPE, of 32 short positions here, each token is the one
// that the whole row gives in one pass: where the row becomes long on the way, where it
// is long from the start, and where the prompt is read in chunks.
func TestGenerateLongRope(t *testing.T) {
	for _, name := range []string{"phi3_longrope", "llama_longrope"} {
		m := loadFixture(t, name)
		g := newGenerator(t, m)
		for _, length := range []int{20, 32, 33, 600} {
			prompt := make([]int32, length)
			for i := range prompt {
				prompt[i] = int32(3 + (i*7+i*i)%61)
			}
			o := GenerateOptions{MaxNewTokens: 16, StopTokens: []int32{}, LogProbs: true}
			if length > m.MaxPositions() {
				m.config.MaxPositions = 1024 // of the configuration; the fixture's embedding has no such limit
			}
			out, err := g.Generate(context.Background(), [][]int32{prompt}, o)
			require.NoError(t, err)
			row := prompt
			var calls []call
			for _, id := range out[0].IDs {
				calls = append(calls, call{ids: tensors.FromValue([][]int32{row})})
				row = append(row[:len(row):len(row)], id)
			}
			if length > 100 {
				calls = calls[:2]
			}
			for i, want := range logits(t, m, calls...) {
				all := tensors.MustCopyFlatData[float32](want)
				last := all[len(all)-m.VocabSize():]
				require.InDelta(t, logProb(last, out[0].IDs[i]), out[0].LogProbs[i], 1e-3, "%s, prompt of %d, token %d", name, length, i)
			}
		}
	}
}
