package site

import "github.com/gomlx/gomlx/core/graph"

// Transformer is a base made of blocks of two sublayers, attention and feed-forward, each
// added to its own input. It asks the hook at every sublayer, and once for a [Prefix].
type Transformer interface {
	Base
	// Layers lists the blocks in the order of the forward pass.
	Layers() []Layer
	// Words is the embedding of token ids.
	Words() Module
	// WordScale is what the model multiplies the output of Words with; 1 in most.
	WordScale() float64
	// MaxPositions is the longest sequence the model was made for, virtual tokens included.
	MaxPositions() int
}

// Layer describes one block. Its sublayers are named after the module that they belong to;
// In and Out are the width of the residual stream. Blocks that share their parameters
// (ALBERT) have equal paths.
type Layer struct {
	Attention, FeedForward Module
	// Heads are those of queries; KVHeads and HeadDim are the shape of a token's key and value.
	Heads, KVHeads, HeadDim int
}

// Sublayer is where a block adds what a sublayer computed to its input.
type Sublayer struct {
	// Module is of kind Attention or FeedForward.
	Module
	// Output is what the sublayer computed, dropout included: [batch, length, hidden].
	Output *graph.Node
	// Residual is what it is added to.
	Residual *graph.Node
	// Norm normalises the sum in models that do so after each sublayer; nil in others.
	Norm func(x *graph.Node) *graph.Node
}

// Join adds y, in place of the output, to the residual and normalises the sum as the model does.
func (s *Sublayer) Join(y *graph.Node) *graph.Node {
	sum := graph.Add(s.Residual, y)
	if s.Norm == nil {
		return sum
	}
	return s.Norm(sum)
}

// Prefix is what a hook puts before the tokens of every row: virtual tokens. First come
// slots, of which there are only keys and values, then rows, which are embeddings, then the
// tokens, whose positions move by as many.
//
// Every token sees the virtual ones, whatever its segment and wherever its row is padded;
// a window that ends before them hides them. In models that read in both directions rows see
// the tokens, too, and several segments after them make NaN.
type Prefix struct {
	// Keys and Values are those of the slots, for each layer [slots, kvHeads, headDim] in
	// any float dtype. They have no position: no rotation is applied to them.
	Keys, Values []*graph.Node
	// Embeddings are those of the rows, [rows, features], or [batch, rows, features] if they
	// differ. They stand in the place of [Transformer.Words]' output.
	Embeddings *graph.Node
}

// Slots is the number of virtual tokens that are keys and values.
func (p Prefix) Slots() int {
	if len(p.Keys) == 0 {
		return 0
	}
	return p.Keys[0].Shape().Dim(0)
}

// Rows is the number of virtual tokens that are embeddings.
func (p Prefix) Rows() int {
	if p.Embeddings == nil {
		return 0
	}
	return p.Embeddings.Shape().Dim(-2)
}

// Len is the number of virtual tokens.
func (p Prefix) Len() int { return p.Slots() + p.Rows() }
