package rewrite

import (
	"fmt"
	"slices"

	"github.com/gomlx/gomlx/core/graph"
)

// isControl reports whether a node runs closures or functions, whose nodes it does not list.
func isControl(n *graph.Node) bool {
	switch n.Type() {
	case graph.NodeTypeWhile, graph.NodeTypeIf, graph.NodeTypeCall, graph.NodeTypeSort:
		return true
	}
	return false
}

// operation names a control operation, which GoMLX's list of names does not have.
func operation(n *graph.Node) string {
	switch n.Type() {
	case graph.NodeTypeWhile:
		return "While"
	case graph.NodeTypeIf:
		return "If"
	case graph.NodeTypeCall:
		return "Call"
	}
	return "Sort"
}

// findEnclosed finds what lies in closures. GoMLX does not say which nodes a closure has,
// and gives those that read nothing but outer nodes the outer function. But no output
// depends on them through inputs: where there are closures, they are among the nodes
// that would otherwise be without effect.
func (s *Search) findEnclosed(g *graph.Graph) {
	for _, n := range s.nodes {
		if isControl(n) {
			s.control = append(s.control, n)
		}
	}
	if len(s.control) == 0 {
		return
	}
	reached := map[*graph.Node]bool{}
	for _, n := range s.nodes {
		reached[n] = true
	}
	for _, n := range s.nodes {
		if t := s.twinOf(n); t != nil {
			s.reach(t, reached)
		}
	}
	for _, n := range g.Nodes()[s.first:] {
		if reached[n] || s.controlAfter(n) == nil {
			continue
		}
		s.loose = append(s.loose, n)
		if u := s.useOf(n); u != nil {
			u.Enclosed = operation(s.controlAfter(n))
			s.enclosed = append(s.enclosed, u.Use)
		}
	}
}

// twinOf is the twin of a node that has one in its shadow.
func (s *Search) twinOf(n *graph.Node) *graph.Node {
	if s.unfused[n] != nil {
		return nil
	}
	return twin(n)
}

// reach marks all that a node depends on.
func (s *Search) reach(n *graph.Node, reached map[*graph.Node]bool) {
	stack := []*graph.Node{n}
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if reached[n] || !s.own(n) {
			continue
		}
		reached[n] = true
		stack = append(stack, n.Inputs()...)
		if t := twin(n); t != nil {
			stack = append(stack, t)
		}
	}
}

// controlAfter is the operation whose closure a loose node can belong to.
func (s *Search) controlAfter(n *graph.Node) *graph.Node {
	i := slices.IndexFunc(s.control, func(c *graph.Node) bool { return c.Id() > n.Id() })
	if i < 0 {
		return nil
	}
	return s.control[i]
}

// checkClosures refuses changes that a closure would not see: it keeps the nodes that it was built with.
func (r *rewriter) checkClosures() {
	for _, e := range r.search.enclosed {
		if m, ok := r.module(e); ok && r.pass.Adapts(m.Path) {
			panic(fmt.Errorf("module %q is used inside a closure of %s, which cannot be rewritten: exclude it from the targets", m.Path, e.Enclosed))
		}
	}
	for _, n := range r.search.loose {
		for _, in := range n.Inputs() {
			if name, ok := r.search.parameters[in]; ok && r.parameter(in) != in {
				panic(fmt.Errorf("parameter %q is used inside a closure of %s, which cannot be rewritten: it cannot be replaced", name, operation(r.search.controlAfter(n))))
			}
			if _, changed := r.built[in]; changed || r.hidden[in] {
				panic(fmt.Errorf("a closure of %s reads %s, which depends on what the adapter changes: pass it to the closure as a parameter where it can have one, or leave the layers before it unadapted", operation(r.search.controlAfter(n)), in))
			}
		}
	}
}

// dependsOnChange reports whether a node that was not rewritten reads one that was.
func (r *rewriter) dependsOnChange(n *graph.Node, seen map[*graph.Node]bool) bool {
	if _, ok := r.built[n]; ok || r.hidden[n] {
		return true
	}
	if seen[n] || !r.search.own(n) {
		return false
	}
	seen[n] = true
	return slices.ContainsFunc(n.Inputs(), func(in *graph.Node) bool { return r.dependsOnChange(in, seen) })
}
