package rewrite

import (
	"slices"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/site"
)

// lookup is a lookup of rows. A site's input is the ids [...] as int32, its output
// [..., features].
type lookup struct {
	op *graph.Node
	// indexed is true when the ids have an axis of one index at the end.
	indexed bool
}

// gatherUse recognises a lookup of whole rows of a parameter.
func (s *Search) gatherUse(n *graph.Node) *use {
	table, ids := n.Inputs()[0], n.Inputs()[1]
	p, v, ok := s.trace(table)
	if !ok || !p.DType().IsFloat() || table.Rank() != 2 || !v.inOrder() {
		return nil
	}
	rows, features := table.Shape().Dim(0), table.Shape().Dim(1)
	axis := intAttribute(n, "indexVectorAxis")
	indexed := axis == ids.Rank()-1 && ids.Rank() > 0 && ids.Shape().Dim(-1) == 1
	if !indexed && axis != ids.Rank() ||
		!slices.Equal(intsAttribute(n, "startIndexMap"), []int{0}) ||
		!slices.Equal(intsAttribute(n, "collapsedSliceAxes"), []int{0}) ||
		!slices.Equal(intsAttribute(n, "sliceSizes"), []int{1, features}) ||
		!slices.Equal(intsAttribute(n, "offsetOutputAxes"), []int{n.Rank() - 1}) {
		return nil
	}
	u := &use{op: n, out: n, builder: &lookup{n, indexed}}
	u.Kind, u.Weight, u.In, u.Out = site.Embedding, s.parameters[p], rows, features
	return u
}

func (l *lookup) arguments() (int, int) { return 1, 0 }

func (l *lookup) input(r *rewriter) *graph.Node {
	ids := r.value(l.op.Inputs()[1])
	if l.indexed {
		dims := ids.Shape().Dimensions
		ids = reshape(ids, dims[:len(dims)-1])
	}
	return convert(ids, dtypes.Int32)
}

func (l *lookup) operand(x *graph.Node) *graph.Node {
	like := l.op.Inputs()[1]
	return reshape(convert(x, like.DType()), like.Shape().Dimensions)
}

func (l *lookup) output(y *graph.Node) *graph.Node { return y }

func (l *lookup) restore(y, _ *graph.Node) *graph.Node { return y }

func (l *lookup) with(_ site.Module, x, weight *graph.Node) *graph.Node {
	return graph.Gather(weight, graph.InsertAxes(x, -1))
}
