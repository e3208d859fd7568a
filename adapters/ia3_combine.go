package adapters

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/gopeft/gopeft/peft"
)

// IA3Combination says which adapters of a model are combined, and how.
type IA3Combination struct {
	// Adapters are names in the model, and Weights theirs, which may be negative.
	Adapters []string
	Weights  []float64
}

// AddWeightedIA3 adds an IA3 adapter whose vectors are the weighted sums of those of others
// of the model, Σ w·l, under a new name. (add_weighted_adapter of peft's IA3Model.) It is an
// adapter like any other: it can be saved and trained, and is not active. With weights that
// do not add up to 1 the sum of adapters that change nothing changes the model.
//
// The adapters must be IA3s that scale the same modules, at the same side, and nothing else
// (no whole modules). (In peft one that lacks a module counts there as zeros, and not as
// the ones by which it leaves the module alone.) On error nothing changes.
func AddWeightedIA3(pm *peft.PeftModel, name string, c IA3Combination) error {
	if err := c.add(pm, name); err != nil {
		return fmt.Errorf("ia3: combine adapters %s: %w", strings.Join(c.Adapters, ", "), err)
	}
	return nil
}

func (c IA3Combination) add(pm *peft.PeftModel, name string) error {
	if slices.Contains(pm.Adapters(), name) {
		return fmt.Errorf("adapter %q already exists", name)
	}
	if err := c.check(); err != nil {
		return err
	}
	sums := map[string][]float64{}
	var first *ia3
	for i, adapter := range c.Adapters {
		a, err := ia3Of(pm, adapter)
		if err != nil {
			return err
		}
		if first == nil {
			first = a
		}
		if err := sameLayers(first, a, c.Adapters[0], adapter); err != nil {
			return err
		}
		values, err := pm.TensorValues(adapter)
		if err != nil {
			return err
		}
		for _, l := range a.layers {
			sum := sums[l.name()]
			if sum == nil {
				sum = make([]float64, l.features())
				sums[l.name()] = sum
			}
			for j, v := range values[l.name()] {
				sum[j] += c.Weights[i] * float64(v)
			}
		}
	}
	rounded := map[string][]float32{}
	for name, sum := range sums {
		list := make([]float32, len(sum))
		for i, v := range sum {
			list[i] = float32(v)
			if math.IsInf(float64(list[i]), 0) {
				return fmt.Errorf("the sum of %q is %v at %d, too large for float32", name, v, i)
			}
		}
		rounded[name] = list
	}
	config := first.config
	config.name(first.targets, pm.Base().Modules(), first.forward)
	config.ExcludeModules, config.InitIA3Weights = peft.Targets{}, peft.On
	return pm.AddAdapterWith(config, func(name string) []float32 { return rounded[name] }, peft.Options{Name: name})
}

// check is what needs no model.
func (c IA3Combination) check() error {
	if len(c.Adapters) == 0 {
		return errors.New("no adapter is named")
	}
	if len(c.Adapters) != len(c.Weights) {
		return fmt.Errorf("%d adapters have %d weights", len(c.Adapters), len(c.Weights))
	}
	for i, w := range c.Weights {
		if math.IsNaN(w) || math.IsInf(w, 0) {
			return fmt.Errorf("the weight of %q is %v", c.Adapters[i], w)
		}
		if slices.Contains(c.Adapters[:i], c.Adapters[i]) {
			return fmt.Errorf("adapter %q is named twice", c.Adapters[i])
		}
	}
	return nil
}

// ia3Of returns a named adapter of the model that is an IA3 alone.
func ia3Of(pm *peft.PeftModel, name string) (*ia3, error) {
	parts, err := pm.Parts(name)
	if err != nil {
		return nil, err
	}
	config, err := pm.Config(name)
	if err != nil {
		return nil, err
	}
	a, ok := parts[0].(*ia3)
	if !ok {
		return nil, fmt.Errorf("adapter %q: its method is %s, want %s", name, config.PeftType(), IA3Type)
	}
	if len(parts) != len(a.parts()) {
		return nil, fmt.Errorf("adapter %q also trains whole modules (modules_to_save), which cannot be combined", name)
	}
	return a, nil
}

// sameLayers refuses adapters that do not scale the same.
func sameLayers(a, b *ia3, nameA, nameB string) error {
	for path, l := range a.layers {
		other, ok := b.layers[path]
		if !ok {
			return fmt.Errorf("adapter %q scales %q, but adapter %q does not", nameA, path, nameB)
		}
		if l.forward != other.forward {
			return fmt.Errorf("%q is a feed-forward module for one of the adapters %q and %q alone", path, nameA, nameB)
		}
	}
	for path := range b.layers {
		if _, ok := a.layers[path]; !ok {
			return fmt.Errorf("adapter %q scales %q, but adapter %q does not", nameB, path, nameA)
		}
	}
	return nil
}
