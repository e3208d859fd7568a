package lora

import (
	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

var _ peft.RowAdapter = (*adapter)(nil)

// RowWise implements [peft.RowAdapter]: a LoRA of linear layers and embeddings that has
// nothing but A and B.
func (a *adapter) RowWise() bool {
	for _, p := range a.params {
		if _, ok := rankAxis(p.Name); !ok && p.Name != scalings {
			return false
		}
	}
	for _, m := range a.targets {
		if m.Kind != site.Linear && m.Kind != site.Embedding {
			return false
		}
	}
	return true
}

// RowDelta implements [peft.RowAdapter] with A [rows, r, in] and B [rows, out, r].
func (a *adapter) RowDelta(u *peft.Use) *graph.Node {
	l := a.layers[u.Site.Path]
	dims := u.X.Shape().Dimensions
	rows := dims[0]
	var low, b *graph.Node
	if l.Kind == site.Embedding {
		low, b = rowColumns(u.Cast(embeddingA), graph.Reshape(u.X, rows, -1)), u.Cast(embeddingB)
	} else {
		x := graph.Reshape(u.X, rows, -1, l.In)
		low, b = graphx.Dot(x, []int{2}, []int{0}, u.Cast(matrixA), []int{2}, []int{0}), u.Cast(matrixB)
		dims = dims[:len(dims)-1]
	}
	if a.maxRank == 0 {
		low = graphx.Scale(low, l.scaling)
	} else {
		factors := graph.Slice(u.Values().Get(scalings), graph.AxisRange(), graph.AxisElem(l.index))
		low = graphx.ScaleBy(low, graph.Reshape(factors, rows, 1, 1))
	}
	y := graphx.Dot(low, []int{2}, []int{0}, b, []int{2}, []int{0})
	return graph.Reshape(y, append(append([]int{}, dims...), l.Out)...)
}

// rowColumns returns the columns of each row's matrix [r, n] that its ids name:
// matrices [rows, r, n], ids [rows, length] -> [rows, length, r].
func rowColumns(matrices, ids *graph.Node) *graph.Node {
	rows, r, n := matrices.Shape().Dim(0), matrices.Shape().Dim(1), matrices.Shape().Dim(2)
	table := graph.Reshape(graph.Transpose(matrices, 1, 2), rows*n, r)
	first := graph.MulScalar(graph.Iota(ids.Graph(), ids.Shape(), 0), n)
	return graph.Gather(table, graph.InsertAxes(graph.Add(ids, first), -1))
}
