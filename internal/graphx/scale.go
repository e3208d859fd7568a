package graphx

import (
	"math"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
)

// ScaleBy is [Scale] with a factor that is a float32 node, broadcast to x.
func ScaleBy(x, s *graph.Node) *graph.Node {
	return graph.ConvertDType(graph.Mul(graph.ConvertDType(x, dtypes.Float32), s), x.DType())
}

// Scale returns s·x, each element rounded once. graph.MulScalar rounds s to x's dtype
// first: in bfloat16 a factor of 1/0.9 becomes 1.1094, which makes every element 0.16 %
// too small and does not average out.
func Scale(x *graph.Node, s float64) *graph.Node {
	fraction, _ := math.Frexp(s)
	if !x.DType().IsHalfPrecision() || math.Abs(fraction) == 0.5 { // a power of two is exact
		return graph.MulScalar(x, s)
	}
	return graph.ConvertDType(graph.MulScalar(graph.ConvertDType(x, dtypes.Float32), s), x.DType())
}
