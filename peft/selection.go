package peft

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/gopeft/gopeft/site"
)

// Selection says which modules of a base a method adapts. Its rules are those of
// peft (check_target_module_exists in tuners_utils.py), but that what peft passes
// over in silence is an error: each name, pattern and layer must have an effect.
type Selection struct {
	TargetModules Targets
	// ExcludeModules are never adapted.
	ExcludeModules Targets
	// LayersToTransform restricts targets that end a path to layers with these
	// indices; a target that is a module's whole path is not restricted. Empty: all.
	LayersToTransform Layers
	// LayersPattern names the list that the indices count in ("layers"), as Python
	// regular expressions. Empty: the first number in the path that follows a name.
	LayersPattern Strings
	// ModulesToSave are trained as a whole: neither they nor anything inside them is
	// adapted.
	ModulesToSave Strings
}

// PatternCount says how many modules one entry of a configuration decided about.
type PatternCount struct {
	// Option is the entry's list, "target_modules".
	Option string
	// Pattern is the entry itself.
	Pattern string
	Modules int
}

// Validate reports combinations that make no sense on any base.
func (s Selection) Validate() error {
	switch {
	case s.TargetModules.names != nil && len(s.TargetModules.names) == 0:
		return errors.New("target_modules is an empty list; leave it out for the default of the base's model_type")
	case slices.Contains(s.TargetModules.names, "") || slices.Contains(s.ExcludeModules.names, ""):
		return errors.New("a module name is empty")
	case s.ExcludeModules.all:
		return errors.New(`exclude_modules cannot be "all-linear"`)
	case len(s.LayersToTransform) > 0 && s.TargetModules.isText():
		return fmt.Errorf("layers_to_transform cannot be used with target_modules %s, only with names", s.TargetModules)
	case len(s.LayersPattern) > 0 && s.TargetModules.isText():
		return fmt.Errorf("layers_pattern cannot be used with target_modules %s, only with names", s.TargetModules)
	case len(s.LayersPattern) > 0 && len(s.LayersToTransform) == 0:
		return errors.New("layers_pattern needs layers_to_transform")
	}
	for _, l := range s.LayersToTransform {
		if l < 0 {
			return fmt.Errorf("layers_to_transform: layer %d is negative", l)
		}
	}
	return nil
}

// Unused says which entries of a configuration may be without effect.
type Unused int

const (
	// NoneUnused: every entry must have an effect.
	NoneUnused Unused = iota
	// TargetsUnused: not all targets must match, as a default has names for several
	// variants of a model type.
	TargetsUnused
	// AnyUnused: for the configuration of a file, see [PeftConfig.Reading].
	AnyUnused
)

// Match returns the selected modules in the order given, and what each entry did.
// It is an error if an entry has no effect, unless allowed, or if nothing is
// selected; all entries without effect are in one error.
func (s Selection) Match(modules []site.Module, allowed Unused) ([]site.Module, []PatternCount, error) {
	if err := s.Validate(); err != nil {
		return nil, nil, err
	}
	m, err := s.compile()
	if err != nil {
		return nil, nil, err
	}
	for _, module := range modules {
		if err := m.add(module); err != nil {
			return nil, nil, err
		}
	}
	paths := make([]string, len(modules))
	for i, module := range modules {
		paths[i] = module.Path
	}
	targets, others := m.unusedTargets(paths), m.unusedOthers(paths)
	switch {
	case len(m.selected) == 0 && len(targets)+len(others) == 0:
		return nil, nil, errors.New("no module is selected")
	case len(m.selected) == 0 || allowed == NoneUnused && len(targets) > 0:
		return nil, nil, errors.Join(append(targets, others...)...)
	case allowed != AnyUnused && len(others) > 0:
		return nil, nil, errors.Join(others...)
	}
	return m.selected, m.counts(), nil
}

// selector is a selection compiled, with what it has matched so far.
type selector struct {
	Selection
	target, exclude *entries
	layerPatterns   []*pythonRegexp
	layerCount      map[int]int
	patternCount    []int
	layersSeen      []int
	selected        []site.Module
}

func (s Selection) compile() (*selector, error) {
	m := &selector{Selection: s, layerCount: map[int]int{}}
	var err error
	if m.target, err = compileEntries("target_modules", s.TargetModules); err != nil {
		return nil, err
	}
	if m.exclude, err = compileEntries("exclude_modules", s.ExcludeModules); err != nil {
		return nil, err
	}
	if len(s.LayersToTransform) == 0 {
		return m, nil
	}
	patterns, format := []string(s.LayersPattern), `\A(?:^|.*?\.)%s\.(?<index>\d+)\.`
	if len(patterns) == 0 {
		patterns, format = []string{`[^.]*`}, `\A.*?\.%s\.(?<index>\d+)\.`
	}
	for _, p := range patterns {
		re, err := compilePython(format, p)
		if err != nil {
			return nil, fmt.Errorf("layers_pattern: %w", err)
		}
		m.layerPatterns = append(m.layerPatterns, re)
	}
	m.patternCount = make([]int, len(patterns))
	return m, nil
}

// add decides about one module.
func (m *selector) add(module site.Module) error {
	excluded, _, err := m.exclude.match(module)
	if err != nil {
		return err
	}
	for _, i := range excluded {
		m.exclude.kept[i]++
	}
	hit, whole, err := m.target.match(module)
	if err != nil || len(hit) == 0 || len(excluded) > 0 || m.saved(module.Path) {
		return err
	}
	if len(m.LayersToTransform) > 0 && !whole {
		layer, err := m.layer(module.Path)
		if err != nil || layer < 0 {
			return err
		}
		m.layersSeen = append(m.layersSeen, layer)
		if !slices.Contains(m.LayersToTransform, layer) {
			return nil
		}
		m.layerCount[layer]++
	}
	for _, i := range hit {
		m.target.kept[i]++
	}
	m.selected = append(m.selected, module)
	return nil
}

// saved reports whether a path lies in a module that is trained as a whole.
func (m *selector) saved(path string) bool {
	return slices.ContainsFunc(m.ModulesToSave, func(name string) bool {
		return name != "" && strings.Contains("."+path+".", "."+name+".")
	})
}

// layer returns the index of the layer that a path lies in, or -1.
func (m *selector) layer(path string) (int, error) {
	layer := -1
	for i, re := range m.layerPatterns {
		ok, index, err := re.match(path)
		if err != nil {
			return 0, fmt.Errorf("layers_pattern: %w", err)
		}
		if !ok {
			continue
		}
		m.patternCount[i]++
		if layer < 0 {
			if n, err := strconv.Atoi(index); err == nil {
				layer = n
			}
		}
	}
	return layer, nil
}

func (m *selector) counts() []PatternCount {
	counts := append(m.target.counts(), m.exclude.counts()...)
	for _, l := range m.LayersToTransform {
		counts = append(counts, PatternCount{"layers_to_transform", strconv.Itoa(l), m.layerCount[l]})
	}
	for i, p := range m.LayersPattern {
		counts = append(counts, PatternCount{"layers_pattern", p, m.patternCount[i]})
	}
	return counts
}

// unusedTargets returns one error for each target without effect.
func (m *selector) unusedTargets(paths []string) []error {
	var errs []error
	for i, n := range m.target.kept {
		if n > 0 {
			continue
		}
		if found := m.target.found[i]; found > 0 {
			by := "exclude_modules and layers_to_transform"
			if len(m.ModulesToSave) > 0 {
				by = "exclude_modules, layers_to_transform and modules_to_save"
			}
			errs = append(errs, fmt.Errorf("%s matches %d modules, but %s leave none of them", m.target.describe(i), found, by))
		} else {
			errs = append(errs, m.target.unknown(i, paths))
		}
	}
	return errs
}

// unusedOthers returns one error for each other entry without effect.
func (m *selector) unusedOthers(paths []string) []error {
	var errs []error
	for i, n := range m.exclude.kept {
		if n == 0 {
			errs = append(errs, m.exclude.unknown(i, paths))
		}
	}
	for _, l := range m.LayersToTransform {
		if m.layerCount[l] == 0 {
			errs = append(errs, fmt.Errorf("layers_to_transform: no target lies in layer %d%s", l, layerRange(m.layersSeen)))
		}
	}
	for i, p := range m.LayersPattern {
		if m.patternCount[i] == 0 {
			errs = append(errs, fmt.Errorf("layers_pattern: %q matches no target's path", p))
		}
	}
	return errs
}

func layerRange(layers []int) string {
	if len(layers) == 0 {
		return ""
	}
	return fmt.Sprintf(" (targets lie in layers %d to %d)", slices.Min(layers), slices.Max(layers))
}
