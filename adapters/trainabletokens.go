package adapters

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// TrainableTokensType is the peft_type of [TrainableTokensConfig].
const TrainableTokensType = "TRAINABLE_TOKENS"

func init() { peft.Register(TrainableTokensType, decodeTrainableTokens) }

// TrainableTokensConfig trains the embeddings of some tokens, new ones say, and leaves all
// others as they are, field by field the TrainableTokensConfig of peft. A head that shares
// the embedding's weight follows.
//
// Several can be active together if their tokens are different. Next to a LoRA, use
// lora.LoraConfig's TrainableTokenIndices.
type TrainableTokensConfig struct {
	peft.PeftConfig
	// TokenIndices are the ids of the tokens, at least one.
	TokenIndices []int `json:"token_indices"`
	// TargetModules are embeddings, or the head. The zero value means [peft.InputEmbedding].
	TargetModules peft.Targets `json:"target_modules"`
	// InitWeights: the rows start as they are in the base. If [peft.Off] they are
	// drawn from N(0, 1).
	InitWeights peft.Switch `json:"init_weights"`
}

// PeftType implements [peft.Config].
func (TrainableTokensConfig) PeftType() string { return TrainableTokensType }

// WithCommon implements [peft.Config].
func (c TrainableTokensConfig) WithCommon(common peft.PeftConfig) peft.Config {
	c.PeftConfig = common
	return c
}

// Validate implements [peft.Config].
func (c TrainableTokensConfig) Validate() error {
	if len(c.TokenIndices) == 0 {
		return fmt.Errorf("trainable_tokens: token_indices is empty")
	}
	if err := (peft.TokenIndices{Input: c.TokenIndices}).Check(); err != nil {
		return fmt.Errorf("trainable_tokens: %w", err)
	}
	if err := (peft.Selection{TargetModules: c.TargetModules}).Validate(); err != nil {
		return fmt.Errorf("trainable_tokens: %w", err)
	}
	return nil
}

// MarshalJSON writes the fields as peft does.
func (c TrainableTokensConfig) MarshalJSON() ([]byte, error) {
	type plain TrainableTokensConfig
	if c.TokenIndices == nil {
		c.TokenIndices = []int{}
	}
	return json.Marshal(plain(c))
}

func decodeTrainableTokens(data []byte) (peft.Config, error) {
	var c TrainableTokensConfig
	common, err := peft.DecodeFields(data, &c)
	if err != nil {
		return nil, fmt.Errorf("trainable_tokens: %w", err)
	}
	c.PeftConfig = common
	return c, nil
}

// trainableTokens is a TrainableTokensConfig planned on a base.
type trainableTokens struct {
	peft.TokenAdapter
	config   TrainableTokensConfig
	patterns []peft.PatternCount
}

var (
	_ peft.PartialModuleAdapter = (*trainableTokens)(nil)
	_ peft.Merger               = (*trainableTokens)(nil)
	_ peft.Describer            = (*trainableTokens)(nil)
	_ peft.Configured           = (*trainableTokens)(nil)
)

// Attach implements [peft.Config].
func (c TrainableTokensConfig) Attach(base site.Base) (peft.Adapter, error) {
	a, err := c.attach(base)
	if err != nil {
		return nil, fmt.Errorf("trainable_tokens: %w", err)
	}
	return a, nil
}

func (c TrainableTokensConfig) attach(base site.Base) (*trainableTokens, error) {
	if c.TargetModules.IsZero() {
		m, err := peft.InputEmbedding(base)
		if err != nil {
			return nil, err
		}
		c.TargetModules = peft.Regex(m.Path) // as peft writes it
	}
	allowed := peft.NoneUnused
	if c.Reading() {
		allowed = peft.AnyUnused
	}
	targets, counts, err := peft.Selection{TargetModules: c.TargetModules}.Match(base.Modules(), allowed)
	if err != nil {
		return nil, err
	}
	var rows []peft.TokenRows
	weights := map[string]bool{}
	for _, m := range targets {
		if m.TiedTo != "" && weights[m.Weight()] { // it follows
			continue
		}
		weights[m.Weight()] = true
		rows = append(rows, peft.TokenRows{Module: m, Rows: c.TokenIndices})
	}
	a, err := peft.NewTokenAdapter(base, rows, peft.TokenTensors{Suffix: "trainable_tokens_delta", Twins: true, Random: c.InitWeights == peft.Off})
	if err != nil {
		return nil, err
	}
	return &trainableTokens{TokenAdapter: a, config: c, patterns: counts}, nil
}

// Config implements [peft.Configured].
func (a *trainableTokens) Config() peft.Config { return a.config }

// Patterns implements [peft.Describer].
func (a *trainableTokens) Patterns() []peft.PatternCount { return a.patterns }

// Describe implements [peft.Describer].
func (a *trainableTokens) Describe(m site.Module) []peft.Setting {
	return []peft.Setting{{Name: "tokens", Value: strconv.Itoa(len(a.RowsOf(m.Path)))}}
}
