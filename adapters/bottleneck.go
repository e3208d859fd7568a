package adapters

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/internal/pyjson"
	"github.com/gopeft/gopeft/internal/suggest"
	"github.com/gopeft/gopeft/peft"
)

// BottleneckType is the peft_type of [BottleneckConfig]. Python's peft has no such method.
const BottleneckType = "BOTTLENECK"

func init() { peft.Register(BottleneckType, decodeBottleneck) }

// BottleneckConfig puts small networks of two layers into a model's blocks, field by field
// AdapterHub's BnConfig: scaling · up(non_linearity(down(x))), added to x. [Houlsby],
// [Pfeiffer], [Parallel] and [ScaledParallel] are the published placements.
//
// The zero value puts one after each feed-forward sublayer, before the block adds its
// residual, with a sixteenth of the features and relu. A bottleneck adapter cannot be merged.
type BottleneckConfig struct {
	peft.PeftConfig
	// MhAdapter puts adapters at the attention sublayers, OutputAdapter at the feed-forward
	// sublayers. Neither, without TargetModules, means OutputAdapter.
	MhAdapter     bool `json:"mh_adapter"`
	OutputAdapter bool `json:"output_adapter"`
	// ReductionFactor divides the features to give the width of the bottleneck.
	ReductionFactor ReductionFactor `json:"reduction_factor"`
	// NonLinearity is the function in the bottleneck, by transformers' names. "": "relu".
	NonLinearity string `json:"non_linearity"`
	// OriginalLnBefore adds the block's residual, and applies the norm that the block has after
	// it (BERT, not Llama), before a sequential adapter.
	OriginalLnBefore bool `json:"original_ln_before"`
	// OriginalLnAfter adds the residual and applies that norm after the adapter. If [peft.Off]
	// the block goes on with what the adapter gives: then OriginalLnBefore should be set and
	// ResidualBeforeLn be [ResidualAfterNorm], or the block's input is lost.
	OriginalLnAfter peft.Switch `json:"original_ln_after"`
	// LnBefore and LnAfter are norms of the adapter's own, before its first layer and after its
	// last.
	LnBefore bool `json:"ln_before"`
	LnAfter  bool `json:"ln_after"`
	// InitWeights says how the layers start.
	InitWeights BottleneckInit `json:"init_weights"`
	// InitWeightsSeed, if not 0, makes all modules start with the same values.
	InitWeightsSeed int64 `json:"init_weights_seed"`
	// IsParallel gives the adapter what the sublayer's output will be added to, which mostly is
	// the sublayer's input, in place of that output, to which the result is added.
	IsParallel bool `json:"is_parallel"`
	// Scaling multiplies the result.
	Scaling Scaling `json:"scaling"`
	// ResidualBeforeLn says what a sequential adapter's result is added to.
	ResidualBeforeLn Residual `json:"residual_before_ln"`
	// AdapterResidualBeforeLn adds it before LnAfter's norm, not after.
	AdapterResidualBeforeLn bool `json:"adapter_residual_before_ln"`
	// LeaveOut lists blocks, from 0, without adapters.
	LeaveOut []int `json:"leave_out"`
	// Dropout is the rate of dropout on the result while training, in [0, 1).
	Dropout float64 `json:"dropout"`
	// TargetModules names linear layers to put an adapter at the outputs of, in place of
	// sublayers: for bases that have none, such as wrapped models. What is about blocks and
	// their norms does not apply then.
	TargetModules peft.Targets `json:"target_modules"`
	// ExcludeModules are never adapted.
	ExcludeModules peft.Targets `json:"exclude_modules"`
	// ModulesToSave are trained and saved as a whole beside the adapters, see
	// [peft.CopyModules]. For a classifier its head is added.
	ModulesToSave peft.Strings `json:"modules_to_save"`
}

// Houlsby is the placement of Houlsby et al. 2019 (arXiv:1902.00751), AdapterHub's
// double_seq_bn: after both sublayers.
func Houlsby() BottleneckConfig {
	return BottleneckConfig{MhAdapter: true, OutputAdapter: true, ReductionFactor: ReductionFactor{Default: 16}, NonLinearity: "swish"}
}

// Pfeiffer is the placement of Pfeiffer et al. 2020 (arXiv:2005.00247), AdapterHub's
// seq_bn: after the feed-forward sublayer and its norm, added to what was before them.
func Pfeiffer() BottleneckConfig {
	return BottleneckConfig{OutputAdapter: true, ReductionFactor: ReductionFactor{Default: 16}, NonLinearity: "relu", OriginalLnBefore: true}
}

// Parallel is the placement of He et al. 2021 (arXiv:2110.04366), AdapterHub's par_bn:
// beside the feed-forward sublayer, four times as strong.
func Parallel() BottleneckConfig {
	return BottleneckConfig{
		OutputAdapter: true, ReductionFactor: ReductionFactor{Default: 2}, NonLinearity: "relu",
		InitWeights: InitMAM, IsParallel: true, Scaling: Scaling{Factor: 4},
	}
}

// ScaledParallel is [Parallel] with a strength that is learned, AdapterHub's scaled_par_bn.
func ScaledParallel() BottleneckConfig {
	c := Parallel()
	c.Scaling = Scaling{Learned: ScalingLearned}
	return c
}

// PeftType implements [peft.Config].
func (BottleneckConfig) PeftType() string { return BottleneckType }

// WithCommon implements [peft.Config].
func (c BottleneckConfig) WithCommon(common peft.PeftConfig) peft.Config {
	c.PeftConfig = common
	return c
}

func (c BottleneckConfig) selection() peft.Selection {
	return peft.Selection{TargetModules: c.TargetModules, ExcludeModules: c.ExcludeModules, ModulesToSave: c.ModulesToSave}
}

// withDefaults fills in what zero values stand for.
func (c BottleneckConfig) withDefaults() BottleneckConfig {
	if !c.MhAdapter && !c.OutputAdapter && c.TargetModules.IsZero() {
		c.OutputAdapter = true
	}
	if c.ReductionFactor.isZero() {
		c.ReductionFactor.Default = 16
	}
	if c.NonLinearity == "" {
		c.NonLinearity = "relu"
	}
	return c
}

// Validate implements [peft.Config].
func (c BottleneckConfig) Validate() error {
	if err := c.validate(); err != nil {
		return fmt.Errorf("bottleneck: %w", err)
	}
	return nil
}

func (c BottleneckConfig) validate() error {
	if !(c.Dropout >= 0 && c.Dropout < 1) {
		return fmt.Errorf("dropout is %v, want a rate in [0, 1)", c.Dropout)
	}
	if c.ResidualBeforeLn == ResidualPostAdd && (!c.OriginalLnBefore || c.IsParallel) {
		return errors.New(`residual_before_ln "post_add" needs original_ln_before and a sequential adapter`)
	}
	for _, layer := range c.LeaveOut {
		if layer < 0 {
			return fmt.Errorf("leave_out: layer %d is negative", layer)
		}
	}
	if _, err := nonLinearity(c.withDefaults().NonLinearity); err != nil {
		return err
	}
	for _, err := range []error{
		c.ReductionFactor.check(), c.Scaling.check(), c.InitWeights.check(), c.ResidualBeforeLn.check(), c.checkPlaces(), checkRefused(c.Unknown),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

// checkPlaces refuses what contradicts itself about where adapters go.
func (c BottleneckConfig) checkPlaces() error {
	if c.TargetModules.IsZero() {
		if !c.ExcludeModules.IsZero() {
			return errors.New("exclude_modules needs target_modules; leave_out leaves out blocks")
		}
		return nil
	}
	for _, option := range []struct {
		name string
		set  bool
	}{
		{"mh_adapter", c.MhAdapter}, {"output_adapter", c.OutputAdapter}, {"original_ln_before", c.OriginalLnBefore},
		{"original_ln_after = false", c.OriginalLnAfter == peft.Off}, {"is_parallel", c.IsParallel},
		{"leave_out", len(c.LeaveOut) > 0}, {"a reduction_factor by layer", len(c.ReductionFactor.Layers) > 0},
	} {
		if option.set {
			return fmt.Errorf("%s is about the sublayers of blocks and cannot be used with target_modules, which name linear layers", option.name)
		}
	}
	return c.selection().Validate()
}

// nonLinearity returns the function of a name, in any case, as AdapterHub spells it.
func nonLinearity(name string) (activation, error) {
	lower := strings.ToLower(name)
	if lower == "leakyrelu" {
		lower = "leaky_relu"
	}
	if f, ok := graphx.Activation(lower); ok {
		return f, nil
	}
	known := append(graphx.ActivationNames(), "leakyrelu")
	slices.Sort(known)
	return nil, fmt.Errorf("non_linearity %q is not supported%s; supported are %s", name, suggest.DidYouMean(lower, known), strings.Join(known, ", "))
}

// MarshalJSON writes the fields as AdapterHub does.
func (c BottleneckConfig) MarshalJSON() ([]byte, error) {
	type plain BottleneckConfig
	c = c.withDefaults()
	if c.LeaveOut == nil {
		c.LeaveOut = []int{}
	}
	var seed *int64
	if c.InitWeightsSeed != 0 {
		seed = &c.InitWeightsSeed
	}
	return json.Marshal(struct {
		plain
		Dropout         pyjson.Float `json:"dropout"`
		InitWeightsSeed *int64       `json:"init_weights_seed"`
	}{plain(c), pyjson.Float(c.Dropout), seed})
}

func decodeBottleneck(data []byte) (peft.Config, error) {
	var c BottleneckConfig
	common, err := peft.DecodeFields(data, &c)
	if err != nil {
		return nil, fmt.Errorf("bottleneck: %w", err)
	}
	c.PeftConfig = common
	return c, nil
}

// refused are keys of AdapterHub's BnConfig without a field here, with the values that
// change nothing. "*" stands for all: they are about something that is refused itself.
var refused = []struct {
	key      string
	harmless []string
	why      string
}{
	{"use_gating", []string{"false"}, "gates of adapters are not supported"},
	{"inv_adapter", nil, "invertible adapters of embeddings are not supported"},
	{"inv_adapter_reduction_factor", []string{"*"}, ""},
	{"cross_adapter", []string{"false"}, "there is no cross attention here"},
	{"phm_layer", []string{"false"}, "compacter's hypercomplex layers are not supported"},
	{"phm_dim", []string{"*"}, ""}, {"phm_rank", []string{"*"}, ""}, {"phm_bias", []string{"*"}, ""},
	{"phm_c_init", []string{"*"}, ""}, {"phm_init_range", []string{"*"}, ""}, {"learn_phm", []string{"*"}, ""},
	{"shared_phm_rule", []string{"*"}, ""}, {"factorized_phm_rule", []string{"*"}, ""},
	{"shared_W_phm", []string{"*"}, ""}, {"factorized_phm_W", []string{"*"}, ""}, {"hypercomplex_nonlinearity", []string{"*"}, ""},
	{"stochastic_depth", []string{"0.0", "0"}, "dropping whole adapters in training is not supported; for inference set it to 0.0 in the file"},
}

// checkRefused refuses the first key whose value would change what the adapter computes.
func checkRefused(unknown map[string]json.RawMessage) error {
	for _, r := range refused {
		value, ok := unknown[r.key]
		if !ok {
			continue
		}
		text := strings.TrimSpace(string(value))
		if text != "null" && !slices.Contains(r.harmless, text) && !slices.Contains(r.harmless, "*") {
			return fmt.Errorf("option %q = %s is refused: %s", r.key, text, r.why)
		}
	}
	return nil
}

// isFinite reports whether v is neither NaN nor infinite.
func isFinite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }
