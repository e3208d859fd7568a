package peft

import (
	"errors"
	"fmt"
)

// Swappable is an adapter that can be laid out for a larger rank than its own, with its
// scale as a constant ([Param.Frozen]), see [Options].MaxRank. Attach does so if
// [PeftConfig.MaxRank] is not 0.
type Swappable interface {
	Adapter
	// ProgramConfig is the configuration without what programs other than those of
	// training do not depend on, or what shows in the tensors.
	ProgramConfig() Config
	// Swapped returns next, an adapter of the same method and MaxRank, laid out for the
	// targets of this one: those that next lacks are left alone. Targets of next that this
	// one lacks are an error.
	Swapped(next Adapter) (Adapter, error)
}

// SwapAdapter puts the adapter of a folder in the place of one that was made with
// [Options].MaxRank. Programs that were compiled for the old one run the new one: nothing
// is compiled again. Views see it from their next call on; a call that is running keeps
// the old values.
//
// The file's ranks may differ, up to MaxRank, and so may scales. It may lack targets of the
// adapter, which are then left alone, but not have others. On error nothing changes. While
// the adapter is being trained it must not be swapped.
func (pm *PeftModel) SwapAdapter(name, dir string) error {
	old, err := pm.get(name)
	if err != nil {
		return err
	}
	next, err := pm.swapped(old, dir)
	if err != nil {
		var report *LoadError
		if errors.As(err, &report) {
			return err
		}
		return fmt.Errorf("peft: swap adapter %q for %q: %w", name, dir, err)
	}
	if err := settle(pm.set.base.Backend(), next.arguments, next.constants); err != nil {
		return err
	}
	pm.set.mu.Lock()
	defer pm.set.mu.Unlock()
	na, err := pm.live(name)
	if err != nil {
		return err
	}
	if na.structure != next.structure {
		return fmt.Errorf("peft: swap adapter %q: it was replaced meanwhile", name)
	}
	*na = *next
	return nil
}

// swapped reads the adapter of a folder into the layout of old.
func (pm *PeftModel) swapped(old *namedAdapter, dir string) (*namedAdapter, error) {
	if old.maxRank == 0 {
		return nil, errors.New("it was made without Options.MaxRank, so its program depends on its rank and scale")
	}
	base := pm.set.base
	next, err := pm.set.planFile(dir, old.maxRank)
	if err != nil {
		return nil, err
	}
	if o, n := old.config.PeftType(), next.config.PeftType(); o != n {
		return nil, fmt.Errorf("the file's method is %s, want %s", n, o)
	}
	if len(old.parts) != 1 || len(next.parts) != 1 {
		return nil, errors.New("an adapter that also trains whole modules or biases cannot be swapped")
	}
	if next.adapter, err = old.parts[0].(Swappable).Swapped(next.adapter); err != nil {
		return nil, err
	}
	next.parts = partsOf(next.adapter)
	if err := next.lay(); err != nil {
		return nil, err
	}
	if next.structure = next.identity(); next.structure != old.structure {
		return nil, errors.New("the adapters need different programs: their options differ in more than rank and scale")
	}
	return next, next.read(base, dir)
}
