package prefixtuning

import (
	"fmt"
	"math"

	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/suggest"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// PTuningType is the peft_type of [PromptEncoderConfig].
const PTuningType = "P_TUNING"

func init() { peft.Register(PTuningType, decodePTuning) }

// Reparameterization is a kind of network.
type Reparameterization string

const (
	// MLP is three linear layers with ReLU between them. It is what the zero value means.
	MLP Reparameterization = "MLP"
	// LSTM is a bidirectional LSTM under two linear layers with ReLU between them.
	LSTM Reparameterization = "LSTM"
)

// PromptEncoderConfig is P-tuning (Liu et al. 2021, arXiv:2103.10385): embeddings of virtual
// tokens as in [PromptTuningConfig], made by a network that is trained in their place, field by
// field the PromptEncoderConfig of peft.
//
// Python's files hold only the embeddings that the network made. Such a file is used as it is,
// and training it further trains the embeddings, as [PromptTuningConfig] does.
type PromptEncoderConfig struct {
	peft.PeftConfig
	// NumVirtualTokens is the length of the prompt, at least 1.
	NumVirtualTokens int `json:"num_virtual_tokens"`
	// EncoderReparameterizationType is the kind of network. "": [MLP].
	EncoderReparameterizationType Reparameterization `json:"encoder_reparameterization_type"`
	// EncoderHiddenSize is the width of the network's hidden layers, of an LSTM in one
	// direction. 0: TokenDim.
	EncoderHiddenSize Size `json:"encoder_hidden_size"`
	// EncoderNumLayers are the layers of an LSTM; an MLP ignores it. 0: 2.
	EncoderNumLayers int `json:"encoder_num_layers"`
	// EncoderDropout is the rate of dropout between the layers of an LSTM; an MLP ignores it.
	EncoderDropout float64 `json:"encoder_dropout"`
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
func (PromptEncoderConfig) PeftType() string { return PTuningType }

// WithCommon implements [peft.Config].
func (c PromptEncoderConfig) WithCommon(common peft.PeftConfig) peft.Config {
	c.PeftConfig = common
	return c
}

func (c *PromptEncoderConfig) geometry() geometry {
	return geometry{c.NumVirtualTokens, &c.TokenDim, &c.NumTransformerSubmodules, &c.NumAttentionHeads, &c.NumLayers, &c.EncoderHiddenSize}
}

// maxLSTMLayers bounds the size of a program.
const maxLSTMLayers = 64

// Validate implements [peft.Config].
func (c PromptEncoderConfig) Validate() error {
	if err := c.validate(); err != nil {
		return fmt.Errorf("p_tuning: %w", err)
	}
	return nil
}

func (c PromptEncoderConfig) validate() error {
	if err := c.geometry().check(); err != nil {
		return err
	}
	switch kind := c.EncoderReparameterizationType; {
	case kind != "" && kind != MLP && kind != LSTM:
		return fmt.Errorf("encoder_reparameterization_type is %q, want MLP or LSTM%s", kind, suggest.DidYouMean(string(kind), []string{string(MLP), string(LSTM)}))
	case c.EncoderNumLayers < 0 || c.EncoderNumLayers > maxLSTMLayers:
		return fmt.Errorf("encoder_num_layers is %d, want 1 to %d, or 0 for 2", c.EncoderNumLayers, maxLSTMLayers)
	case !(c.EncoderDropout >= 0 && c.EncoderDropout < 1):
		return fmt.Errorf("encoder_dropout is %v, want 0 or more and less than 1", c.EncoderDropout)
	}
	return nil
}

func decodePTuning(data []byte) (peft.Config, error) {
	var c PromptEncoderConfig
	common, err := peft.DecodeFields(data, &c)
	if err != nil {
		return nil, fmt.Errorf("p_tuning: %w", err)
	}
	c.PeftConfig = common
	return c, nil
}

// Attach implements [peft.Config].
func (c PromptEncoderConfig) Attach(base site.Base) (peft.Adapter, error) {
	c.ModulesToSave = c.SavedModules(c.ModulesToSave)
	a, err := c.attach(base)
	if err != nil {
		return nil, fmt.Errorf("p_tuning: %w", err)
	}
	copies, err := saved(base, c.ModulesToSave, c.PeftConfig)
	if err != nil {
		return nil, fmt.Errorf("p_tuning: %w", err)
	}
	return peft.Compose(a, copies), nil
}

func (c PromptEncoderConfig) attach(base site.Base) (peft.Adapter, error) {
	if _, err := c.geometry().prompted(base); err != nil {
		return nil, err
	}
	if c.EncoderReparameterizationType == "" {
		c.EncoderReparameterizationType = MLP
	}
	if c.EncoderNumLayers == 0 {
		c.EncoderNumLayers = 2
	}
	a := &prompt{config: c, virtual: c.NumVirtualTokens}
	switch {
	case c.Reading() && !c.Besides():
		a.encoder = table{c.NumVirtualTokens, int(c.TokenDim), normal}
	case c.EncoderReparameterizationType == LSTM:
		a.encoder = c.lstm()
	default:
		a.encoder = c.mlp()
	}
	return a, nil
}

// mlp is Embedding, Linear, ReLU, Linear, ReLU, Linear.
func (c PromptEncoderConfig) mlp() *network {
	width, hidden := int(c.TokenDim), int(c.EncoderHiddenSize)
	n := newNetwork(c.NumVirtualTokens, width, width)
	n.linear("mlp_head.0", width, hidden)
	n.linear("mlp_head.2", hidden, hidden)
	n.linear("mlp_head.4", hidden, width)
	n.build = func(value func(name string) *graph.Node, _ *site.Pass) *graph.Node {
		x := relu(affine(value, "mlp_head.0", value("embedding.weight")))
		return affine(value, "mlp_head.4", relu(affine(value, "mlp_head.2", x)))
	}
	return n
}

// lstm is Embedding, LSTM, Linear, ReLU, Linear.
func (c PromptEncoderConfig) lstm() *network {
	width, hidden, layers := int(c.TokenDim), int(c.EncoderHiddenSize), c.EncoderNumLayers
	n := newNetwork(c.NumVirtualTokens, width, width)
	init := uniform(1 / math.Sqrt(float64(hidden)))
	for layer := range layers {
		in := width
		if layer > 0 {
			in = 2 * hidden
		}
		for _, direction := range directions {
			suffix := fmt.Sprintf("_l%d%s", layer, direction)
			n.add("lstm_head.weight_ih"+suffix, init, 4*hidden, in)
			n.add("lstm_head.weight_hh"+suffix, init, 4*hidden, hidden)
			n.add("lstm_head.bias_ih"+suffix, init, 4*hidden)
			n.add("lstm_head.bias_hh"+suffix, init, 4*hidden)
		}
	}
	n.linear("mlp_head.0", 2*hidden, 2*hidden)
	n.linear("mlp_head.2", 2*hidden, width)
	n.build = func(value func(name string) *graph.Node, p *site.Pass) *graph.Node {
		x := value("embedding.weight")
		for layer := range layers {
			if layer > 0 {
				x = dropout(p, fmt.Sprintf("prompt_encoder.lstm_head.%d", layer), x, c.EncoderDropout)
			}
			x = lstmLayer(func(name, direction string) *graph.Node {
				return value(fmt.Sprintf("lstm_head.%s_l%d%s", name, layer, direction))
			}, x)
		}
		return affine(value, "mlp_head.2", relu(affine(value, "mlp_head.0", x)))
	}
	return n
}

func relu(x *graph.Node) *graph.Node { return graph.MaxScalar(x, 0) }
