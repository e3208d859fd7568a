package lora

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// adapter is a LoRA planned on a base.
type adapter struct {
	config   LoraConfig
	targets  []site.Module
	layers   map[string]layer
	byWeight map[string]layer
	byBias   map[string]layer // with lora_bias
	params   []peft.Param
	patterns []peft.PatternCount
	modules  []site.Module // of the base
	// parameters are adapted as such; nil without any.
	parameters *parameters
	// maxRank is what the adapter is laid out for, 0 for its own ranks, see pad.
	maxRank int
}

var (
	_ peft.DeltaAdapter = (*adapter)(nil)
	_ peft.Merger       = (*adapter)(nil)
	_ peft.InputDropper = (*adapter)(nil)
	_ peft.Describer    = (*adapter)(nil)
	_ peft.Configured   = (*adapter)(nil)
)

func attach(c LoraConfig, base site.Base) (*adapter, error) {
	modules := base.Modules()
	c, targets, counts, err := c.match(base, modules)
	if err != nil {
		return nil, err
	}
	parameters, err := matchParameters(c, base, targets)
	if err != nil {
		return nil, err
	}
	c = c.complete(targets, modules)
	paths := make([]string, len(targets))
	for i, m := range targets {
		if m.Kind == site.Norm {
			return nil, fmt.Errorf("target module %q is a %s, want a linear layer, an embedding or a convolution", m.Path, m.Kind)
		}
		paths[i] = m.Path
	}
	for _, p := range parameters {
		paths = append(paths, p.Name)
	}
	ranks, rankCounts, rankErr := c.RankPattern.Values("rank_pattern", paths, float64(c.R), c.Reading())
	alphas, alphaCounts, alphaErr := c.AlphaPattern.Values("alpha_pattern", paths, c.LoraAlpha, c.Reading())
	if err := errors.Join(rankErr, alphaErr); err != nil {
		return nil, err
	}
	a := &adapter{
		config: c, targets: targets, patterns: append(append(counts, rankCounts...), alphaCounts...),
		layers: make(map[string]layer, len(targets)), byWeight: make(map[string]layer, len(targets)), byBias: map[string]layer{},
		modules: modules,
	}
	defer func() { a.config.calibration = nil }() // what is left of it are initial values
	s := c.newStarts(base)
	for i, m := range targets {
		l := layer{Module: m, r: int(ranks[i]), rank: int(ranks[i]), alpha: alphas[i]}
		l.scaling = Scaling(l.alpha, l.r, c.UseRSLoRA)
		l.residual = m.Kind == site.Linear && c.InitLoraWeights.residual()
		if l.residual {
			s.layers = append(s.layers, l)
		}
		if err := a.addTarget(base, l, s); err != nil {
			return nil, err
		}
	}
	n := len(targets)
	a.parameters = newParameters(c, parameters, ranks[n:], alphas[n:])
	if n := c.MaxRank(); n > 0 {
		if a.parameters != nil {
			return nil, errors.New("target_parameters cannot be padded to a MaxRank")
		}
		return a, a.pad(n)
	}
	return a, nil
}

// match returns the target modules and the configuration with the default for them filled in.
func (c LoraConfig) match(base site.Base, modules []site.Module) (LoraConfig, []site.Module, []peft.PatternCount, error) {
	allowed := peft.NoneUnused
	if c.Reading() {
		allowed = peft.AnyUnused
	}
	if c.TargetModules.IsZero() {
		targets, ok := DefaultTargets(base.ModelType())
		if !ok && len(c.TargetParameters) == 0 {
			return c, nil, nil, fmt.Errorf("no default target modules for model_type %q: set TargetModules", base.ModelType())
		}
		c.TargetModules, allowed = targets, max(allowed, peft.TargetsUnused)
	}
	if c.onlyParameters() {
		return c, nil, nil, nil
	}
	targets, counts, err := c.selection().Match(modules, allowed)
	return c, targets, counts, err
}

// addTarget plans the tensors of one target.
func (a *adapter) addTarget(base site.Base, l layer, s *starts) error {
	c := a.config
	if err := c.checkConvolution(l.Module, l.r); err != nil {
		return err
	}
	a.layers[l.Path], a.byWeight[peft.OwnWeight(l.Module)] = l, l
	params, err := c.layerParams(l, s)
	if err != nil {
		return err
	}
	a.params = append(a.params, params...)
	if c.LoraBias {
		if l.Kind == site.Embedding {
			return fmt.Errorf("lora_bias is not supported for target module %q, an embedding", l.Path)
		}
		a.byBias[l.BiasName()] = l
		a.params = append(a.params, l.biasParam(c.InitLoraWeights))
	}
	if c.UseDora {
		a.params = append(a.params, a.doraParams(base, l)...)
	}
	return nil
}

// onlyParameters reports whether no module is adapted, but parameters are.
func (c LoraConfig) onlyParameters() bool {
	return len(c.TargetParameters) > 0 && len(c.TargetModules.Names()) == 0 && c.TargetModules.Pattern() == "" && !c.TargetModules.IsAllLinear()
}

// complete fills in what follows from the base, so that the saved configuration
// depends on no default.
func (c LoraConfig) complete(targets, modules []site.Module) LoraConfig {
	c.LoraAlpha = orEight(c.LoraAlpha)
	if c.TargetModules.IsAllLinear() {
		c.TargetModules = peft.Exactly(targets, modules)
	}
	c.FanInFanOut = false
	for _, m := range targets {
		c.FanInFanOut = c.FanInFanOut || m.Kind == site.Linear && m.Transposed
	}
	return c
}

// Params implements [peft.Adapter].
func (a *adapter) Params() []peft.Param { return a.params }

// Targets implements [peft.Adapter].
func (a *adapter) Targets() []site.Module { return a.targets }

// Config implements [peft.Configured].
func (a *adapter) Config() peft.Config { return a.config }

// Patterns implements [peft.Describer].
func (a *adapter) Patterns() []peft.PatternCount { return a.patterns }

// DropsInput implements [peft.InputDropper].
func (a *adapter) DropsInput(m site.Module) bool {
	return a.config.LoraDropout > 0 && m.Kind != site.Embedding
}

// Describe implements [peft.Describer].
func (a *adapter) Describe(m site.Module) []peft.Setting {
	l := a.layers[m.Path]
	number := func(v float64) string { return strconv.FormatFloat(v, 'g', 6, 64) }
	return []peft.Setting{{Name: "r", Value: strconv.Itoa(l.rank)}, {Name: "alpha", Value: number(l.alpha)}, {Name: "scaling", Value: number(l.scaling)}}
}
