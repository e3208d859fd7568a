package peft

import (
	"fmt"
	"slices"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/site"
)

// mixedBinding is a mixed batch bound to the arguments of a graph: the hook of its passes.
type mixedBinding struct {
	rows     []string
	groups   []boundGroup
	targeted map[string]bool
}

// boundGroup are the adapters of one structure.
type boundGroup struct {
	// index is each row's position among the adapters, or -1.
	index *graph.Node
	// row is the adapter whose values are those of each row; nil for the other kinds.
	row       RowAdapter
	rowValues *Values
	targets   map[string]bool
	// names and members are the adapters one by one.
	names   []string
	members []*Binding
}

var _ site.Hook = (*mixedBinding)(nil)

// Hook implements [site.View]. It is called while a graph is built, and panics on errors.
func (m *MixedView) Hook(arguments []*graph.Node) site.Hook {
	if len(m.groups) == 0 {
		return nil
	}
	b := &mixedBinding{rows: m.rows, targeted: map[string]bool{}}
	take := func(n int) []*graph.Node {
		if len(arguments) < n {
			panic(fmt.Errorf("peft: binding a mixed batch: %d arguments too few", n-len(arguments)))
		}
		taken := arguments[:n]
		arguments = arguments[n:]
		return taken
	}
	for _, g := range m.groups {
		bound := boundGroup{index: take(1)[0], names: g.names, targets: map[string]bool{}}
		for i := range g.held {
			m.set.mu.RLock()
			na := *g.held[i]
			m.set.mu.RUnlock()
			for _, target := range na.adapter.Targets() {
				bound.targets[target.Path], b.targeted[target.Path] = true, true
			}
			values, constants := take(na.layout.NumArguments()), take(na.numConstants())
			if g.rowWise {
				bound.row = na.parts[0].(RowAdapter)
				bound.rowValues = na.bindRows(bound.index, values, constants)
				break // the same for all
			}
			v := na.layout.Bind(values)
			if na.constantLayout != nil {
				v.constants = na.constantLayout.Bind(constants)
			}
			bound.members = append(bound.members, newBinding([]boundAdapter{{parts: na.parts, values: v}}))
		}
		b.groups = append(b.groups, bound)
	}
	if len(arguments) > 0 {
		panic(fmt.Errorf("peft: binding a mixed batch: %d arguments too many", len(arguments)))
	}
	return b
}

// bindRows cuts stacked arguments into tensors of each row's own values, [rows, ...].
func (na *namedAdapter) bindRows(index *graph.Node, values, constants []*graph.Node) *Values {
	slots := graph.InsertAxes(graph.MaxScalar(index, 0), -1) // rows of other kinds: any, see Apply
	v := &Values{layout: na.layout, views: na.layout.gatherRows(values, slots)}
	if na.constantLayout != nil {
		v.constants = &Values{layout: na.constantLayout, views: na.constantLayout.gatherRows(constants, slots)}
	}
	return v
}

// gatherRows is [Layout.Bind] for stacked arguments, of which each row takes a slot.
func (l *Layout) gatherRows(arguments []*graph.Node, slots *graph.Node) []*graph.Node {
	views := make([]*graph.Node, len(l.params))
	for i, p := range l.params {
		var stack *graph.Node
		if o := l.offset[i]; o >= 0 {
			stack = graph.Slice(arguments[0], graph.AxisRange(), graph.AxisRange(o, o+p.Size()))
			stack = graph.Reshape(stack, append([]int{stack.Shape().Dim(0)}, p.Shape...)...)
		} else {
			stack = arguments[-o]
		}
		views[i] = graph.Gather(stack, slots)
	}
	return views
}

// Adapts implements [site.Hook].
func (m *mixedBinding) Adapts(path string) bool {
	if m.targeted[path] {
		return true
	}
	for _, g := range m.groups {
		if slices.ContainsFunc(g.members, func(b *Binding) bool { return b.Adapts(path) }) {
			return true
		}
	}
	return false
}

// Parameter implements [site.Hook]. It is asked outside of modules only: those are built
// with another hook, see Apply.
func (m *mixedBinding) Parameter(_ *site.Pass, name string, base func() *graph.Node) *graph.Node {
	for _, g := range m.groups {
		for i, member := range g.members {
			if member.replaces(name) {
				panic(fmt.Errorf("peft: mixed batch: adapter %q replaces the parameter %q, which the base reads outside of a module: it cannot differ by row", g.names[i], name))
			}
		}
	}
	return base()
}

// recorder is the hook under which a module's base is built: it notes the parameters.
type recorder struct {
	*mixedBinding
	read []string
}

// Parameter implements [site.Hook].
func (r *recorder) Parameter(_ *site.Pass, name string, base func() *graph.Node) *graph.Node {
	r.read = append(r.read, name)
	return base()
}

// Apply implements [site.Hook]: the base for all rows, plus what stacked adapters add to
// theirs; then the rows of each other adapter from the module as that adapter makes it.
func (m *mixedBinding) Apply(p *site.Pass, s *site.Site) *graph.Node {
	hook := p.Hook
	defer func() { p.Hook = hook }()
	r := &recorder{mixedBinding: m}
	p.Hook = r
	base := s.Base(s.X)
	if !m.targeted[s.Path] && !m.replacesAny(r.read) {
		return base
	}
	m.check(p, s.Path, s.X)
	out := base
	for _, g := range m.groups {
		if g.row == nil || !g.targets[s.Path] {
			continue
		}
		p.Hook = nil
		use := &Use{Pass: p, Site: s, X: s.X, values: g.rowValues, base: func() *graph.Node { return base }}
		if delta := g.row.RowDelta(use); delta != nil {
			mine := rowMask(graph.GreaterOrEqual(g.index, graph.ZerosLike(g.index)), delta)
			out = graph.Add(out, graph.Where(mine, delta, graph.ZerosLike(delta)))
		}
	}
	for _, g := range m.groups {
		for i, member := range g.members {
			replaced := slices.ContainsFunc(r.read, member.replaces)
			if len(member.bySite[s.Path]) == 0 && !replaced {
				continue
			}
			own := *s
			if !replaced { // the base of the input is built already
				own.Base = func(x *graph.Node) *graph.Node {
					if x == s.X {
						return base
					}
					return s.Base(x)
				}
			}
			p.Hook = member
			y := member.Apply(p, &own)
			mine := graph.Equal(g.index, graph.Scalar(g.index.Graph(), dtypes.Int32, i))
			out = graph.Where(rowMask(mine, out), y, out)
		}
	}
	return out
}

// Sublayer implements [site.Hook]: each row as its adapter makes it.
func (m *mixedBinding) Sublayer(p *site.Pass, s *site.Sublayer) *graph.Node {
	out := s.Join(s.Output)
	if !m.targeted[s.Path] {
		return out
	}
	m.check(p, s.Path, s.Output)
	for _, g := range m.groups {
		for i, member := range g.members {
			if len(member.bySite[s.Path]) > 0 {
				mine := graph.Equal(g.index, graph.Scalar(g.index.Graph(), dtypes.Int32, i))
				out = graph.Where(rowMask(mine, out), member.Sublayer(p, s), out)
			}
		}
	}
	return out
}

// Prefix implements [site.Hook]. A mixed batch has none: its rows would differ in length.
func (m *mixedBinding) Prefix(*site.Pass, site.Tokens) site.Prefix { return site.Prefix{} }

func (m *mixedBinding) replacesAny(names []string) bool {
	for _, g := range m.groups {
		for _, member := range g.members {
			if slices.ContainsFunc(names, member.replaces) {
				return true
			}
		}
	}
	return false
}

// check refuses what a mixed batch cannot be.
func (m *mixedBinding) check(p *site.Pass, path string, x *graph.Node) {
	if p.Training() {
		panic(fmt.Errorf("peft: a mixed batch cannot be trained on: select one adapter with PeftModel.With"))
	}
	if x.Rank() == 0 || x.Shape().Dim(0) != len(m.rows) {
		panic(fmt.Errorf("peft: mixed batch: the view is for %d rows, the input of %q has shape %v", len(m.rows), path, x.Shape().Dimensions))
	}
}

// rowMask broadcasts a condition on rows to the shape of x.
func rowMask(rows, x *graph.Node) *graph.Node {
	dims := slices.Repeat([]int{1}, x.Rank())
	dims[0] = x.Shape().Dim(0)
	return graph.BroadcastToDims(graph.Reshape(rows, dims...), x.Shape().Dimensions...)
}
