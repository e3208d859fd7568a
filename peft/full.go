package peft

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/gopeft/gopeft/site"
)

// Full is full fine-tuning as a method: the parameters of the base, or of some of
// its modules, are trainable copies in float32 that replace the base's. Like any
// adapter it leaves the base as it was.
//
// It has no file in peft's format: [PeftModel.Merge] writes a checkpoint of the whole model.
type Full struct {
	PeftConfig
	// TargetModules are the modules whose parameters are trained, norms and
	// embeddings included. The zero value means every parameter of the base.
	TargetModules Targets `json:"target_modules"`
	// ExcludeModules are the modules that stay frozen.
	ExcludeModules Targets `json:"exclude_modules"`
}

// fullType is no peft_type of peft's.
const fullType = "FULL"

// PeftType implements [Config].
func (Full) PeftType() string { return fullType }

// WithCommon implements [Config].
func (c Full) WithCommon(common PeftConfig) Config {
	c.PeftConfig = common
	return c
}

func (c Full) selection() Selection {
	s := Selection{TargetModules: c.TargetModules, ExcludeModules: c.ExcludeModules}
	if s.TargetModules.IsZero() {
		s.TargetModules = Regex(`.*`)
	}
	return s
}

// Validate implements [Config].
func (c Full) Validate() error {
	if err := c.selection().Validate(); err != nil {
		return fmt.Errorf("peft: full fine-tuning: %w", err)
	}
	return nil
}

// unsaveable implements the check of [PeftModel.SavePretrained].
func (Full) unsaveable() error {
	return errors.New("full fine-tuning has no adapter file: use Merge to write a checkpoint")
}

// Attach implements [Config].
func (c Full) Attach(base site.Base) (Adapter, error) {
	targets, counts, err := c.selection().Match(withOwnParameters(base), NoneUnused)
	if err != nil {
		return nil, fmt.Errorf("peft: full fine-tuning: %w", err)
	}
	a := &full{copies: newCopies(), patterns: counts}
	a.copies.targets = targets
	chosen := map[string]bool{}
	for _, m := range targets {
		chosen[m.Path] = true
	}
	owner := ownersIn(base)
	for _, p := range base.Parameters() {
		if chosen[owner(p.Name)] {
			a.copyParameter(base, p, p.Name)
			a.params[len(a.params)-1].InBase = true
		}
	}
	return a, nil
}

// owner is the path of the module that a parameter belongs to.
func owner(parameter string) string {
	return parameter[:max(0, strings.LastIndexByte(parameter, '.'))]
}

// ownersIn is owner for the parameters of a base, whose modules may name theirs otherwise.
func ownersIn(base site.Base) func(parameter string) string {
	paths := map[string]string{}
	for _, m := range base.Modules() {
		if m.TiedTo == "" {
			paths[m.Weight()] = m.Path
		}
		if m.Bias && !m.Replica {
			paths[m.BiasName()] = m.Path
		}
	}
	return func(parameter string) string {
		if path, ok := paths[parameter]; ok {
			return path
		}
		return owner(parameter)
	}
}

// withOwnParameters returns the base's modules that have parameters of their own (a
// tied head has none), and a nameless kind for parameters outside of all.
func withOwnParameters(base site.Base) []site.Module {
	byPath := map[string]site.Module{}
	for _, m := range base.Modules() {
		byPath[m.Path] = m
	}
	var out []site.Module
	listed := map[string]bool{}
	owner := ownersIn(base)
	for _, p := range base.Parameters() {
		path := owner(p.Name)
		if listed[path] {
			continue
		}
		listed[path] = true
		m, ok := byPath[path]
		if !ok {
			last := p.Shape[max(0, len(p.Shape)-1):]
			m = site.Module{Path: path, Kind: site.Norm}
			if len(last) == 1 {
				m.In, m.Out = last[0], last[0]
			}
		}
		out = append(out, m)
	}
	return out
}

// baseInit starts a tensor at the base's value.
func baseInit(base site.Base, p site.Parameter) func(*rand.Rand, []float32) error {
	return func(_ *rand.Rand, values []float32) error {
		_, err := readBase(base, p, values)
		return err
	}
}

// full is a Full planned on a base.
type full struct {
	*copies
	patterns []PatternCount
}

var _ Describer = (*full)(nil)

// Patterns implements [Describer].
func (a *full) Patterns() []PatternCount { return a.patterns }

// Describe implements [Describer].
func (a *full) Describe(site.Module) []Setting { return nil }
