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

	"github.com/gopeft/gopeft/internal/rewrite"
	"github.com/gopeft/gopeft/quant"
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
	// Quantization, if not nil, holds the weights of linear modules, but the head's, in few
	// bits: quant.NF4{}, quant.FP4{} or quant.INT8{}. The base then has a copy of the store's
	// values: drop or finalise the store to free the full weights. See docs/foreign.md.
	Quantization quant.Scheme
}

// WrappedModel is a base made of a GoMLX model that knows nothing of this library. Its
// modules are found in the graph that the model builds, which is rewritten for adapters.
// See docs/foreign.md for what can be rewritten. It is safe for concurrent use.
type WrappedModel struct {
	backend compute.Backend
	store   *model.Store
	// plain is the store that fn sees: store itself, unless weights are quantised.
	plain      *model.Store
	quantised  map[string]wrapQuantised // by the weights' names
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
	_ site.Reader   = (*WrappedModel)(nil)
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
// nothing in the store, and fn stays as it is. With WrapOptions.Quantization the base has
// a store of its own.
func WrapModel(backend compute.Backend, store *model.Store, fn ModelFunc, inputs []shapes.Shape, options ...WrapOptions) (*WrappedModel, error) {
	w := &WrappedModel{backend: backend, store: store, plain: store, fn: fn, inputs: slices.Clone(inputs), programs: map[string]*model.Exec{}}
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
	if err := w.discover(); err != nil {
		return nil, fmt.Errorf("peft: wrap model: %w", err)
	}
	return w, nil
}

// aliasScope is where aliases that the model gives go until its nodes are final.
const aliasScope = "gopeft-wrapped"

// build runs the model function in the pass's graph and searches what it built.
func (w *WrappedModel) build(p *site.Pass, inputs []*graph.Node) ([]*graph.Node, *rewrite.Search) {
	g := p.Graph
	w.mu.Lock()
	defer w.mu.Unlock()
	parameters, decoders, encode := w.decode(g)
	first := len(g.Nodes())
	restore := w.prepare(p)
	g.PushAliasScope(aliasScope)
	outputs := w.fn(w.plain.RootScope(), inputs)
	g.PopAliasScope()
	restore()
	encode()
	for i, n := range outputs {
		if n == nil || n.Graph() != g {
			panic(fmt.Errorf("peft: wrapped model: output %d is no node of the graph", i))
		}
	}
	held := map[string]bool{}
	for _, q := range w.quantised {
		for _, path := range q.arrays {
			held[path] = true
		}
	}
	for v := range w.store.IterVariables() {
		if held[v.Path()] || !v.InUseByGraph(g) || v.Name() == model.RNGStateVariableName {
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
	found := rewrite.Find(g, first, outputs, parameters, aliasScope)
	if len(decoders) > 0 {
		found.SetQuantised(decoders)
	}
	return outputs, found
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

// Call implements [site.Function].
func (w *WrappedModel) Call(p *site.Pass, inputs []*graph.Node) []*graph.Node {
	if p.Checkpoint {
		panic(errors.New("peft: wrapped model: gradient checkpointing needs a model that was made for it: put Node.Checkpoint into the model function"))
	}
	outputs, found := w.build(p, inputs)
	if p.Hook == nil && len(w.quantised) == 0 {
		found.Keep()
		return outputs
	}
	return found.Apply(p, w.modules.Of)
}

// prepare sets the training flag and, in training, derives the state of GoMLX's random
// generator from the pass: equal steps have equal masks, and the store's state stays.
func (w *WrappedModel) prepare(p *site.Pass) (restore func()) {
	w.store.SetTraining(p.Graph, p.Training() && !w.options.Inference)
	if state := w.store.GetVariable(model.RNGStateVariableName); state != nil && p.Training() {
		state.SetNodeValue(randomState(p.Random))
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
		if _, ok := w.quantised[m.Weight()]; ok {
			b.WriteString(", quantised")
		}
		if m.TiedTo != "" {
			fmt.Fprintf(&b, ", shares the weight of %s", m.TiedTo)
		}
	}
	return b.String()
}
