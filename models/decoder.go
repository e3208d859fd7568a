package models

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/gomlx/compute/dtypes"
	. "github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/site"
)

// What the older decoders (GPT-2, OPT, GPT-NeoX) share: learned positions, a feed-forward
// of two linears, checkpoints with and without the prefix of the whole model.

// alias gives the member own the name that other families have for it, as
// transformers' attribute_map does.
func (f *fields) alias(own, common string) {
	if !f.has(own) {
		return
	}
	if f.has(common) && string(f.values[common]) != string(f.values[own]) {
		f.fail("%s %s and %s %s: wanted one value", own, short(f.values[own]), common, short(f.values[common]))
		return
	}
	f.values[common] = f.values[own]
}

// evenHeads returns the size of a head for families without a head_dim of their own.
func evenHeads(f *fields, hidden, heads int) int {
	if hidden%heads != 0 {
		f.fail("hidden_size %d is no multiple of num_attention_heads %d", hidden, heads)
		return 1
	}
	return hidden / heads
}

// withPrefix returns a tensor's name with the prefix of the whole model, which a
// checkpoint of the part below the head does not have. first are the names that
// follow the prefix.
func withPrefix(name, prefix string, first ...string) string {
	head, _, _ := strings.Cut(name, ".")
	if slices.Contains(first, head) {
		return prefix + name
	}
	return name
}

// learnedPositions looks up the row of each token's position, moved by offset:
// [batch, length, features]. A position that has no row is an error where it can be
// seen while the graph is built, and NaN where it depends on the input: a lookup
// would take the last row for it.
func (b *Blocks) learnedPositions(path string, pass *attentionPass, offset int) *Node {
	rows := b.model.modules[path].In
	implied := pass.in.Positions == nil && !pass.filled() && pass.starts() == nil
	if implied && pass.slots > rows-offset {
		panic(fmt.Errorf("models: %s: %s has learned positions for %d only", pass.tokens(), b.model.config.ModelType, rows-offset))
	}
	p := BroadcastToDims(pass.positions(), pass.in.IDs.Shape().Dim(0), pass.length)
	if offset != 0 {
		p = AddScalar(p, offset)
	}
	g := p.Graph()
	last := BroadcastToDims(Scalar(g, dtypes.Int32, rows-1), p.Shape().Dimensions...)
	x := b.Embedding(path, Min(p, last))
	if implied {
		return x
	}
	none := Where(GreaterThan(p, last), Scalar(g, x.DType(), math.NaN()), ScalarZero(g, x.DType()))
	return Add(x, InsertAxes(none, -1))
}

// activated is act(x), computed again in the backward pass where that pays.
func (b *Blocks) activated(act activation, x *Node) *Node {
	return b.recomputed([]*Node{x}, func(in []*Node) *Node { return act(in[0]) })
}

// layers runs the blocks of a decoder one after the other, each of them a checkpoint
// if the pass asks for it.
func (b *Blocks) layers(n int, x *Node, layer func(i int, x *Node) *Node) *Node {
	for i := range n {
		if b.Checkpoint {
			x = x.Checkpoint()
		}
		x = layer(i, x)
	}
	if b.Checkpoint {
		x = x.StopCheckpoint()
	}
	return x
}

// splitHeads is [batch, length, heads·size] -> [batch, length, heads, size].
func splitHeads(x *Node, heads int) *Node {
	d := x.Shape().Dimensions
	return Reshape(x, d[0], d[1], heads, d[2]/heads)
}

// third is part i of the three that a fused projection has along its last axis.
func third(x *Node, i int) *Node {
	axis := x.Rank() - 1
	n := x.Shape().Dimensions[axis] / 3
	return SliceAxis(x, axis, AxisRange(i*n, (i+1)*n))
}

// headModule is the projection onto the vocabulary.
func headModule(path string, in, vocab int, tied bool, embedding string) site.Module {
	m := projection(path, in, vocab, false)
	m.Head = true
	if tied {
		m.TiedTo = embedding
	}
	return m
}
