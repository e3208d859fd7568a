package lora

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/internal/pyjson"
	"github.com/gopeft/gopeft/internal/torchrand"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// VeraType is VeRA's name in adapter_config.json.
const VeraType = "VERA"

func init() { peft.Register(VeraType, decodeVera) }

// VeraConfig is vector-based random matrix adaptation (Kopiczko, Blankevoort and Asano 2023,
// arXiv:2310.11454): one pair of frozen random matrices A [r, in] and B [out, r] serves all
// modules, and two vectors a module are trained,
//
//	y = W x + b + λ_b ⊙ B (λ_d ⊙ A dropout(x))
//
// A and B have the largest sizes that the targets need; a smaller module uses their first
// columns and rows. Only R has no default.
type VeraConfig struct {
	peft.PeftConfig
	// R is the rank, at least 1; it costs little, as A and B are shared. (peft's default is 256.)
	R int `json:"r"`
	// TargetModules says which linear layers are adapted. The zero value means [DefaultTargets],
	// but q_proj and v_proj for phi.
	TargetModules peft.Targets `json:"target_modules"`
	// ProjectionPRNGKey is the seed that A and B are drawn from.
	ProjectionPRNGKey int64 `json:"projection_prng_key"`
	// SaveProjection says whether the file holds A and B. Without them it is smaller, and A
	// and B are drawn again from ProjectionPRNGKey when it is read, as PyTorch draws them.
	SaveProjection Switch `json:"save_projection"`
	// VeraDropout is the rate of dropout on the input of A while training, in [0, 1).
	VeraDropout float64 `json:"vera_dropout"`
	// DInitial is what each element of λ_d starts with. Zero means 0.1.
	DInitial float64 `json:"d_initial"`
	// FanInFanOut is as in [LoraConfig].
	FanInFanOut   bool         `json:"fan_in_fan_out"`
	ModulesToSave peft.Strings `json:"modules_to_save"`
	// InitWeights is InitDefault (λ_b starts at zero) or InitRandom (λ_b at one, λ_d drawn from N(0, 1)).
	InitWeights       Init         `json:"init_weights"`
	LayersToTransform peft.Layers  `json:"layers_to_transform"`
	LayersPattern     peft.Strings `json:"layers_pattern"`
	// Bias says which of the base's biases are trained too: BiasNone, BiasAll or BiasVeraOnly.
	Bias Bias `json:"bias"`
}

// BiasVeraOnly trains the biases of the target modules of VeRA.
const BiasVeraOnly Bias = "vera_only"

// Names of the matrices that all modules share, and of a module's tensors behind its path.
const (
	veraA       = "vera_A"
	veraB       = "vera_B"
	veraLambdaB = "vera_lambda_b"
	veraLambdaD = "vera_lambda_d"
)

// PeftType implements [peft.Config].
func (c VeraConfig) PeftType() string { return VeraType }

// WithCommon implements [peft.Config].
func (c VeraConfig) WithCommon(common peft.PeftConfig) peft.Config {
	c.PeftConfig = common
	return c
}

func (c VeraConfig) selection() peft.Selection {
	return peft.Selection{
		TargetModules: c.TargetModules, LayersToTransform: c.LayersToTransform, LayersPattern: c.LayersPattern, ModulesToSave: c.ModulesToSave,
	}
}

func (c VeraConfig) dInitial() float64 {
	if c.DInitial == 0 {
		return 0.1
	}
	return c.DInitial
}

// Validate implements [peft.Config].
func (c VeraConfig) Validate() error {
	return prefixed("vera",
		checkRank("r", c.R, 256), checkRate("vera_dropout", c.VeraDropout), checkNumber("d_initial", c.DInitial),
		checkInitWeights("init_weights", c.InitWeights, InitDefault, InitRandom),
		c.selection().Validate(), c.Bias.check(BiasVeraOnly))
}

// MarshalJSON writes the fields as peft does.
func (c VeraConfig) MarshalJSON() ([]byte, error) {
	type plain VeraConfig
	return json.Marshal(struct {
		plain
		VeraDropout pyjson.Float `json:"vera_dropout"`
		DInitial    pyjson.Float `json:"d_initial"`
	}{plain(c), pyjson.Float(c.VeraDropout), pyjson.Float(c.dInitial())})
}

func decodeVera(data []byte) (peft.Config, error) {
	c := VeraConfig{R: 256, DInitial: 0.1}
	common, err := peft.DecodeFields(data, &c)
	if err != nil {
		return nil, fmt.Errorf("vera: %w", err)
	}
	if c.DInitial == 0 {
		return nil, errors.New("vera: d_initial is 0: with λ_b at zero too, the adapter could not learn")
	}
	c.PeftConfig = common
	return c, nil
}

func veraTargets(modelType string) (peft.Targets, bool) {
	if modelType == "phi" {
		return qv, true
	}
	return DefaultTargets(modelType)
}

// Attach implements [peft.Config].
func (c VeraConfig) Attach(base site.Base) (peft.Adapter, error) {
	return attachRelative("vera", base, c.PeftConfig, c.selection(), veraTargets, func(p *planning) (peft.Adapter, error) {
		c.TargetModules, c.ModulesToSave, c.FanInFanOut, c.DInitial = p.TargetModules, p.ModulesToSave, p.transposed(), c.dInitial()
		in, out := 0, 0
		a, err := p.adapter(c, func(_ int, m site.Module) (part, error) {
			in, out = max(in, m.In), max(out, m.Out)
			return vera{Module: m, config: &c}, wantLinear(m)
		})
		if err != nil {
			return nil, err
		}
		for _, one := range a.parts {
			v := one.(vera)
			v.columns = in
			a.parts[v.Path] = v
		}
		a.shared = c.projections(in, out)
		return p.withBiases(a, c.Bias)
	})
}

// projections are A [r, in] and B [out, r], drawn one after the other from one generator
// from Kaiming's uniform distribution, U(-sqrt(6/fan in), sqrt(6/fan in)).
func (c VeraConfig) projections(in, out int) []peft.Param {
	draw := func(skip, fanIn int) func(*rand.Rand, []float32) error {
		return func(_ *rand.Rand, values []float32) error {
			g := torchrand.New(c.ProjectionPRNGKey)
			g.Skip(skip)
			bound := math.Sqrt(3) * (math.Sqrt2 / math.Sqrt(float64(fanIn))) // rounded as in PyTorch
			g.Uniform(values, -bound, bound)
			return nil
		}
	}
	unsaved := c.SaveProjection == Off
	return []peft.Param{
		{Name: veraA, Key: "base_model.vera_A", Shape: []int{c.R, in}, Init: draw(0, in), Frozen: true, Unsaved: unsaved},
		{Name: veraB, Key: "base_model.vera_B", Shape: []int{out, c.R}, Init: draw(c.R*in, c.R), Frozen: true, Unsaved: unsaved},
	}
}

// vera is VeRA on one module.
type vera struct {
	site.Module
	config *VeraConfig
	// columns are those of A.
	columns int
}

func (l vera) params() []peft.Param {
	b := peft.Param{Name: l.Path + "." + veraLambdaB, Shape: []int{l.Out}, Group: peft.GroupB}
	d := peft.Param{Name: l.Path + "." + veraLambdaD, Shape: []int{l.config.R}, Group: peft.GroupB}
	if l.config.InitWeights == InitRandom {
		b.Init, d.Init = constant(1), normal(1)
	} else {
		d.Init = constant(l.config.DInitial)
	}
	return []peft.Param{b, d}
}

// constant fills with one value.
func constant(v float64) func(*rand.Rand, []float32) error {
	return func(_ *rand.Rand, values []float32) error {
		for i := range values {
			values[i] = float32(v)
		}
		return nil
	}
}

func (l vera) settings() []peft.Setting { return []peft.Setting{setting("r", float64(l.config.R))} }

func (l vera) delta(u *peft.Use) *graph.Node {
	x := u.Pass.Dropout(u.Site.Path, u.X, l.config.VeraDropout)
	a := graph.Slice(u.Values().Get(veraA), graph.AxisRange(), graph.AxisRange(0, l.In))
	b := graph.Slice(u.Values().Get(veraB), graph.AxisRange(0, l.Out))
	scale := func(y *graph.Node, lambda string) *graph.Node {
		return graph.Mul(y, graph.ExpandLeftToRank(u.Cast(lambda), y.Rank()))
	}
	low := scale(graphx.MatMulT(x, graph.ConvertDType(a, u.Pass.DType)), veraLambdaD)
	return scale(graphx.MatMulT(low, graph.ConvertDType(b, u.Pass.DType)), veraLambdaB)
}

func (l vera) weightDelta(_ func() []float32, value func(name string) []float32) []float32 {
	a, b, r := value(veraA), value(veraB), l.config.R
	lambdaB, lambdaD := value(l.Path+"."+veraLambdaB), value(l.Path+"."+veraLambdaD)
	left, right := make([]float32, l.Out*r), make([]float32, r*l.In)
	for i := range left {
		left[i] = lambdaB[i/r] * b[i]
	}
	for i := range right {
		right[i] = lambdaD[i/l.In] * a[i/l.In*l.columns+i%l.In]
	}
	return product(left, right, l.Out, r, l.In, 1)
}
