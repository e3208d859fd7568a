package peft

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/suggest"
	"github.com/gopeft/gopeft/site"
)

// SavedModules completes modules_to_save as peft does: a classifier's head is trained
// with any adapter. peft names both heads that there are, whichever the model has.
func (c PeftConfig) SavedModules(names Strings) Strings {
	if c.TaskType != "SEQ_CLS" && c.TaskType != "TOKEN_CLS" {
		return names
	}
	names = slices.Clone(names)
	for _, head := range classifierHeads {
		if !slices.Contains(names, head) {
			names = append(names, head)
		}
	}
	return names
}

var classifierHeads = []string{"classifier", "score"}

// CopyModules plans trainable copies of whole modules, which take their places: peft's
// modules_to_save. A name stands for every module whose path ends in it, with all that
// lies inside; as in peft, "classifier" is DistilBERT's pre_classifier too. It is an error
// if a name finds nothing, but that a base has one kind of classifier's head only. Without
// names the result is nil.
//
// A copy belongs to its module alone: that of an embedding leaves a head that shares the
// base's weight as it was, and the other way round.
func CopyModules(base site.Base, names Strings, common PeftConfig) (Adapter, error) {
	if len(names) == 0 {
		return nil, nil
	}
	c := newCopies()
	shared := sharedWeights(base)
	modules := base.Modules()
	used := make([]bool, len(names))
	inside := func(path string) bool {
		found := false
		for i, name := range names {
			if name != "" && isIn(path, name) {
				used[i], found = true, true
			}
		}
		return found
	}
	own := map[string]bool{} // parameters of modules that are replaced as such
	for _, m := range modules {
		if _, ok := shared[OwnWeight(m)]; ok && inside(m.Path) {
			if err := c.replaceModule(base, m); err != nil {
				return nil, fmt.Errorf("modules_to_save: %w", err)
			}
			own[OwnWeight(m)], own[ownBias(m)] = true, true
		}
	}
	owner := ownersIn(base)
	for _, p := range base.Parameters() {
		if !own[p.Name] && inside(owner(p.Name)) {
			c.copyParameter(base, p, p.Name)
		}
	}
	if err := unusedSaved(base, names, used, common.Reading()); err != nil {
		return nil, err
	}
	c.targets = slices.DeleteFunc(slices.Clone(modules), func(m site.Module) bool { return !inside(m.Path) })
	return c, nil
}

// isIn reports whether path is that of a module whose path ends in name, or of one inside it.
func isIn(path, name string) bool {
	return strings.HasSuffix(path, name) || strings.Contains(path, name+".")
}

func unusedSaved(base site.Base, names Strings, used []bool, reading bool) error {
	var errs []error
	for i, name := range names {
		if used[i] || reading || slices.Contains(classifierHeads, name) {
			continue
		}
		var paths []string
		owner := ownersIn(base)
		for _, p := range base.Parameters() {
			paths = append(paths, owner(p.Name))
		}
		errs = append(errs, fmt.Errorf("modules_to_save: %q matches nothing%s", name, suggest.DidYouMean(name, suffixes(paths, name))))
	}
	if len(errs) == 0 && !slices.Contains(used, true) {
		errs = append(errs, fmt.Errorf("modules_to_save: the base has none of %s", strings.Join(names, ", ")))
	}
	return errors.Join(errs...)
}

// CopyParameters plans trainable copies of parameters of the base, wherever they are used.
// key returns the name that a copy has in the adapter's file.
func CopyParameters(base site.Base, parameters []site.Parameter, key func(name string) string) Adapter {
	c := newCopies()
	for _, p := range parameters {
		c.copyParameter(base, p, key(p.Name))
	}
	return c
}

// copies are trainable copies of parameters of the base.
type copies struct {
	params []Param
	// tensor is the name of the copy of a replaced parameter, by the parameter's name.
	tensor map[string]string
	// names are the keys of tensor in the base's order, then the own weights of modules.
	names []string
	// modules are those that have copies of their own, by path.
	modules map[string]site.Module
	targets []site.Module
}

var (
	_ ParameterAdapter = (*copies)(nil)
	_ ModuleAdapter    = (*copies)(nil)
	_ Merger           = (*copies)(nil)
)

func newCopies() *copies {
	return &copies{tensor: map[string]string{}, modules: map[string]site.Module{}}
}

func (c *copies) copyParameter(base site.Base, p site.Parameter, name string) {
	c.tensor[p.Name] = name
	c.add(base, p, name, p.Name)
}

func (c *copies) add(base site.Base, p site.Parameter, name, merged string) {
	c.names = append(c.names, merged)
	c.params = append(c.params, Param{
		Name: name, Shape: slices.Clone(p.Shape), Init: baseInit(base, p),
		NoDecay: len(p.Shape) == 1, // biases and norms
		Group:   groupOf(p.Shape),
	})
}

// groupOf is the group in LoRA+ of a parameter of the base.
func groupOf(shape []int) Group {
	if len(shape) == 1 {
		return GroupB
	}
	return GroupOther
}

// replaceModule copies the parameters of a module that shares its weight.
func (c *copies) replaceModule(base site.Base, m site.Module) error {
	if m.Kind == site.Norm {
		return fmt.Errorf("%q is a norm that shares its values: it cannot be copied", m.Path)
	}
	c.modules[m.Path] = m
	c.add(base, site.Parameter{Name: m.Weight(), Shape: m.StoredShape()}, OwnWeight(m), OwnWeight(m))
	if m.Bias {
		name := ownBias(m)
		c.add(base, site.Parameter{Name: name, Shape: []int{m.Out}}, name, name)
	}
	return nil
}

// Params implements [Adapter].
func (c *copies) Params() []Param { return c.params }

// Targets implements [Adapter].
func (c *copies) Targets() []site.Module { return c.targets }

// Replaces implements [ParameterAdapter].
func (c *copies) Replaces(name string) bool { return c.tensor[name] != "" }

// Parameter implements [ParameterAdapter].
func (c *copies) Parameter(v *Values, _ *site.Pass, name string, _ func() *graph.Node) *graph.Node {
	return v.Get(c.tensor[name])
}

// ReplacesModule implements [ModuleAdapter].
func (c *copies) ReplacesModule(path string) bool {
	_, ok := c.modules[path]
	return ok
}

// Module implements [ModuleAdapter].
func (c *copies) Module(u *Use, x *graph.Node) *graph.Node {
	m := u.Site.Module
	y := u.Site.With(x, graph.ConvertDType(u.values.Get(OwnWeight(m)), u.Pass.DType))
	if m.Bias {
		bias := graph.ConvertDType(u.values.Get(ownBias(m)), u.Pass.DType)
		y = graph.Add(y, m.Expand(bias, y.Rank()))
	}
	return y
}

// ownBias is the name of a module's bias as if it shared none.
func ownBias(m site.Module) string {
	if m.Replica {
		return m.Path + ".bias"
	}
	return m.BiasName()
}

// Merges implements [Merger].
func (c *copies) Merges() []string { return c.names }

// Merge implements [Merger].
func (c *copies) Merge(name string, values, _ []float32, value func(name string) []float32) error {
	tensor := c.tensor[name]
	if tensor == "" {
		tensor = name
	}
	copy(values, value(tensor))
	return nil
}
