package models

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend"
	"github.com/gopeft/gopeft/internal/backend/backendtest"
)

// BenchmarkGenerate measures generated tokens a second, the prompt included, with
// programs already compiled.
func BenchmarkGenerate(b *testing.B) {
	b.Run("stories260K", func(b *testing.B) { benchmarkGenerate(b, assets(b, "stories260K/hf"), 128) })
	b.Run("smollm2", func(b *testing.B) {
		dir := os.Getenv("GOPEFT_SMOLLM2")
		if dir == "" || !backend.IsXLA(backendtest.Open(b)) {
			b.Skipf("wants GOPEFT_SMOLLM2 and XLA (%s)", backendtest.Env)
		}
		benchmarkGenerate(b, dir, 32)
	})
}

func benchmarkGenerate(b *testing.B, dir string, tokens int) {
	m, err := Load(context.Background(), dir, Options{On: backendtest.Open(b)})
	require.NoError(b, err)
	defer m.Close()
	g := newGenerator(b, m)
	for _, rows := range []int{1, 8} {
		for name, o := range map[string]GenerateOptions{
			"greedy":  {},
			"sampled": {Temperature: 0.8, TopK: 50, TopP: 0.9, RepetitionPenalty: 1.1},
		} {
			b.Run(fmt.Sprintf("%s/rows=%d", name, rows), func(b *testing.B) {
				o.MaxNewTokens, o.StopTokens = tokens, []int32{}
				prompts := make([][]int32, rows)
				for i := range prompts {
					prompts[i] = []int32{1, 10, 20, 30, 40, 50}
				}
				run := func() {
					_, err := g.Generate(context.Background(), prompts, o)
					require.NoError(b, err)
				}
				run()
				b.ResetTimer()
				for range b.N {
					run()
				}
				b.ReportMetric(float64(b.N*rows*tokens)/b.Elapsed().Seconds(), "tokens/s")
				b.ReportMetric(b.Elapsed().Seconds()/float64(b.N*tokens)*1e3, "ms/step")
			})
		}
	}
}
