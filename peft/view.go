package peft

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"

	"github.com/gopeft/gopeft/site"
)

// With returns the model seen through the named adapters, in this order; with no
// name, the base alone.
//
// It is an error if two of them replace the same parameter or module as a whole, as
// modules_to_save and trained biases do: only one could count.
func (pm *PeftModel) With(names ...string) (*PeftModel, error) {
	view := &PeftModel{set: pm.set, active: slices.Clone(names)}
	pm.set.mu.RLock()
	defer pm.set.mu.RUnlock()
	for i, name := range names {
		na, ok := pm.set.adapters[name]
		if !ok {
			return nil, pm.set.unknown(name)
		}
		if slices.Contains(names[:i], name) {
			return nil, fmt.Errorf("peft: adapter %q is named twice", name)
		}
		view.held = append(view.held, na)
	}
	if err := view.conflict(); err != nil {
		return nil, err
	}
	return view, nil
}

// unknown is the error of a name that the set does not have. The lock is held.
func (s *adapterSet) unknown(name string) error {
	return fmt.Errorf("peft: %w %q (the model has %s)", ErrUnknownAdapter, name, strings.Join(s.order, ", "))
}

// live returns the adapter of a name: the view's own, or else what the name now stands
// for. The set's lock is held.
func (pm *PeftModel) live(name string) (*namedAdapter, error) {
	if i := slices.Index(pm.active, name); i >= 0 {
		return pm.held[i], nil
	}
	if na, ok := pm.set.adapters[name]; ok {
		return na, nil
	}
	return nil, pm.set.unknown(name)
}

// get returns a copy of an adapter as it is now.
func (pm *PeftModel) get(name string) (*namedAdapter, error) {
	pm.set.mu.RLock()
	defer pm.set.mu.RUnlock()
	na, err := pm.live(name)
	if err != nil {
		return nil, err
	}
	now := *na
	return &now, nil
}

// Training returns the view with the same active adapters of which only the named ones
// are trained; the others stay as they are. [PeftModel.With] gives a view that trains all.
func (pm *PeftModel) Training(names ...string) (*PeftModel, error) {
	if len(names) == 0 {
		return nil, fmt.Errorf("peft: training no adapter: want some of %s", strings.Join(pm.active, ", "))
	}
	for _, name := range names {
		if !slices.Contains(pm.active, name) {
			return nil, fmt.Errorf("peft: training adapter %q: %w: it is not active (active are %s)", name, ErrUnknownAdapter, strings.Join(pm.active, ", "))
		}
	}
	view := &PeftModel{set: pm.set, active: pm.active, held: pm.held}
	for _, name := range pm.active {
		if !slices.Contains(names, name) {
			view.frozen = append(view.frozen, name)
		}
	}
	return view, nil
}

// Trained returns the names of those active adapters that training changes.
func (pm *PeftModel) Trained() []string {
	return slices.DeleteFunc(slices.Clone(pm.active), func(name string) bool { return slices.Contains(pm.frozen, name) })
}

// LanguageModel implements [site.View]; it is nil when the base is no language model.
func (pm *PeftModel) LanguageModel() site.LanguageModel {
	lm, _ := pm.set.base.(site.LanguageModel)
	return lm
}

// block is a group of a view's arguments: an adapter's values or its constants.
type block struct {
	name      string
	constants bool
	size      int
}

// blocks lists a view's arguments in order: the values of the trained adapters; the
// constants of those of them that a [StepAdapter] changes; all the rest.
func (pm *PeftModel) blocks() (all []block, numTrained, numStepped int, err error) {
	var stepped, rest []block
	for _, name := range pm.active {
		na, err := pm.get(name)
		if err != nil {
			return nil, 0, 0, err
		}
		values := block{name, false, na.layout.NumArguments()}
		constants := block{name, true, na.numConstants()}
		if slices.Contains(pm.frozen, name) {
			rest = append(rest, values, constants)
			continue
		}
		all = append(all, values)
		numTrained += values.size
		if na.steps() {
			stepped = append(stepped, constants)
			numStepped += constants.size
		} else {
			rest = append(rest, constants)
		}
	}
	return append(append(all, stepped...), rest...), numTrained, numStepped, nil
}

// steps reports whether a part of the adapter is a [StepAdapter].
func (na *namedAdapter) steps() bool {
	return slices.ContainsFunc(na.parts, func(a Adapter) bool { _, ok := a.(StepAdapter); return ok })
}

// Steps reports whether one of the named adapters, or of the trained ones, is a [StepAdapter].
func (pm *PeftModel) Steps(names ...string) bool {
	if len(names) == 0 {
		names = pm.Trained()
	}
	return slices.ContainsFunc(names, func(name string) bool {
		na, err := pm.get(name)
		return err == nil && na.steps()
	})
}

// Arguments implements [site.View]: first the values of the trained adapters, in the
// order of their layouts, then what training leaves alone, see [PeftModel.NumTrained].
func (pm *PeftModel) Arguments() ([]*tensors.Tensor, error) {
	blocks, _, _, err := pm.blocks()
	if err != nil {
		return nil, err
	}
	pm.set.mu.RLock()
	defer pm.set.mu.RUnlock()
	var all []*tensors.Tensor
	for _, b := range blocks {
		na, err := pm.live(b.name)
		switch {
		case err != nil:
			return nil, err
		case b.constants:
			all = append(all, na.constants...)
		default:
			all = append(all, na.arguments...)
		}
	}
	return all, nil
}

// NumTrained says how many of the first arguments hold the values of trained adapters,
// and how many after them are constants that a [StepAdapter] changes.
func (pm *PeftModel) NumTrained() (values, stepped int, err error) {
	_, values, stepped, err = pm.blocks()
	return values, stepped, err
}

// Bind binds the active adapters to the argument nodes of a graph under construction.
func (pm *PeftModel) Bind(arguments []*graph.Node) (*Binding, error) {
	blocks, _, _, err := pm.blocks()
	if err != nil {
		return nil, err
	}
	bound := map[string]*Values{}
	for _, b := range blocks {
		na, err := pm.get(b.name)
		if err != nil {
			return nil, err
		}
		if len(arguments) < b.size {
			return nil, fmt.Errorf("peft: binding adapter %q: want %d arguments, got %d", b.name, b.size, len(arguments))
		}
		nodes := arguments[:b.size]
		arguments = arguments[b.size:]
		v, ok := bound[b.name]
		if !ok {
			v = &Values{layout: na.layout}
			bound[b.name] = v
		}
		switch {
		case !b.constants:
			v.views = na.layout.Bind(nodes).views
		case b.size > 0:
			v.constants = na.constantLayout.Bind(nodes)
		}
	}
	if len(arguments) > 0 {
		return nil, fmt.Errorf("peft: binding adapters: %d arguments too many", len(arguments))
	}
	var active []boundAdapter
	for _, name := range pm.active {
		na, err := pm.get(name)
		if err != nil {
			return nil, err
		}
		active = append(active, boundAdapter{parts: na.parts, values: bound[name], trained: !slices.Contains(pm.frozen, name)})
	}
	return newBinding(active), nil
}

// Hook implements [site.View]. It is called while a graph is built, and panics on errors.
func (pm *PeftModel) Hook(arguments []*graph.Node) site.Hook {
	if len(pm.active) == 0 {
		return nil
	}
	b, err := pm.Bind(arguments)
	if err != nil {
		panic(err)
	}
	return b
}

// Structure implements [site.View]. It follows from the configurations and layouts
// of the active adapters, not from their names: adapters of one kind share programs.
func (pm *PeftModel) Structure() string {
	var all []string
	for _, name := range pm.active {
		if na, err := pm.get(name); err == nil { // a view's adapters stay
			all = append(all, na.structure)
		}
	}
	for _, name := range pm.frozen { // the arguments are in another order
		all = append(all, fmt.Sprintf("frozen %d", slices.Index(pm.active, name)))
	}
	return strings.Join(all, "\x00")
}

// identity is all that a program with the adapter depends on: whatever its
// configuration holds but for what is common to all methods, which names bases and
// versions, and the tensors.
func (na *namedAdapter) identity() string {
	h := sha256.New()
	config := na.config
	if s, ok := na.parts[0].(Swappable); ok {
		config = s.ProgramConfig()
	}
	fmt.Fprintf(h, "%#v", config.WithCommon(PeftConfig{}))
	for _, p := range na.adapter.Params() {
		fmt.Fprintf(h, "\x00%s%v%v", p.Name, p.Shape, p.Frozen)
	}
	return string(h.Sum(nil))
}
