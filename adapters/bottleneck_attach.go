package adapters

import (
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"strconv"

	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// Names of an adapter module's tensors, behind its path.
const (
	downWeight = "adapter_down.weight" // [width, features]
	downBias   = "adapter_down.bias"
	upWeight   = "adapter_up.weight" // [features, width]
	upBias     = "adapter_up.bias"
	normBefore = "adapter_norm_before"
	normAfter  = "adapter_norm_after"
	scaling    = "adapter_scaling" // [1] or [features]
)

// bottleneck is a BottleneckConfig planned on a base.
type bottleneck struct {
	config   BottleneckConfig
	act      activation
	targets  []site.Module
	width    map[string]int
	params   []peft.Param
	patterns []peft.PatternCount
	// swapped is the path of each sublayer whose output and residual trade places, see stream.
	swapped map[string]bool
}

// Attach implements [peft.Config].
func (c BottleneckConfig) Attach(base site.Base) (peft.Adapter, error) {
	c.ModulesToSave = c.SavedModules(c.ModulesToSave)
	c = c.withDefaults()
	a, err := c.attach(base)
	if err != nil {
		return nil, fmt.Errorf("bottleneck: %w", err)
	}
	saved, err := peft.CopyModules(base, c.ModulesToSave, c.PeftConfig)
	if err != nil {
		return nil, fmt.Errorf("bottleneck: %w", err)
	}
	return peft.Compose(a, saved), nil
}

func (c BottleneckConfig) attach(base site.Base) (peft.Adapter, error) {
	act, err := nonLinearity(c.NonLinearity)
	if err != nil {
		return nil, err
	}
	a := &bottleneck{config: c, act: act, width: map[string]int{}, swapped: map[string]bool{}}
	if !c.TargetModules.IsZero() {
		return &linearBottleneck{a}, a.attachLinears(base)
	}
	t, ok := base.(site.Transformer)
	if !ok {
		return nil, errors.New("the base is no transformer whose sublayers are known: name linear layers in TargetModules")
	}
	return &sublayerBottleneck{a}, a.attachSublayers(t)
}

func (a *bottleneck) attachLinears(base site.Base) (err error) {
	allowed := peft.NoneUnused
	if a.config.Reading() {
		allowed = peft.AnyUnused
	}
	modules := base.Modules()
	if a.targets, a.patterns, err = a.config.selection().Match(modules, allowed); err != nil {
		return err
	}
	for _, m := range a.targets {
		if m.Kind != site.Linear {
			return fmt.Errorf("target module %q is a %s, want a linear layer", m.Path, m.Kind)
		}
		if err := a.add(m, 0); err != nil {
			return err
		}
	}
	if a.config.TargetModules.IsAllLinear() {
		a.config.TargetModules = peft.Modules(peft.Shorten(a.targets, modules)...)
	}
	return nil
}

// attachSublayers plans the adapters of the blocks. Blocks that are repeated, as ALBERT's,
// count once and share their adapters.
func (a *bottleneck) attachSublayers(base site.Transformer) error {
	c := a.config
	var layers []site.Layer
	seen := map[string]bool{}
	for _, l := range base.Layers() {
		if !seen[l.Attention.Path] {
			seen[l.Attention.Path] = true
			layers = append(layers, l)
		}
	}
	left := map[int]bool{}
	for _, i := range c.LeaveOut {
		if i >= len(layers) {
			return fmt.Errorf("leave_out: there is no layer %d, the base has %d from 0", i, len(layers))
		}
		left[i] = true
	}
	for i := range c.ReductionFactor.Layers {
		if i >= len(layers) && !c.Reading() {
			return fmt.Errorf("reduction_factor: there is no layer %d, the base has %d from 0", i, len(layers))
		}
	}
	for i, l := range layers {
		if left[i] {
			continue
		}
		if c.MhAdapter {
			if err := a.add(l.Attention, i); err != nil {
				return err
			}
			a.targets = append(a.targets, l.Attention)
			a.swapped[l.Attention.Path] = base.ModelType() == "albert"
		}
		if c.OutputAdapter {
			if err := a.add(l.FeedForward, i); err != nil {
				return err
			}
			a.targets = append(a.targets, l.FeedForward)
		}
	}
	if len(a.targets) == 0 {
		return errors.New("leave_out leaves out every layer")
	}
	return nil
}

// add plans the tensors of one module.
func (a *bottleneck) add(m site.Module, layer int) error {
	c, features := a.config, m.Out
	width, err := c.ReductionFactor.width(features, layer)
	if err != nil {
		return fmt.Errorf("%q: %w", m.Path, err)
	}
	a.width[m.Path] = width
	vector := func(name string, size int, init func(*rand.Rand, []float32) error, noDecay bool) peft.Param {
		return peft.Param{Name: m.Path + "." + name, Shape: []int{size}, Init: init, NoDecay: noDecay, Group: peft.GroupB}
	}
	norm := func(name string) []peft.Param {
		return []peft.Param{vector(name+".weight", features, ones, true), vector(name+".bias", features, nil, true)}
	}
	if c.LnBefore {
		a.params = append(a.params, norm(normBefore)...)
	}
	a.params = append(a.params,
		peft.Param{Name: m.Path + "." + downWeight, Shape: []int{width, features}, Init: c.initDown(features)},
		vector(downBias, width, nil, true),
		peft.Param{Name: m.Path + "." + upWeight, Shape: []int{features, width}, Init: c.initUp()},
		vector(upBias, features, nil, true))
	if c.LnAfter {
		a.params = append(a.params, norm(normAfter)...)
	}
	if n := c.Scaling.size(features); n > 0 {
		a.params = append(a.params, vector(scaling, n, ones, false))
	}
	return nil
}

// initDown returns what fills the first layer's weight.
func (c BottleneckConfig) initDown(features int) func(*rand.Rand, []float32) error {
	if c.InitWeights != InitMAM {
		return c.draw(downWeight)
	}
	bound := 1 / math.Sqrt(float64(features)) // kaiming_uniform_ with a = √5
	return c.seeded(downWeight, func(r *rand.Rand) float64 { return bound * (2*r.Float64() - 1) })
}

// initUp returns what fills the second layer's weight; nil leaves zeros.
func (c BottleneckConfig) initUp() func(*rand.Rand, []float32) error {
	if c.InitWeights == InitMAM {
		return nil
	}
	return c.draw(upWeight)
}

func (c BottleneckConfig) draw(name string) func(*rand.Rand, []float32) error {
	if c.InitWeights == InitBert {
		return c.seeded(name, func(r *rand.Rand) float64 { return 0.02 * r.NormFloat64() })
	}
	return c.seeded(name, func(r *rand.Rand) float64 {
		for {
			if v := r.NormFloat64(); math.Abs(v) <= 2 {
				return 0.01 * v
			}
		}
	})
}

// seeded fills values one by one; with InitWeightsSeed from that seed and the tensor's name
// without its path.
func (c BottleneckConfig) seeded(name string, next func(*rand.Rand) float64) func(*rand.Rand, []float32) error {
	return func(r *rand.Rand, values []float32) error {
		if c.InitWeightsSeed != 0 {
			h := fnv.New64a()
			h.Write([]byte(name))
			r = rand.New(rand.NewPCG(uint64(c.InitWeightsSeed), h.Sum64()))
		}
		for i := range values {
			values[i] = float32(next(r))
		}
		return nil
	}
}

func ones(_ *rand.Rand, values []float32) error {
	for i := range values {
		values[i] = 1
	}
	return nil
}

// Params implements [peft.Adapter].
func (a *bottleneck) Params() []peft.Param { return a.params }

// Targets implements [peft.Adapter].
func (a *bottleneck) Targets() []site.Module { return a.targets }

// Config implements [peft.Configured].
func (a *bottleneck) Config() peft.Config { return a.config }

// Patterns implements [peft.Describer].
func (a *bottleneck) Patterns() []peft.PatternCount { return a.patterns }

// Describe implements [peft.Describer].
func (a *bottleneck) Describe(m site.Module) []peft.Setting {
	return []peft.Setting{{Name: "width", Value: strconv.Itoa(a.width[m.Path])}, {Name: "non_linearity", Value: a.config.NonLinearity}}
}
