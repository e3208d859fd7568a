package graphx_test

import (
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/graphx"
)

// The mean error of a product in bfloat16, forward and backward, is that of rounding
// the results, not that of rounding the factor.
func TestScale(t *testing.T) {
	const n = 4096
	values := make([]float32, n)
	for i := range values {
		values[i] = 1 + float32(i)/n
	}
	for _, s := range []float64{1 / 0.9, 16 / 2.8284271247461903, 2, -0.25, -1.7} {
		exec := graph.MustNewExec(backendtest.Open(t), func(x *graph.Node) (*graph.Node, *graph.Node) {
			half := graph.ConvertDType(x, dtypes.BFloat16)
			y := graphx.Scale(half, s)
			if y.DType() != dtypes.BFloat16 {
				t.Errorf("the result is %s", y.DType())
			}
			// The gradient of half is s times a weight that differs from element to element.
			loss := graph.ReduceAllSum(graph.ConvertDType(graph.Mul(y, graph.StopGradient(half)), dtypes.Float32))
			gradient := graph.Gradient(loss, half)[0]
			wide := func(x *graph.Node) *graph.Node {
				return graph.ReduceAllSum(graph.ConvertDType(x, dtypes.Float32))
			}
			return graph.Div(wide(y), wide(half)), graph.Div(wide(gradient), wide(half))
		})
		out, err := exec.Call(tensors.FromFlatDataAndDimensions(values, n))
		require.NoError(t, err)
		for _, mean := range out {
			got, err := tensors.CopyFlatData[float32](mean)
			require.NoError(t, err)
			// An element is off by up to 2^-9 of itself, uniformly: five standard deviations of the
			// mean of the 128 distinct ones are 5·2^-9/sqrt(3·128) = 5e-4. Rounding 1/0.9 would give 1.6e-3.
			require.InEpsilon(t, s, got[0], 5e-4, "%g", s)
		}
	}
}
