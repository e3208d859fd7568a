package lora

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/internal/suggest"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// parameters is LoRA on parameters themselves, wherever the base uses them, in place of
// modules: target_parameters. It is what experts need whose weights are one parameter of
// three axes: W' = W + s·B·A, for each expert its own A and B. W' is built whole.
//
// A of E experts is [r·E, in] with the expert first, B is [out, r·E] with the rank first
// (ParamWrapper in peft's tuners/lora/layer.py).
type parameters struct {
	init   Init
	list   []parameter
	byName map[string]parameter
}

// parameter is one adapted parameter.
type parameter struct {
	site.Parameter
	// path is that of A and B: the module's, with one ".base_layer" for each parameter of
	// the module that is wrapped around this one in peft.
	path             string
	experts, in, out int
	r                int
	scaling          float64
}

var (
	_ peft.PartialParameterAdapter = (*parameters)(nil)
	_ peft.Merger                  = (*parameters)(nil)
)

// newParameters returns nil without parameters.
func newParameters(c LoraConfig, matched []site.Parameter, ranks, alphas []float64) *parameters {
	if len(matched) == 0 {
		return nil
	}
	a := &parameters{init: c.InitLoraWeights, byName: map[string]parameter{}}
	outer := map[string]int{}
	for i := len(matched) - 1; i >= 0; i-- { // the last of a module's parameters is the outermost
		p := parameter{Parameter: matched[i], r: int(ranks[i]), experts: 1}
		p.scaling = Scaling(alphas[i], p.r, c.UseRSLoRA)
		p.out, p.in = p.Shape[len(p.Shape)-2], p.Shape[len(p.Shape)-1]
		if len(p.Shape) == 3 {
			p.experts = p.Shape[0]
			if p.Transposed {
				p.out, p.in = p.in, p.out
			}
		}
		module := p.Name[:strings.LastIndexByte(p.Name, '.')]
		p.path = module + strings.Repeat(".base_layer", outer[module])
		outer[module]++
		a.list = append(a.list, p)
		a.byName[p.Name] = p
	}
	slices.Reverse(a.list)
	return a
}

// checkParameters refuses what has no meaning for a parameter that no input reaches.
func (c LoraConfig) checkParameters() error {
	switch {
	case c.UseDora || c.LoraBias || c.Bias != BiasNone:
		return errors.New("target_parameters does not work with use_dora, lora_bias or trained biases")
	case c.LoraDropout != 0:
		return errors.New("target_parameters does not work with lora_dropout: there is no input to drop from")
	case !slices.Contains([]Init{InitDefault, InitGaussian, InitRandom}, c.InitLoraWeights):
		return fmt.Errorf("target_parameters does not work with init_lora_weights %q", string(c.InitLoraWeights))
	}
	return nil
}

// matchParameters finds each target by its whole name or an end of it at a dot.
func matchParameters(c LoraConfig, base site.Base, targets []site.Module) ([]site.Parameter, error) {
	if len(c.TargetParameters) == 0 {
		return nil, nil
	}
	if err := c.checkParameters(); err != nil {
		return nil, err
	}
	adapted := map[string]string{}
	for _, m := range targets {
		adapted[m.Weight()] = m.Path
	}
	used := make([]bool, len(c.TargetParameters))
	var all []string
	var matched []site.Parameter
	for _, p := range base.Parameters() {
		all = append(all, p.Name)
		hit := false
		for i, target := range c.TargetParameters {
			if strings.HasSuffix("."+p.Name, "."+target) {
				used[i], hit = true, true
			}
		}
		if !hit {
			continue
		}
		if n := len(p.Shape); n != 2 && n != 3 {
			return nil, fmt.Errorf("target parameter %q has shape %v, want two or three axes", p.Name, p.Shape)
		}
		if !strings.Contains(p.Name, ".") {
			return nil, fmt.Errorf("target parameter %q belongs to no module", p.Name)
		}
		if path, ok := adapted[p.Name]; ok {
			return nil, fmt.Errorf("target parameter %q is the weight of target module %q: choose one of the two", p.Name, path)
		}
		matched = append(matched, p)
	}
	var errs []error
	for i, target := range c.TargetParameters {
		if !used[i] && !c.Reading() || target == "" {
			errs = append(errs, fmt.Errorf("target parameter %q matches nothing%s", target, suggest.DidYouMean(target, all)))
		}
	}
	if len(errs) == 0 && len(matched) == 0 {
		errs = append(errs, fmt.Errorf("none of the target parameters %v matches", []string(c.TargetParameters)))
	}
	return matched, errors.Join(errs...)
}

func (p parameter) nameA() string { return p.path + "." + matrixA }
func (p parameter) nameB() string { return p.path + "." + matrixB }

// Params implements [peft.Adapter].
func (a *parameters) Params() []peft.Param {
	var list []peft.Param
	for _, p := range a.list {
		A := peft.Param{Name: p.nameA(), Shape: []int{p.r * p.experts, p.in}, Init: uniform(p.in)}
		B := peft.Param{Name: p.nameB(), Shape: []int{p.out, p.r * p.experts}, Group: peft.GroupB}
		switch a.init {
		case InitGaussian:
			A.Init = normal(1 / float64(p.r))
		case InitRandom:
			B.Init = uniform(p.r * p.experts)
		}
		list = append(list, A, B)
	}
	return list
}

// Targets implements [peft.Adapter]: no module is changed as such.
func (a *parameters) Targets() []site.Module { return nil }

// Replaces implements [peft.ParameterAdapter].
func (a *parameters) Replaces(name string) bool {
	_, ok := a.byName[name]
	return ok
}

// PartialParameters implements [peft.PartialParameterAdapter].
func (a *parameters) PartialParameters() {}

// Parameter implements [peft.ParameterAdapter].
func (a *parameters) Parameter(v *peft.Values, pass *site.Pass, name string, base func() *graph.Node) *graph.Node {
	p := a.byName[name]
	A, B := v.Get(p.nameA()), v.Get(p.nameB())
	w := graph.ConvertDType(base(), dtypes.Float32)
	return graph.ConvertDType(graph.Add(w, graphx.Scale(p.delta(A, B), p.scaling)), pass.DType)
}

// delta is B·A of each expert in the parameter's orientation.
func (p parameter) delta(A, B *graph.Node) *graph.Node {
	if len(p.Shape) == 2 {
		return graphx.MatMul(B, A)
	}
	A = graph.Reshape(A, p.experts, p.r, p.in)
	B = graph.Reshape(B, p.out, p.r, p.experts)
	if p.Transposed { // [experts, in, out]
		return graphx.Dot(A, []int{1}, []int{0}, B, []int{1}, []int{2})
	}
	return graphx.Dot(B, []int{1}, []int{2}, A, []int{1}, []int{0})
}

// Merges implements [peft.Merger].
func (a *parameters) Merges() []string {
	names := make([]string, len(a.list))
	for i, p := range a.list {
		names[i] = p.Name
	}
	return names
}

// Merge implements [peft.Merger].
func (a *parameters) Merge(name string, values, _ []float32, value func(name string) []float32) error {
	p := a.byName[name]
	A, B := value(p.nameA()), value(p.nameB())
	size := p.in * p.out
	for e := range p.experts {
		b := make([]float32, p.out*p.r) // [out, r] of this expert
		for o := range p.out {
			for k := range p.r {
				b[o*p.r+k] = B[(o*p.r+k)*p.experts+e]
			}
		}
		delta := product(b, A[e*p.r*p.in:(e+1)*p.r*p.in], p.out, p.r, p.in, p.scaling)
		if p.Transposed {
			delta = graphx.Transposed(delta, p.out, p.in)
		}
		for i, v := range delta {
			values[e*size+i] += v
		}
	}
	return nil
}
