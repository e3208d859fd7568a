package peft

import (
	"fmt"
	"slices"
	"strings"

	"github.com/gopeft/gopeft/site"
)

// This file has what changes the set of adapters besides adding: see [PeftModel.With] for
// what is active, [PeftModel.Training] for what is trained. To run the base alone for a
// while, use pm.With().

// DeleteAdapter takes an adapter out of the model; its name is free again. An adapter that
// is active in the view pm is an error, since a view is a fixed selection: delete it through
// another one, such as pm.With(). Views that were made with it before keep it, and work as
// they did, until the last of them is gone and its memory with it.
func (pm *PeftModel) DeleteAdapter(name string) error {
	if slices.Contains(pm.active, name) {
		return fmt.Errorf("peft: delete adapter %q: it is active in this view (active are %s): delete it through a view without it, such as With()",
			name, strings.Join(pm.active, ", "))
	}
	s := pm.set
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.adapters[name]; !ok {
		return fmt.Errorf("peft: delete adapter: %w", s.unknown(name))
	}
	delete(s.adapters, name)
	s.order = slices.DeleteFunc(s.order, func(n string) bool { return n == name })
	s.stacks.clear()
	return nil
}

// RenameAdapter gives an adapter another name, in the same place of the order. Views that
// were made before keep the old one, also for what [PeftModel.SavePretrained] calls it.
func (pm *PeftModel) RenameAdapter(name, to string) error {
	if err := checkName(to); err != nil {
		return err
	}
	s := pm.set
	s.mu.Lock()
	defer s.mu.Unlock()
	na, ok := s.adapters[name]
	if !ok {
		return fmt.Errorf("peft: rename adapter: %w", s.unknown(name))
	}
	if _, taken := s.adapters[to]; taken {
		return fmt.Errorf("peft: rename adapter %q: adapter %q already exists", name, to)
	}
	delete(s.adapters, name)
	s.adapters[to] = na
	s.order[slices.Index(s.order, name)] = to
	return nil
}

// Parts returns what the named adapter was planned as: the parts that [Compose] joined, or
// the one that it is. Methods find their own among them.
func (pm *PeftModel) Parts(name string) ([]Adapter, error) {
	na, err := pm.get(name)
	if err != nil {
		return nil, err
	}
	return slices.Clone(na.parts), nil
}

// FileTensors returns the tensors that a file of the named adapter would hold.
func (pm *PeftModel) FileTensors(name string) ([]FileTensor, error) {
	na, err := pm.get(name)
	if err != nil {
		return nil, err
	}
	_, tensors, err := na.fileForm()
	return tensors, err
}

// AddAdapterWith is [PeftModel.AddAdapter] with values that are given for the names of the
// tensors, in the shapes of the file.
func (pm *PeftModel) AddAdapterWith(config Config, values func(name string) []float32, options ...Options) error {
	o := first(options)
	if err := pm.set.checkRanges(config); err != nil {
		return err
	}
	na, err := plan(pm.set.base, config, false, o.MaxRank)
	if err != nil {
		return err
	}
	na.arguments, na.constants, err = na.initial(pm.set.base.Backend(), o.Seed, func(p Param, to []float32) (bool, error) {
		if p.Unsaved {
			return false, nil
		}
		given := values(p.Name)
		if len(given) != len(to) {
			return false, fmt.Errorf("peft: tensor %q: want %d values, got %d", p.Name, len(to), len(given))
		}
		copy(to, given)
		return true, checkFinite(p.Name, to)
	})
	if err != nil {
		return err
	}
	return pm.set.add(o.name(), na)
}

// LoadReport says how the tensors of the file that the named adapter was read from became
// its values; it is empty for an adapter that was not read from a file.
func (pm *PeftModel) LoadReport(name string) (LoadReport, error) {
	na, err := pm.get(name)
	if err != nil {
		return LoadReport{}, err
	}
	return na.report, nil
}

// conflict reports two of the view's adapters of which only one could count.
func (pm *PeftModel) conflict() error {
	if err := pm.virtualConflict(); err != nil {
		return err
	}
	if len(pm.held) < 2 {
		return nil
	}
	by := map[string]string{}
	for i, na := range pm.held {
		for _, what := range na.replaced(pm.set.base) {
			if other, ok := by[what]; ok && other != pm.active[i] {
				return fmt.Errorf("peft: adapters %q and %q both replace %q: they cannot be active together", other, pm.active[i], what)
			}
			by[what] = pm.active[i]
		}
	}
	return pm.rowConflict(by)
}

// replaced lists the parameters and modules of the base that the adapter's own copies
// stand in for.
func (na *namedAdapter) replaced(base site.Base) []string {
	var all []string
	for _, part := range na.parts {
		_, partial := part.(PartialModuleAdapter)
		if m, ok := part.(ModuleAdapter); ok && !partial {
			for _, target := range part.Targets() {
				if m.ReplacesModule(target.Path) {
					all = append(all, target.Path)
				}
			}
		}
		if p, ok := part.(ParameterAdapter); ok {
			if _, partial := part.(PartialParameterAdapter); partial {
				continue
			}
			for _, parameter := range base.Parameters() {
				if p.Replaces(parameter.Name) {
					all = append(all, parameter.Name)
				}
			}
		}
	}
	return all
}
