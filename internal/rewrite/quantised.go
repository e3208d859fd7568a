package rewrite

import (
	"fmt"
	"slices"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/site"
)

// Decode builds a weight that is held in few bits, in its variable's shape. With a tie it is
// not built before that node.
type Decode func(tie *graph.Node) *graph.Node

// SetQuantised says which of the search's parameters are decoded weights. [Search.Apply]
// builds each of them anew for every use, tied to the use's input, so that none need
// outlive its product; nothing depends on the nodes given here any more.
func (s *Search) SetQuantised(weights map[*graph.Node]Decode) {
	s.quantised = weights
	s.checkpoints = slices.ContainsFunc(s.nodes, func(n *graph.Node) bool {
		return n.Type() == graph.NodeTypeOptimizationBarrier && barrierKind(n) != plainBarrier
	})
}

// Besides names what reads a weight besides products with a matrix, "" if nothing does.
func (s *Search) Besides(weight string) string {
	uses := map[*graph.Node]*use{}
	for _, u := range s.uses {
		uses[u.op] = u
	}
	var visit func(n *graph.Node) string
	visit = func(n *graph.Node) string {
		for _, c := range s.consumers[n] {
			switch u := uses[c]; {
			case c == nil:
				return "an output of the model"
			case u != nil && u.Weight == weight && u.Kind == site.Linear:
			case u != nil && u.Weight == weight:
				return "a module of kind " + u.Kind.String()
			default:
				if _, _, layout := s.trace(c); !layout {
					return "the operation " + c.Type().String()
				}
				if found := visit(c); found != "" {
					return found
				}
			}
		}
		return ""
	}
	for n, name := range s.parameters {
		if name == weight {
			if found := visit(n); found != "" {
				return found
			}
		}
	}
	for _, n := range s.loose {
		for _, in := range n.Inputs() {
			if p, _, ok := s.trace(in); ok && s.parameters[p] == weight {
				return "a closure of " + operation(s.controlAfter(n))
			}
		}
	}
	return ""
}

// decodes returns how a use's weight is decoded, nil if it is held as it is.
func (r *rewriter) decodes(u *use) Decode {
	_, wArg := u.builder.arguments()
	p, _, ok := r.search.trace(u.op.Inputs()[wArg])
	if !ok {
		return nil
	}
	return r.search.quantised[p]
}

// decoded builds a module whose weight is held in few bits on in. In training the weight is
// built again in the backward pass, from the input: inside a region that the model itself
// checkpoints that happens anyway, and an inner region would end the outer one.
func (r *rewriter) decoded(u *use, m site.Module, in *graph.Node, dtype dtypes.DType, decode Decode) *graph.Node {
	product := func(x *graph.Node) *graph.Node {
		weight := r.pass.Parameter(m.Weight(), func() *graph.Node { return decode(x) })
		if weight.Shape().Size() != m.In*m.Out {
			panic(fmt.Errorf("parameter %q: want %d values in its place, got shape %v", m.Weight(), m.In*m.Out, weight.Shape().Dimensions))
		}
		return convert(u.builder.with(m, x, convert(reshape(weight, m.StoredShape()), dtype)), dtype)
	}
	in = convert(in, dtype)
	if !r.pass.Training() || r.search.checkpoints {
		return r.withBias(u, m, product(in), dtype)
	}
	return r.withBias(u, m, product(in.Checkpoint()).StopCheckpoint(), dtype)
}
