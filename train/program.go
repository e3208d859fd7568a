package train

import (
	"fmt"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// This file builds the programs of a training step. All take the batch last:
//
//	fused:     values, m, v, scalars, random, batch -> values, m, v, [sum, count, norm]
//	gradients: values, sums, [sum, count], random, batch -> sums, [sum, count]
//	apply:     values, m, v, scalars, sums, [sum, count] -> values, m, v, [sum, count, norm]
//	evaluate:  values, random, batch -> [sum, count]

// inputs takes a program's arguments apart, first to last.
type inputs []*graph.Node

func (in *inputs) take(n int) []*graph.Node {
	taken := (*in)[:n]
	*in = (*in)[n:]
	return taken
}

func (in *inputs) one() *graph.Node { return in.take(1)[0] }

// run sets up a pass over the trained view, its hook bound to the values.
func (s *stepper) run(values []*graph.Node, random *graph.Node, gradient bool) (*Run, *peft.Binding) {
	binding, err := s.pm.Bind(values)
	if err != nil {
		panic(err)
	}
	g := random.Graph()
	pass := &site.Pass{Graph: g, DType: s.lm.DType(), Hook: binding}
	if gradient {
		at := func(i int) *graph.Node { return graph.Reshape(graph.Slice(random, graph.AxisElem(i))) }
		pass.Checkpoint = s.config.checkpoint
		pass.Random = &site.Random{Seed: at(0), Step: at(1), MicroStep: at(2), RowOffset: at(3)}
	}
	return &Run{Model: s.lm, Pass: pass, Gradient: gradient}, binding
}

// batch names the batch's nodes, of which positions and segments may be absent.
func (v variant) batch(in *inputs) BatchNodes {
	b := BatchNodes{Tokens: site.Tokens{IDs: in.one()}, Targets: in.one()}
	if v.positions {
		b.Positions = in.one()
	}
	if v.segments {
		b.Segments = in.one()
	}
	return b
}

// lossAndGradients builds the loss sums and the gradients of its sum, one node for
// each value argument.
func (s *stepper) lossAndGradients(values []*graph.Node, random *graph.Node, b BatchNodes) (gradients []*graph.Node, sum, count *graph.Node) {
	r, binding := s.run(values, random, true)
	sum, count = s.config.loss.Loss(r, b)
	var views []*graph.Node
	for i := range s.layouts {
		views = append(views, binding.Views(i)...)
	}
	all := graph.Gradient(sum, views...)
	for _, layout := range s.layouts {
		n := len(layout.Params())
		for _, g := range layout.Join(all[:n]) {
			gradients = append(gradients, graph.ConvertDType(g, dtypes.Float32))
		}
		all = all[n:]
	}
	return gradients, sum, count
}

// apply builds mean, clipping and AdamW from summed gradients. Where the result is
// not finite the old state is returned, since large tensors were donated.
func (s *stepper) apply(values, m, v []*graph.Node, scalars *graph.Node, gradients []*graph.Node, sum, count *graph.Node) []*graph.Node {
	denominator := graph.MaxScalar(count, 1.0)
	means := make([]*graph.Node, len(gradients))
	for i, g := range gradients {
		means[i] = graph.Div(g, denominator)
	}
	clipped, norm := clip(means, s.config.maxGradNorm)
	ok := graph.LogicalAnd(graph.IsFinite(norm), graph.IsFinite(sum))
	n := len(values)
	out := make([]*graph.Node, 3*n, 3*n+1)
	for i := range values {
		out[i], out[n+i], out[2*n+i] = s.config.adamw.update(values[i], m[i], v[i], clipped[i], scalars, s.spans[i])
		if s.large[i] {
			out[i] = graph.Where(ok, out[i], values[i])
			out[n+i] = graph.Where(ok, out[n+i], m[i])
			out[2*n+i] = graph.Where(ok, out[2*n+i], v[i])
		}
	}
	return append(out, graph.Stack([]*graph.Node{sum, count, norm}, 0))
}

func (s *stepper) fusedGraph(v variant) graphFunc {
	return func(in inputs) []*graph.Node {
		n := len(s.large)
		values, m, second, scalars, random := in.take(n), in.take(n), in.take(n), in.one(), in.one()
		gradients, sum, count := s.lossAndGradients(values, random, v.batch(&in))
		return s.apply(values, m, second, scalars, gradients, sum, count)
	}
}

func (s *stepper) gradientsGraph(v variant) graphFunc {
	return func(in inputs) []*graph.Node {
		n := len(s.large)
		values, sums, lossSums, random := in.take(n), in.take(n), in.one(), in.one()
		gradients, sum, count := s.lossAndGradients(values, random, v.batch(&in))
		out := make([]*graph.Node, n, n+1)
		for i := range gradients {
			out[i] = graph.Add(sums[i], gradients[i])
		}
		return append(out, graph.Add(lossSums, graph.Stack([]*graph.Node{sum, count}, 0)))
	}
}

func (s *stepper) applyGraph() graphFunc {
	return func(in inputs) []*graph.Node {
		n := len(s.large)
		values, m, v, scalars, sums, lossSums := in.take(n), in.take(n), in.take(n), in.one(), in.take(n), in.one()
		at := func(i int) *graph.Node { return graph.Reshape(graph.Slice(lossSums, graph.AxisElem(i))) }
		return s.apply(values, m, v, scalars, sums, at(0), at(1))
	}
}

func (s *stepper) evaluateGraph(v variant) graphFunc {
	return func(in inputs) []*graph.Node {
		values, random := in.take(len(s.large)), in.one()
		r, _ := s.run(values, random, false)
		sum, count := s.config.loss.Loss(r, v.batch(&in))
		return []*graph.Node{graph.Stack([]*graph.Node{sum, count}, 0)}
	}
}

type graphFunc func(in inputs) []*graph.Node

// exec makes a program over the base's variables. Compilation happens at the first
// call with new shapes. Panics of build are turned into panics of an error value:
// after any other, GoMLX leaves concurrent callers waiting for the graph forever.
func (s *stepper) exec(name string, build graphFunc) (*model.Exec, error) {
	store := s.lm.Store()
	exec, err := model.NewExec(s.lm.Backend(), store, func(_ *model.Scope, in []*graph.Node) []*graph.Node {
		var out []*graph.Node
		err := graphx.Try(func() error {
			out = build(in)
			return checkFrozen(store, in[0].Graph())
		})
		if err != nil {
			panic(err)
		}
		return out
	})
	if err != nil {
		return nil, err
	}
	return exec.WithName("gopeft:" + name).SetMaxCache(-1), nil
}

func checkFrozen(store *model.Store, g *graph.Graph) error {
	for v := range store.IterVariables() {
		if v.ChangedInGraph(g) {
			return fmt.Errorf("train: the program changes the base's variable %q; a base is frozen", v.Path())
		}
	}
	return nil
}

// tensorArguments makes a call's argument list of tensors.
func tensorArguments(lists ...[]*tensors.Tensor) []any {
	var out []any
	for _, list := range lists {
		for _, t := range list {
			out = append(out, t)
		}
	}
	return out
}
