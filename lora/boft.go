package lora

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"

	"github.com/gomlx/gomlx/core/graph"
	"gonum.org/v1/gonum/mat"

	"github.com/gopeft/gopeft/internal/pyjson"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// BoftType is BOFT's name in adapter_config.json.
const BoftType = "BOFT"

func init() { peft.Register(BoftType, decodeBoft) }

// BiasBoftOnly trains the biases of a BOFT's target modules. ("boft_only" in peft)
const BiasBoftOnly Bias = "boft_only"

// BoftConfig is orthogonal butterfly fine-tuning (Liu et al. 2023, arXiv:2311.06243), field by
// field the BOFTConfig of peft:
//
//	y = s ⊙ (W·(x·B_m·...·B_1)) + b,  B_i = P_i·diag(R)·P_iᵀ
//
// with blocks R that are Cayley transforms of skew-symmetric matrices, permutations P_i of a
// butterfly network, which spread a block of the next factor over twice as many inputs, and
// a scale s of the outputs. A new adapter changes nothing.
type BoftConfig struct {
	peft.PeftConfig
	// BoftBlockSize is the size of blocks and BoftBlockNum their number: one of both, which
	// must divide the number of inputs of every target. Zero in both means blocks of 4.
	BoftBlockSize int `json:"boft_block_size"`
	BoftBlockNum  int `json:"boft_block_num"`
	// BoftNButterflyFactor is the number m of factors. Zero means 1, no butterfly. (Python's
	// peft makes 1 of any number where it cannot compile its CUDA kernel.)
	BoftNButterflyFactor int `json:"boft_n_butterfly_factor"`
	// BoftDropout is the rate at which blocks of one factor are left out in training, in [0, 1).
	// (With several factors peft chooses one of them for each step. Here each is as likely to
	// lose blocks, drawn for each row of the batch.)
	BoftDropout float64 `json:"boft_dropout"`
	// TargetModules says which linear layers are adapted. The zero value means [DefaultTargets].
	TargetModules     peft.Targets `json:"target_modules"`
	ExcludeModules    peft.Targets `json:"exclude_modules"`
	LayersToTransform peft.Layers  `json:"layers_to_transform"`
	LayersPattern     peft.Strings `json:"layers_pattern"`
	ModulesToSave     peft.Strings `json:"modules_to_save"`
	// FanInFanOut decides nothing, see [LoraConfig].
	FanInFanOut bool `json:"fan_in_fan_out"`
	// Bias is BiasNone, BiasAll or BiasBoftOnly.
	Bias Bias `json:"bias"`
	// InitWeights: a new adapter is the identity. If Off, its values are drawn from
	// N(0, 0.1), scales from N(1, 0.1), for tests.
	InitWeights Switch `json:"init_weights"`
}

// withDefaults fills in peft's.
func (c BoftConfig) withDefaults() BoftConfig {
	if c.BoftBlockSize == 0 && c.BoftBlockNum == 0 {
		c.BoftBlockSize = 4
	}
	if c.BoftNButterflyFactor == 0 {
		c.BoftNButterflyFactor = 1
	}
	return c
}

// PeftType implements [peft.Config].
func (c BoftConfig) PeftType() string { return BoftType }

// WithCommon implements [peft.Config].
func (c BoftConfig) WithCommon(common peft.PeftConfig) peft.Config {
	c.PeftConfig = common
	return c
}

func (c BoftConfig) selection() peft.Selection {
	return peft.Selection{
		TargetModules: c.TargetModules, ExcludeModules: c.ExcludeModules,
		LayersToTransform: c.LayersToTransform, LayersPattern: c.LayersPattern, ModulesToSave: c.ModulesToSave,
	}
}

// Validate implements [peft.Config].
func (c BoftConfig) Validate() error {
	return prefixed("boft", c.withDefaults().validate(), checkRate("boft_dropout", c.BoftDropout), c.Bias.check(BiasBoftOnly), c.selection().Validate())
}

func (c BoftConfig) validate() error {
	switch {
	case c.BoftBlockSize < 0 || c.BoftBlockNum < 0:
		return fmt.Errorf("boft_block_size is %d and boft_block_num is %d, want neither to be negative", c.BoftBlockSize, c.BoftBlockNum)
	case c.BoftBlockSize != 0 && c.BoftBlockNum != 0:
		return fmt.Errorf("boft_block_size is %d and boft_block_num is %d, want one of both: their product is the number of inputs", c.BoftBlockSize, c.BoftBlockNum)
	case c.BoftNButterflyFactor < 1 || c.BoftNButterflyFactor > 62:
		return fmt.Errorf("boft_n_butterfly_factor is %d, want from 1 to 62", c.BoftNButterflyFactor)
	}
	return nil
}

// MarshalJSON writes the fields as peft does.
func (c BoftConfig) MarshalJSON() ([]byte, error) {
	type plain BoftConfig
	c = c.withDefaults()
	return json.Marshal(struct {
		plain
		BoftDropout pyjson.Float `json:"boft_dropout"`
	}{plain(c), pyjson.Float(c.BoftDropout)})
}

func decodeBoft(data []byte) (peft.Config, error) {
	c := BoftConfig{BoftBlockSize: 4, BoftNButterflyFactor: 1}
	common, err := peft.DecodeFields(data, &c)
	if err != nil {
		return nil, fmt.Errorf("boft: %w", err)
	}
	if c.BoftBlockSize == 0 && c.BoftBlockNum == 0 || c.BoftNButterflyFactor == 0 {
		return nil, fmt.Errorf("boft: boft_block_size is %d, boft_block_num is %d and boft_n_butterfly_factor is %d, want one of the first two and the third",
			c.BoftBlockSize, c.BoftBlockNum, c.BoftNButterflyFactor)
	}
	c.PeftConfig = common
	return c, nil
}

// Attach implements [peft.Config].
func (c BoftConfig) Attach(base site.Base) (peft.Adapter, error) {
	c = c.withDefaults()
	return attachRelative("boft", base, c.PeftConfig, c.selection(), DefaultTargets, func(p *planning) (peft.Adapter, error) {
		c.TargetModules, c.ModulesToSave, c.FanInFanOut = p.TargetModules, p.ModulesToSave, p.transposed()
		a := &boft{config: c, targets: p.targets, patterns: p.counts, byPath: map[string]boftLayer{}, byWeight: map[string]boftLayer{}}
		for _, m := range p.targets {
			l, err := c.layer(m)
			if err != nil {
				return nil, err
			}
			a.byPath[m.Path], a.byWeight[peft.OwnWeight(m)] = l, l
		}
		biases, err := trainedBiases(base, c.Bias, p.targets, p.reading)
		if err != nil {
			return nil, err
		}
		return peft.Compose(a, outputScale{a}, biases), nil
	})
}

// boftLayer is BOFT on one module: factors, each of n blocks of size b.
type boftLayer struct {
	site.Module
	factors, n, b int
}

// Names of an adapted module's tensors, behind its path.
const (
	boftBlocks  = "boft_R" // [factors, n, b, b]; only the skew-symmetric part of a block counts
	boftOutputs = "boft_s" // [out, 1]
)

// layer checks what update_layer in peft/tuners/boft/layer.py checks.
func (c BoftConfig) layer(m site.Module) (boftLayer, error) {
	if err := wantLinear(m); err != nil {
		return boftLayer{}, err
	}
	option, size := "boft_block_size", c.BoftBlockSize
	if size == 0 {
		option, size = "boft_block_num", c.BoftBlockNum
	}
	if m.In%size != 0 {
		return boftLayer{}, fmt.Errorf("%s is %d, which does not divide the %d inputs of %q", option, size, m.In, m.Path)
	}
	l := boftLayer{Module: m, factors: c.BoftNButterflyFactor, n: m.In / size, b: size}
	if c.BoftBlockSize == 0 {
		l.n, l.b = size, m.In/size
	}
	if spread := 1 << (l.factors - 1); l.factors > 1 && (l.b%2 != 0 || l.n%spread != 0) {
		return l, fmt.Errorf("boft_n_butterfly_factor is %d: %q has %d blocks of %d inputs, want a multiple of %d blocks of an even size", l.factors, m.Path, l.n, l.b, spread)
	}
	return l, nil
}

// boft is the rotations of a BOFT planned on a base.
type boft struct {
	config           BoftConfig
	targets          []site.Module
	byPath, byWeight map[string]boftLayer
	patterns         []peft.PatternCount
}

// outputScale is the scales of its outputs.
type outputScale struct{ rotation *boft }

var (
	_ peft.InputAdapter  = (*boft)(nil)
	_ peft.Merger        = (*boft)(nil)
	_ peft.Describer     = (*boft)(nil)
	_ peft.Configured    = (*boft)(nil)
	_ peft.OutputAdapter = outputScale{}
	_ peft.Merger        = outputScale{}
)

// Params implements [peft.Adapter].
func (a *boft) Params() []peft.Param {
	var params []peft.Param
	for _, m := range a.targets {
		l := a.byPath[m.Path]
		r := peft.Param{Name: m.Path + "." + boftBlocks, Shape: []int{l.factors, l.n, l.b, l.b}}
		if a.config.InitWeights == Off {
			r.Init = normal(0.1)
		}
		params = append(params, r)
	}
	return params
}

// Targets implements [peft.Adapter].
func (a *boft) Targets() []site.Module { return a.targets }

// Config implements [peft.Configured].
func (a *boft) Config() peft.Config { return a.config }

// Patterns implements [peft.Describer].
func (a *boft) Patterns() []peft.PatternCount { return a.patterns }

// Describe implements [peft.Describer].
func (a *boft) Describe(m site.Module) []peft.Setting {
	l := a.byPath[m.Path]
	return []peft.Setting{{Name: "factors", Value: strconv.Itoa(l.factors)}, {Name: "blocks", Value: strconv.Itoa(l.n)}, {Name: "size", Value: strconv.Itoa(l.b)}}
}

// Input implements [peft.InputAdapter]: x·B_m·...·B_1.
func (a *boft) Input(u *peft.Use, x *graph.Node) *graph.Node {
	l := a.byPath[u.Site.Path]
	all := graph.Reshape(u.Value(boftBlocks), l.factors*l.n, l.b, l.b)
	q := graph.MulScalar(graph.Sub(all, graph.TransposeAllAxes(all, 0, 2, 1)), 0.5)
	r := cayley(q)
	for i := l.factors - 1; i >= 0; i-- {
		blocks := graph.Slice(r, graph.AxisRange(i*l.n, (i+1)*l.n))
		keep := keepBlocks(u, "factor"+strconv.Itoa(i), a.config.BoftDropout/float64(l.factors), l.n)
		if i == 0 { // nothing to shuffle
			return rotate(x, blocks, keep)
		}
		x = rotate(apart(l.shuffle(x, i, true), blocks), blocks, keep)
		x = l.shuffle(apart(x, blocks), i, false)
	}
	return x
}

// shuffle is x·P_i, or back with P_iᵀ. P_i (block_butterfly_perm in peft/tuners/boft/layer.py)
// cuts each stretch of 2^i blocks into half blocks and puts those of even index first. For i = 0 that is how they are.
func (l boftLayer) shuffle(x *graph.Node, i int, forth bool) *graph.Node {
	dims := x.Shape().Dimensions
	last := len(dims) - 1
	halves := 1 << i // of even index in a stretch, and as many of odd
	from := []int{halves, 2}
	if forth {
		from = []int{2, halves}
	}
	cut := append(append([]int{}, dims[:last]...), l.n/halves, from[0], from[1], l.b/2)
	axes := make([]int, 0, last+4)
	for k := range last + 1 {
		axes = append(axes, k)
	}
	axes = append(axes, last+2, last+1, last+3)
	return graph.Reshape(graph.TransposeAllAxes(graph.Reshape(x, cut...), axes...), dims...)
}

// hostShuffle is shuffle of one row.
func (l boftLayer) hostShuffle(row []float32, i int, forth bool) {
	halves, half := 1<<i, l.b/2
	if i == 0 {
		return
	}
	stretch := 2 * halves * half
	old := make([]float32, stretch)
	for at := 0; at < len(row); at += stretch {
		part := row[at : at+stretch]
		copy(old, part)
		for parity := range 2 {
			for k := range halves {
				sorted, natural := (parity*halves+k)*half, (2*k+parity)*half
				if forth {
					copy(part[natural:natural+half], old[sorted:sorted+half])
				} else {
					copy(part[sorted:sorted+half], old[natural:natural+half])
				}
			}
		}
	}
}

// Merges implements [peft.Merger].
func (a *boft) Merges() []string {
	var names []string
	for _, m := range a.targets {
		names = append(names, peft.OwnWeight(m))
	}
	return names
}

// Merge implements [peft.Merger]: W·B_1ᵀ·...·B_mᵀ.
func (a *boft) Merge(name string, values, _ []float32, value func(name string) []float32) error {
	l := a.byWeight[name]
	list := value(l.Path + "." + boftBlocks)
	size := l.b * l.b
	if len(list) != l.factors*l.n*size || len(values) != l.In*l.Out {
		return fmt.Errorf("it has %d values, want %d", len(values), l.In*l.Out)
	}
	return mergeInto(l.Module, values, func(w []float32) error {
		for i := range l.factors {
			var blocks []*mat.Dense
			for k := range l.n {
				r, err := hostCayley(skewPart(list[(i*l.n+k)*size:(i*l.n+k+1)*size], l.b))
				if err != nil {
					return err
				}
				blocks = append(blocks, r)
			}
			for o := range l.Out {
				l.hostShuffle(w[o*l.In:(o+1)*l.In], i, true)
			}
			turnWeight(w, l.Out, blocks)
			for o := range l.Out {
				l.hostShuffle(w[o*l.In:(o+1)*l.In], i, false)
			}
		}
		return nil
	})
}

// skewPart is (M-Mᵀ)/2.
func skewPart(m []float32, b int) *mat.Dense {
	q := mat.NewDense(b, b, nil)
	for i := range b {
		for j := range b {
			q.Set(i, j, 0.5*(float64(m[i*b+j])-float64(m[j*b+i])))
		}
	}
	return q
}

// Params implements [peft.Adapter].
func (a outputScale) Params() []peft.Param {
	var params []peft.Param
	for _, m := range a.rotation.targets {
		p := peft.Param{Name: m.Path + "." + boftOutputs, Shape: []int{m.Out, 1}}
		p.Init = func(r *rand.Rand, values []float32) error {
			for i := range values {
				values[i] = 1
				if a.rotation.config.InitWeights == Off {
					values[i] += float32(0.1 * r.NormFloat64())
				}
			}
			return nil
		}
		params = append(params, p)
	}
	return params
}

// Targets implements [peft.Adapter].
func (a outputScale) Targets() []site.Module { return a.rotation.targets }

// Merges implements [peft.Merger].
func (a outputScale) Merges() []string { return a.rotation.Merges() }

// Output implements [peft.OutputAdapter]. The bias is not scaled.
func (a outputScale) Output(u *peft.Use, y *graph.Node) *graph.Node {
	s := graph.ExpandLeftToRank(graph.ConvertDType(graph.Reshape(u.Value(boftOutputs), u.Site.Out), y.DType()), y.Rank())
	if !u.Site.Bias {
		return graph.Mul(y, s)
	}
	bias := graph.ExpandLeftToRank(u.Site.BiasValue(), y.Rank())
	return graph.Add(graph.Mul(graph.Sub(y, bias), s), bias)
}

// Merge implements [peft.Merger].
func (a outputScale) Merge(name string, values, _ []float32, value func(name string) []float32) error {
	l := a.rotation.byWeight[name]
	s := value(l.Path + "." + boftOutputs)
	if len(s) != l.Out || len(values) != l.In*l.Out {
		return fmt.Errorf("it has %d values, want %d", len(values), l.In*l.Out)
	}
	return mergeInto(l.Module, values, func(w []float32) error {
		for i := range w {
			w[i] *= s[i/l.In]
		}
		return nil
	})
}
