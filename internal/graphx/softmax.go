package graphx

import (
	"github.com/gomlx/compute"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
)

func init() {
	// GoMLX knows no gradient of its fused softmax and runs the whole decomposed
	// form again in the backward pass: 24 instead of 10 ms per layer at 590k scores.
	graph.VJPRegistration[graph.NodeTypeFusedSoftmax] = fusedSoftmaxVJP
}

// fusedSoftmaxVJP is the derivative of softmax over the last axis: p·(v − Σ v·p).
func fusedSoftmaxVJP(p *graph.Node, v []*graph.Node, _ shapes.Shape) []*graph.Node {
	weighted := graph.Mul(v[0], p)
	return []*graph.Node{graph.Sub(weighted, graph.Mul(p, graph.ReduceAndKeep(weighted, graph.ReduceSum, -1)))}
}

// Fused reports whether x's backend computes softmax in one pass, as the Go
// backend does. There elementwise passes and broadcasts are what costs, while
// XLA fuses them.
func Fused(x *graph.Node) bool {
	return x.Graph().Backend().Capabilities().Operations[compute.OpTypeFusedSoftmax]
}

// SoftmaxDot returns softmax(scores)·v over the last axis of scores: scores
// [batch, heads, rows, group, slots] float32, v [batch, slots, heads, features]
// -> [batch, heads, rows, group, features] in v's dtype.
func SoftmaxDot(scores, v *graph.Node) *graph.Node {
	return SoftmaxDropDot(scores, v, func(weights *graph.Node) *graph.Node { return weights })
}

// SoftmaxDropDot is [SoftmaxDot] with a dropout of the softmax. drop must be linear: it
// may see the weights before they are divided by their sum.
func SoftmaxDropDot(scores, v *graph.Node, drop func(weights *graph.Node) *graph.Node) *graph.Node {
	product := func(weights *graph.Node) *graph.Node {
		return Dot(graph.ConvertDType(drop(weights), v.DType()), []int{4}, []int{0, 1}, v, []int{1}, []int{0, 2})
	}
	if Fused(scores) {
		return product(graph.BackendFusedSoftmax(scores, 4))
	}
	// Dividing the product, which has features columns where scores has slots,
	// is one pass over the larger array less in either direction.
	top := graph.StopGradient(graph.ReduceAndKeep(scores, graph.ReduceMax, -1))
	weights := graph.Exp(graph.Sub(scores, top))
	sum := graph.ReduceAndKeep(weights, graph.ReduceSum, -1)
	out := graph.Mul(graph.ConvertDType(product(weights), scores.DType()), graph.Reciprocal(sum))
	return graph.ConvertDType(out, v.DType())
}
