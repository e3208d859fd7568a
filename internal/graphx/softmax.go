package graphx

import (
	"github.com/gomlx/gomlx/core/graph"
)

// SoftmaxDot returns softmax(scores)·v over the last axis of scores: scores
// [batch, heads, rows, group, slots] float32, v [batch, slots, heads, features]
// -> [batch, heads, rows, group, features] in v's dtype.
//
// The division by the sum is done on the product, which has features columns
// where scores has slots: one pass over the larger array less in either direction.
func SoftmaxDot(scores, v *graph.Node) *graph.Node {
	top := graph.StopGradient(graph.ReduceAndKeep(scores, graph.ReduceMax, -1))
	weights := graph.Exp(graph.Sub(scores, top))
	sum := graph.ReduceAndKeep(weights, graph.ReduceSum, -1)
	out := Dot(graph.ConvertDType(weights, v.DType()), []int{4}, []int{0, 1}, v, []int{1}, []int{0, 2})
	out = graph.Mul(graph.ConvertDType(out, scores.DType()), graph.Reciprocal(sum))
	return graph.ConvertDType(out, v.DType())
}
