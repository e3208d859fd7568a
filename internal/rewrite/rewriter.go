package rewrite

import (
	"fmt"
	"slices"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/site"
)

// rewriter is one pass of a hook over what a search found.
type rewriter struct {
	search *Search
	pass   *site.Pass
	module func(Use) (site.Module, bool)
	// built are the nodes in the places of those that changed.
	built map[*graph.Node]*graph.Node
	// hidden are nodes inside sites that changed: nobody else may read them.
	hidden map[*graph.Node]bool
	// replaced are the parameters as the hook gave them.
	replaced map[*graph.Node]*graph.Node
	// cut are frozen nodes behind a StopGradient, known says which need one.
	cut   map[*graph.Node]*graph.Node
	known map[*graph.Node]ancestry
}

// Apply asks the pass's hook for every module and every parameter that the model reads,
// and returns the model's outputs. module names the modules; a use that it does not know
// stays as it is.
func (s *Search) Apply(p *site.Pass, module func(Use) (site.Module, bool)) []*graph.Node {
	r := &rewriter{search: s, pass: p, module: module, built: map[*graph.Node]*graph.Node{}, hidden: map[*graph.Node]bool{},
		replaced: map[*graph.Node]*graph.Node{}, cut: map[*graph.Node]*graph.Node{}, known: map[*graph.Node]ancestry{}}
	ends, inner := map[*graph.Node]*use{}, map[*graph.Node]*use{}
	for _, u := range s.uses {
		if _, ok := module(u.Use); !ok {
			continue
		}
		ends[u.out] = u
		for _, n := range append([]*graph.Node{u.op}, u.chain...) {
			if n != u.out {
				inner[n] = u
			}
		}
	}
	for _, n := range s.nodes {
		switch u := ends[n]; {
		case u != nil:
			r.set(n, r.site(u))
		case inner[n] != nil:
		case s.quantised[n] != nil: // each use asks for it
		case s.parameters[n] != "":
			r.set(n, r.parameter(n))
		case s.unfused[n] != nil:
			if t := s.unfused[n]; r.value(t) != t {
				r.set(n, r.value(t))
			}
		default:
			if ins, changed := r.values(n.Inputs()); changed {
				r.set(n, r.rebuild(n, ins))
			}
		}
	}
	for n, u := range inner {
		if _, changed := r.built[u.out]; changed {
			r.hidden[n] = true
		}
	}
	r.checkClosures()
	if p.Training() {
		r.checkLosses()
	}
	r.moveAliases()
	outputs, _ := r.values(s.outputs)
	return outputs
}

// set notes what stands in the place of n.
func (r *rewriter) set(n, by *graph.Node) {
	if by == n {
		return
	}
	if !by.Shape().Equal(n.Shape()) {
		panic(fmt.Errorf("rewrite: %s was replaced by a node of shape %s", n, by.Shape()))
	}
	r.built[n] = by
}

// value is what stands in the place of n, n itself if nothing changed.
func (r *rewriter) value(n *graph.Node) *graph.Node {
	if by, ok := r.built[n]; ok {
		return by
	}
	return n
}

func (r *rewriter) values(nodes []*graph.Node) (values []*graph.Node, changed bool) {
	values = make([]*graph.Node, len(nodes))
	for i, n := range nodes {
		values[i] = r.value(n)
		changed = changed || values[i] != n
	}
	return values, changed
}

// parameter is the value of a parameter, which the hook is asked for once.
func (r *rewriter) parameter(n *graph.Node) *graph.Node {
	if value, ok := r.replaced[n]; ok {
		return value
	}
	name := r.search.parameters[n]
	value := r.pass.Parameter(name, func() *graph.Node { return n })
	if value != n {
		if !slices.Equal(value.Shape().Dimensions, n.Shape().Dimensions) {
			panic(fmt.Errorf("parameter %q: want shape %v in its place, got %v", name, n.Shape().Dimensions, value.Shape().Dimensions))
		}
		value = convert(value, n.DType())
	}
	r.replaced[n] = value
	return value
}

// named is the value of a parameter by name.
func (r *rewriter) named(name string) *graph.Node {
	for n, other := range r.search.parameters {
		if other == name {
			return r.parameter(n)
		}
	}
	panic(fmt.Errorf("the model reads no parameter %q", name))
}

// site asks the hook for the output of one use of a module.
func (r *rewriter) site(u *use) *graph.Node {
	m, _ := r.module(u.Use)
	// Models may compute in several dtypes: each site has that of its output.
	dtype := u.out.DType()
	pass := *r.pass
	pass.DType = dtype
	x := u.builder.input(r)
	if x.DType().IsFloat() {
		x = convert(x, dtype)
	}
	frozen := func() *graph.Node { return r.frozen(u, m, dtype) }
	var unchanged *graph.Node // the model's own output as the site's
	decode := r.decodes(u)
	base := func(in *graph.Node) *graph.Node {
		if decode != nil {
			return r.decoded(u, m, in, dtype, decode)
		}
		if m.Kind != site.Convolution && !slices.Equal(in.Shape().Dimensions, x.Shape().Dimensions) {
			return r.anew(u, m, in, dtype)
		}
		y := r.base(u, x, in)
		if y != u.out {
			return convert(u.builder.output(y), dtype)
		}
		if unchanged == nil {
			unchanged = u.builder.output(y)
		}
		return unchanged
	}
	bias := func() *graph.Node { return graph.Reshape(convert(r.named(m.BiasName()), dtype), m.Out) }
	y := pass.Apply(&site.Site{Module: m, X: x, Base: base, FrozenWeight: frozen, BiasValue: bias,
		With: func(in, weight *graph.Node) *graph.Node {
			if in.DType().IsFloat() {
				in = convert(in, dtype)
			}
			return convert(u.builder.with(m, in, convert(weight, dtype)), dtype)
		},
	})
	if y == unchanged {
		return u.out
	}
	return u.builder.restore(convert(y, u.out.DType()), u.out)
}

// anew builds the module on an input that has other leading axes than the model's own.
func (r *rewriter) anew(u *use, m site.Module, in *graph.Node, dtype dtypes.DType) *graph.Node {
	if in.DType().IsFloat() {
		in = convert(in, dtype)
	}
	_, wArg := u.builder.arguments()
	p, _, _ := r.search.trace(u.op.Inputs()[wArg])
	return r.withBias(u, m, u.builder.with(m, in, convert(reshape(r.parameter(p), m.StoredShape()), dtype)), dtype)
}

// withBias adds the module's bias, if it has one, to its product.
func (r *rewriter) withBias(u *use, m site.Module, y *graph.Node, dtype dtypes.DType) *graph.Node {
	for p, name := range r.search.parameters {
		if name == u.Bias {
			y = graph.Add(y, m.Expand(convert(r.parameter(p), dtype), y.Rank()))
		}
	}
	return y
}

// base builds the module as the model did, on in instead of its own input.
func (r *rewriter) base(u *use, own, in *graph.Node) *graph.Node {
	xArg, _ := u.builder.arguments()
	ins, changed := r.values(u.op.Inputs())
	if in != own || r.value(u.op.Inputs()[xArg]) != u.op.Inputs()[xArg] {
		changed = true
	}
	if !changed && !r.chainChanged(u) {
		return u.out
	}
	operand := u.op.Inputs()[xArg]
	ins[xArg] = r.value(operand)
	if in != own {
		ins[xArg] = convert(u.builder.operand(in), operand.DType())
	}
	y := r.rebuild(u.op, ins)
	previous := u.op
	for _, n := range u.chain {
		next, _ := r.values(n.Inputs())
		for i, input := range n.Inputs() {
			if input == previous {
				next[i] = y
			}
		}
		y = r.rebuild(n, next)
		previous = n
	}
	return y
}

// chainChanged reports whether the bias changed.
func (r *rewriter) chainChanged(u *use) bool {
	return slices.ContainsFunc(u.chain, func(n *graph.Node) bool {
		_, changed := r.values(n.Inputs())
		return changed
	})
}

// frozen is the base's own weight as stored, cut off from gradients.
func (r *rewriter) frozen(u *use, m site.Module, dtype dtypes.DType) *graph.Node {
	var weight *graph.Node
	_, wArg := u.builder.arguments()
	if p, _, ok := r.search.trace(u.op.Inputs()[wArg]); ok {
		weight = p
	}
	w := reshape(weight, m.StoredShape())
	if w.DType() == dtype && w == weight {
		return w
	}
	return graph.StopGradient(convert(w, dtype))
}

// moveAliases gives the model's aliases to the nodes that stand in their places.
func (r *rewriter) moveAliases() {
	for alias, n := range r.search.aliases {
		r.value(n).WithAlias(alias)
	}
}

func convert(x *graph.Node, dtype dtypes.DType) *graph.Node {
	if x.DType() == dtype {
		return x
	}
	return graph.ConvertDType(x, dtype)
}

// Keep leaves the model as it was built, but for its aliases.
func (s *Search) Keep() {
	for alias, n := range s.aliases {
		n.WithAlias(alias)
	}
}
