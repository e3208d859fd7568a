package peft

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/site"
)

// TokenRows are rows of one module's weight that are to be trained.
type TokenRows struct {
	// Module is an embedding, or the head, whose rows are columns of its output.
	Module site.Module
	// Rows are indices of rows, each once. Their order is that of the tensor.
	Rows []int
	// Alone: modules that share the weight keep it. Of a module that is tied to another
	// (the head) this is always so.
	Alone bool
}

// TokenAdapter is what [NewTokenAdapter] returns.
type TokenAdapter interface {
	PartialModuleAdapter
	Merger
	// Modules lists the modules whose rows are trained, without those that follow them.
	Modules() []site.Module
}

// TokenTensors says what the tensors of a [TokenAdapter] are.
type TokenTensors struct {
	// Suffix is a tensor's name behind its module's path.
	Suffix string
	// Twins: the file has a tensor for modules that follow, too.
	Twins bool
	// Random: they start at N(0, 1), not at the base's rows.
	Random bool
}

// NewTokenAdapter plans trained rows of embeddings, a tensor [rows, features] for each. The
// rest of a weight stays as it is and is never copied: a program looks the rows up beside it.
func NewTokenAdapter(base site.Base, rows []TokenRows, tensors TokenTensors) (TokenAdapter, error) {
	a := &tokenAdapter{byPath: map[string]*tokenRows{}, byWeight: map[string]*tokenRows{}}
	modules := base.Modules()
	for _, r := range rows {
		r.Rows = slices.Clone(r.Rows) // programs are built from them later
		t := &tokenRows{TokenRows: r, tensor: r.Module.Path + "." + tensors.Suffix}
		if err := t.check(); err != nil {
			return nil, err
		}
		a.own = append(a.own, r.Module)
		a.byWeight[OwnWeight(r.Module)] = t
		a.byPath[r.Module.Path] = t
		p := t.param(base, tensors.Random)
		for _, m := range modules {
			if m.Path == r.Module.Path || m.Weight() != r.Module.Weight() {
				continue
			}
			t.shared = true
			if r.Alone = r.Alone || r.Module.TiedTo != ""; !r.Alone {
				a.byPath[m.Path] = t
				if tensors.Twins {
					p.Twins = append(p.Twins, m.Path+"."+tensors.Suffix)
				}
			}
		}
		t.Alone = r.Alone
		a.params = append(a.params, p)
	}
	for _, m := range modules {
		if a.byPath[m.Path] != nil {
			a.targets = append(a.targets, m)
		}
	}
	return a, nil
}

// tokenAdapter are trained rows planned on a base.
type tokenAdapter struct {
	own, targets []site.Module
	params       []Param
	// byPath has the modules that follow too.
	byPath, byWeight map[string]*tokenRows
}

type tokenRows struct {
	TokenRows
	tensor string
	// shared is true if other modules have the weight too.
	shared bool
}

var _ TokenAdapter = (*tokenAdapter)(nil)

func (t *tokenRows) check() error {
	m := t.Module
	if m.Kind != site.Embedding && !(m.Kind == site.Linear && (m.Head || m.TiedTo != "")) {
		return fmt.Errorf("%q is a %s, want an embedding or the head", m.Path, m.Kind)
	}
	if len(t.Rows) == 0 {
		return fmt.Errorf("%q: no token indices", m.Path)
	}
	if err := checkRows(t.Rows); err != nil {
		return fmt.Errorf("%q: %w", m.Path, err)
	}
	if last := slices.Max(t.Rows); last >= t.vocabulary() {
		return fmt.Errorf("%q: token index %d, want less than the %d rows of the weight", m.Path, last, t.vocabulary())
	}
	return nil
}

// vocabulary and features are the two sizes of the weight.
func (t *tokenRows) vocabulary() int {
	if t.Module.Kind == site.Embedding {
		return t.Module.In
	}
	return t.Module.Out
}

func (t *tokenRows) features() int {
	if t.Module.Kind == site.Embedding {
		return t.Module.Out
	}
	return t.Module.In
}

func (t *tokenRows) param(base site.Base, random bool) Param {
	p := Param{Name: t.tensor, Shape: []int{len(t.Rows), t.features()}}
	p.Init = func(_ *rand.Rand, values []float32) error { return t.readRows(base, values) }
	if random {
		p.Init = func(r *rand.Rand, values []float32) error {
			for i := range values {
				values[i] = float32(r.NormFloat64())
			}
			return nil
		}
	}
	return p
}

// readRows copies the base's rows into values.
func (t *tokenRows) readRows(base site.Base, values []float32) error {
	store := base.Store()
	if store == nil {
		return errors.New("the base has no values")
	}
	return graphx.Try(func() error {
		v := store.GetVariable(site.VariablePath(t.Module.Weight()))
		if v == nil {
			return fmt.Errorf("the base has no parameter %q", t.Module.Weight())
		}
		value, err := v.Value()
		if err != nil {
			return err
		}
		dtype, ok := fileDTypes[v.DType()]
		if want := []int{t.vocabulary(), t.features()}; !ok || t.Module.Transposed || !slices.Equal(v.Shape().Dimensions, want) {
			return t.readWhole(base, values)
		}
		return withBytes(value, func(data []byte) error {
			n, size := t.features(), len(data)/t.vocabulary()
			for i, row := range t.Rows {
				if err := safetensors.DecodeFloat32s(values[i*n:(i+1)*n], data[row*size:(row+1)*size], dtype); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// ReadRows copies rows of an embedding of the base to the host as float32, one after the other.
func ReadRows(base site.Base, m site.Module, rows []int) ([]float32, error) {
	t := &tokenRows{TokenRows: TokenRows{Module: m, Rows: rows}}
	for _, row := range rows {
		if row < 0 || row >= t.vocabulary() {
			return nil, fmt.Errorf("peft: reading rows of %q: want rows from 0 to %d, got %d", m.Path, t.vocabulary()-1, row)
		}
	}
	values := make([]float32, len(rows)*t.features())
	if err := t.readRows(base, values); err != nil {
		return nil, fmt.Errorf("peft: reading rows of %q: %w", m.Path, err)
	}
	return values, nil
}

// readWhole is readRows for weights that are not stored row by row.
func (t *tokenRows) readWhole(base site.Base, values []float32) error {
	whole, _, err := baseValues(base, site.Parameter{Name: t.Module.Weight(), Shape: t.Module.StoredShape()})
	if err != nil {
		return err
	}
	t.each(func(row, i, feature, at int) { values[i*t.features()+feature] = whole[at] })
	return nil
}

// each visits the trained elements: at is an element's place in the stored weight.
func (t *tokenRows) each(visit func(row, i, feature, at int)) {
	for i, row := range t.Rows {
		for feature := range t.features() {
			at := row*t.features() + feature
			if t.Module.Transposed {
				at = feature*t.vocabulary() + row
			}
			visit(row, i, feature, at)
		}
	}
}

// Params implements [Adapter].
func (a *tokenAdapter) Params() []Param { return a.params }

// Targets implements [Adapter].
func (a *tokenAdapter) Targets() []site.Module { return a.targets }

// Modules implements [TokenAdapter].
func (a *tokenAdapter) Modules() []site.Module { return a.own }

// ReplacesModule implements [ModuleAdapter].
func (a *tokenAdapter) ReplacesModule(path string) bool { return a.byPath[path] != nil }

// RowsOf implements [PartialModuleAdapter].
func (a *tokenAdapter) RowsOf(path string) []int { return a.byPath[path].Rows }

// Everywhere implements [PartialModuleAdapter].
func (a *tokenAdapter) Everywhere(parameter string) bool {
	t := a.byWeight[parameter]
	return t != nil && !(t.shared && t.Alone)
}

// Module implements [ModuleAdapter].
func (a *tokenAdapter) Module(u *Use, x *graph.Node) *graph.Node {
	t := a.byPath[u.Site.Path]
	rows := graph.ConvertDType(u.Values().Get(t.tensor), u.Pass.DType)
	if u.Site.Kind == site.Embedding {
		return t.lookUp(rows, x, u.Module(x))
	}
	return t.columns(u, rows, x)
}

// lookUp puts the trained rows in the places of their ids. A comparison of every id with
// every trained one gives each its place among the rows: with few rows that is less work than
// a map over the vocabulary.
func (t *tokenRows) lookUp(rows, ids, base *graph.Node) *graph.Node {
	g := ids.Graph()
	dims := append(slices.Clone(ids.Shape().Dimensions), len(t.Rows))
	same := graph.Equal(graph.BroadcastToDims(graph.InsertAxes(ids, -1), dims...), graph.BroadcastToDims(graph.ExpandLeftToRank(t.indices(g), len(dims)), dims...))
	places := graph.AddScalar(graph.Iota(g, shapes.Make(dtypes.Int32, dims...), len(dims)-1), 1)
	place := graph.ReduceSum(graph.Where(same, places, graph.ZerosLike(places)), -1) // 0: not trained
	found := graph.InsertAxes(graph.GreaterThan(place, graph.ZerosLike(place)), -1)
	trained := graph.Gather(rows, graph.InsertAxes(graph.MaxScalar(graph.AddScalar(place, -1), 0), -1))
	return graph.Where(graph.BroadcastToDims(found, base.Shape().Dimensions...), trained, base)
}

// columns puts the products with the trained rows in the places of their columns of the
// base's output, by a product with a matrix of ones and zeros.
func (t *tokenRows) columns(u *Use, rows, x *graph.Node) *graph.Node {
	base := u.Module(x)
	trained := u.Site.With(x, u.Site.Stored(rows)) // [..., rows]
	g := x.Graph()
	shape := shapes.Make(dtypes.Int32, len(t.Rows), t.vocabulary())
	same := graph.Equal(graph.Iota(g, shape, 1), graph.BroadcastToShape(graph.InsertAxes(t.indices(g), -1), shape))
	places := graph.ConvertDType(same, trained.DType())
	placed := graphx.MatMul(trained, places)
	if u.Site.Bias {
		placed = graph.Add(placed, graph.ExpandLeftToRank(u.Site.BiasValue(), placed.Rank()))
	}
	column := graph.ReduceMax(places, 0)
	replaced := graph.ExpandLeftToRank(graph.GreaterThan(column, graph.ZerosLike(column)), base.Rank())
	return graph.Where(graph.BroadcastToDims(replaced, base.Shape().Dimensions...), placed, base)
}

func (t *tokenRows) indices(g *graph.Graph) *graph.Node {
	list := make([]int32, len(t.Rows))
	for i, row := range t.Rows {
		list[i] = int32(row)
	}
	return graph.Const(g, list)
}

// Merges implements [Merger].
func (a *tokenAdapter) Merges() []string {
	var names []string
	for _, m := range a.own {
		names = append(names, OwnWeight(m))
	}
	return names
}

// Merge implements [Merger].
func (a *tokenAdapter) Merge(name string, values, _ []float32, value func(name string) []float32) error {
	t := a.byWeight[name]
	trained := value(t.tensor)
	if want := t.vocabulary() * t.features(); len(values) != want || len(trained) != len(t.Rows)*t.features() {
		return fmt.Errorf("it has %d values, want %d", len(values), want)
	}
	t.each(func(_, i, feature, at int) { values[at] = trained[i*t.features()+feature] })
	return nil
}

// rowConflict reports rows that two of the view's adapters replace, or that another adapter
// replaces together with their whole module. whole maps what is replaced to the adapter that does.
func (pm *PeftModel) rowConflict(whole map[string]string) error {
	type row struct {
		path  string
		index int
	}
	by := map[row]string{}
	for i, na := range pm.held {
		name := pm.active[i]
		for _, part := range na.parts {
			p, ok := part.(PartialModuleAdapter)
			if !ok {
				continue
			}
			for _, m := range part.Targets() {
				for _, what := range []string{m.Path, m.Weight()} {
					if other, ok := whole[what]; ok && other != name {
						return fmt.Errorf("peft: adapter %q replaces %q, and adapter %q rows of it: they cannot be active together", other, what, name)
					}
				}
				for _, index := range p.RowsOf(m.Path) {
					if other, ok := by[row{m.Path, index}]; ok && other != name {
						return fmt.Errorf("peft: adapters %q and %q both replace row %d of %q: token indices of active adapters must be disjoint", other, name, index, m.Path)
					}
					by[row{m.Path, index}] = name
				}
			}
		}
	}
	return nil
}
