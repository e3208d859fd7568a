package peft

import (
	"fmt"
	"slices"

	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/site"
)

// Binding is a selection of adapters bound to the arguments of a graph under
// construction: the hook of its passes.
type Binding struct {
	active []boundAdapter
	// bySite lists the parts of active adapters that target a module path.
	bySite map[string][]boundPart
	// parameters are the parts that replace base parameters.
	parameters []boundParameters
}

type boundAdapter struct {
	parts   []Adapter
	values  *Values
	trained bool
}

type boundPart struct {
	part   Adapter
	values *Values
}

type boundParameters struct {
	ParameterAdapter
	values *Values
}

var _ site.Hook = (*Binding)(nil)

func newBinding(active []boundAdapter) *Binding {
	b := &Binding{active: active, bySite: map[string][]boundPart{}}
	for _, a := range active {
		for _, part := range a.parts {
			for _, m := range part.Targets() {
				b.bySite[m.Path] = append(b.bySite[m.Path], boundPart{part, a.values})
			}
			if p, ok := part.(ParameterAdapter); ok {
				b.parameters = append(b.parameters, boundParameters{p, a.values})
			}
		}
	}
	return b
}

// Views returns the trainable nodes of the trained adapters, one layout after the other:
// what to take gradients of.
func (b *Binding) Views() []*graph.Node {
	var all []*graph.Node
	for _, a := range b.active {
		if a.trained {
			all = append(all, a.values.Views()...)
		}
	}
	return all
}

// Join arranges one node for each of [Binding.Views] (gradients, say) as the first
// arguments of the view are arranged.
func (b *Binding) Join(nodes []*graph.Node) []*graph.Node {
	var all []*graph.Node
	for _, a := range b.active {
		if a.trained {
			n := len(a.values.views)
			all = append(all, a.values.layout.Join(nodes[:n])...)
			nodes = nodes[n:]
		}
	}
	return all
}

// ExtraLoss is the sum of what the trained adapters add to the mean loss; nil if none does.
func (b *Binding) ExtraLoss() *graph.Node {
	var sum *graph.Node
	for _, a := range b.active {
		for _, part := range a.parts {
			l, ok := part.(LossAdapter)
			if !ok || !a.trained {
				continue
			}
			if term := l.ExtraLoss(a.values); sum == nil {
				sum = term
			} else {
				sum = graph.Add(sum, term)
			}
		}
	}
	return sum
}

// AfterStep lets the trained adapters of kind [StepAdapter] change their values after an
// optimizer step. The binding is one of the values after the step; gradients are nodes
// for [Binding.Views]. It returns the view's arguments of [PeftModel.NumTrained], values
// and changed constants.
func (b *Binding) AfterStep(step *graph.Node, gradients []*graph.Node) (values, stepped []*graph.Node) {
	for _, a := range b.active {
		if !a.trained {
			continue
		}
		n := len(a.values.views)
		changed := map[string]*graph.Node{}
		steps := false
		for _, part := range a.parts {
			s, ok := part.(StepAdapter)
			if !ok {
				continue
			}
			steps = true
			mine := gradients[:n]
			for name, value := range s.AfterStep(step, a.values, func(name string) *graph.Node {
				i, ok := a.values.layout.index[name]
				if !ok {
					panic(fmt.Errorf("peft: %q has no gradient", name))
				}
				return mine[i]
			}) {
				changed[name] = value
			}
		}
		gradients = gradients[n:]
		values = append(values, a.values.layout.Join(a.values.with(changed))...)
		if steps && a.values.constants != nil {
			stepped = append(stepped, a.values.constants.layout.Join(a.values.constants.with(changed))...)
		}
	}
	return values, stepped
}

// with returns the views with some of them replaced.
func (v *Values) with(changed map[string]*graph.Node) []*graph.Node {
	out := make([]*graph.Node, len(v.views))
	for i, p := range v.layout.params {
		out[i] = v.views[i]
		if c, ok := changed[p.Name]; ok {
			out[i] = c
		}
	}
	return out
}

// Adapts implements [site.Hook].
func (b *Binding) Adapts(path string) bool {
	if len(b.bySite[path]) > 0 {
		return true
	}
	return b.replaces(path+".weight") || b.replaces(path+".bias")
}

func (b *Binding) replaces(name string) bool {
	for _, p := range b.parameters {
		if p.Replaces(name) {
			return true
		}
	}
	return false
}

// Parameter implements [site.Hook]. Of several adapters that replace a parameter each is
// given the value of the one before.
func (b *Binding) Parameter(p *site.Pass, name string, base func() *graph.Node) *graph.Node {
	value := base
	for _, r := range b.parameters {
		if r.Replaces(name) {
			inner := value
			value = func() *graph.Node { return r.Parameter(r.values, p, name, inner) }
		}
	}
	return value()
}

// Apply implements [site.Hook]: input transforms, the base or the module in its place,
// the sum of the deltas on the untransformed input, output transforms.
func (b *Binding) Apply(p *site.Pass, s *site.Site) *graph.Node {
	parts := b.bySite[s.Path]
	if len(parts) == 0 {
		return s.Base(s.X)
	}
	uses := make([]*Use, len(parts))
	module := s.Base
	var onX *graph.Node
	base := func() *graph.Node {
		if onX == nil {
			onX = module(s.X)
		}
		return onX
	}
	replaced := b.replaces(s.Weight()) || slices.ContainsFunc(parts, func(part boundPart) bool {
		m, ok := part.part.(ModuleAdapter)
		return ok && m.ReplacesModule(s.Path)
	})
	for i, part := range parts {
		use := &Use{Pass: p, Site: s, X: s.X, values: part.values, base: base, replaced: replaced}
		uses[i] = use
		if m, ok := part.part.(ModuleAdapter); ok && m.ReplacesModule(s.Path) {
			use.module = module
			module = func(x *graph.Node) *graph.Node { return m.Module(use, x) }
		}
	}
	x := s.X
	for i, part := range parts {
		if a, ok := part.part.(InputAdapter); ok {
			x = a.Input(uses[i], x)
		}
	}
	var y *graph.Node
	if x == s.X {
		y = base()
	} else {
		y = module(x)
	}
	for i, part := range parts {
		if a, ok := part.part.(DeltaAdapter); ok {
			if delta := a.Delta(uses[i]); delta != nil {
				y = graph.Add(y, delta)
			}
		}
	}
	for i, part := range parts {
		if a, ok := part.part.(OutputAdapter); ok {
			y = a.Output(uses[i], y)
		}
	}
	return y
}
