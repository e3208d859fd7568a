package lora

import (
	"fmt"
	"slices"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"gonum.org/v1/gonum/mat"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// This file is what OFT and BOFT have in common: rotations R = (I-Q)·(I+Q)⁻¹ of blocks of the
// input, the Cayley transform of skew-symmetric Q. What is computed is R-I, so that a small
// rotation keeps its digits in bfloat16 and none at all is exactly the identity.

// cayley returns R-I = -2·Q·(I+Q)⁻¹ of skew-symmetric Q [n, b, b], float32.
func cayley(q *graph.Node) *graph.Node {
	return graph.MulScalar(batchDot(q, inverseOfIPlus(q)), -2)
}

func batchDot(x, y *graph.Node) *graph.Node {
	return graphx.Dot(x, []int{2}, []int{0}, y, []int{1}, []int{0})
}

// eliminated is the block size up to which elimination, a few elementwise operations for
// each row, beats iteration, a fixed number of products.
const eliminated = 16

// inverseOfIPlus returns (I+Q)⁻¹ of skew-symmetric Q [n, b, b].
//
// The inverse X₀ is computed outside of the gradient. One step of Newton's method after it,
// X = X₀·(2I - (I+Q)·X₀), has the gradient of the inverse, -X₀·dQ·X₀, for two products, and
// removes most of the rounding error.
func inverseOfIPlus(q *graph.Node) *graph.Node {
	eye := unit(q)
	a := graph.Add(eye, q)
	fixed := graph.StopGradient(a)
	var x *graph.Node
	if q.Shape().Dim(1) <= eliminated {
		x = eliminate(fixed)
	} else {
		x = iterate(fixed, graph.StopGradient(q), eye)
	}
	return newton(graph.StopGradient(x), a, eye)
}

// newton is a step of Newton's method towards the inverse of a.
func newton(x, a, eye *graph.Node) *graph.Node {
	return batchDot(x, graph.Sub(graph.MulScalar(eye, 2), batchDot(a, x)))
}

// eliminate is the Gauss-Jordan inverse in place. The symmetric part of I+Q is I, so that
// all pivots are at least 1 and none is searched for.
func eliminate(a *graph.Node) *graph.Node {
	b := a.Shape().Dim(1)
	for k := range b {
		e := make([]float32, b)
		e[k] = 1
		row := graph.Slice(a, graph.AxisRange(), graph.AxisRange(k, k+1), graph.AxisRange())
		column := graph.Slice(a, graph.AxisRange(), graph.AxisRange(), graph.AxisRange(k, k+1))
		pivot := graph.Slice(row, graph.AxisRange(), graph.AxisRange(), graph.AxisRange(k, k+1))
		unitK := graph.Const(a.Graph(), e)
		row = graph.Div(graph.Add(row, graph.Reshape(unitK, 1, 1, b)), pivot)
		column = graph.Sub(column, graph.Reshape(unitK, 1, b, 1))
		a = graph.Sub(a, graph.Mul(column, row))
	}
	return a
}

// iterations of Newton's method bring the inverse of I+Q to float32's precision for rotations
// of up to 179.5 degrees (singular values of Q up to 250).
const iterations = 20

// iterate is Newton's method from α·(I+Q)ᵀ, with α from a bound of Q's largest singular
// value: its values come in pairs, so the square is at most half of the sum of squares.
func iterate(a, q, eye *graph.Node) *graph.Node {
	bound := graph.MulScalar(graph.ReduceAndKeep(graph.ReduceAndKeep(graph.Square(q), graph.ReduceSum, 1), graph.ReduceSum, 2), 0.5)
	alpha := graph.Div(graph.ScalarOne(q.Graph(), q.DType()), graph.AddScalar(graph.MulScalar(bound, 0.5), 1))
	x := graph.Mul(graph.Sub(eye, q), alpha)
	for range iterations {
		x = newton(x, a, eye)
	}
	return x
}

// unit returns identity matrices in the shape of q.
func unit(q *graph.Node) *graph.Node {
	g, b := q.Graph(), q.Shape().Dim(1)
	s := shapes.Make(dtypes.Int32, 1, b, b)
	return graph.BroadcastToShape(graph.ConvertDType(graph.Equal(graph.Iota(g, s, 1), graph.Iota(g, s, 2)), q.DType()), q.Shape())
}

// rotate returns x·diag(R), x [..., n·b], for blocks R-I [n, b, b] or, for all blocks the
// same, [1, b, b]. Where keep [rows, n] is 0, a row's block stays as it is; keep may be nil.
func rotate(x, r, keep *graph.Node) *graph.Node {
	r = graph.ConvertDType(r, x.DType())
	dims := x.Shape().Dimensions
	b := r.Shape().Dim(1)
	n := dims[len(dims)-1] / b
	blocks := graph.Reshape(x, append(slices.Clone(dims[:len(dims)-1]), n, b)...)
	var turned *graph.Node
	last := len(dims)
	if r.Shape().Dim(0) == 1 {
		turned = graphx.MatMul(blocks, graph.Reshape(r, b, b))
	} else {
		turned = graphx.Dot(blocks, []int{last}, []int{last - 1}, r, []int{1}, []int{0}) // [n, ..., b]
		axes := make([]int, 0, last+1)
		for i := range last - 1 {
			axes = append(axes, i+1)
		}
		turned = graph.TransposeAllAxes(turned, append(axes, 0, last)...)
	}
	if keep != nil {
		shape := slices.Repeat([]int{1}, last+1)
		shape[0], shape[last-1] = keep.Shape().Dim(0), n
		turned = graph.Mul(turned, graph.ConvertDType(graph.Reshape(keep, shape...), x.DType()))
	}
	return graph.Add(x, graph.Reshape(turned, dims...))
}

// apart is x. XLA's compiler does not end where a permutation of the inputs meets a rotation,
// in the forward or in the backward pass: this keeps the two apart.
func apart(x, on *graph.Node) *graph.Node {
	on = graph.StopGradient(on)
	return graph.IdentityWithCustomGradient(graph.SchedulingBarrier(x, on), func(_, v *graph.Node) *graph.Node {
		return graph.SchedulingBarrier(v, on)
	})
}

// keepBlocks draws which of n blocks each row of the batch keeps in training: 0 or 1
// [rows, n], nil for all. (peft draws once for the whole batch. Here splitting a batch changes
// nothing.)
func keepBlocks(u *peft.Use, key string, rate float64, n int) *graph.Node {
	if !u.Pass.Training() || rate == 0 {
		return nil
	}
	ones := graph.BroadcastToDims(graph.Scalar(u.X.Graph(), dtypes.Float32, 1), u.X.Shape().Dim(0), n)
	kept := u.Pass.Dropout(u.Site.Path+"#"+key, ones, rate)
	return graph.ConvertDType(graph.GreaterThan(kept, graph.ZerosLike(kept)), dtypes.Float32)
}

// hostCayley is cayley of one block on the host, R itself in float64.
func hostCayley(q *mat.Dense) (*mat.Dense, error) {
	b, _ := q.Dims()
	eye := mat.NewDiagDense(b, slices.Repeat([]float64{1}, b))
	var plus, minus, r mat.Dense
	plus.Add(eye, q)
	minus.Sub(eye, q)
	// R·(I+Q) = I-Q
	if err := r.Solve(plus.T(), minus.T()); err != nil {
		return nil, fmt.Errorf("rotation: %w", err)
	}
	return mat.DenseCopyOf(r.T()), nil
}

// turnWeight multiplies a weight [out, n·b] by the transpose of a block-diagonal matrix, block
// by block: W' of a module whose input is turned by diag(blocks). one block stands for all.
func turnWeight(w []float32, out int, blocks []*mat.Dense) {
	in := len(w) / out
	b, _ := blocks[0].Dims()
	turned := make([]float64, b)
	for o := range out {
		for k := range in / b {
			block := blocks[min(k, len(blocks)-1)]
			part := w[o*in+k*b : o*in+(k+1)*b]
			for i := range b {
				turned[i] = 0
				for j, v := range block.RawRowView(i) {
					turned[i] += v * float64(part[j])
				}
			}
			for i, v := range turned {
				part[i] = float32(v)
			}
		}
	}
}

// mergeInto changes a weight as stored by a function of it in PyTorch's orientation.
func mergeInto(m site.Module, values []float32, change func(w []float32) error) error {
	w := unstored(m, values)
	if err := change(w); err != nil {
		return err
	}
	copy(values, stored(m, w))
	return nil
}
