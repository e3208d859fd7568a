package lora

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"

	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/internal/pyjson"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// AdaLoraType is AdaLoRA's name in adapter_config.json.
const AdaLoraType = "ADALORA"

func init() { peft.Register(AdaLoraType, decodeAdaLora) }

// maxTriplets is far above what any model has.
const maxTriplets = 1 << 24

// AdaLoraConfig is adaptive LoRA (Zhang et al. 2023, arXiv:2303.10512): the update has the form
// of a singular value decomposition,
//
//	y = W x + b + s · B (E ⊙ A dropout(x)),  s = alpha / (init_r + 0.00001)
//
// with A [r, in], E [r, 1] and B [out, r]. A term of the loss keeps the rows of A and the
// columns of B nearly orthonormal, and while it is trained the least important of all
// triplets (a row, a value, a column) are set to zero, until TargetR a module are left on
// average; where is decided by importance, see [AdaLoraConfig.TotalStep]. The file holds what
// is left. Only TotalStep has no default.
type AdaLoraConfig struct {
	peft.PeftConfig
	// InitR is the rank that each module starts with. Zero means 12.
	InitR int `json:"init_r"`
	// TargetR is the average rank that is left at the end, below InitR. Zero means 8.
	TargetR int `json:"target_r"`
	// TotalStep is the number of optimizer steps of the training. The first TInit of them prune
	// nothing; then the number of triplets falls with the third power of the time that is left
	// until the last TFinal steps, which only train what remains. It is pruned every DeltaT
	// steps, and at the end. Zero for DeltaT means 1.
	TotalStep int `json:"total_step"`
	TInit     int `json:"tinit"`
	TFinal    int `json:"tfinal"`
	DeltaT    int `json:"deltaT"`
	// Beta1 and Beta2 smooth |value · gradient|, the sensitivity of an element, and its
	// deviation; their product is the element's importance. In (0, 1). Zero means 0.85.
	Beta1 float64 `json:"beta1"`
	Beta2 float64 `json:"beta2"`
	// OrthRegWeight is the weight of the mean over all A and B of |AAᵀ - I| and |BᵀB - I| in
	// the loss (Frobenius norms). Zero means 0.5, peft's default; a negative number means none.
	OrthRegWeight float64 `json:"orth_reg_weight"`
	// RankPattern says which triplets of a module (its path and ".lora_E") are left, of InitR. It
	// is made by training and read from files.
	RankPattern map[string][]bool `json:"rank_pattern"`
	// LoraAlpha scales the update. It must be positive; zero means 8.
	LoraAlpha float64 `json:"lora_alpha"`
	// LoraDropout is the rate of dropout on the input of A while training, in [0, 1).
	LoraDropout float64 `json:"lora_dropout"`
	// TargetModules says what is adapted: linear layers, and convolutions over two axes. The
	// zero value stands for peft's choice for the base's model_type.
	TargetModules     peft.Targets `json:"target_modules"`
	ExcludeModules    peft.Targets `json:"exclude_modules"`
	LayersToTransform peft.Layers  `json:"layers_to_transform"`
	LayersPattern     peft.Strings `json:"layers_pattern"`
	ModulesToSave     peft.Strings `json:"modules_to_save"`
	// InitLoraWeights is InitDefault (E is zero, A and B are drawn from N(0, 0.02²)) or
	// InitRandom (all from N(0, 1)).
	InitLoraWeights Init `json:"init_lora_weights"`
	// FanInFanOut is as in [LoraConfig].
	FanInFanOut bool `json:"fan_in_fan_out"`
	// Bias says which of the base's biases are trained too: BiasNone, BiasAll or BiasLoraOnly.
	Bias Bias `json:"bias"`
	// R is LoRA's rank and is not used; it must be 0 or 8.
	R int `json:"r"`
}

// adaLoraFixed are LoRA's options, which AdaLoRA ignores or refuses in peft too.
var adaLoraFixed = fixed{
	"alora_invocation_tokens": {"null"}, "alpha_pattern": {"{}"}, "arrow_config": {"null"}, "corda_config": {"null"},
	"ensure_weight_tying": {"false"}, "eva_config": {"null"}, "kasa_config": {"null"}, "layer_replication": {"null"}, "loftq_config": {"{}"},
	"lora_bias": {"false"}, "lora_ga_config": {"null"}, "megatron_config": {"null"}, "megatron_core": {`"megatron.core"`},
	"monteclora_config": {"null"}, "qalora_group_size": {"16"}, "target_parameters": {"null"}, "trainable_token_indices": {"null"},
	"use_bdlora": {"null"}, "use_dora": {"false"}, "use_qalora": {"false"}, "use_rslora": {"false"}, "velora_config": {"null"},
}

// PeftType implements [peft.Config].
func (c AdaLoraConfig) PeftType() string { return AdaLoraType }

// WithCommon implements [peft.Config].
func (c AdaLoraConfig) WithCommon(common peft.PeftConfig) peft.Config {
	c.PeftConfig = common
	return c
}

// FileDefaults implements [peft.FileDefaulter].
func (c AdaLoraConfig) FileDefaults() map[string]json.RawMessage { return adaLoraFixed.defaults() }

func (c AdaLoraConfig) selection() peft.Selection {
	return peft.Selection{
		TargetModules: c.TargetModules, ExcludeModules: c.ExcludeModules,
		LayersToTransform: c.LayersToTransform, LayersPattern: c.LayersPattern, ModulesToSave: c.ModulesToSave,
	}
}

// completed has all defaults filled in.
func (c AdaLoraConfig) completed() AdaLoraConfig {
	number := func(v *int, usual int) {
		if *v == 0 {
			*v = usual
		}
	}
	float := func(v *float64, usual float64) {
		if *v == 0 {
			*v = usual
		}
	}
	number(&c.InitR, 12)
	number(&c.TargetR, 8)
	number(&c.DeltaT, 1)
	number(&c.R, 8)
	float(&c.Beta1, 0.85)
	float(&c.Beta2, 0.85)
	float(&c.OrthRegWeight, 0.5)
	float(&c.LoraAlpha, 8)
	return c
}

// Validate implements [peft.Config].
func (c AdaLoraConfig) Validate() error {
	return prefixed("adalora",
		c.completed().checkNumbers(), checkRate("lora_dropout", c.LoraDropout),
		checkInitWeights("init_lora_weights", c.InitLoraWeights, InitDefault, InitRandom),
		c.selection().Validate(), c.Bias.check(BiasLoraOnly), adaLoraFixed.check(c.Unknown))
}

func (c AdaLoraConfig) checkNumbers() error {
	rate := func(v float64) bool { return v > 0 && v < 1 }
	switch {
	case c.InitR < 0 || c.InitR > maxRank || c.TargetR < 0:
		return fmt.Errorf("init_r is %d and target_r %d, want ranks of at least 1", c.InitR, c.TargetR)
	case c.TotalStep <= 0 || c.TotalStep > math.MaxInt32:
		return fmt.Errorf("total_step is %d, want the number of optimizer steps of the training", c.TotalStep)
	case c.TInit < 0 || c.TFinal < 0 || c.DeltaT < 0:
		return fmt.Errorf("tinit is %d, tfinal %d and deltaT %d, want none negative", c.TInit, c.TFinal, c.DeltaT)
	case c.TInit >= c.TotalStep-c.TFinal:
		return fmt.Errorf("tinit %d and tfinal %d leave none of the %d steps (total_step) for pruning", c.TInit, c.TFinal, c.TotalStep)
	case c.TotalStep-c.TFinal < 2:
		return fmt.Errorf("tfinal %d of %d steps (total_step) prunes with the first step, when no importance is known", c.TFinal, c.TotalStep)
	case !rate(c.Beta1) || !rate(c.Beta2):
		return fmt.Errorf("beta1 is %v and beta2 %v, want numbers in (0, 1)", c.Beta1, c.Beta2)
	case !(c.LoraAlpha > 0) || checkNumber("lora_alpha", c.LoraAlpha) != nil:
		return fmt.Errorf("lora_alpha is %v, want a positive number", c.LoraAlpha)
	case checkNumber("orth_reg_weight", c.OrthRegWeight) != nil:
		return checkNumber("orth_reg_weight", c.OrthRegWeight)
	case c.Reading():
		return nil
	case c.TargetR >= c.InitR:
		return fmt.Errorf("target_r is %d, want less than init_r, %d: there would be nothing to prune", c.TargetR, c.InitR)
	case c.R != 8:
		return fmt.Errorf("r is %d, but AdaLoRA does not use it: set init_r and target_r", c.R)
	}
	return nil
}

// MarshalJSON writes the fields as peft does.
func (c AdaLoraConfig) MarshalJSON() ([]byte, error) {
	type plain AdaLoraConfig
	c = c.completed()
	return json.Marshal(struct {
		plain
		OrthRegWeight pyjson.Float `json:"orth_reg_weight"`
		LoraDropout   pyjson.Float `json:"lora_dropout"`
	}{plain(c), pyjson.Float(max(0, c.OrthRegWeight)), pyjson.Float(c.LoraDropout)})
}

func decodeAdaLora(data []byte) (peft.Config, error) {
	c := AdaLoraConfig{}.completed()
	common, err := peft.DecodeFields(data, &c)
	if err != nil {
		return nil, fmt.Errorf("adalora: %w", err)
	}
	switch {
	case c.OrthRegWeight < 0:
		return nil, fmt.Errorf("adalora: orth_reg_weight is %v, want 0 or more", c.OrthRegWeight)
	case c.OrthRegWeight == 0:
		c.OrthRegWeight = -1
	}
	for name, v := range map[string]float64{"init_r": float64(c.InitR), "target_r": float64(c.TargetR), "deltaT": float64(c.DeltaT), "beta1": c.Beta1, "beta2": c.Beta2, "lora_alpha": c.LoraAlpha} {
		if v == 0 {
			return nil, fmt.Errorf("adalora: %s is 0", name)
		}
	}
	c.PeftConfig = common
	return c, nil
}

// Attach implements [peft.Config].
func (c AdaLoraConfig) Attach(base site.Base) (peft.Adapter, error) {
	return attachRelative("adalora", base, c.PeftConfig, c.selection(), adaLoraTargets, func(p *planning) (peft.Adapter, error) {
		c = c.completed()
		if n := len(p.targets); c.InitR > maxTriplets/n {
			return nil, fmt.Errorf("init_r is %d for %d modules, want at most %d triplets in all", c.InitR, n, maxTriplets)
		}
		c.TargetModules, c.ModulesToSave, c.FanInFanOut = p.TargetModules, p.ModulesToSave, p.transposed()
		a := &adaLora{}
		var err error
		a.relative, err = p.adapter(c, func(_ int, m site.Module) (part, error) {
			l, err := newTriplets(m, &c)
			a.layers = append(a.layers, l)
			return l, err
		})
		if err != nil {
			return nil, err
		}
		for name := range c.RankPattern {
			if !slices.ContainsFunc(a.layers, func(l triplets) bool { return l.name("E") == name }) {
				return nil, fmt.Errorf("rank_pattern: %q is no tensor of the adapted modules", name)
			}
		}
		a.config = c
		return p.withBiases(a, c.Bias)
	})
}

// triplets is AdaLoRA on one module.
type triplets struct {
	site.Module
	config *AdaLoraConfig
	// r is what rank_pattern leaves of init_r.
	r       int
	scaling float64
	inputs  int
}

func newTriplets(m site.Module, c *AdaLoraConfig) (triplets, error) {
	l := triplets{Module: m, config: c, r: c.InitR, scaling: c.LoraAlpha / (float64(c.InitR) + 1e-5), inputs: m.In * kernelSize(m)}
	switch {
	case m.Kind == site.Convolution && (len(m.Conv.Kernel) != 2 || m.Conv.Groups != 1):
		return l, fmt.Errorf("target module %q is a convolution over %d axes in %d groups, want two axes and one group", m.Path, len(m.Conv.Kernel), m.Conv.Groups)
	case m.Kind != site.Convolution && m.Kind != site.Linear:
		return l, fmt.Errorf("target module %q is of kind %s, want a linear layer or a convolution", m.Path, m.Kind)
	}
	if kept, ok := c.RankPattern[l.name("E")]; ok {
		if len(kept) != c.InitR {
			return l, fmt.Errorf("rank_pattern: %q has %d entries, want init_r, %d", l.name("E"), len(kept), c.InitR)
		}
		l.r = count(kept)
	}
	return l, nil
}

func count(kept []bool) int {
	n := 0
	for _, k := range kept {
		if k {
			n++
		}
	}
	return n
}

// name is the full name of A, B or E.
func (l triplets) name(matrix string) string { return l.Path + ".lora_" + matrix }

func (l triplets) settings() []peft.Setting {
	return []peft.Setting{setting("r", float64(l.r)), setting("scaling", l.scaling)}
}

// matrices are the shapes of the trained tensors.
func (l triplets) matrices() map[string][]int {
	return map[string][]int{"A": {l.r, l.inputs}, "B": {l.Out, l.r}, "E": {l.r, 1}}
}

func (l triplets) params() []peft.Param {
	shapes := l.matrices()
	a, b, e := normal(0.02), normal(0.02), constant(0)
	if l.config.InitLoraWeights == InitRandom {
		a, b, e = normal(1), normal(1), normal(1)
	}
	params := []peft.Param{
		{Name: l.name("A"), Shape: shapes["A"], Init: a},
		{Name: l.name("B"), Shape: shapes["B"], Init: b, Group: peft.GroupB},
		{Name: l.name("E"), Shape: shapes["E"], Init: e},
	}
	return append(params, l.state()...)
}

func (l triplets) delta(u *peft.Use) *graph.Node {
	if l.r == 0 {
		return nil
	}
	x := u.Pass.Dropout(u.Site.Path, u.X, l.config.LoraDropout)
	e := graph.ConvertDType(graph.MulScalar(graph.Reshape(u.Value("lora_E"), l.r), l.scaling), u.Pass.DType)
	a, b := u.Cast("lora_A"), u.Cast("lora_B")
	if l.Kind == site.Convolution {
		w := graphx.MatMul(graph.Mul(b, graph.InsertAxes(e, 0)), a)
		return u.Site.With(x, u.Site.Stored(graph.Reshape(w, l.WeightShape()...)))
	}
	low := graphx.MatMulT(x, a)
	return graphx.MatMulT(graph.Mul(low, graph.ExpandLeftToRank(e, low.Rank())), b)
}

func (l triplets) weightDelta(_ func() []float32, value func(name string) []float32) []float32 {
	if l.r == 0 {
		return make([]float32, l.Out*l.inputs)
	}
	e, b := value(l.name("E")), slices.Clone(value(l.name("B")))
	for i := range b {
		b[i] *= e[i%l.r]
	}
	return product(b, value(l.name("A")), l.Out, l.r, l.inputs, l.scaling)
}

// adaLora is AdaLoRA planned on a base; adalora_budget.go says how it is trained.
type adaLora struct {
	*relative
	config AdaLoraConfig
	layers []triplets
}

var adaLoraDefaults = map[string]peft.Targets{
	"bart":        peft.Modules("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
	"bert":        queryValue,
	"bloom":       queryKeyValue,
	"deberta":     peft.Modules("in_proj"),
	"deberta-v2":  peft.Modules("query_proj", "key_proj", "value_proj", "dense"),
	"gemma":       qv,
	"gemma2":      qv,
	"gemma3_text": qv,
	"gemma4":      peft.Regex(`.*language_model\..*\.(q_proj|v_proj)`),
	"gpt2":        peft.Modules("c_attn"),
	"gpt_bigcode": peft.Modules("c_attn"),
	"gpt_neo":     qv,
	"gpt_neox":    queryKeyValue,
	"gptj":        qv,
	"llama":       qv,
	"llama4":      qv,
	"mt5":         peft.Modules("q", "k", "v", "o", "wi_0", "wi_1", "wo"),
	"nemotron_h":  peft.Modules("q_proj", "k_proj", "v_proj", "o_proj"),
	"opt":         peft.Modules("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
	"qwen2":       qv,
	"qwen3":       qv,
	"roberta":     peft.Modules("query", "key", "value", "dense"),
	"t5":          peft.Modules("q", "k", "v", "o", "wi", "wo"),
}

func adaLoraTargets(modelType string) (peft.Targets, bool) {
	t, ok := adaLoraDefaults[modelType]
	return t, ok
}
