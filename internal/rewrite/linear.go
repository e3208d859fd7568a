package rewrite

import (
	"slices"

	"github.com/gomlx/compute"
	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/site"
)

// builder translates between an operation's operands and what a site sees of it.
type builder interface {
	// input is the site's X: the operand, in the layout that its kind of site has.
	input(r *rewriter) *graph.Node
	// operand is the inverse of input on any X.
	operand(x *graph.Node) *graph.Node
	// output brings a node in the shape of the use's op into that of the site's output.
	output(y *graph.Node) *graph.Node
	// restore brings the site's output into the shape of like.
	restore(y, like *graph.Node) *graph.Node
	// with applies another weight, stored as the module's.
	with(m site.Module, x, weight *graph.Node) *graph.Node
	// arguments are the positions of the input and of the weight among the op's inputs.
	arguments() (x, weight int)
}

// linear is a product with a matrix. A site's input is [lead..., in], its output [lead..., out].
type linear struct {
	op             *graph.Node
	xArg, wArg     int
	lead           []int
	in, out        int
	source         *graph.Node // what is reshaped to the operand by joining leading axes; nil: the operand
	free, contract []int       // axes of the operand
}

func (l *linear) arguments() (int, int) { return l.xArg, l.wArg }

// denseUse recognises a dense layer fused into one node, its bias included.
func (s *Search) denseUse(n *graph.Node) *use {
	x, weight := n.Inputs()[0], n.Inputs()[1]
	p, v, ok := s.trace(weight)
	if !ok || !p.DType().IsFloat() {
		return nil
	}
	inAxis, outAxes := 0, axesBetween(1, weight.Rank())
	if compute.DenseLayout(intAttribute(n, "options", "WeightLayout")) == compute.DenseLayoutOutputsInput {
		inAxis, outAxes = weight.Rank()-1, axesBetween(0, weight.Rank()-1)
	}
	u := &use{op: n, out: n}
	if !u.matrix(v, []int{inAxis}, outAxes) {
		return nil
	}
	u.Weight = s.parameters[p]
	if len(n.Inputs()) == 3 {
		bias, v, ok := s.trace(n.Inputs()[2])
		if !ok || !v.inOrder() {
			return nil
		}
		u.Bias = s.parameters[bias]
	}
	dims := x.Shape().Dimensions
	u.builder = &linear{op: n, xArg: 0, wArg: 1, lead: dims[:len(dims)-1], in: u.In, out: u.Out,
		free: axesBetween(0, x.Rank()-1), contract: []int{x.Rank() - 1}}
	return u
}

// dotUse recognises a product of which one operand is a parameter without batch axes.
func (s *Search) dotUse(n *graph.Node) *use {
	if attribute(n, "lhsBatchAxes").Len() > 0 {
		return nil
	}
	contracting := [][]int{intsAttribute(n, "lhsContractingAxes"), intsAttribute(n, "rhsContractingAxes")}
	p, v, ok := s.trace(n.Inputs()[1])
	wArg := 1
	if other, w, isLeft := s.trace(n.Inputs()[0]); isLeft {
		if ok { // a product of two parameters is no layer
			return nil
		}
		p, v, ok, wArg = other, w, true, 0
	}
	if !ok || !p.DType().IsFloat() {
		return nil
	}
	weight, x := n.Inputs()[wArg], n.Inputs()[1-wArg]
	u := &use{op: n, out: n}
	if !u.matrix(v, contracting[wArg], except(weight.Rank(), contracting[wArg])) {
		return nil
	}
	u.Weight = s.parameters[p]
	l := &linear{op: n, xArg: 1 - wArg, wArg: wArg, in: u.In, out: u.Out, contract: contracting[1-wArg]}
	l.free = except(x.Rank(), l.contract)
	for _, axis := range l.free {
		l.lead = append(l.lead, x.Shape().Dim(axis))
	}
	l.unflatten(s, x)
	u.builder = l
	return u
}

// unflatten looks through a reshape that joins leading axes, as GoMLX's dense layer
// does: a site sees the rows of the batch.
func (l *linear) unflatten(s *Search, x *graph.Node) {
	if x.Type() != graph.NodeTypeReshape || len(l.contract) != 1 || l.contract[0] != x.Rank()-1 {
		return
	}
	from := x.Inputs()[0]
	if from.Rank() < 2 || from.Rank() <= x.Rank() || from.Shape().Dim(-1) != l.in {
		return
	}
	if _, ok := s.parameters[from]; !ok {
		dims := from.Shape().Dimensions
		l.source, l.lead = from, dims[:len(dims)-1]
	}
}

// matrix describes the weight as a matrix; false if the view is none in either order.
func (u *use) matrix(v view, in, out []int) bool {
	i, okIn := v.join(in)
	o, okOut := v.join(out)
	if !okIn || !okOut {
		return false
	}
	u.Kind, u.In, u.Out = site.Linear, i.dim, o.dim
	switch {
	case (i.stride == 1 || i.dim == 1) && (o.stride == i.dim || o.dim == 1):
	case (o.stride == 1 || o.dim == 1) && (i.stride == o.dim || i.dim == 1):
		u.Transposed = true
	default:
		return false
	}
	return true
}

func (l *linear) input(r *rewriter) *graph.Node {
	if l.source != nil {
		return r.value(l.source)
	}
	x := r.value(l.op.Inputs()[l.xArg])
	return reshape(transpose(x, slices.Concat(l.free, l.contract)), append(slices.Clone(l.lead), l.in))
}

func (l *linear) operand(x *graph.Node) *graph.Node {
	like := l.op.Inputs()[l.xArg]
	order := slices.Concat(l.free, l.contract)
	dims := make([]int, len(order))
	inverse := make([]int, len(order))
	for i, axis := range order {
		dims[i] = like.Shape().Dim(axis)
		inverse[axis] = i
	}
	return transpose(reshape(x, dims), inverse)
}

// output of a product whose left operand is the weight has the weight's axes first.
func (l *linear) output(y *graph.Node) *graph.Node {
	if l.xArg == 1 {
		n := y.Rank() - len(l.free)
		y = transpose(y, append(axesBetween(n, y.Rank()), axesBetween(0, n)...))
	}
	return reshape(y, append(slices.Clone(l.lead), l.out))
}

func (l *linear) restore(y, like *graph.Node) *graph.Node {
	dims := like.Shape().Dimensions
	if l.xArg == 0 {
		return reshape(y, dims)
	}
	n := len(dims) - len(l.free)
	y = reshape(y, slices.Concat(dims[n:], dims[:n]))
	return transpose(y, append(axesBetween(len(l.free), len(dims)), axesBetween(0, len(l.free))...))
}

func (l *linear) with(m site.Module, x, weight *graph.Node) *graph.Node {
	if m.Transposed {
		return graphx.MatMul(x, weight)
	}
	return graphx.MatMulT(x, weight)
}

// feature returns the axes of y that hold the output features: the last ones.
func (l *linear) feature(y *graph.Node) (first, last int) {
	if l.xArg == 1 {
		return -1, -1
	}
	size := 1
	for axis := y.Rank() - 1; axis >= 0; axis-- {
		if size *= y.Shape().Dim(axis); size == l.out {
			return axis, y.Rank() - 1
		}
	}
	return -1, -1
}

func axesBetween(from, to int) []int {
	var axes []int
	for i := from; i < to; i++ {
		axes = append(axes, i)
	}
	return axes
}

// except lists the axes of a node of the given rank that are not among some.
func except(rank int, some []int) []int {
	return slices.DeleteFunc(axesBetween(0, rank), func(axis int) bool { return slices.Contains(some, axis) })
}

// reshape leaves a node that has the shape already as it is.
func reshape(x *graph.Node, dims []int) *graph.Node {
	if slices.Equal(x.Shape().Dimensions, dims) {
		return x
	}
	return graph.Reshape(x, dims...)
}

// transpose leaves a node whose axes are in order as it is.
func transpose(x *graph.Node, axes []int) *graph.Node {
	if slices.IsSorted(axes) {
		return x
	}
	return graph.TransposeAllAxes(x, axes...)
}
