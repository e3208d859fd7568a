package peft

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/ml/model"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/internal/rewrite"
	"github.com/gopeft/gopeft/site"
)

// ModelFunc is a GoMLX model: it builds its outputs from inputs, with variables of the
// scope's store.
type ModelFunc = func(scope *model.Scope, inputs []*graph.Node) []*graph.Node

// WrapOptions are the settings of [WrapModel].
type WrapOptions struct {
	// ModelType and NameOrPath are those of [site.Base]; they are saved with adapters.
	ModelType, NameOrPath string
	// Names gives modules other paths than the scopes of their weights:
	// {"token_embed.linear": "lm_head"}.
	Names map[string]string
	// Head is the path of the module that is the model's head, which "all-linear" leaves
	// out. "": none.
	Head string
	// Inference builds the model for inference in training too: without its own dropout,
	// batch normalisation with the averages that it has.
	Inference bool
}

// WrappedModel is a base made of a GoMLX model that knows nothing of this library. Its
// modules are found in the graph that the model builds, which is rewritten for adapters.
// See docs/foreign.md for what can be rewritten. It is safe for concurrent use.
type WrappedModel struct {
	backend    compute.Backend
	store      *model.Store
	fn         ModelFunc
	options    WrapOptions
	inputs     []shapes.Shape
	modules    *rewrite.Modules
	parameters []site.Parameter
	// buffers are variables that the model reads besides, which no adapter can change.
	buffers []string
	dtype   dtypes.DType

	// mu guards building the model: GoMLX notes initialisers in variables while it does.
	mu       sync.Mutex
	programs map[string]*model.Exec
}

var (
	_ site.Function = (*WrappedModel)(nil)
	_ site.Exporter = (*WrappedModel)(nil)
)

// WrapModel makes a base of a GoMLX model. inputs are shapes that the model accepts, such
// as one example: the model is built once on them to find its modules, and can be used
// on others. At most one WrapOptions is used.
//
// Variables of an empty store get their initial values, as GoMLX would give them. If the
// store has variables, or a loader, it is an error if the model needs others: it would
// silently work with random numbers.
//
// A module's path is the scope of its weight with dots for slashes. Adapters replace
// nothing in the store, and fn stays as it is.
func WrapModel(backend compute.Backend, store *model.Store, fn ModelFunc, inputs []shapes.Shape, options ...WrapOptions) (*WrappedModel, error) {
	w := &WrappedModel{backend: backend, store: store, fn: fn, inputs: slices.Clone(inputs), programs: map[string]*model.Exec{}}
	if len(options) > 0 {
		w.options = options[0]
	}
	switch {
	case backend == nil || store == nil || fn == nil:
		return nil, errors.New("peft: wrap model: backend, store and model function must not be nil")
	case len(inputs) == 0:
		return nil, errors.New("peft: wrap model: no input shape")
	case store.VariablesAsConst():
		return nil, errors.New("peft: wrap model: the store makes constants of its variables (WithVariableAsConst), so that none could be found")
	}
	if err := graphx.Try(w.discover); err != nil {
		return nil, fmt.Errorf("peft: wrap model: %w", err)
	}
	return w, nil
}

// discover builds the model once to find its modules and parameters.
func (w *WrappedModel) discover() error {
	known := w.store.NumVariables() > 0 || w.store.Loader() != nil
	g := graph.NewGraph(w.backend, "gopeft:discover")
	defer g.Finalize()
	model.SetStore(g, w.store)
	inputs := make([]*graph.Node, len(w.inputs))
	for i, shape := range w.inputs {
		inputs[i] = graph.Parameter(g, fmt.Sprintf("input%d", i), shape)
	}
	outputs, found := w.build(&site.Pass{Graph: g}, inputs)
	if len(outputs) == 0 {
		return errors.New("the model has no outputs")
	}
	if err := w.initialise(known); err != nil {
		return err
	}
	vectors, err := w.list(found.Read(), found.Uses())
	if err != nil {
		return err
	}
	w.modules, err = rewrite.NewModules(found.Uses(), vectors, w.options.Names, w.options.Head)
	return err
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

// aliasScope is where aliases that the model gives go until its nodes are final.
const aliasScope = "gopeft-wrapped"

// build runs the model function in the pass's graph and searches what it built.
func (w *WrappedModel) build(p *site.Pass, inputs []*graph.Node) ([]*graph.Node, *rewrite.Search) {
	g := p.Graph
	w.mu.Lock()
	defer w.mu.Unlock()
	first := len(g.Nodes())
	restore := w.prepare(p)
	g.PushAliasScope(aliasScope)
	outputs := w.fn(w.store.RootScope(), inputs)
	g.PopAliasScope()
	restore()
	for i, n := range outputs {
		if n == nil || n.Graph() != g {
			panic(fmt.Errorf("peft: wrapped model: output %d is no node of the graph", i))
		}
	}
	parameters := map[*graph.Node]string{}
	for v := range w.store.IterVariables() {
		if !v.InUseByGraph(g) || v.Name() == model.RNGStateVariableName {
			continue
		}
		if v.ChangedInGraph(g) {
			panic(fmt.Errorf("peft: wrapped model: it changes the variable %q while it is trained, but a base is frozen: set WrapOptions.Inference", v.Path()))
		}
		name := site.ParameterName(v.Path())
		if site.VariablePath(name) != v.Path() {
			panic(fmt.Errorf("peft: wrapped model: variable %q has a dot in its path, where parameters' names have dots for slashes: rename the scope", v.Path()))
		}
		parameters[v.NodeValue(g)] = name
	}
	return outputs, rewrite.Find(g, first, outputs, parameters, aliasScope)
}

// Backend implements [site.Base].
func (w *WrappedModel) Backend() compute.Backend { return w.backend }

// Store implements [site.Base].
func (w *WrappedModel) Store() *model.Store { return w.store }

// DType implements [site.Base]: it is the dtype of most parameters. Adapters compute in
// the dtype of each module's output.
func (w *WrappedModel) DType() dtypes.DType { return w.dtype }

// ModelType implements [site.Base].
func (w *WrappedModel) ModelType() string { return w.options.ModelType }

// NameOrPath implements [site.Base].
func (w *WrappedModel) NameOrPath() string { return w.options.NameOrPath }

// Modules implements [site.Base].
func (w *WrappedModel) Modules() []site.Module { return w.modules.List() }

// Parameters implements [site.Base]: all variables of floats that the model reads.
func (w *WrappedModel) Parameters() []site.Parameter { return slices.Clone(w.parameters) }

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

// Call implements [site.Function].
func (w *WrappedModel) Call(p *site.Pass, inputs []*graph.Node) []*graph.Node {
	if p.Checkpoint {
		panic(errors.New("peft: wrapped model: gradient checkpointing needs a model that was made for it: put Node.Checkpoint into the model function"))
	}
	outputs, found := w.build(p, inputs)
	if p.Hook == nil {
		found.Keep()
		return outputs
	}
	return found.Apply(p, w.modules.Of)
}

// prepare sets the training flag and, in training, derives the state of GoMLX's random
// generator from the pass: equal steps have equal masks, and the store's state stays.
func (w *WrappedModel) prepare(p *site.Pass) (restore func()) {
	w.store.SetTraining(p.Graph, p.Training() && !w.options.Inference)
	if p.Training() {
		if w.store.GetVariable(model.RNGStateVariableName) == nil {
			if err := w.store.SetRNGStateFromSeed(0); err != nil {
				panic(err)
			}
		}
		w.store.GetVariable(model.RNGStateVariableName).SetNodeValue(randomState(p.Random))
	}
	return func() {
		state := w.store.GetVariable(model.RNGStateVariableName)
		if state == nil || !state.ChangedInGraph(p.Graph) {
			return
		}
		nodes := p.Graph.Nodes()
		state.SetNodeValue(nodes[slices.IndexFunc(nodes, func(n *graph.Node) bool {
			return n.Type() == graph.NodeTypeParameter && n.GetParameterName() == state.Path()
		})])
	}
}

// randomState mixes what dropout depends on into a state of GoMLX's generator.
func randomState(r *site.Random) *graph.Node {
	g := r.Seed.Graph()
	wide := func(n *graph.Node) *graph.Node { return graph.ConvertDType(n, dtypes.Uint64) }
	state := graph.Const(g, uint64(0x9E3779B97F4A7C15))
	words := make([]*graph.Node, 0, 3)
	for _, n := range []*graph.Node{r.Seed, r.Step, graph.Add(graph.Mul(r.MicroStep, graph.Const(g, uint32(1)<<24)), r.RowOffset)} {
		// The finaliser of SplitMix64 (Steele et al. 2014) on the words so far.
		x := graph.Mul(graph.Add(state, wide(n)), graph.Const(g, uint64(0xBF58476D1CE4E5B9)))
		x = graph.BitwiseXor(x, graph.BitwiseShiftRightLogicalScalar(x, uint64(27)))
		x = graph.Mul(x, graph.Const(g, uint64(0x94D049BB133111EB)))
		state = graph.BitwiseXor(x, graph.BitwiseShiftRightLogicalScalar(x, uint64(31)))
		words = append(words, state)
	}
	// Every word depends on all three.
	for i := range words[:2] {
		words[i] = graph.BitwiseXor(words[i], graph.Mul(state, graph.Const(g, uint64(2*i+3))))
	}
	return graph.Stack(words, 0)
}

// String names the base and its modules.
func (w *WrappedModel) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "wrapped model of %d parameters", len(w.parameters))
	for _, m := range w.modules.List() {
		fmt.Fprintf(&b, "\n%s: %s %d -> %d", m.Path, m.Kind, m.In, m.Out)
		if m.TiedTo != "" {
			fmt.Fprintf(&b, ", shares the weight of %s", m.TiedTo)
		}
	}
	return b.String()
}
