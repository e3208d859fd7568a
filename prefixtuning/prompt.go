package prefixtuning

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/suggest"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// PromptTuningType is the peft_type of [PromptTuningConfig].
const PromptTuningType = "PROMPT_TUNING"

func init() { peft.Register(PromptTuningType, decodePromptTuning) }

// Init says how a prompt starts.
type Init string

const (
	// InitRandom draws embeddings from N(0, 1). It is what the zero value means.
	InitRandom Init = "RANDOM"
	// InitSampleVocab takes the embeddings of tokens drawn from the vocabulary.
	InitSampleVocab Init = "SAMPLE_VOCAB"
	// InitText takes the embeddings of a text's tokens, from the first on and again if they
	// are too few.
	InitText Init = "TEXT"
)

// MarshalJSON writes the name; that of the zero value is [InitRandom].
func (i Init) MarshalJSON() ([]byte, error) {
	if i == "" {
		i = InitRandom
	}
	return json.Marshal(string(i))
}

// PromptTuningConfig trains embeddings of virtual tokens that precede those of every row
// (Lester et al. 2021, arXiv:2104.08691), field by field the PromptTuningConfig of peft.
//
// The sizes that are 0 are taken from the base.
type PromptTuningConfig struct {
	peft.PeftConfig
	// NumVirtualTokens is the length of the prompt, at least 1.
	NumVirtualTokens int `json:"num_virtual_tokens"`
	// PromptTuningInit says how the prompt starts. "": [InitRandom].
	PromptTuningInit Init `json:"prompt_tuning_init"`
	// PromptTuningInitText is the text of [InitText].
	PromptTuningInitText Text `json:"prompt_tuning_init_text"`
	// TokenizerNameOrPath is the folder of its tokenizer, with a tokenizer.json. "": the
	// base's folder, if it has one.
	TokenizerNameOrPath Text `json:"tokenizer_name_or_path"`
	// TokenizerKwargs are further arguments of Python's tokenizer. They are kept; a new prompt
	// cannot have any.
	TokenizerKwargs map[string]json.RawMessage `json:"tokenizer_kwargs"`
	// TokenDim is the width of the embeddings; NumAttentionHeads and NumLayers are the base's,
	// and NumTransformerSubmodules is 1.
	TokenDim                 Size `json:"token_dim"`
	NumAttentionHeads        Size `json:"num_attention_heads"`
	NumLayers                Size `json:"num_layers"`
	NumTransformerSubmodules Size `json:"num_transformer_submodules"`
	// ModulesToSave are trained and saved as a whole, see [peft.CopyModules].
	ModulesToSave peft.Strings `json:"modules_to_save"`
}

// PeftType implements [peft.Config].
func (PromptTuningConfig) PeftType() string { return PromptTuningType }

// WithCommon implements [peft.Config].
func (c PromptTuningConfig) WithCommon(common peft.PeftConfig) peft.Config {
	c.PeftConfig = common
	return c
}

func (c *PromptTuningConfig) geometry() geometry {
	return geometry{c.NumVirtualTokens, &c.TokenDim, &c.NumTransformerSubmodules, &c.NumAttentionHeads, &c.NumLayers, nil}
}

// Validate implements [peft.Config].
func (c PromptTuningConfig) Validate() error {
	err := c.geometry().check()
	if err == nil {
		err = c.start().check(InitRandom, InitSampleVocab, InitText)
	}
	if err != nil {
		return fmt.Errorf("prompt_tuning: %w", err)
	}
	return nil
}

func decodePromptTuning(data []byte) (peft.Config, error) {
	var c PromptTuningConfig
	common, err := peft.DecodeFields(data, &c)
	if err != nil {
		return nil, fmt.Errorf("prompt_tuning: %w", err)
	}
	c.PeftConfig = common
	return c, nil
}

func (c *PromptTuningConfig) start() start {
	return start{c.PromptTuningInit, c.PromptTuningInitText, &c.TokenizerNameOrPath, c.TokenizerKwargs}
}

// start is what a prompt starts from.
type start struct {
	init      Init
	text      Text
	tokenizer *Text
	kwargs    map[string]json.RawMessage
}

func (s start) check(known ...Init) error {
	if s.init != "" {
		names := make([]string, len(known))
		found := false
		for i, k := range known {
			names[i], found = string(k), found || k == s.init
		}
		if !found {
			return fmt.Errorf("prompt_tuning_init is %q, want one of %v%s", s.init, names, suggest.DidYouMean(string(s.init), names))
		}
	}
	if s.init == InitText && s.text == "" {
		return errors.New("prompt_tuning_init is TEXT without prompt_tuning_init_text")
	}
	if s.init != InitText && len(s.kwargs) > 0 {
		return errors.New("tokenizer_kwargs are only for prompt_tuning_init TEXT")
	}
	return nil
}

// Attach implements [peft.Config].
func (c PromptTuningConfig) Attach(base site.Base) (peft.Adapter, error) {
	c.ModulesToSave = c.SavedModules(c.ModulesToSave)
	a, err := c.attach(base)
	if err != nil {
		return nil, fmt.Errorf("prompt_tuning: %w", err)
	}
	copies, err := saved(base, c.ModulesToSave, c.PeftConfig)
	if err != nil {
		return nil, fmt.Errorf("prompt_tuning: %w", err)
	}
	return peft.Compose(a, copies), nil
}

func (c PromptTuningConfig) attach(base site.Base) (peft.Adapter, error) {
	t, err := c.geometry().prompted(base)
	if err != nil {
		return nil, err
	}
	if c.PromptTuningInit == "" {
		c.PromptTuningInit = InitRandom
	}
	init := normal
	if !c.Reading() {
		if init, err = c.start().from(t, c.NumVirtualTokens); err != nil {
			return nil, err
		}
	}
	return &prompt{encoder: table{c.NumVirtualTokens, int(c.TokenDim), init}, config: c, virtual: c.NumVirtualTokens}, nil
}

// prompted fills in the sizes of a method whose virtual tokens are embeddings.
func (g geometry) prompted(base site.Base) (site.Transformer, error) {
	t, err := g.transformer(base)
	if err != nil {
		return nil, err
	}
	layers := t.Layers()
	width, heads := t.Words().Out, layers[0].Heads
	return t, g.settle(width, heads, len(layers), width, heads)
}

// prompt are embeddings of virtual tokens planned on a base.
type prompt struct {
	encoder
	config  peft.Config
	virtual int
}

var (
	_ peft.PrefixAdapter = (*prompt)(nil)
	_ peft.FileForm      = (*prompt)(nil)
	_ peft.Configured    = (*prompt)(nil)
)

// Params implements [peft.Adapter].
func (a *prompt) Params() []peft.Param { return a.params() }

// Targets implements [peft.Adapter]: no module changes.
func (a *prompt) Targets() []site.Module { return nil }

// Config implements [peft.Configured].
func (a *prompt) Config() peft.Config { return a.config }

// FileForm implements [peft.FileForm].
func (a *prompt) FileForm(value func(name string) []float32) (peft.Config, []peft.FileTensor, error) {
	return fileForm(a.encoder, value)
}

// VirtualTokens implements [peft.PrefixAdapter].
func (a *prompt) VirtualTokens() (slots, rows int) { return 0, a.virtual }

// Prefix implements [peft.PrefixAdapter].
func (a *prompt) Prefix(v *peft.Values, p *site.Pass, _ site.Tokens) site.Prefix {
	return site.Prefix{Embeddings: graph.ConvertDType(a.encode(v, p), p.DType)}
}
