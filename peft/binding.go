package peft

import (
	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/site"
)

// Binding is a selection of adapters bound to the arguments of a graph under
// construction: the hook of its passes.
type Binding struct {
	active []boundAdapter
	// bySite lists the active adapters that target a module path.
	bySite map[string][]int
	// parameters is true when some active adapter replaces base parameters.
	parameters bool
}

type boundAdapter struct {
	adapter Adapter
	values  *Values
}

var _ site.Hook = (*Binding)(nil)

func newBinding(active []boundAdapter) *Binding {
	b := &Binding{active: active, bySite: map[string][]int{}}
	for i, a := range active {
		for _, m := range a.adapter.Targets() {
			b.bySite[m.Path] = append(b.bySite[m.Path], i)
		}
		if _, ok := a.adapter.(ParameterAdapter); ok {
			b.parameters = true
		}
	}
	return b
}

// Views returns the trainable nodes of the i-th active adapter, in its layout's order.
func (b *Binding) Views(i int) []*graph.Node { return b.active[i].values.Views() }

// Adapts implements [site.Hook].
func (b *Binding) Adapts(path string) bool {
	if len(b.bySite[path]) > 0 {
		return true
	}
	return b.replaces(path+".weight") || b.replaces(path+".bias")
}

func (b *Binding) replaces(name string) bool {
	if !b.parameters {
		return false
	}
	for _, a := range b.active {
		if r, ok := a.adapter.(ParameterAdapter); ok && r.Replaces(name) {
			return true
		}
	}
	return false
}

// Parameter implements [site.Hook]: the last active adapter that replaces the parameter wins.
func (b *Binding) Parameter(p *site.Pass, name string, base func() *graph.Node) *graph.Node {
	value := base
	if b.parameters {
		for _, a := range b.active {
			if r, ok := a.adapter.(ParameterAdapter); ok && r.Replaces(name) {
				inner := value
				value = func() *graph.Node { return r.Parameter(a.values, p, name, inner) }
			}
		}
	}
	return value()
}

// Apply implements [site.Hook]: input transforms, the base, the sum of the deltas
// on the untransformed input, output transforms.
func (b *Binding) Apply(p *site.Pass, s *site.Site) *graph.Node {
	indices := b.bySite[s.Path]
	if len(indices) == 0 {
		return s.Base(s.X)
	}
	var onX *graph.Node
	base := func() *graph.Node {
		if onX == nil {
			onX = s.Base(s.X)
		}
		return onX
	}
	uses := make([]*Use, len(indices))
	x := s.X
	for k, i := range indices {
		uses[k] = &Use{Pass: p, Site: s, X: s.X, values: b.active[i].values, base: base}
		if a, ok := b.active[i].adapter.(InputAdapter); ok {
			x = a.Input(uses[k], x)
		}
	}
	var y *graph.Node
	if x == s.X {
		y = base()
	} else {
		y = s.Base(x)
	}
	for k, i := range indices {
		if a, ok := b.active[i].adapter.(DeltaAdapter); ok {
			y = graph.Add(y, a.Delta(uses[k]))
		}
	}
	for k, i := range indices {
		if a, ok := b.active[i].adapter.(OutputAdapter); ok {
			y = a.Output(uses[k], y)
		}
	}
	return y
}
