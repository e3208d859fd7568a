package train

import (
	"fmt"
	"slices"

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
//	fused:     values, m, v, constants, scalars, random, batch -> values, m, v, stepped, [sum, count, norm]
//	gradients: values, constants, sums, [sum, count], random, batch -> sums, [sum, count]
//	apply:     values, m, v, constants, scalars, sums, [sum, count] -> values, m, v, stepped, [sum, count, norm]
//	evaluate:  values, constants, random, batch -> [sum, count, hits]
//
// values and then constants are the arguments of the view: what is trained, and what is
// not; the first of the constants are those that a peft.StepAdapter changes: stepped.

// inputs takes a program's arguments apart, first to last.
type inputs []*graph.Node

func (in *inputs) take(n int) []*graph.Node {
	taken := (*in)[:n]
	*in = (*in)[n:]
	return taken
}

func (in *inputs) one() *graph.Node { return in.take(1)[0] }

// run sets up a pass over the trained view, its hook bound to the arguments.
func (s *stepper) run(arguments []*graph.Node, random *graph.Node, gradient bool) (*Run, *peft.Binding) {
	binding := s.bind(arguments)
	g := random.Graph()
	pass := &site.Pass{Graph: g, DType: s.base.DType(), Hook: binding}
	if gradient {
		at := func(i int) *graph.Node { return graph.Reshape(graph.Slice(random, graph.AxisElem(i))) }
		pass.Checkpoint = s.config.checkpoint
		pass.Random = &site.Random{Seed: at(0), Step: at(1), MicroStep: at(2), RowOffset: at(3)}
	}
	return newRun(s.base, pass, gradient), binding
}

func (s *stepper) bind(arguments []*graph.Node) *peft.Binding {
	binding, err := s.pm.Bind(arguments)
	if err != nil {
		panic(err)
	}
	return binding
}

// batch names the batch's nodes, of which positions, segments and tasks may be absent.
func (v variant) batch(in *inputs) BatchNodes {
	if v.inputs > 0 {
		return BatchNodes{Inputs: in.take(v.inputs), Wanted: in.take(v.targets)}
	}
	b := BatchNodes{Tokens: site.Tokens{IDs: in.one()}, Targets: in.one()}
	if v.positions {
		b.Positions = in.one()
	}
	if v.segments {
		b.Segments = in.one()
	}
	if v.tasks {
		b.Tasks = in.one()
	}
	return b
}

// lossAndGradients builds the loss sums and the gradients of its sum, one node for
// each value argument.
func (s *stepper) lossAndGradients(arguments []*graph.Node, random *graph.Node, b BatchNodes) (gradients []*graph.Node, sum, count *graph.Node) {
	r, binding := s.run(arguments, random, true)
	sum, count = s.config.loss.Loss(r, b)
	for _, g := range binding.Join(graph.Gradient(sum, binding.Views()...)) {
		gradients = append(gradients, graph.ConvertDType(g, dtypes.Float32))
	}
	return gradients, sum, count
}

// apply builds mean, clipping, AdamW and what adapters do after it, from summed gradients.
// Where the result is not finite the old state is returned, since large tensors were donated.
func (s *stepper) apply(values, m, v, constants []*graph.Node, scalars *graph.Node, gradients []*graph.Node, sum, count *graph.Node) []*graph.Node {
	denominator := graph.MaxScalar(count, 1.0)
	means := make([]*graph.Node, len(gradients))
	for i, g := range gradients {
		means[i] = graph.Div(g, denominator)
	}
	if s.extraLoss {
		sum = graph.Add(sum, graph.Mul(s.addExtraLoss(values, constants, means), count))
	}
	clipped, norm := clip(means, s.config.maxGradNorm)
	n := len(values)
	out := make([]*graph.Node, 3*n, 3*n+s.numStepped+1)
	for i := range values {
		out[i], out[n+i], out[2*n+i] = s.config.adamw.update(values[i], m[i], v[i], clipped[i], scalars, s.spans[i], s.config.rates)
	}
	if s.afterStep {
		stepped := s.stepAdapters(out[:n], constants, clipped, scalars)
		out = append(out, stepped...)
	}
	ok := graph.LogicalAnd(graph.IsFinite(norm), graph.IsFinite(sum))
	for i := range values {
		if s.large[i] {
			out[i] = graph.Where(ok, out[i], values[i])
			out[n+i] = graph.Where(ok, out[n+i], m[i])
			out[2*n+i] = graph.Where(ok, out[2*n+i], v[i])
		}
	}
	return append(out, graph.Stack([]*graph.Node{sum, count, norm}, 0))
}

// addExtraLoss adds the gradients of what adapters add to the mean loss to means, and
// returns the term.
func (s *stepper) addExtraLoss(values, constants, means []*graph.Node) *graph.Node {
	binding := s.bind(slices.Concat(values, constants))
	extra := binding.ExtraLoss()
	for i, g := range binding.Join(graph.Gradient(extra, binding.Views()...)) {
		means[i] = graph.Add(means[i], graph.ConvertDType(g, dtypes.Float32))
	}
	return extra
}

// stepAdapters lets adapters change the values, in place, and their constants, which it returns.
func (s *stepper) stepAdapters(values, constants, gradients []*graph.Node, scalars *graph.Node) []*graph.Node {
	step := graph.ConvertDType(graph.Reshape(graph.Slice(scalars, graph.AxisElem(scalarStep))), dtypes.Int32)
	changed, stepped := s.bind(slices.Concat(values, constants)).AfterStep(step, s.views(gradients))
	copy(values, changed)
	return stepped
}

// views cuts gradients, arranged as the value arguments are, into one node a tensor.
func (s *stepper) views(gradients []*graph.Node) []*graph.Node {
	var all []*graph.Node
	for _, layout := range s.layouts {
		n := layout.NumArguments()
		all = append(all, layout.Bind(gradients[:n]).Views()...)
		gradients = gradients[n:]
	}
	return all
}

func (s *stepper) fusedGraph(v variant) graphFunc {
	return func(in inputs) []*graph.Node {
		n := len(s.large)
		values, m, second, constants := in.take(n), in.take(n), in.take(n), in.take(s.numConstants)
		scalars, random := in.one(), in.one()
		gradients, sum, count := s.lossAndGradients(slices.Concat(values, constants), random, v.batch(&in))
		return s.apply(values, m, second, constants, scalars, gradients, sum, count)
	}
}

func (s *stepper) gradientsGraph(v variant) graphFunc {
	return func(in inputs) []*graph.Node {
		n := len(s.large)
		arguments := in.take(n + s.numConstants)
		sums, lossSums, random := in.take(n), in.one(), in.one()
		gradients, sum, count := s.lossAndGradients(arguments, random, v.batch(&in))
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
		values, m, v, constants := in.take(n), in.take(n), in.take(n), in.take(s.numConstants)
		scalars, sums, lossSums := in.one(), in.take(n), in.one()
		at := func(i int) *graph.Node { return graph.Reshape(graph.Slice(lossSums, graph.AxisElem(i))) }
		return s.apply(values, m, v, constants, scalars, sums, at(0), at(1))
	}
}

func (s *stepper) evaluateGraph(v variant) graphFunc {
	return func(in inputs) []*graph.Node {
		arguments, random := in.take(len(s.large)+s.numConstants), in.one()
		r, _ := s.run(arguments, random, false)
		if loss, ok := s.config.loss.(Counted); ok {
			sum, count, hits := loss.LossAndHits(r, v.batch(&in))
			return []*graph.Node{graph.Stack([]*graph.Node{sum, count, hits}, 0)}
		}
		sum, count := s.config.loss.Loss(r, v.batch(&in))
		return []*graph.Node{graph.Stack([]*graph.Node{sum, count, graph.ZerosLike(sum)}, 0)}
	}
}

type graphFunc func(in inputs) []*graph.Node

// exec makes a program over the base's variables. Compilation happens at the first
// call with new shapes. Panics of build are turned into panics of an error value:
// after any other, GoMLX leaves concurrent callers waiting for the graph forever.
func (s *stepper) exec(name string, build graphFunc) (*model.Exec, error) {
	store := s.base.Store()
	exec, err := model.NewExec(s.base.Backend(), store, func(_ *model.Scope, in []*graph.Node) []*graph.Node {
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
