package rewrite

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/gomlx/compute"
	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/site"
)

// Use is one use of a weight by a model, described by what the graph shows of it.
type Use struct {
	Kind site.Kind
	// Weight and Bias are the names of the parameters; Bias is "" without.
	Weight, Bias string
	// In, Out, Transposed and Conv are those of [site.Module].
	In, Out    int
	Transposed bool
	Conv       *site.Conv
	// Enclosed names the operation whose closure the use may lie in ("While"): it cannot
	// be rewritten. "" for all others.
	Enclosed string
}

// Search is what was found in the part of a graph that a model built.
type Search struct {
	first int
	// parameters are the names of the nodes of the store's variables.
	parameters map[*graph.Node]string
	outputs    []*graph.Node
	aliases    map[string]*graph.Node
	// nodes are those that outputs and aliases depend on, in the graph's order.
	nodes []*graph.Node
	// consumers are the nodes among them that read one, nil for an output.
	consumers map[*graph.Node][]*graph.Node
	// unfused are fused nodes in whose place their decomposed twins are.
	unfused map[*graph.Node]*graph.Node
	uses    []*use
	// enclosed are uses in closures, loose all nodes that may belong to one.
	enclosed []Use
	loose    []*graph.Node
	control  []*graph.Node
	// quantised decodes the parameters that are held in few bits; checkpoints is true if the
	// model has checkpointed regions of its own.
	quantised   map[*graph.Node]Decode
	checkpoints bool
}

type search = Search

// use is a [Use] with its place in the graph.
type use struct {
	Use
	// op multiplies with the weight; out is the module's output: op, or the addition of the bias.
	op, out *graph.Node
	// chain leads from op (not included) to out.
	chain   []*graph.Node
	builder builder
}

// Find searches what a model has built since the graph had first nodes. parameters are
// the nodes of its variables. Nodes with an alias below aliasScope are outputs too; their
// aliases will be without it.
func Find(g *graph.Graph, first int, outputs []*graph.Node, parameters map[*graph.Node]string, aliasScope string) *Search {
	s := &Search{first: first, parameters: parameters, outputs: outputs, aliases: map[string]*graph.Node{},
		consumers: map[*graph.Node][]*graph.Node{}, unfused: map[*graph.Node]*graph.Node{}}
	s.findAliases(g, aliasScope)
	s.walk()
	for _, n := range s.nodes {
		if u := s.useOf(n); u != nil {
			s.addBias(u)
			s.uses = append(s.uses, u)
		}
	}
	slices.SortStableFunc(s.uses, func(a, b *use) int { return cmp.Compare(a.out.Id(), b.out.Id()) })
	s.findEnclosed(g)
	return s
}

// Uses lists the uses of weights in the order of the forward pass, those in closures last.
func (s *Search) Uses() []Use {
	all := make([]Use, 0, len(s.uses)+len(s.enclosed))
	for _, u := range s.uses {
		all = append(all, u.Use)
	}
	return append(all, s.enclosed...)
}

// Read lists the names of the parameters that the model reads, in the order of first use.
func (s *Search) Read() []string {
	var names []string
	seen := map[*graph.Node]bool{}
	add := func(nodes []*graph.Node) {
		for _, n := range nodes {
			for _, in := range append(n.Inputs(), n) {
				if name, ok := s.parameters[in]; ok && !seen[in] {
					seen[in] = true
					names = append(names, name)
				}
			}
		}
	}
	add(s.nodes)
	add(s.loose)
	return names
}

// walk lists what the outputs depend on.
func (s *Search) walk() {
	stack := slices.Clone(s.outputs)
	for _, n := range s.outputs {
		s.consumers[n] = append(s.consumers[n], nil)
	}
	for _, n := range s.aliases {
		s.consumers[n] = append(s.consumers[n], nil)
		stack = append(stack, n)
	}
	seen := map[*graph.Node]bool{}
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if seen[n] || !s.own(n) {
			continue
		}
		seen[n] = true
		s.nodes = append(s.nodes, n)
		for _, in := range s.inputs(n) {
			s.consumers[in] = append(s.consumers[in], n)
			stack = append(stack, in)
		}
	}
	slices.SortFunc(s.nodes, func(a, b *graph.Node) int { return cmp.Compare(a.Id(), b.Id()) })
}

// own reports whether the model built the node, or it is a parameter of its store.
func (s *Search) own(n *graph.Node) bool {
	if int(n.Id()) >= s.first {
		return true
	}
	_, ok := s.parameters[n]
	return ok
}

// inputs are what a node depends on. A dense layer with its activation fused in hides
// the module's output: its twin takes its place.
func (s *Search) inputs(n *graph.Node) []*graph.Node {
	if n.Type() == graph.NodeTypeFusedDense && intAttribute(n, "options", "Activation") != int(compute.ActivationNone) {
		if t := twin(n); t != nil {
			s.unfused[n] = t
			return []*graph.Node{t}
		}
	}
	return n.Inputs()
}

// useOf returns the use that a node is, nil if it is none.
func (s *Search) useOf(n *graph.Node) *use {
	if s.unfused[n] != nil {
		return nil
	}
	switch n.Type() {
	case graph.NodeTypeFusedDense:
		return s.denseUse(n)
	case graph.NodeTypeDotGeneral:
		return s.dotUse(n)
	case graph.NodeTypeGather:
		return s.gatherUse(n)
	case graph.NodeTypeConvGeneral:
		return s.convUse(n)
	}
	return nil
}

// addBias extends a use by the bias that is added to its output and to nothing else.
func (s *Search) addBias(u *use) {
	feature, ok := u.builder.(interface {
		feature(y *graph.Node) (first, last int)
	})
	if !ok || u.Bias != "" {
		return
	}
	var chain []*graph.Node
	for y := u.op; len(s.consumers[y]) == 1 && s.consumers[y][0] != nil; {
		next := s.consumers[y][0]
		switch next.Type() {
		case graph.NodeTypeReshape:
			if _, isConv := u.builder.(*conv); isConv {
				return
			}
		case graph.NodeTypeAdd:
			other := next.Inputs()[0]
			if other == y {
				other = next.Inputs()[1]
			}
			first, last := feature.feature(y)
			if p, ok := s.vector(other, y, first, last, u.Out); ok {
				u.Bias = s.parameters[p]
				u.out, u.chain = next, append(chain, next)
			}
			return
		default:
			return
		}
		chain = append(chain, next)
		y = next
	}
}

// vector returns the parameter that n shows, if it is a vector of the given size along
// the axes first to last of y and does not depend on the others.
func (s *Search) vector(n, y *graph.Node, first, last, size int) (*graph.Node, bool) {
	p, v, ok := s.trace(n)
	if !ok || first < 0 || p.Shape().Size() != size || !v.inOrder() || n.Rank() != y.Rank() {
		return nil, false
	}
	for axis, d := range n.Shape().Dimensions {
		if inside := axis >= first && axis <= last; inside && d != y.Shape().Dim(axis) || !inside && d != 1 {
			return nil, false
		}
	}
	return p, true
}

// findAliases collects the nodes that the model gave names to.
func (s *Search) findAliases(g *graph.Graph, scope string) {
	prefix := graph.AliasScopeSeparator + scope + graph.AliasScopeSeparator
	for alias, n := range g.IterAliasedNodes() {
		if int(n.Id()) < s.first {
			continue
		}
		name, ok := strings.CutPrefix(alias, prefix)
		if !ok {
			panic(fmt.Errorf("rewrite: the model gives a node the absolute alias %q, which cannot be given to the node in its place: use one without a leading %q", alias, graph.AliasScopeSeparator))
		}
		s.aliases[graph.AliasScopeSeparator+name] = n
	}
}
