package peft_test

import (
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/gomlx/gomlx/ml/zoo/transformer"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// largeGemma is the shape of a real model: 32 layers of 7 linear layers.
func largeGemma(b testing.TB) (*peft.WrappedModel, *peft.PeftModel) {
	base := wrap(b, zooModel(transformer.ArchitectureGemma3, true, 32), int32s(1, 5))
	pm, err := peft.GetPeftModel(base, lora.LoraConfig{R: 2, TargetModules: peft.AllLinear})
	require.NoError(b, err)
	return base, pm
}

func buildGraph(b testing.TB, base *peft.WrappedModel, hook func(g *graph.Graph) site.Hook) (nodes int) {
	g := graph.NewGraph(base.Backend(), "bench")
	defer g.Finalize()
	model.SetStore(g, base.Store())
	tokens := graph.Parameter(g, "tokens", shapes.Make(dtypes.Int32, 1, 5))
	base.Call(&site.Pass{Graph: g, DType: base.DType(), Hook: hook(g)}, []*graph.Node{tokens})
	return len(g.Nodes())
}

func adapted(b testing.TB, pm *peft.PeftModel) func(g *graph.Graph) site.Hook {
	return func(g *graph.Graph) site.Hook {
		arguments, err := pm.Arguments()
		require.NoError(b, err)
		nodes := make([]*graph.Node, len(arguments))
		for i, a := range arguments {
			nodes[i] = graph.Parameter(g, "adapter", a.Shape())
		}
		return pm.Hook(nodes)
	}
}

// BenchmarkWrappedBuild builds the forward graph of 32 layers alone and with an adapter.
func BenchmarkWrappedBuild(b *testing.B) {
	base, pm := largeGemma(b)
	b.Run("model", func(b *testing.B) {
		for b.Loop() {
			b.ReportMetric(float64(buildGraph(b, base, func(*graph.Graph) site.Hook { return nil })), "nodes")
		}
	})
	b.Run("adapted", func(b *testing.B) {
		for b.Loop() {
			b.ReportMetric(float64(buildGraph(b, base, adapted(b, pm))), "nodes")
		}
	})
}

// BenchmarkWrapModel finds the modules of 32 layers.
func BenchmarkWrapModel(b *testing.B) {
	base, _ := largeGemma(b)
	fn := zooModel(transformer.ArchitectureGemma3, true, 32)
	for b.Loop() {
		_, err := peft.WrapModel(base.Backend(), base.Store(), fn, []shapes.Shape{int32s(1, 5)})
		require.NoError(b, err)
	}
}
