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

// LokrType is LoKr's name in adapter_config.json.
const LokrType = "LOKR"

func init() { peft.Register(LokrType, decodeLokr) }

// LokrLycoris starts the second factor of LoKr at zero instead of the first, as the LyCORIS
// library does; a value of InitWeights.
const LokrLycoris Init = "lycoris"

// LokrConfig is the low-rank Kronecker product (Yeh et al. 2023, "LyCORIS", arXiv:2309.14859):
// inputs and outputs are each seen as two axes, in = m·n and out = k·l, and
//
//	ΔW = alpha/r · w1 ⊗ w2
//
// with w1 [k, m] and w2 [l, n], on linear layers and convolutions over one or two axes (w2 has
// the kernel). A factor whose larger axis is above 2·R is itself a product of rank R: w2 always,
// w1 with DecomposeBoth. Only R has no default.
type LokrConfig struct {
	peft.PeftConfig
	// R is the rank of a factor that is a product, at least 1. (peft's default is 8.)
	R int `json:"r"`
	// Alpha scales the update by Alpha/R. Zero means 8, peft's default.
	Alpha float64 `json:"alpha"`
	// RankDropout is the rate at which outputs of the update are left out while training, a
	// draw for each output and step, in [0, 1).
	RankDropout float64 `json:"rank_dropout"`
	// ModuleDropout is the rate at which a module's whole update is left out while training, in [0, 1).
	ModuleDropout float64 `json:"module_dropout"`
	// UseEffectiveConv2d gives w2 of convolutions with a kernel larger than 1 a core of its own.
	UseEffectiveConv2d bool `json:"use_effective_conv2d"`
	// DecomposeBoth lets w1 be a product too.
	DecomposeBoth bool `json:"decompose_both"`
	// DecomposeFactor is the number of rows and columns of w1 if it divides those of the
	// weight. Zero means -1: divisors near the square root.
	DecomposeFactor int `json:"decompose_factor"`
	// RankDropoutScale scales up what RankDropout keeps.
	RankDropoutScale bool `json:"rank_dropout_scale"`
	// TargetModules says what is adapted. The zero value means [DefaultTargets].
	TargetModules  peft.Targets `json:"target_modules"`
	ExcludeModules peft.Targets `json:"exclude_modules"`
	// InitWeights is InitDefault (w1 starts at zero), LokrLycoris (w2 does) or InitRandom.
	InitWeights       Init         `json:"init_weights"`
	LayersToTransform peft.Layers  `json:"layers_to_transform"`
	LayersPattern     peft.Strings `json:"layers_pattern"`
	// RankPattern and AlphaPattern give modules their own R and Alpha.
	RankPattern   peft.Patterns `json:"rank_pattern"`
	AlphaPattern  peft.Patterns `json:"alpha_pattern"`
	ModulesToSave peft.Strings  `json:"modules_to_save"`
}

// PeftType implements [peft.Config].
func (c LokrConfig) PeftType() string { return LokrType }

// WithCommon implements [peft.Config].
func (c LokrConfig) WithCommon(common peft.PeftConfig) peft.Config {
	c.PeftConfig = common
	return c
}

func (c LokrConfig) selection() peft.Selection {
	return peft.Selection{
		TargetModules: c.TargetModules, ExcludeModules: c.ExcludeModules,
		LayersToTransform: c.LayersToTransform, LayersPattern: c.LayersPattern, ModulesToSave: c.ModulesToSave,
	}
}

func (c LokrConfig) factor() int {
	if c.DecomposeFactor == 0 {
		return -1
	}
	return c.DecomposeFactor
}

// Validate implements [peft.Config].
func (c LokrConfig) Validate() error {
	var factorErr, scaleErr error
	if c.DecomposeFactor < -1 {
		factorErr = fmt.Errorf("decompose_factor is %d, want -1 (near the square root) or at least 1", c.DecomposeFactor)
	}
	if c.RankDropoutScale && c.RankDropout == 0 && !c.Reading() {
		scaleErr = errors.New("rank_dropout_scale has no effect without rank_dropout")
	}
	return prefixed("lokr",
		checkRank("r", c.R, 8), checkNumber("alpha", c.Alpha), factorErr, scaleErr,
		checkRate("rank_dropout", c.RankDropout), checkRate("module_dropout", c.ModuleDropout),
		checkInitWeights("init_weights", c.InitWeights, InitDefault, InitRandom, LokrLycoris),
		c.selection().Validate(), checkRankPattern(c.RankPattern), checkAlphaPattern(c.AlphaPattern))
}

// MarshalJSON writes the fields as peft does.
func (c LokrConfig) MarshalJSON() ([]byte, error) {
	type plain LokrConfig
	return json.Marshal(struct {
		plain
		Alpha           float64      `json:"alpha"`
		RankDropout     pyjson.Float `json:"rank_dropout"`
		ModuleDropout   pyjson.Float `json:"module_dropout"`
		DecomposeFactor int          `json:"decompose_factor"`
	}{plain(c), orEight(c.Alpha), pyjson.Float(c.RankDropout), pyjson.Float(c.ModuleDropout), c.factor()})
}

func decodeLokr(data []byte) (peft.Config, error) {
	c := LokrConfig{R: 8, Alpha: 8, DecomposeFactor: -1}
	common, err := peft.DecodeFields(data, &c)
	if err != nil {
		return nil, fmt.Errorf("lokr: %w", err)
	}
	switch {
	case c.Alpha == 0:
		return nil, errors.New("lokr: alpha is 0: the adapter would change nothing")
	case c.DecomposeFactor == 0:
		c.DecomposeFactor = 1 // the same to peft
	}
	c.PeftConfig = common
	return c, nil
}

// Attach implements [peft.Config].
func (c LokrConfig) Attach(base site.Base) (peft.Adapter, error) {
	return attachRelative("lokr", base, c.PeftConfig, c.selection(), DefaultTargets, func(p *planning) (peft.Adapter, error) {
		c.TargetModules, c.ModulesToSave, c.Alpha, c.DecomposeFactor = p.TargetModules, p.ModulesToSave, orEight(c.Alpha), c.factor()
		ranks, alphas, err := p.ranks(c.RankPattern, c.R, c.AlphaPattern, c.Alpha)
		if err != nil {
			return nil, err
		}
		return p.adapter(c, func(i int, m site.Module) (part, error) {
			if err := wantLinearOrConv(m); err != nil {
				return nil, err
			}
			return newLokr(m, &c, ranks[i], alphas[i]), nil
		})
	})
}

// lokr is LoKr on one module.
type lokr struct {
	site.Module
	config  *LokrConfig
	r       int
	scaling float64
	// Outputs are rows1·rows2, inputs columns1·columns2, of the two factors.
	rows1, rows2, columns1, columns2 int
	// full1 and full2 are set for factors that are no product, core for w2 with a core.
	full1, full2, core bool
}

func newLokr(m site.Module, c *LokrConfig, r int, alpha float64) lokr {
	l := lokr{Module: m, config: c, r: r, scaling: alpha / float64(r)}
	l.rows1, l.rows2 = factorization(m.Out, c.DecomposeFactor)
	l.columns1, l.columns2 = factorization(m.WeightShape()[1], c.DecomposeFactor)
	l.full1 = !c.DecomposeBoth || 2*r >= max(l.rows1, l.columns1)
	l.full2 = 2*r >= max(l.rows2, l.columns2)
	l.core = !l.full2 && c.UseEffectiveConv2d && m.Kind == site.Convolution && kernelSize(m) > 1
	return l
}

// factorization writes n as a product m·k with m <= k: m is factor if that divides n, else
// the pair with the smallest sum that a search from 1 up to factor (-1: no limit) finds before
// the sum grows. It is peft's function, whose results decide shapes in files.
func factorization(n, factor int) (m, k int) {
	if factor > 0 && n%factor == 0 {
		return factor, n / factor
	}
	if factor == -1 {
		factor = n
	}
	m, k = 1, n
	for length := m + k; m < k; {
		next := m + 1
		for n%next != 0 {
			next++
		}
		if next+n/next > length || next > factor {
			break
		}
		m, k = next, n/next
	}
	return min(m, k), max(m, k)
}

// kernel is the kernel's part of w2's shape, none for a linear layer.
func (l lokr) kernel() []int {
	if l.Kind == site.Convolution {
		return l.Conv.Kernel
	}
	return nil
}

func (l lokr) params() []peft.Param {
	kernel := kernelSize(l.Module)
	var params []peft.Param
	add := func(name string, zero Init, fanIn int, shape ...int) {
		p := peft.Param{Name: l.Path + ".lokr_" + name, Shape: shape}
		if zero != l.config.InitWeights || zero == InitRandom {
			p.Init = uniform(fanIn)
		}
		params = append(params, p)
	}
	// The second argument is the initialisation with which the tensor is zero.
	if l.full1 {
		add("w1", InitDefault, l.columns1, l.rows1, l.columns1)
	} else {
		add("w1_a", InitDefault, l.r, l.rows1, l.r)
		add("w1_b", InitRandom, l.columns1, l.r, l.columns1)
	}
	switch {
	case l.full2:
		add("w2", LokrLycoris, l.columns2*kernel, append([]int{l.rows2, l.columns2}, l.kernel()...)...)
	case l.core:
		add("t2", InitRandom, l.r*kernel, append([]int{l.r, l.r}, coreKernel(l.Module)...)...)
		add("w2_a", InitRandom, l.rows2, l.r, l.rows2)
		add("w2_b", LokrLycoris, l.columns2, l.r, l.columns2)
	default:
		add("w2_a", InitRandom, l.r, l.rows2, l.r)
		add("w2_b", LokrLycoris, l.columns2*kernel, l.r, l.columns2*kernel)
	}
	return params
}

func (l lokr) settings() []peft.Setting {
	return []peft.Setting{
		setting("r", float64(l.r)), setting("scaling", l.scaling),
		{Name: "w1", Value: fmt.Sprintf("%dx%d", l.rows1, l.columns1)}, {Name: "w2", Value: fmt.Sprintf("%dx%d", l.rows2, l.columns2)},
	}
}

func (l lokr) delta(u *peft.Use) *graph.Node {
	var y *graph.Node
	if l.Kind == site.Linear {
		y = l.linear(u)
	} else {
		y = u.Site.With(u.X, u.Site.Stored(l.convolution(u)))
	}
	y = keepPerOutput(u, y, l.config.RankDropout, false, l.config.RankDropoutScale)
	return keepPerOutput(u, y, l.config.ModuleDropout, true, false)
}

// linear applies one factor after the other, never their product: x is [..., m, n], w2 makes it
// [..., m, l], w1 [..., k, l]. The order is the one with less work.
func (l lokr) linear(u *peft.Use) *graph.Node {
	lead := u.X.Shape().Dimensions[:u.X.Rank()-1]
	at := func(last ...int) []int { return append(append([]int{}, lead...), last...) }
	x := graph.Reshape(u.X, at(l.columns1, l.columns2)...)
	swap := func(x *graph.Node) *graph.Node { return graph.Transpose(x, -1, -2) }
	first := func(x *graph.Node) *graph.Node { // on the last axis but one
		return swap(l.apply(u, "1", swap(x), l.full1, l.rows1, l.columns1))
	}
	second := func(x *graph.Node) *graph.Node { return l.apply(u, "2", x, l.full2, l.rows2, l.columns2) }
	if l.rows1*l.columns2*(l.columns1+l.rows2) < l.columns1*l.rows2*(l.columns2+l.rows1) {
		x = second(first(x))
	} else {
		x = first(second(x))
	}
	return graphx.Scale(graph.Reshape(x, at(l.Out)...), l.scaling)
}

// apply multiplies the last axis of x by a factor [rows, columns].
func (l lokr) apply(u *peft.Use, n string, x *graph.Node, full bool, rows, columns int) *graph.Node {
	if full {
		return graphx.MatMulT(x, u.Cast("lokr_w"+n))
	}
	a, b := u.Cast("lokr_w"+n+"_a"), u.Cast("lokr_w"+n+"_b")
	if l.r*(rows+columns) < rows*columns {
		return graphx.MatMulT(graphx.MatMul(x, graph.Transpose(b, 0, 1)), a)
	}
	return graphx.MatMulT(x, graphx.MatMul(a, b))
}

// convolution is ΔW of a convolution, [out, in, kernel].
func (l lokr) convolution(u *peft.Use) *graph.Node {
	kernel := kernelSize(l.Module)
	w1 := l.matrix(u, "1", l.full1)
	var w2 *graph.Node
	if l.core {
		w2 = tucker(u.Cast("lokr_t2"), u.Cast("lokr_w2_a"), u.Cast("lokr_w2_b"))
	} else {
		w2 = l.matrix(u, "2", l.full2)
	}
	w1 = graph.Reshape(graphx.Scale(w1, l.scaling), l.rows1, 1, l.columns1, 1, 1)
	w2 = graph.Reshape(w2, 1, l.rows2, 1, l.columns2, kernel)
	w := graph.Mul(w1, w2) // [k, l, m, n, kernel]
	if l.shuffled() {
		w = graph.TransposeAllAxes(w, 1, 0, 3, 2, 4)
	}
	return graph.Reshape(w, l.WeightShape()...)
}

// shuffled reports the one case where peft pairs axes in another order: a convolution over one
// axis whose w2 is no product has three axes, and torch.kron pads w1 in front.
func (l lokr) shuffled() bool {
	return l.full2 && l.Kind == site.Convolution && len(l.Conv.Kernel) == 1
}

func (l lokr) matrix(u *peft.Use, n string, full bool) *graph.Node {
	if full {
		return u.Cast("lokr_w" + n)
	}
	return graphx.MatMul(u.Cast("lokr_w"+n+"_a"), u.Cast("lokr_w"+n+"_b"))
}

func (l lokr) weightDelta(_ func() []float32, value func(name string) []float32) []float32 {
	kernel := kernelSize(l.Module)
	get := func(name string) []float32 { return value(l.Path + ".lokr_" + name) }
	var w1, w2 []float32
	if l.full1 {
		w1 = get("w1")
	} else {
		w1 = product(get("w1_a"), get("w1_b"), l.rows1, l.r, l.columns1, 1)
	}
	switch {
	case l.full2:
		w2 = get("w2")
	case l.core:
		w2 = tuckerHost(get("t2"), get("w2_a"), get("w2_b"), l.r, l.rows2, l.columns2, kernel, 1)
	default:
		w2 = product(get("w2_a"), get("w2_b"), l.rows2, l.r, l.columns2*kernel, 1)
	}
	out := make([]float32, 0, len(w1)*len(w2))
	element := func(i1, j1, i2, j2, k int) {
		out = append(out, float32(l.scaling)*w1[i1*l.columns1+j1]*w2[(i2*l.columns2+j2)*kernel+k])
	}
	if l.shuffled() {
		loops(l.rows2, l.rows1, l.columns2, l.columns1, kernel, func(i2, i1, j2, j1, k int) { element(i1, j1, i2, j2, k) })
	} else {
		loops(l.rows1, l.rows2, l.columns1, l.columns2, kernel, func(i1, i2, j1, j2, k int) { element(i1, j1, i2, j2, k) })
	}
	return out
}

// loops calls f for all indices, the last one fastest.
func loops(a, b, c, d, e int, f func(a, b, c, d, e int)) {
	for i := range a {
		for j := range b {
			for k := range c {
				for l := range d {
					for m := range e {
						f(i, j, k, l, m)
					}
				}
			}
		}
	}
}
