package peft

import (
	"errors"
	"fmt"
	"slices"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/ml/model"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/internal/rewrite"
	"github.com/gopeft/gopeft/site"
)

// discover builds the model once to find its modules and parameters.
func (w *WrappedModel) discover() error {
	known := w.store.Loader() != nil
	for v := range w.store.IterVariables() {
		known = known || v.Name() != model.RNGStateVariableName
	}
	var read []string
	var uses []rewrite.Use
	besides := map[string]string{}
	err := w.sketch(func(g *graph.Graph, inputs []*graph.Node) error {
		outputs, found := w.build(&site.Pass{Graph: g}, inputs)
		if len(outputs) == 0 {
			return errors.New("the model has no outputs")
		}
		read, uses = found.Read(), found.Uses()
		for _, u := range uses {
			besides[u.Weight] = found.Besides(u.Weight)
		}
		return nil
	})
	if err != nil {
		return err
	}
	w.discoverTraining()
	if err := w.initialise(known); err != nil {
		return err
	}
	vectors, err := w.list(read, uses)
	if err != nil {
		return err
	}
	w.modules, err = rewrite.NewModules(uses, vectors, w.options.Names, w.options.Head)
	if err != nil || w.options.Quantization == nil {
		return err
	}
	return w.quantise(besides)
}

// sketch gives f a graph with the model's inputs that is never run.
func (w *WrappedModel) sketch(f func(g *graph.Graph, inputs []*graph.Node) error) error {
	return graphx.Try(func() error {
		g := graph.NewGraph(w.backend, "gopeft:discover")
		defer g.Finalize()
		model.SetStore(g, w.store)
		inputs := make([]*graph.Node, len(w.inputs))
		for i, shape := range w.inputs {
			inputs[i] = graph.Parameter(g, fmt.Sprintf("input%d", i), shape)
		}
		return f(g, inputs)
	})
}

// discoverTraining builds the model for training, so that variables that it makes there
// only, GoMLX's random state above all, are in the store before programs are built
// side by side. What it cannot do in training is an error once it is trained.
func (w *WrappedModel) discoverTraining() {
	_ = w.sketch(func(g *graph.Graph, inputs []*graph.Node) error {
		zero := graph.Const(g, uint32(0))
		w.build(&site.Pass{Graph: g, Random: &site.Random{Seed: zero, Step: zero, MicroStep: zero, RowOffset: zero}}, inputs)
		return nil
	})
}

// initialise gives the variables of a new model their values.
func (w *WrappedModel) initialise(known bool) error {
	var missing []string
	for v := range w.store.IterVariables() {
		if !v.HasValue() {
			missing = append(missing, v.Path())
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if known {
		return fmt.Errorf("the store has no values of %d variables that the model needs, such as %q: initialise them (Store.InitializeVariables) if they are to be random", len(missing), missing[0])
	}
	return w.store.InitializeVariables(w.backend, nil)
}

// list sorts the variables that the model reads into parameters and buffers, and returns
// the parameters that no use of a weight has.
func (w *WrappedModel) list(names []string, uses []rewrite.Use) ([]rewrite.Vector, error) {
	used := map[string]bool{}
	for _, u := range uses {
		used[u.Weight], used[u.Bias] = true, true
	}
	var vectors []rewrite.Vector
	count := map[dtypes.DType]int{}
	for _, name := range names {
		v := w.store.GetVariable(site.VariablePath(name))
		if !v.DType().IsFloat() {
			w.buffers = append(w.buffers, name)
			continue
		}
		count[v.DType()] += v.Shape().Size()
		w.parameters = append(w.parameters, site.Parameter{Name: name, Shape: slices.Clone(v.Shape().Dimensions)})
		if !used[name] {
			vector := rewrite.Vector{Name: name}
			if v.Shape().Rank() == 1 {
				vector.Size = v.Shape().Size()
			}
			vectors = append(vectors, vector)
		}
	}
	if len(w.parameters) == 0 {
		return nil, errors.New("the model reads no variable of the store: there is nothing to adapt")
	}
	w.dtype = dtypes.Float32
	for dtype, n := range count {
		if n > count[w.dtype] {
			w.dtype = dtype
		}
	}
	return vectors, nil
}

// checkTargets refuses targets that a wrapped model has where nothing can be changed.
func checkTargets(base site.Base, adapter Adapter) error {
	w, ok := base.(*WrappedModel)
	if !ok {
		return nil
	}
	for _, m := range adapter.Targets() {
		if err := w.checkTarget(m); err != nil {
			return fmt.Errorf("peft: %w", err)
		}
	}
	return nil
}

// checkTarget reports whether a module can be adapted: not if it lies in a closure.
func (w *WrappedModel) checkTarget(m site.Module) error {
	if op := w.modules.Enclosed(m.Path); op != "" {
		return fmt.Errorf("module %q is used inside a closure of %s, which cannot be rewritten: exclude it", m.Path, op)
	}
	return nil
}
