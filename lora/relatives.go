package lora

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// This file is what the relatives of LoRA (AdaLoRA, VeRA, LoHa, LoKr, MiSS) have in common, so
// that a method's own file is its configuration and its mathematics.

// part is a method on one module.
type part interface {
	params() []peft.Param
	settings() []peft.Setting
	// delta is what the method adds to the module's output.
	delta(u *peft.Use) *graph.Node
	// weightDelta is what merging adds to the module's weight in PyTorch's orientation. frozen
	// returns the base's own weight in that orientation.
	weightDelta(frozen func() []float32, value func(name string) []float32) []float32
}

// relative is a method planned on a base.
type relative struct {
	config   peft.Config
	shared   []peft.Param // of no module
	targets  []site.Module
	parts    map[string]part // by path
	byWeight map[string]site.Module
	patterns []peft.PatternCount
}

var (
	_ peft.DeltaAdapter = (*relative)(nil)
	_ peft.Merger       = (*relative)(nil)
	_ peft.Describer    = (*relative)(nil)
	_ peft.InputDropper = (*relative)(nil)
	_ peft.Configured   = (*relative)(nil)
)

// planning is a method being planned: its targets are found.
type planning struct {
	// Selection is completed: default targets are filled in.
	peft.Selection
	base    site.Base
	reading bool
	targets []site.Module
	paths   []string
	counts  []peft.PatternCount
}

// attachRelative finds the targets of the method called name, lets plan make an adapter of
// them, and adds the modules that are trained as a whole.
func attachRelative(name string, base site.Base, common peft.PeftConfig, s peft.Selection,
	defaults func(modelType string) (peft.Targets, bool), plan func(p *planning) (peft.Adapter, error)) (peft.Adapter, error) {
	s.ModulesToSave = common.SavedModules(s.ModulesToSave)
	p := &planning{Selection: s, base: base, reading: common.Reading()}
	var a, saved peft.Adapter
	err := p.find(defaults)
	if err == nil {
		a, err = plan(p)
	}
	if err == nil {
		saved, err = peft.CopyModules(base, s.ModulesToSave, common)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return peft.Compose(a, saved), nil
}

func (p *planning) find(defaults func(modelType string) (peft.Targets, bool)) error {
	allowed := peft.NoneUnused
	if p.reading {
		allowed = peft.AnyUnused
	}
	if p.TargetModules.IsZero() {
		targets, ok := defaults(p.base.ModelType())
		if !ok {
			return fmt.Errorf("no default target modules for model_type %q: set TargetModules", p.base.ModelType())
		}
		p.TargetModules, allowed = targets, max(allowed, peft.TargetsUnused)
	}
	var err error
	if p.targets, p.counts, err = p.Match(p.base.Modules(), allowed); err != nil {
		return err
	}
	for _, m := range p.targets {
		p.paths = append(p.paths, m.Path)
	}
	if p.TargetModules.IsAllLinear() {
		p.TargetModules = peft.Exactly(p.targets, p.base.Modules())
	}
	return nil
}

// values returns each target's value of an option that has patterns.
func (p *planning) values(option string, patterns peft.Patterns, fallback float64) ([]float64, error) {
	values, counts, err := patterns.Values(option, p.paths, fallback, p.reading)
	p.counts = append(p.counts, counts...)
	return values, err
}

// ranks returns each target's rank and alpha.
func (p *planning) ranks(rankPattern peft.Patterns, r int, alphaPattern peft.Patterns, alpha float64) (ranks []int, alphas []float64, err error) {
	rankValues, rankErr := p.values("rank_pattern", rankPattern, float64(r))
	alphas, alphaErr := p.values("alpha_pattern", alphaPattern, alpha)
	for _, v := range rankValues {
		ranks = append(ranks, int(v))
	}
	return ranks, alphas, errors.Join(rankErr, alphaErr)
}

// transposed reports whether a target's weight is stored as [in, out]: peft's fan_in_fan_out.
func (p *planning) transposed() bool {
	return slices.ContainsFunc(p.targets, func(m site.Module) bool { return m.Kind == site.Linear && m.Transposed })
}

// adapter makes the adapter, one part for each target.
func (p *planning) adapter(config peft.Config, of func(i int, m site.Module) (part, error)) (*relative, error) {
	a := &relative{config: config, targets: p.targets, patterns: p.counts, parts: map[string]part{}, byWeight: map[string]site.Module{}}
	for i, m := range p.targets {
		one, err := of(i, m)
		if err != nil {
			return nil, err
		}
		a.parts[m.Path], a.byWeight[peft.OwnWeight(m)] = one, m
	}
	return a, nil
}

// withBiases adds the biases that are trained to an adapter.
func (p *planning) withBiases(a peft.Adapter, bias Bias) (peft.Adapter, error) {
	biases, err := trainedBiases(p.base, bias, p.targets, p.reading)
	if err != nil {
		return nil, err
	}
	return peft.Compose(a, biases), nil
}

// wantLinear refuses targets that are no linear layers.
func wantLinear(m site.Module) error {
	if m.Kind != site.Linear {
		return fmt.Errorf("target module %q is of kind %s, want a linear layer", m.Path, m.Kind)
	}
	return nil
}

// wantLinearOrConv refuses targets that are neither linear layers nor convolutions over one
// or two axes, which are those that peft has these methods for.
func wantLinearOrConv(m site.Module) error {
	switch {
	case m.Kind == site.Linear:
		return nil
	case m.Kind == site.Convolution && len(m.Conv.Kernel) <= 2:
		return nil
	case m.Kind == site.Convolution:
		return fmt.Errorf("target module %q is a convolution over %d axes, want at most 2", m.Path, len(m.Conv.Kernel))
	}
	return fmt.Errorf("target module %q is of kind %s, want a linear layer or a convolution", m.Path, m.Kind)
}

// Params implements [peft.Adapter].
func (a *relative) Params() []peft.Param {
	params := slices.Clone(a.shared)
	for _, m := range a.targets {
		params = append(params, a.parts[m.Path].params()...)
	}
	return params
}

// Targets implements [peft.Adapter].
func (a *relative) Targets() []site.Module { return a.targets }

// Config implements [peft.Configured].
func (a *relative) Config() peft.Config { return a.config }

// Patterns implements [peft.Describer].
func (a *relative) Patterns() []peft.PatternCount { return a.patterns }

// DropsInput implements [peft.InputDropper]: of these methods AdaLoRA alone trains a matrix
// that multiplies the whole input.
func (a *relative) DropsInput(m site.Module) bool {
	t, ok := a.parts[m.Path].(triplets)
	return ok && t.config.LoraDropout > 0 && t.r > 0
}

// Describe implements [peft.Describer].
func (a *relative) Describe(m site.Module) []peft.Setting { return a.parts[m.Path].settings() }

// Delta implements [peft.DeltaAdapter].
func (a *relative) Delta(u *peft.Use) *graph.Node { return a.parts[u.Site.Path].delta(u) }

// Merges implements [peft.Merger].
func (a *relative) Merges() []string {
	names := make([]string, len(a.targets))
	for i, m := range a.targets {
		names[i] = peft.OwnWeight(m)
	}
	return names
}

// Merge implements [peft.Merger].
func (a *relative) Merge(name string, values, frozen []float32, value func(name string) []float32) error {
	m := a.byWeight[name]
	delta := a.parts[m.Path].weightDelta(func() []float32 { return unstored(m, frozen) }, value)
	if len(delta) != len(values) {
		return fmt.Errorf("it has %d values, but the adapter changes %d", len(values), len(delta))
	}
	for i, v := range stored(m, delta) {
		values[i] += v
	}
	return nil
}

// stored turns a weight from PyTorch's orientation into the base's, see [site.Module.Stored].
func stored(m site.Module, w []float32) []float32 { return reorient(m, w, false) }

// unstored is the inverse of stored.
func unstored(m site.Module, w []float32) []float32 { return reorient(m, w, true) }

// reorient reverses [out, in, kernel] into [kernel, in, out], or back.
func reorient(m site.Module, w []float32, back bool) []float32 {
	if !m.Transposed {
		return w
	}
	out, in := m.Out, m.WeightShape()[1]
	kernel := len(w) / (out * in)
	r := make([]float32, len(w))
	for o := range out {
		for i := range in {
			for k := range kernel {
				torch, own := (o*in+i)*kernel+k, (k*in+i)*out+o
				if back {
					r[torch] = w[own]
				} else {
					r[own] = w[torch]
				}
			}
		}
	}
	return r
}

// keepPerOutput multiplies an output of the site by 0 or 1, one draw for each output
// channel (or for all, if whole), as peft's rank_dropout (module_dropout) does. The draws
// are those of a step, whatever the batch. rescale divides by the share that is kept.
func keepPerOutput(u *peft.Use, y *graph.Node, rate float64, whole, rescale bool) *graph.Node {
	if !u.Pass.Training() || rate == 0 {
		return y
	}
	g := y.Graph()
	pass, random := *u.Pass, *u.Pass.Random
	random.RowOffset = graph.Const(g, uint32(0))
	pass.Random = &random
	key, n := u.Site.Path+"#outputs", u.Site.Out
	if whole {
		key, n = u.Site.Path+"#module", 1
	}
	kept := pass.Dropout(key, graph.BroadcastToDims(graph.Scalar(g, dtypes.Float32, 1), 1, n), rate)
	kept = graph.ConvertDType(graph.GreaterThan(kept, graph.ZerosLike(kept)), dtypes.Float32)
	if rescale {
		kept = graph.Div(kept, graph.MaxScalar(graph.ReduceAllMean(kept), 0.5/float64(n)))
	}
	return graph.Mul(y, graph.ConvertDType(u.Site.Expand(kept, y.Rank()), y.DType()))
}

// Switch is an option that is on unless it is turned off.
type Switch = peft.Switch

const (
	// On is the default.
	On = peft.On
	// Off turns the option off.
	Off = peft.Off
)

// prefixed puts a method's name before an error.
func prefixed(name string, errs ...error) error {
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func checkRank(option string, r, usual int) error {
	if r <= 0 || r > maxRank {
		return fmt.Errorf("%s is %d, want a rank of at least 1 (peft's default is %d)", option, r, usual)
	}
	return nil
}

func checkRate(option string, rate float64) error {
	if !(rate >= 0 && rate < 1) {
		return fmt.Errorf("%s is %v, want a rate in [0, 1)", option, rate)
	}
	return nil
}

func checkNumber(option string, v float64) error {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return fmt.Errorf("%s is %v, want a finite number", option, v)
	}
	return nil
}

func checkRankPattern(p peft.Patterns) error {
	return p.Check("rank_pattern", func(v float64) bool { return v >= 1 && v <= maxRank && v == math.Trunc(v) }, "a rank of at least 1")
}

func checkAlphaPattern(p peft.Patterns) error {
	return p.Check("alpha_pattern", func(v float64) bool { return v != 0 }, "a finite number other than 0")
}

// checkInitWeights refuses an initialisation that is not among those allowed.
func checkInitWeights(option string, init Init, allowed ...Init) error {
	if slices.Contains(allowed, init) {
		return nil
	}
	return fmt.Errorf("%s %q is not supported", option, string(init))
}

// orEight is peft's default alpha where there is none.
func orEight(alpha float64) float64 {
	if alpha == 0 {
		return 8
	}
	return alpha
}

func setting(name string, v float64) peft.Setting {
	return peft.Setting{Name: name, Value: strconv.FormatFloat(v, 'g', 6, 64)}
}
