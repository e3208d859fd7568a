package models

import (
	"math"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	. "github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/graphx"
)

// attendAll is scaled dot-product attention to all tokens of the same segment, before
// and after: q, already scaled, k and v [batch, length, heads, headDim] -> [batch,
// length, heads·headDim]. drop is applied to the weights.
func (c *attentionPass) attendAll(q, k, v *Node, drop func(weights *Node) *Node) *Node {
	dims := q.Shape().Dimensions
	batch, length, heads, headDim := dims[0], dims[1], dims[2], dims[3]
	q = Reshape(q, batch, length, heads, 1, headDim)
	scores := graphx.Dot(q, []int{4}, []int{0, 2}, k, []int{3}, []int{0, 2}) // [batch, heads, length, 1, slots]
	scores = ConvertDType(scores, dtypes.Float32)
	if c.in.Segments != nil {
		scores = Add(scores, c.segmentMask())
	}
	out := graphx.SoftmaxDropDot(scores, v, drop)
	return Reshape(TransposeAllAxes(out, 0, 2, 1, 3, 4), batch, length, heads*headDim)
}

// segmentMask is [attentionPass.mask] without causality. It is NaN where rows of a prefix
// stand before several segments.
func (c *attentionPass) segmentMask() *Node {
	const key = -1 // no window has this length
	if m, ok := c.masks[key]; ok {
		return m
	}
	own, other := c.segments()
	// What padding sees matters to nobody, but the first token decides a sequence: it
	// sees all tokens where it is padding, as in transformers, whose mask knows only keys.
	g := own.Graph()
	virtual := Scalar(g, dtypes.Int32, virtualSegment)
	visible := LogicalOr(Equal(own, other), LogicalOr(Equal(own, ZerosLike(own)), Equal(own, virtual)))
	visible = LogicalOr(LogicalAnd(visible, NotEqual(other, ZerosLike(other))), Equal(other, virtual))
	added := Where(visible, ScalarZero(g, dtypes.Float32), Scalar(g, dtypes.Float32, invisible))
	if c.rows > 0 {
		// Rows of a prefix would see, and pass on, all texts that are packed with them.
		last := BroadcastToShape(ReduceAndKeep(other, ReduceMax, -1), other.Shape())
		several := LogicalAnd(LessThan(other, last), GreaterThan(other, ZerosLike(other)))
		several = BroadcastToShape(several, added.Shape())
		added = Where(several, Scalar(g, dtypes.Float32, math.NaN()), added)
	}
	c.masks[key] = Reshape(added, own.Shape().Dimensions[0], 1, c.length, 1, c.slots)
	return c.masks[key]
}

// countedPositions counts the tokens of each row that are no padding, from first on, after
// the virtual ones; padding has the row pad: [batch, length] int32.
func (c *attentionPass) countedPositions(pad int) *Node {
	ids, g := c.in.IDs, c.in.IDs.Graph()
	isToken := NotEqual(ids, Scalar(g, dtypes.Int32, pad))
	if s := c.in.Segments; s != nil {
		isToken = LogicalAnd(isToken, NotEqual(s, ZerosLike(s)))
	}
	// A sum of zeros and ones as a product with a triangle is exact in float32.
	ones, length := ConvertDType(isToken, dtypes.Float32), ids.Shape().Dim(1)
	square := shapes.Make(dtypes.Int32, length, length)
	triangle := ConvertDType(LessOrEqual(Iota(g, square, 0), Iota(g, square, 1)), dtypes.Float32)
	count := Mul(AddScalar(graphx.MatMul(ones, triangle), c.prefix.Len()), ones)
	tokens := ConvertDType(count, dtypes.Int32) // from 1 on, padding 0
	return AddScalar(c.afterRows(AddScalar(tokens, -1)), pad+1)
}
