package rewrite

import (
	"testing"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/ml/layers/activation"
	"github.com/gomlx/gomlx/ml/nn"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend"
	"github.com/gopeft/gopeft/internal/graphx"
)

// What this package reads of GoMLX's nodes by reflection is still there.
func TestInspect(t *testing.T) {
	b, err := backend.Open("go")
	require.NoError(t, err)
	t.Setenv(graph.FusionEnv, "1")
	g := graph.NewGraph(b, "inspect")
	x := graph.Parameter(g, "x", shapes.Make(dtypes.Float32, 2, 3))
	w := graph.Parameter(g, "w", shapes.Make(dtypes.Float32, 5, 3))

	dot := graph.Dot(x, w).General([]int{1}, nil, []int{1}, nil)
	require.Equal(t, []int{1}, intsAttribute(dot, "lhsContractingAxes"))
	require.Equal(t, []int{1}, intsAttribute(dot, "rhsContractingAxes"))
	require.Zero(t, attribute(dot, "lhsBatchAxes").Len())
	require.Nil(t, twin(dot))
	require.Equal(t, []int{1, 0}, intsAttribute(graph.Transpose(x, 0, 1), "permutation"))

	dense := nn.Dense(x, w, nil, compute.DenseLayoutOutputsInput, activation.TypeGelu)
	require.Equal(t, graph.NodeTypeFusedDense, dense.Type())
	require.Equal(t, int(compute.DenseLayoutOutputsInput), intAttribute(dense, "options", "WeightLayout"))
	require.Equal(t, int(compute.ActivationGelu), intAttribute(dense, "options", "Activation"))
	require.Same(t, g.Nodes()[dense.Id()-1], twin(dense))

	ids := graph.Parameter(g, "ids", shapes.Make(dtypes.Int32, 4, 1))
	rows := graph.Gather(w, ids)
	require.Equal(t, 1, intAttribute(rows, "indexVectorAxis"))
	require.Equal(t, []int{0}, intsAttribute(rows, "startIndexMap"))
	require.Equal(t, []int{0}, intsAttribute(rows, "collapsedSliceAxes"))
	require.Equal(t, []int{1, 3}, intsAttribute(rows, "sliceSizes"))
	require.Equal(t, []int{1}, intsAttribute(rows, "offsetOutputAxes"))

	image := graph.Parameter(g, "image", shapes.Make(dtypes.Float32, 1, 6, 4))
	kernel := graph.Parameter(g, "kernel", shapes.Make(dtypes.Float32, 3, 2, 8))
	conv := graph.Convolve(image, kernel).ChannelGroupCount(2).Done()
	require.Equal(t, 2, intAttribute(conv, "channelGroupCount"))
	require.LessOrEqual(t, intAttribute(conv, "batchGroupCount"), 1)
	for name, want := range map[string]int{"InputBatch": 0, "InputChannels": 2, "KernelInputChannels": 1, "KernelOutputChannels": 2, "OutputBatch": 0, "OutputChannels": 2} {
		require.Equal(t, want, intAttribute(conv, "axes", name), name)
	}
	for name, want := range map[string][]int{"InputSpatial": {1}, "KernelSpatial": {0}, "OutputSpatial": {1}} {
		require.Equal(t, want, intsAttribute(conv, "axes", name), name)
	}

	require.Zero(t, attribute(conv, "inputDilations").Len())
	require.Nil(t, intsAttribute(conv, "kernelDilations"))
	strided := graph.Convolve(image, kernel).ChannelGroupCount(2).StridePerAxis(2).PaddingPerDim([][2]int{{1, 0}}).Done()
	require.Equal(t, []int{2}, intsAttribute(strided, "strides"))
	require.Equal(t, [][2]int{{1, 0}}, pairsAttribute(strided, "paddings", 1))
	dilated := graph.Convolve(image, kernel).ChannelGroupCount(2).DilationPerAxis(2).Done()
	require.Equal(t, []int{2}, intsAttribute(dilated, "kernelDilations"))
	require.Equal(t, [][2]int{{0, 0}}, pairsAttribute(dilated, "paddings", 1))
	pool := graph.SumPool(image).Window(2).PadSame().Done()
	require.Equal(t, compute.ReduceOpSum, compute.ReduceOpType(intAttribute(pool, "reductionType")))
	require.Equal(t, []int{1, 2, 1}, intsAttribute(pool, "windowDimensions"))
	require.Equal(t, []int{1, 1, 1}, intsAttribute(pool, "strides"))
	require.Equal(t, [][2]int{{}, {0, 1}, {}}, pairsAttribute(pool, "paddings", 3))
	require.Zero(t, attribute(pool, "inputDilations").Len()+attribute(pool, "windowDilations").Len())

	require.Equal(t, plainBarrier, barrierKind(graph.OptimizationBarrier(x)))
	start := x.Checkpoint()
	require.Equal(t, startCheckpoint, barrierKind(start))
	require.Equal(t, stopCheckpoint, barrierKind(graph.Sin(start).StopCheckpoint()))

	require.ErrorContains(t, graphx.Try(func() error { attribute(dot, "colour"); return nil }), `has no attribute "colour"`)
	require.ErrorContains(t, graphx.Try(func() error { field(dot, "colour"); return nil }), `no field "colour"`)
}
