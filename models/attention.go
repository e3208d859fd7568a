package models

import (
	"errors"
	"fmt"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	. "github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/ml/layers/attention"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/site"
)

// attentionPass is what the layers of one pass share: which slots a token may see.
type attentionPass struct {
	in     site.Tokens
	layers []site.Layer
	prefix site.Prefix
	rows   int // of the prefix that this pass computes: none if it continues others
	length int // rows and tokens of this pass
	slots  int // keys a token may see: those of the prefix and length, or the slots of a filled cache
	block  int // of an encoder: the one that is built next
	masks  map[int]*Node
	// scoreCap bounds the scores smoothly, see softCap; 0: not at all.
	scoreCap float64
}

// newAttentionPass checks the inputs of a pass and prepares its masks.
func (b *Blocks) newAttentionPass(in site.Tokens) *attentionPass {
	layers := b.model.network.Layers()
	if in.IDs == nil || in.IDs.Rank() != 2 || in.IDs.DType() != dtypes.Int32 {
		panic(errors.New("models: token ids: wanted [batch, length] int32"))
	}
	for name, node := range map[string]*Node{"positions": in.Positions, "segments": in.Segments} {
		if node != nil && !node.Shape().Equal(in.IDs.Shape()) {
			panic(fmt.Errorf("models: %s: wanted %s as the ids, got %s", name, in.IDs.Shape(), node.Shape()))
		}
	}
	c := &attentionPass{in: in, layers: layers, prefix: b.prefix(in, layers), length: in.IDs.Shape().Dimensions[1], masks: map[int]*Node{}}
	if !c.filled() {
		c.rows = c.prefix.Rows()
		c.length += c.rows
		c.slots = c.prefix.Slots() + c.length
		return c
	}
	if in.Segments != nil {
		panic(errors.New("models: segments cannot be combined with a filled cache: pad on the left and give Starts"))
	}
	if len(in.Cache.Keys) != len(layers) || len(in.Cache.Values) != len(layers) {
		panic(fmt.Errorf("models: cache: wanted keys and values of %d layers, got %d and %d",
			len(layers), len(in.Cache.Keys), len(in.Cache.Values)))
	}
	c.slots = in.Cache.Keys[0].Shape().Dimensions[1]
	return c
}

// filled reports whether the pass continues earlier ones.
func (c *attentionPass) filled() bool { return c.in.Cache != nil && c.in.Cache.Index != nil }

func (c *attentionPass) starts() *Node {
	if c.in.Cache == nil {
		return nil
	}
	return c.in.Cache.Starts
}

// positions returns the positions of the pass's rows and tokens, [batch or 1, length]
// int32: those given, or each token's distance from the first used slot of its row;
// virtual tokens come before them.
func (c *attentionPass) positions() *Node {
	virtual := c.prefix.Len()
	if c.in.Positions != nil {
		return c.afterRows(AddScalar(c.in.Positions, virtual))
	}
	p := c.querySlots()
	if s := c.starts(); s != nil {
		moved := Sub(p, InsertAxes(s, -1))
		least := AddScalar(ZerosLike(moved), virtual)
		p = BroadcastToShape(p, moved.Shape())
		p = Where(LessThan(p, least), p, Max(moved, least))
	}
	return p
}

// afterRows puts the positions of the prefix's rows before those of tokens, [batch, tokens] int32.
func (c *attentionPass) afterRows(tokens *Node) *Node {
	if c.rows == 0 {
		return tokens
	}
	rows := Iota(tokens.Graph(), shapes.Make(dtypes.Int32, tokens.Shape().Dim(0), c.rows), 1)
	return Concatenate([]*Node{AddScalar(rows, c.prefix.Slots()), tokens}, 1)
}

// querySlots returns the slot of each row and token of the pass, [1, length] int32.
func (c *attentionPass) querySlots() *Node {
	slots := Iota(c.in.IDs.Graph(), shapes.Make(dtypes.Int32, 1, c.length), 1)
	if c.filled() {
		return Add(slots, Reshape(c.in.Cache.Index, 1, 1))
	}
	return AddScalar(slots, c.prefix.Slots())
}

// plain reports whether a layer with this window (0: none) is merely causal.
func (c *attentionPass) plain(window int) bool {
	return !c.filled() && c.starts() == nil && c.in.Segments == nil && (window == 0 || window >= c.slots)
}

// invisible is added to the scores of hidden slots. It is finite so that a row
// that sees nothing, as padding does, gets equal weights and not NaN.
const invisible = -1e30

// mask returns what to add to the scores: 0 where a token may look, else
// [invisible]; float32, broadcastable to [batch, kvHeads, length, group, slots].
func (c *attentionPass) mask(window int) *Node {
	if window >= c.slots {
		window = 0
	}
	if m, ok := c.masks[window]; ok {
		return m
	}
	g := c.in.IDs.Graph()
	query := InsertAxes(c.querySlots(), -1) // [1, length, 1]
	key := Iota(g, shapes.Make(dtypes.Int32, 1, 1, c.slots), 2)
	visible := LessOrEqual(key, query)
	if window > 0 {
		visible = LogicalAnd(visible, c.near(window, query, key))
	}
	if s := c.starts(); s != nil {
		virtual := Scalar(g, dtypes.Int32, c.prefix.Len())
		unpadded := GreaterOrEqual(Sub(key, virtual), Reshape(s, -1, 1, 1))
		visible = LogicalAnd(visible, LogicalOr(LessThan(key, virtual), unpadded))
	}
	if c.in.Segments != nil {
		own, other := c.segments()
		same := LogicalAnd(Equal(own, other), NotEqual(own, ZerosLike(own)))
		visible = LogicalAnd(visible, LogicalOr(same, Equal(other, Scalar(g, dtypes.Int32, virtualSegment))))
	}
	added := Where(visible, ScalarZero(g, dtypes.Float32), Scalar(g, dtypes.Float32, invisible))
	batch := added.Shape().Dimensions[0]
	c.masks[window] = Reshape(added, batch, 1, c.length, 1, c.slots)
	return c.masks[window]
}

// near tells the keys within a window before each query, both given by their slots. How far
// a virtual token is before others, the positions of these say: padding may lie between them.
func (c *attentionPass) near(window int, query, key *Node) *Node {
	near := GreaterThan(key, AddScalar(query, -window))
	virtual := c.prefix.Len()
	if virtual == 0 || c.starts() == nil && c.in.Positions == nil {
		return near
	}
	nearVirtual := GreaterThan(key, AddScalar(InsertAxes(c.positions(), -1), -window))
	isVirtual := LessThan(key, Scalar(key.Graph(), dtypes.Int32, virtual))
	return LogicalOr(LogicalAnd(isVirtual, nearVirtual), LogicalAnd(LogicalNot(isVirtual), near))
}

// remember puts the keys and values of layer i, [batch, length, kvHeads, headDim],
// into the pass's cache and returns what its tokens look at: the whole cache, or
// the prefix's and their own keys and values in a first pass.
func (c *attentionPass) remember(i int, k, v *Node) (keys, values *Node) {
	if !c.filled() {
		k, v = c.afterSlots(c.prefix.Keys, i, k), c.afterSlots(c.prefix.Values, i, v)
	}
	cache := c.in.Cache
	if cache == nil {
		return k, v
	}
	if !c.filled() {
		cache.Keys, cache.Values = append(cache.Keys, k), append(cache.Values, v)
		return k, v
	}
	cache.Keys[i] = c.write(cache.Keys[i], k)
	cache.Values[i] = c.write(cache.Values[i], v)
	return cache.Keys[i], cache.Values[i]
}

// write replaces slots Index, Index+1, ... of a cache, [batch, slots, kvHeads,
// headDim], by the tokens of x. It selects instead of updating in place because
// the Go backend has no DynamicUpdateSlice.
func (c *attentionPass) write(cache, x *Node) *Node {
	token := Sub(Iota(x.Graph(), shapes.Make(dtypes.Int32, c.slots), 0), BroadcastToDims(c.in.Cache.Index, c.slots))
	fresh := x
	if c.length > 1 {
		token := Min(Max(token, ZerosLike(token)), AddScalar(ZerosLike(token), c.length-1))
		fresh = TransposeAllAxes(Gather(TransposeAllAxes(x, 1, 0, 2, 3), InsertAxes(token, -1)), 1, 0, 2, 3)
	}
	isNew := LogicalAnd(GreaterOrEqual(token, ZerosLike(token)), LessThan(token, AddScalar(ZerosLike(token), c.length)))
	dims := cache.Shape().Dimensions
	isNew = BroadcastToDims(Reshape(isNew, 1, c.slots, 1, 1), dims...)
	return Where(isNew, BroadcastToDims(ConvertDType(fresh, cache.DType()), dims...), cache)
}

// attend is causal scaled dot-product attention with grouped queries: q [batch,
// length, heads, headDim], already scaled, k and v [batch, slots, kvHeads,
// headDim] -> [batch, length, heads·headDim]. Softmax runs in float32.
func (c *attentionPass) attend(q, k, v *Node, window int) *Node {
	dims := q.Shape().Dimensions
	batch, length, heads, headDim := dims[0], dims[1], dims[2], dims[3]
	if c.plain(window) && c.scoreCap == 0 && flash(q) {
		slots := c.prefix.Slots()
		if slots > 0 { // the kernel wants as many queries as keys
			q = Concatenate([]*Node{Zeros(q.Graph(), shapes.Make(q.DType(), batch, slots, heads, headDim)), q}, 1)
		}
		out, _ := attention.Core(q, k, v, attention.LayoutBSHD, attention.CoreOptions{UseCausalMask: true, Scale: 1})
		return Reshape(SliceAxis(out, 1, AxisRange(slots)), batch, length, heads*headDim)
	}
	kvHeads := k.Shape().Dimensions[2]
	q = Reshape(q, batch, length, kvHeads, heads/kvHeads, headDim)
	scores := graphx.Dot(q, []int{4}, []int{0, 2}, ConvertDType(k, q.DType()), []int{3}, []int{0, 2})
	// scores: [batch, kvHeads, length, group, slots]
	scores = Add(softCap(ConvertDType(scores, dtypes.Float32), c.scoreCap), c.mask(window))
	out := graphx.SoftmaxDot(scores, ConvertDType(v, q.DType()))
	// out: [batch, kvHeads, length, group, headDim]
	return Reshape(TransposeAllAxes(out, 0, 2, 1, 3, 4), batch, length, heads*headDim)
}

// flash reports whether the backend has fused attention for q: cuDNN's, which
// wants half precision and a head size divisible by 8.
func flash(q *Node) bool {
	ops := q.Graph().Backend().Capabilities().Operations
	return q.DType().IsHalfPrecision() && q.Shape().Dimensions[3]%8 == 0 &&
		ops[compute.OpTypeFusedScaledDotProductAttention] && ops[compute.OpTypeFusedScaledDotProductAttentionVJP]
}
