package peft

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/gomlx/gomlx/core/tensors"

	"github.com/gopeft/gopeft/internal/suggest"
	"github.com/gopeft/gopeft/site"
)

// DefaultAdapter is the name of an adapter that was not given one.
const DefaultAdapter = "default"

// BaseModel stands for the base without adapters where every row of a batch names one,
// see [PeftModel.Mixed].
const BaseModel = "__base__"

// ErrUnknownAdapter is wrapped by errors about an adapter name that the model does not have.
var ErrUnknownAdapter = errors.New("unknown adapter")

// PeftModel is a frozen base with named adapters, seen through a selection of
// them. The selection is fixed: [PeftModel.With] returns another view of the same
// adapters, and a view keeps its adapters under the names that it was made with, whatever
// is added, renamed or deleted since. A PeftModel is safe for concurrent use.
type PeftModel struct {
	set    *adapterSet
	active []string
	// held are the adapters of active.
	held []*namedAdapter
	// frozen lists those of active that are not trained.
	frozen []string
}

// adapterSet is what all views of one model share.
type adapterSet struct {
	base site.Base
	// ranges of the layers that base was made of, nil for those it has by itself.
	ranges   [][2]int
	mu       sync.RWMutex
	adapters map[string]*namedAdapter
	order    []string
	stacks   stackCache
}

// namedAdapter is what a name stands for. Its fields are read and changed under the
// set's lock; what is read outside of it is a copy, see PeftModel.get.
type namedAdapter struct {
	config  Config
	adapter Adapter
	// parts are the adapters that adapter is composed of.
	parts []Adapter
	// layout holds the trainable tensors, constantLayout the frozen ones (nil without any).
	layout, constantLayout *Layout
	// structure, see identity.
	structure string
	// arguments and constants are replaced as a whole and never changed in place, so that
	// a program that runs keeps what it was given.
	arguments, constants []*tensors.Tensor
	// report says what was read from a file, if the values were.
	report LoadReport
	// maxRank, see Options.MaxRank.
	maxRank int
}

// numConstants is the number of tensors that hold the constants.
func (na *namedAdapter) numConstants() int {
	if na.constantLayout == nil {
		return 0
	}
	return na.constantLayout.NumArguments()
}

// Options are the settings of [GetPeftModel] and [PeftModel.AddAdapter].
type Options struct {
	// Name of the adapter; [DefaultAdapter] when empty.
	Name string
	// Seed of the initial values, which derive from (Seed, tensor name).
	Seed uint64
	// MaxRank, if not 0, lays the adapter out for ranks up to it, with zeros behind its own
	// rank and its scale as an input: then every adapter of these targets and this MaxRank
	// runs in the same compiled programs, whatever its rank and alpha, and
	// [PeftModel.SwapAdapter] can put others in its place. Files have the true rank. Methods
	// without a rank refuse it.
	MaxRank int
}

// GetPeftModel attaches a new adapter to a base and makes it active. The base
// stays as it was. At most one Options is used.
func GetPeftModel(base site.Base, config Config, options ...Options) (*PeftModel, error) {
	set, err := newSet(base, config)
	if err != nil {
		return nil, err
	}
	pm := &PeftModel{set: set}
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
	if err := pm.set.checkRanges(config); err != nil {
		return err
	}
	na, err := plan(pm.set.base, config, false, o.MaxRank)
	if err != nil {
		return err
	}
	if na.arguments, na.constants, err = na.initial(pm.set.base.Backend(), o.Seed, nil); err != nil {
		return err
	}
	return pm.set.add(o.name(), na)
}

var errNoConfig = errors.New("peft: configuration is nil")

// plan validates a configuration and lays its tensors out on a base. reading is
// true for the configuration of a file, see [PeftConfig.Reading]; maxRank see [Options].
func plan(base site.Base, config Config, reading bool, maxRank int) (*namedAdapter, error) {
	if config == nil {
		return nil, errNoConfig
	}
	if maxRank < 0 {
		return nil, fmt.Errorf("peft: MaxRank is %d, want 0 (none) or more", maxRank)
	}
	config = copied(config)
	common := config.Common()
	common.reading, common.maxRank = reading, maxRank
	if err := checkTaskType(common.TaskType); err != nil {
		return nil, err
	}
	if common.TaskType == "" && !reading {
		common.TaskType = taskType(base)
	}
	if common.BaseModelNameOrPath == "" {
		common.BaseModelNameOrPath = base.NameOrPath()
	}
	config = config.WithCommon(common)
	if err := config.Validate(); err != nil {
		return nil, err
	}
	adapter, err := config.Attach(base)
	if err == nil {
		err = checkTargets(base, adapter)
	}
	if err != nil {
		return nil, err
	}
	na := &namedAdapter{adapter: adapter, parts: partsOf(adapter), maxRank: maxRank}
	if _, ok := na.parts[0].(Swappable); !ok && maxRank > 0 {
		return nil, fmt.Errorf("peft: MaxRank is %d, but adapters of method %s have no rank that can be padded", maxRank, config.PeftType())
	}
	if err := na.lay(); err != nil {
		return nil, err
	}
	if len(na.layout.Params()) == 0 {
		return nil, fmt.Errorf("peft: %s adapter has no trainable tensor", config.PeftType())
	}
	if c, ok := na.parts[0].(Configured); ok {
		config = c.Config()
	}
	common.reading, common.maxRank, common.besides = false, 0, false
	na.config = config.WithCommon(common)
	na.structure = na.identity()
	return na, nil
}

// taskTypes are those that peft knows.
var taskTypes = []string{"SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"}

func checkTaskType(t string) error {
	if t == "" || slices.Contains(taskTypes, t) {
		return nil
	}
	return fmt.Errorf("peft: invalid task_type %q, want one of %s%s", t, strings.Join(taskTypes, ", "), suggest.DidYouMean(t, taskTypes))
}

// lay lays out trainable tensors and constants.
func (na *namedAdapter) lay() (err error) {
	var trained, frozen []Param
	for _, p := range na.adapter.Params() {
		switch {
		case slices.Contains(p.Shape, 0), p.Computed: // in files alone
		case p.Frozen:
			frozen = append(frozen, p)
		default:
			trained = append(trained, p)
		}
	}
	if na.layout, err = NewLayout(trained); err != nil {
		return err
	}
	if len(frozen) > 0 {
		na.constantLayout, err = NewLayout(frozen)
	}
	return err
}

// taskType is what an adapter made on a base is for, unless it says otherwise.
func taskType(base site.Base) string {
	if t, ok := base.(site.Tasked); ok {
		return t.TaskType()
	}
	if _, ok := base.(site.LanguageModel); ok {
		return "CAUSAL_LM"
	}
	return ""
}

func (s *adapterSet) add(name string, na *namedAdapter) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := settle(s.base.Backend(), na.arguments, na.constants); err != nil {
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

// checkName refuses names that could not be a folder's name, and the one that stands for
// the base.
func checkName(name string) error {
	if name == BaseModel {
		return fmt.Errorf("peft: adapter name %q stands for the base without adapters", name)
	}
	reserved := []string{"", ".", "..", configFile, weightsFile, cardFile, indexFile}
	if slices.Contains(reserved, name) || strings.ContainsAny(name, "/\\\x00") {
		return fmt.Errorf("peft: adapter name %q is not usable as a folder name", name)
	}
	return nil
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

// Config returns a copy of the named adapter's configuration.
func (pm *PeftModel) Config(name string) (Config, error) {
	na, err := pm.get(name)
	if err != nil {
		return nil, err
	}
	return copied(na.config), nil
}

// Layout returns the layout of the named adapter's trainable values.
func (pm *PeftModel) Layout(name string) (*Layout, error) {
	na, err := pm.get(name)
	if err != nil {
		return nil, err
	}
	return na.layout, nil
}

// ConstantLayout returns the layout of the named adapter's constants, nil without any.
func (pm *PeftModel) ConstantLayout(name string) (*Layout, error) {
	na, err := pm.get(name)
	if err != nil {
		return nil, err
	}
	return na.constantLayout, nil
}

// Values returns the named adapter's values as program arguments. The tensors are
// shared and must not be changed.
func (pm *PeftModel) Values(name string) ([]*tensors.Tensor, error) {
	na, err := pm.get(name)
	if err != nil {
		return nil, err
	}
	return slices.Clone(na.arguments), nil
}

// SetValues replaces the named adapter's values. The model owns the tensors from
// then on. Programs that are running keep the old ones.
func (pm *PeftModel) SetValues(name string, arguments []*tensors.Tensor) error {
	if err := settle(pm.set.base.Backend(), arguments); err != nil {
		return err
	}
	pm.set.mu.Lock()
	defer pm.set.mu.Unlock()
	na, err := pm.live(name)
	if err != nil {
		return err
	}
	if err := na.layout.check(arguments); err != nil {
		return err
	}
	na.arguments = slices.Clone(arguments)
	return nil
}

// SetConstants replaces the named adapter's constants, see [Param.Frozen].
func (pm *PeftModel) SetConstants(name string, constants []*tensors.Tensor) error {
	if err := settle(pm.set.base.Backend(), constants); err != nil {
		return err
	}
	pm.set.mu.Lock()
	defer pm.set.mu.Unlock()
	na, err := pm.live(name)
	if err != nil {
		return err
	}
	if na.constantLayout == nil {
		return fmt.Errorf("peft: adapter %q has no constants", name)
	}
	if err := na.constantLayout.check(constants); err != nil {
		return err
	}
	na.constants = slices.Clone(constants)
	return nil
}

// TensorValues returns the named adapter's tensors by their names in the file
// (without prefix), constants too, copied to the host.
func (pm *PeftModel) TensorValues(name string) (map[string][]float32, error) {
	na, err := pm.get(name)
	if err != nil {
		return nil, err
	}
	return na.host()
}

// host copies all tensors to the host.
func (na namedAdapter) host() (map[string][]float32, error) {
	values, err := na.layout.Host(na.arguments)
	if err != nil || na.constantLayout == nil {
		return values, err
	}
	constants, err := na.constantLayout.Host(na.constants)
	maps.Copy(values, constants)
	return values, err
}
