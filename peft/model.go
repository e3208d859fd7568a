package peft

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"

	"github.com/gopeft/gopeft/site"
)

// DefaultAdapter is the name of an adapter that was not given one.
const DefaultAdapter = "default"

// ErrUnknownAdapter is wrapped by errors about an adapter name that the model does not have.
var ErrUnknownAdapter = errors.New("unknown adapter")

// PeftModel is a frozen base with named adapters, seen through a selection of
// them. The selection is fixed: [PeftModel.With] returns another view of the same
// adapters. A PeftModel is safe for concurrent use.
type PeftModel struct {
	set    *adapterSet
	active []string
}

// adapterSet is what all views of one model share.
type adapterSet struct {
	base     site.Base
	mu       sync.RWMutex
	adapters map[string]*namedAdapter
	order    []string
}

type namedAdapter struct {
	config  Config
	adapter Adapter
	layout  *Layout
	// structure, see the function.
	structure string
	// arguments are replaced as a whole and never changed in place, so that a
	// program that runs keeps what it was given.
	arguments []*tensors.Tensor
}

// Options are the settings of [GetPeftModel] and [PeftModel.AddAdapter].
type Options struct {
	// Name of the adapter; [DefaultAdapter] when empty.
	Name string
	// Seed of the initial values, which derive from (Seed, tensor name).
	Seed uint64
}

// GetPeftModel attaches a new adapter to a base and makes it active. The base
// stays as it was. At most one Options is used.
func GetPeftModel(base site.Base, config Config, options ...Options) (*PeftModel, error) {
	if base == nil {
		return nil, errors.New("peft: base model is nil")
	}
	pm := &PeftModel{set: &adapterSet{base: base, adapters: map[string]*namedAdapter{}}}
	o := first(options)
	if err := pm.AddAdapter(config, o); err != nil {
		return nil, err
	}
	return pm.With(o.name())
}

func first(options []Options) Options {
	if len(options) == 0 {
		return Options{}
	}
	return options[0]
}

func (o Options) name() string {
	if o.Name == "" {
		return DefaultAdapter
	}
	return o.Name
}

// AddAdapter attaches one more adapter, which [PeftModel.With] can then select. A
// failed call changes nothing.
func (pm *PeftModel) AddAdapter(config Config, options ...Options) error {
	o := first(options)
	na, err := plan(pm.set.base, config, false)
	if err != nil {
		return err
	}
	if na.arguments, err = na.layout.initOn(pm.set.base.Backend(), o.Seed); err != nil {
		return err
	}
	return pm.set.add(o.name(), na)
}

// plan validates a configuration and lays its tensors out on a base. reading is
// true for the configuration of a file, see [PeftConfig.Reading].
func plan(base site.Base, config Config, reading bool) (*namedAdapter, error) {
	common := config.Common()
	common.reading = reading
	if _, ok := base.(site.LanguageModel); ok && common.TaskType == "" && !reading {
		common.TaskType = "CAUSAL_LM"
	}
	if common.BaseModelNameOrPath == "" {
		common.BaseModelNameOrPath = base.NameOrPath()
	}
	config = config.WithCommon(common)
	if err := config.Validate(); err != nil {
		return nil, err
	}
	adapter, err := config.Attach(base)
	if err != nil {
		return nil, err
	}
	if len(adapter.Params()) == 0 {
		return nil, fmt.Errorf("peft: %s adapter has no trainable tensor", config.PeftType())
	}
	layout, err := NewLayout(adapter.Params())
	if err != nil {
		return nil, err
	}
	if c, ok := adapter.(Configured); ok {
		config = c.Config()
	}
	common.reading = false
	config = config.WithCommon(common)
	return &namedAdapter{config: config, adapter: adapter, layout: layout, structure: structure(config, layout)}, nil
}

func (s *adapterSet) add(name string, na *namedAdapter) error {
	if err := checkName(name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.adapters[name]; ok {
		return fmt.Errorf("peft: adapter %q already exists", name)
	}
	s.adapters[name] = na
	s.order = append(s.order, name)
	return nil
}

// checkName refuses names that could not be a folder's name.
func checkName(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\\\x00") {
		return fmt.Errorf("peft: adapter name %q is not usable as a folder name", name)
	}
	return nil
}

// With returns the model seen through the named adapters, in this order; with no
// name, the base alone.
func (pm *PeftModel) With(names ...string) (*PeftModel, error) {
	for i, name := range names {
		if _, err := pm.set.get(name); err != nil {
			return nil, err
		}
		if slices.Contains(names[:i], name) {
			return nil, fmt.Errorf("peft: adapter %q is named twice", name)
		}
	}
	return &PeftModel{set: pm.set, active: slices.Clone(names)}, nil
}

func (s *adapterSet) get(name string) (*namedAdapter, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	na, ok := s.adapters[name]
	if !ok {
		return nil, fmt.Errorf("peft: %w %q (the model has %s)", ErrUnknownAdapter, name, strings.Join(s.order, ", "))
	}
	return na, nil
}

// Base returns the frozen base.
func (pm *PeftModel) Base() site.Base { return pm.set.base }

// Adapters returns the names of all adapters in the order they were added.
func (pm *PeftModel) Adapters() []string {
	pm.set.mu.RLock()
	defer pm.set.mu.RUnlock()
	return slices.Clone(pm.set.order)
}

// Active returns the names of the adapters of this view.
func (pm *PeftModel) Active() []string { return slices.Clone(pm.active) }

// Config returns the named adapter's configuration.
func (pm *PeftModel) Config(name string) (Config, error) {
	na, err := pm.set.get(name)
	if err != nil {
		return nil, err
	}
	return na.config, nil
}

// Layout returns the layout of the named adapter's values.
func (pm *PeftModel) Layout(name string) (*Layout, error) {
	na, err := pm.set.get(name)
	if err != nil {
		return nil, err
	}
	return na.layout, nil
}

// Values returns the named adapter's values as program arguments. The tensors are
// shared and must not be changed.
func (pm *PeftModel) Values(name string) ([]*tensors.Tensor, error) {
	pm.set.mu.RLock()
	defer pm.set.mu.RUnlock()
	na, ok := pm.set.adapters[name]
	if !ok {
		return nil, fmt.Errorf("peft: %w %q", ErrUnknownAdapter, name)
	}
	return slices.Clone(na.arguments), nil
}

// SetValues replaces the named adapter's values. The model owns the tensors from
// then on. Programs that are running keep the old ones.
func (pm *PeftModel) SetValues(name string, arguments []*tensors.Tensor) error {
	pm.set.mu.Lock()
	defer pm.set.mu.Unlock()
	na, ok := pm.set.adapters[name]
	if !ok {
		return fmt.Errorf("peft: %w %q", ErrUnknownAdapter, name)
	}
	if err := na.layout.check(arguments); err != nil {
		return err
	}
	na.arguments = slices.Clone(arguments)
	return nil
}

// TensorValues returns the named adapter's tensors by their names in the file
// (without prefix), copied to the host.
func (pm *PeftModel) TensorValues(name string) (map[string][]float32, error) {
	arguments, err := pm.Values(name)
	if err != nil {
		return nil, err
	}
	layout, err := pm.Layout(name)
	if err != nil {
		return nil, err
	}
	return layout.Host(arguments)
}

// LanguageModel implements [site.View]; it is nil when the base is no language model.
func (pm *PeftModel) LanguageModel() site.LanguageModel {
	lm, _ := pm.set.base.(site.LanguageModel)
	return lm
}

// Arguments implements [site.View]: the active adapters' values in order.
func (pm *PeftModel) Arguments() ([]*tensors.Tensor, error) {
	var all []*tensors.Tensor
	for _, name := range pm.active {
		values, err := pm.Values(name)
		if err != nil {
			return nil, err
		}
		all = append(all, values...)
	}
	return all, nil
}

// NumArguments is the number of tensors that Arguments returns.
func (pm *PeftModel) NumArguments() (int, error) {
	n := 0
	for _, name := range pm.active {
		layout, err := pm.Layout(name)
		if err != nil {
			return 0, err
		}
		n += layout.NumArguments()
	}
	return n, nil
}

// Bind binds the active adapters to the argument nodes of a graph under construction.
func (pm *PeftModel) Bind(arguments []*graph.Node) (*Binding, error) {
	var active []boundAdapter
	for _, name := range pm.active {
		na, err := pm.set.get(name)
		if err != nil {
			return nil, err
		}
		n := na.layout.NumArguments()
		if len(arguments) < n {
			return nil, fmt.Errorf("peft: binding adapter %q: want %d arguments, got %d", name, n, len(arguments))
		}
		active = append(active, boundAdapter{na.adapter, na.layout.Bind(arguments[:n])})
		arguments = arguments[n:]
	}
	if len(arguments) > 0 {
		return nil, fmt.Errorf("peft: binding adapters: %d arguments too many", len(arguments))
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
		if na, err := pm.set.get(name); err == nil { // a view's adapters stay
			all = append(all, na.structure)
		}
	}
	return strings.Join(all, "\x00")
}

// structure is all that a program with the adapter depends on: whatever its
// configuration holds but for what is common to all methods, which names bases and
// versions, and the tensors.
func structure(config Config, layout *Layout) string {
	h := sha256.New()
	fmt.Fprintf(h, "%#v", config.WithCommon(PeftConfig{}))
	for _, p := range layout.Params() {
		fmt.Fprintf(h, "\x00%s%v", p.Name, p.Shape)
	}
	return string(h.Sum(nil))
}
