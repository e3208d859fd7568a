package models

import (
	"fmt"
	"slices"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	. "github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/site"
)

// Virtual tokens in a pass: the keys and values of slots, the embeddings of rows.

// prefix asks the hook for the pass's virtual tokens and checks them.
func (b *Blocks) prefix(in site.Tokens, layers []site.Layer) site.Prefix {
	p := b.Prefix(in)
	if len(p.Keys) != len(p.Values) || len(p.Keys) != 0 && len(p.Keys) != len(layers) {
		panic(fmt.Errorf("models: prefix: wanted keys and values of %d layers, got %d and %d", len(layers), len(p.Keys), len(p.Values)))
	}
	for i := range p.Keys {
		want := []int{p.Slots(), layers[i].KVHeads, layers[i].HeadDim}
		for _, node := range []*Node{p.Keys[i], p.Values[i]} {
			if !slices.Equal(node.Shape().Dimensions, want) {
				panic(fmt.Errorf("models: prefix of layer %d: wanted keys and values %v, got %v", i, want, node.Shape().Dimensions))
			}
		}
	}
	if e := p.Embeddings; e != nil {
		got, want := e.Shape().Dimensions, []int{in.IDs.Shape().Dim(0), p.Rows(), b.model.Words().Out}
		if !slices.Equal(got, want) && !slices.Equal(got, want[1:]) {
			panic(fmt.Errorf("models: prompt: wanted embeddings %v or %v, got %v", want, want[1:], got))
		}
	}
	return p
}

// afterSlots puts keys or values of the prefix's slots before those of layer i, [batch,
// length, kvHeads, headDim].
func (c *attentionPass) afterSlots(prefix []*Node, i int, x *Node) *Node {
	if len(prefix) == 0 {
		return x
	}
	dims := slices.Clone(x.Shape().Dimensions)
	dims[1] = c.prefix.Slots()
	slots := BroadcastToDims(InsertAxes(ConvertDType(prefix[i], x.DType()), 0), dims...)
	return Concatenate([]*Node{slots, x}, 1)
}

// prepend puts the embeddings of the prefix's rows before those of tokens, [batch, tokens, features].
func (c *attentionPass) prepend(x *Node) *Node {
	if c.rows == 0 {
		return x
	}
	rows := ConvertDType(c.prefix.Embeddings, x.DType())
	rows = BroadcastToDims(ExpandLeftToRank(rows, 3), x.Shape().Dim(0), c.rows, x.Shape().Dim(2))
	return Concatenate([]*Node{rows, x}, 1)
}

// tokensOf leaves out what precedes the tokens of hidden states, [batch, rows + tokens, hidden].
func tokensOf(in site.Tokens, x *Node) *Node {
	return SliceAxis(x, 1, AxisRange(x.Shape().Dim(1)-in.IDs.Shape().Dim(1)))
}

// tokens says how many there are, for errors.
func (c *attentionPass) tokens() string {
	if virtual := c.prefix.Len(); virtual > 0 {
		return fmt.Sprintf("%d virtual and %d other tokens", virtual, c.in.IDs.Shape().Dim(1))
	}
	return fmt.Sprintf("%d tokens", c.length)
}

// virtualSegment is the segment of virtual tokens, which every token sees.
const virtualSegment = -1

// segments returns the segments of queries, [batch, length, 1], and of keys, [batch, 1, slots].
func (c *attentionPass) segments() (own, other *Node) {
	tokens := c.in.Segments
	withVirtual := func(n int) *Node {
		if n == 0 {
			return tokens
		}
		segment := Scalar(tokens.Graph(), dtypes.Int32, virtualSegment)
		return Concatenate([]*Node{BroadcastToShape(segment, shapes.Make(dtypes.Int32, tokens.Shape().Dim(0), n)), tokens}, 1)
	}
	return InsertAxes(withVirtual(c.rows), -1), InsertAxes(withVirtual(c.prefix.Len()), 1)
}

// layersOf describes the blocks of a decoder; attention and feedForward are the names of
// the sublayers below the path of a layer.
func layersOf(c Config, layer func(i int) string, attention, feedForward string, heads int, cache site.CacheShape) []site.Layer {
	out := make([]site.Layer, c.NumLayers)
	for i := range out {
		out[i] = site.Layer{
			Attention:   sublayerModule(layer(i)+attention, site.Attention, c.HiddenSize),
			FeedForward: sublayerModule(layer(i)+feedForward, site.FeedForward, c.HiddenSize),
			Heads:       heads, KVHeads: cache.KVHeads, HeadDim: cache.HeadDim,
		}
	}
	return out
}

func sublayerModule(path string, kind site.Kind, hidden int) site.Module {
	return site.Module{Path: path, Kind: kind, In: hidden, Out: hidden}
}

// wordsOf is the embedding of token ids, which comes first in all families.
func wordsOf(n network) site.Module {
	modules := n.Modules()
	return modules[slices.IndexFunc(modules, func(m site.Module) bool { return m.Kind == site.Embedding })]
}

// wordScale is what the family multiplies embeddings of token ids with.
func wordScale(n network) float64 {
	if l, ok := n.(*llama); ok && l.embedScale != 0 {
		return l.embedScale
	}
	return 1
}

// add is the sum of a block's sublayer and its input, see [site.Sublayer].
func (b *Blocks) add(m site.Module, residual, output *Node, norm func(x *Node) *Node) *Node {
	return b.Sublayer(&site.Sublayer{Module: m, Output: output, Residual: residual, Norm: norm})
}
