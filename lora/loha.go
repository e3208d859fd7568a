package lora

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/internal/pyjson"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// LohaType is LoHa's name in adapter_config.json.
const LohaType = "LOHA"

func init() { peft.Register(LohaType, decodeLoha) }

// LohaConfig is the low-rank Hadamard product (Hyeon-Woo, Ye-Bin and Oh 2021, "FedPara",
// arXiv:2108.06098; Yeh et al. 2023, "LyCORIS", arXiv:2309.14859): the element-wise product of
// two products of rank r, whose rank is up to r²,
//
//	ΔW = alpha/r · (w1_a w1_b) ⊙ (w2_a w2_b)
//
// with w_a [out, r] and w_b [r, in], on linear layers and convolutions over one or two axes.
// The weight of a convolution is seen as [out, in·kernel], or with UseEffectiveConv2d each
// product has a core t [r, r, kernel]. Only R has no default.
type LohaConfig struct {
	peft.PeftConfig
	// R is the rank of each product, at least 1. (peft's default is 8.)
	R int `json:"r"`
	// Alpha scales the update by Alpha/R. Zero means 8, peft's default.
	Alpha float64 `json:"alpha"`
	// RankDropout is the rate at which outputs of the update are left out while training, a
	// draw for each output and step, in [0, 1). Those that stay are scaled up.
	RankDropout float64 `json:"rank_dropout"`
	// ModuleDropout is the rate at which a module's whole update is left out while training, in [0, 1).
	ModuleDropout float64 `json:"module_dropout"`
	// UseEffectiveConv2d gives convolutions with a kernel larger than 1 the form with cores.
	UseEffectiveConv2d bool `json:"use_effective_conv2d"`
	// TargetModules says what is adapted. The zero value means [DefaultTargets].
	TargetModules  peft.Targets `json:"target_modules"`
	ExcludeModules peft.Targets `json:"exclude_modules"`
	// InitWeights is InitDefault (w2_b starts at zero) or InitRandom.
	InitWeights       Init         `json:"init_weights"`
	LayersToTransform peft.Layers  `json:"layers_to_transform"`
	LayersPattern     peft.Strings `json:"layers_pattern"`
	// RankPattern and AlphaPattern give modules their own R and Alpha.
	RankPattern   peft.Patterns `json:"rank_pattern"`
	AlphaPattern  peft.Patterns `json:"alpha_pattern"`
	ModulesToSave peft.Strings  `json:"modules_to_save"`
}

// PeftType implements [peft.Config].
func (c LohaConfig) PeftType() string { return LohaType }

// WithCommon implements [peft.Config].
func (c LohaConfig) WithCommon(common peft.PeftConfig) peft.Config {
	c.PeftConfig = common
	return c
}

func (c LohaConfig) selection() peft.Selection {
	return peft.Selection{
		TargetModules: c.TargetModules, ExcludeModules: c.ExcludeModules,
		LayersToTransform: c.LayersToTransform, LayersPattern: c.LayersPattern, ModulesToSave: c.ModulesToSave,
	}
}

// Validate implements [peft.Config].
func (c LohaConfig) Validate() error {
	return prefixed("loha",
		checkRank("r", c.R, 8), checkNumber("alpha", c.Alpha),
		checkRate("rank_dropout", c.RankDropout), checkRate("module_dropout", c.ModuleDropout),
		checkInitWeights("init_weights", c.InitWeights, InitDefault, InitRandom),
		c.selection().Validate(), checkRankPattern(c.RankPattern), checkAlphaPattern(c.AlphaPattern))
}

// MarshalJSON writes the fields as peft does.
func (c LohaConfig) MarshalJSON() ([]byte, error) {
	type plain LohaConfig
	return json.Marshal(struct {
		plain
		Alpha         float64      `json:"alpha"`
		RankDropout   pyjson.Float `json:"rank_dropout"`
		ModuleDropout pyjson.Float `json:"module_dropout"`
	}{plain(c), orEight(c.Alpha), pyjson.Float(c.RankDropout), pyjson.Float(c.ModuleDropout)})
}

func decodeLoha(data []byte) (peft.Config, error) {
	c := LohaConfig{R: 8, Alpha: 8}
	common, err := peft.DecodeFields(data, &c)
	if err != nil {
		return nil, fmt.Errorf("loha: %w", err)
	}
	if c.Alpha == 0 {
		return nil, errors.New("loha: alpha is 0: the adapter would change nothing")
	}
	c.PeftConfig = common
	return c, nil
}

// Attach implements [peft.Config].
func (c LohaConfig) Attach(base site.Base) (peft.Adapter, error) {
	return attachRelative("loha", base, c.PeftConfig, c.selection(), DefaultTargets, func(p *planning) (peft.Adapter, error) {
		c.TargetModules, c.ModulesToSave, c.Alpha = p.TargetModules, p.ModulesToSave, orEight(c.Alpha)
		ranks, alphas, err := p.ranks(c.RankPattern, c.R, c.AlphaPattern, c.Alpha)
		if err != nil {
			return nil, err
		}
		return p.adapter(c, func(i int, m site.Module) (part, error) {
			l := loha{Module: m, config: &c, r: ranks[i], scaling: alphas[i] / float64(ranks[i])}
			l.cores = c.UseEffectiveConv2d && m.Kind == site.Convolution && kernelSize(m) > 1
			return l, wantLinearOrConv(m)
		})
	})
}

// loha is LoHa on one module.
type loha struct {
	site.Module
	config  *LohaConfig
	r       int
	scaling float64
	// cores is true for the form with cores.
	cores bool
}

func (l loha) params() []peft.Param {
	shape := l.WeightShape()
	in, kernel := shape[1], kernelSize(l.Module)
	var params []peft.Param
	add := func(name string, fanIn int, zero bool, shape ...int) {
		p := peft.Param{Name: l.Path + "." + name, Shape: shape}
		if !zero || l.config.InitWeights == InitRandom {
			p.Init = uniform(fanIn)
		}
		params = append(params, p)
	}
	for _, n := range []string{"1", "2"} {
		if l.cores {
			add("hada_t"+n, l.r*kernel, false, append([]int{l.r, l.r}, coreKernel(l.Module)...)...)
			add("hada_w"+n+"_a", l.Out, false, l.r, l.Out)
			add("hada_w"+n+"_b", in, n == "2", l.r, in)
		} else {
			add("hada_w"+n+"_a", l.r, false, l.Out, l.r)
			add("hada_w"+n+"_b", in*kernel, n == "2", l.r, in*kernel)
		}
	}
	return params
}

func (l loha) settings() []peft.Setting {
	return []peft.Setting{setting("r", float64(l.r)), setting("scaling", l.scaling)}
}

func (l loha) delta(u *peft.Use) *graph.Node {
	w := graph.Mul(l.product(u, "1"), l.product(u, "2"))
	w = graph.Reshape(graphx.Scale(w, l.scaling), l.WeightShape()...)
	y := u.Site.With(u.X, u.Site.Stored(w))
	y = keepPerOutput(u, y, l.config.RankDropout, false, true)
	return keepPerOutput(u, y, l.config.ModuleDropout, true, false)
}

// product is the n-th of the two products, [out, in·kernel] or [out, in, kernel].
func (l loha) product(u *peft.Use, n string) *graph.Node {
	a, b := u.Cast("hada_w"+n+"_a"), u.Cast("hada_w"+n+"_b")
	if l.cores {
		return tucker(u.Cast("hada_t"+n), a, b)
	}
	return graphx.MatMul(a, b)
}

func (l loha) weightDelta(_ func() []float32, value func(name string) []float32) []float32 {
	of := func(n string, s float64) []float32 {
		a, b := value(l.Path+".hada_w"+n+"_a"), value(l.Path+".hada_w"+n+"_b")
		if l.cores {
			return tuckerHost(value(l.Path+".hada_t"+n), a, b, l.r, l.Out, l.WeightShape()[1], kernelSize(l.Module), s)
		}
		return product(a, b, l.Out, l.r, len(b)/l.r, s)
	}
	first, second := of("1", l.scaling), of("2", 1)
	for i := range first {
		first[i] *= second[i]
	}
	return first
}
