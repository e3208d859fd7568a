package lora

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/gopeft/gopeft/internal/pyjson"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// maxRank keeps the size of a tensor within an int.
const maxRank = 1<<31 - 1

// PeftType is the method's name in adapter_config.json.
const PeftType = "LORA"

func init() { peft.Register(PeftType, decode) }

// LoraConfig is the configuration of a LoRA adapter, field by field that of peft.
// Only R has no default.
type LoraConfig struct {
	peft.PeftConfig
	// R is the rank, at least 1. (peft's default is 8.)
	R int `json:"r"`
	// LoraAlpha scales the update, see [Scaling]. Zero means 8, peft's default.
	LoraAlpha float64 `json:"lora_alpha"`
	// LoraDropout is the rate of dropout on the input of A while training, in [0, 1).
	LoraDropout float64 `json:"lora_dropout"`
	// TargetModules says what is adapted. The zero value means [DefaultTargets] of
	// the base's model_type.
	TargetModules peft.Targets `json:"target_modules"`
	// ExcludeModules are never adapted: names or a regular expression.
	ExcludeModules peft.Targets `json:"exclude_modules"`
	// LayersToTransform and LayersPattern restrict the targets, see [peft.Selection].
	LayersToTransform peft.Layers  `json:"layers_to_transform"`
	LayersPattern     peft.Strings `json:"layers_pattern"`
	// ModulesToSave are trained and saved as a whole beside the adapter, see
	// [peft.CopyModules]. For a classifier its head is added, see
	// [peft.PeftConfig.SavedModules].
	ModulesToSave peft.Strings `json:"modules_to_save"`
	// TrainableTokenIndices are tokens whose embeddings are trained, see [peft.NewTokenAdapter].
	// A head that shares the embedding's weight follows.
	TrainableTokenIndices peft.TokenIndices `json:"trainable_token_indices"`
	// EnsureWeightTying forbids token indices that differ between modules that share a weight.
	EnsureWeightTying bool `json:"ensure_weight_tying"`
	// TargetParameters are parameters of two or three axes that are adapted as such, by
	// name ("mlp.experts.down_proj"): experts' weights, which are no modules.
	TargetParameters peft.Strings `json:"target_parameters"`
	// LayerReplication builds the base with the layers of these ranges [from, to), one
	// after the other, each with an adapter of its own: [[0, 4], [2, 5]] makes seven
	// layers of five. Such an adapter cannot be merged. nil: the layers as they are.
	LayerReplication [][2]int `json:"layer_replication"`
	// RankPattern and AlphaPattern give modules their own R and LoraAlpha.
	RankPattern  peft.Patterns `json:"rank_pattern"`
	AlphaPattern peft.Patterns `json:"alpha_pattern"`
	// UseRSLoRA divides alpha by sqrt(r) instead of r.
	UseRSLoRA bool `json:"use_rslora"`
	// UseDora trains the lengths of the weight's rows apart from their directions, see dora.go.
	UseDora bool `json:"use_dora"`
	// LoraBias gives B a bias, see lorabias.go.
	LoraBias bool `json:"lora_bias"`
	// Bias says which of the base's biases are trained too.
	Bias Bias `json:"bias"`
	// InitLoraWeights says how A and B start.
	InitLoraWeights Init `json:"init_lora_weights"`
	// LoftqConfig are the settings of [InitLoftq].
	LoftqConfig LoftqConfig `json:"loftq_config"`
	// FanInFanOut is true in the files of bases that store weights as [in, out]. It
	// decides nothing: the base itself knows (site.Module.Transposed), and a
	// configuration completed on a base has the value that fits, as in peft.
	FanInFanOut bool `json:"fan_in_fan_out"`

	// calibration holds the initial values that come from data.
	calibration *calibration
}

// PeftType implements [peft.Config].
func (c LoraConfig) PeftType() string { return PeftType }

// WithCommon implements [peft.Config].
func (c LoraConfig) WithCommon(common peft.PeftConfig) peft.Config {
	c.PeftConfig = common
	return c
}

func (c LoraConfig) selection() peft.Selection {
	return peft.Selection{
		TargetModules: c.TargetModules, ExcludeModules: c.ExcludeModules,
		LayersToTransform: c.LayersToTransform, LayersPattern: c.LayersPattern, ModulesToSave: c.ModulesToSave,
	}
}

// Validate implements [peft.Config].
func (c LoraConfig) Validate() error {
	if err := c.validate(); err != nil {
		return fmt.Errorf("lora: %w", err)
	}
	return nil
}

func (c LoraConfig) validate() error {
	first := cmp.Or(checkRank("r", c.R, 8), checkNumber("lora_alpha", c.LoraAlpha), checkRate("lora_dropout", c.LoraDropout), c.checkInit())
	if first != nil {
		return first
	}
	var selection error
	if !c.onlyParameters() {
		selection = c.selection().Validate()
	}
	return errors.Join(
		selection,
		c.Bias.check(BiasLoraOnly),
		c.TrainableTokenIndices.Check(),
		checkRankPattern(c.RankPattern),
		checkAlphaPattern(c.AlphaPattern),
		loraFixed.check(c.Unknown),
	)
}

// LayerRanges implements [peft.Replicating].
func (c LoraConfig) LayerRanges() [][2]int { return c.LayerReplication }

// MarshalJSON writes the fields as peft does: lora_alpha with its default, the
// dropout as a float.
func (c LoraConfig) MarshalJSON() ([]byte, error) {
	type plain LoraConfig
	return json.Marshal(struct {
		plain
		LoraAlpha   float64      `json:"lora_alpha"`
		LoraDropout pyjson.Float `json:"lora_dropout"`
		LoftqConfig any          `json:"loftq_config"`
	}{plain(c), orEight(c.LoraAlpha), pyjson.Float(c.LoraDropout), c.loftqSettings()})
}

// loftqSettings is an empty object without settings.
func (c LoraConfig) loftqSettings() any {
	switch {
	case c.InitLoraWeights == InitLoftq:
		return c.LoftqConfig.withDefaults()
	case c.LoftqConfig == LoftqConfig{}:
		return struct{}{}
	}
	return c.LoftqConfig
}

// decode reads adapter_config.json.
func decode(data []byte) (peft.Config, error) {
	c := LoraConfig{R: 8, LoraAlpha: 8}
	common, err := peft.DecodeFields(data, &c)
	if err != nil {
		return nil, fmt.Errorf("lora: %w", err)
	}
	if c.LoraAlpha == 0 {
		return nil, errors.New("lora: lora_alpha is 0: the adapter would change nothing")
	}
	c.PeftConfig = common
	return c, nil
}

// Attach implements [peft.Config].
func (c LoraConfig) Attach(base site.Base) (peft.Adapter, error) {
	c.ModulesToSave = c.SavedModules(c.ModulesToSave)
	a, err := attach(c, base)
	if err != nil {
		return nil, fmt.Errorf("lora: %w", err)
	}
	saved, err := peft.CopyModules(base, c.ModulesToSave, c.PeftConfig)
	if err != nil {
		return nil, fmt.Errorf("lora: %w", err)
	}
	biases, err := trainedBiases(base, c.Bias, a.targets, c.Reading())
	if err != nil {
		return nil, fmt.Errorf("lora: %w", err)
	}
	tokens, err := c.trainedTokens(base, a.targets)
	if err != nil {
		return nil, fmt.Errorf("lora: %w", err)
	}
	parts := []peft.Adapter{a, saved, biases, tokens}
	if a.parameters != nil {
		parts = append(parts, a.parameters)
	}
	return peft.Compose(parts...), nil
}
