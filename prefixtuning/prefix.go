package prefixtuning

import (
	"fmt"

	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/suggest"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// PrefixTuningType is the peft_type of [PrefixTuningConfig].
const PrefixTuningType = "PREFIX_TUNING"

func init() { peft.Register(PrefixTuningType, decodePrefixTuning) }

// InitZero is the value of [PrefixTuningConfig].InitWeights for keys and values that start at 0.
const InitZero = "zero"

// PrefixTuningConfig trains keys and values of virtual tokens, which every layer's attention
// sees before those of the tokens (Li and Liang 2021, arXiv:2101.00190), field by field the
// PrefixTuningConfig of peft. Keys have no position; those of the tokens move by the number of
// virtual tokens.
//
// The sizes that are 0 are taken from the base.
type PrefixTuningConfig struct {
	peft.PeftConfig
	// NumVirtualTokens is the length of the prefix, at least 1.
	NumVirtualTokens int `json:"num_virtual_tokens"`
	// PrefixProjection makes the prefix by a network of two layers, Embedding, Linear, Tanh,
	// Linear, which is trained in its place. Python's files hold only the prefix that it made:
	// such a file is trained on as a prefix without a network.
	PrefixProjection bool `json:"prefix_projection"`
	// EncoderHiddenSize is the width of the network's hidden layer. 0: TokenDim.
	EncoderHiddenSize Size `json:"encoder_hidden_size"`
	// InitWeights is "" for random values, N(0, 1) without a network, or [InitZero]. See
	// [SetText] for the keys and values of a text.
	InitWeights Text `json:"init_weights"`
	// TokenDim is the number of features of a token's keys in one layer: with grouped queries
	// the heads of keys and values count.
	TokenDim Size `json:"token_dim"`
	// NumAttentionHeads are the heads of keys and values, NumLayers the layers, and
	// NumTransformerSubmodules is 1.
	NumAttentionHeads        Size `json:"num_attention_heads"`
	NumLayers                Size `json:"num_layers"`
	NumTransformerSubmodules Size `json:"num_transformer_submodules"`
	// ModulesToSave are trained and saved as a whole, see [peft.CopyModules].
	ModulesToSave peft.Strings `json:"modules_to_save"`
}

// PeftType implements [peft.Config].
func (PrefixTuningConfig) PeftType() string { return PrefixTuningType }

// WithCommon implements [peft.Config].
func (c PrefixTuningConfig) WithCommon(common peft.PeftConfig) peft.Config {
	c.PeftConfig = common
	return c
}

func (c *PrefixTuningConfig) geometry() geometry {
	return geometry{c.NumVirtualTokens, &c.TokenDim, &c.NumTransformerSubmodules, &c.NumAttentionHeads, &c.NumLayers, &c.EncoderHiddenSize}
}

// Validate implements [peft.Config].
func (c PrefixTuningConfig) Validate() error {
	if err := c.geometry().check(); err != nil {
		return fmt.Errorf("prefix_tuning: %w", err)
	}
	if c.InitWeights != "" && c.InitWeights != InitZero {
		return fmt.Errorf("prefix_tuning: init_weights is %q, want null or %q%s", c.InitWeights, InitZero, suggest.DidYouMean(string(c.InitWeights), []string{InitZero}))
	}
	return nil
}

func decodePrefixTuning(data []byte) (peft.Config, error) {
	var c PrefixTuningConfig
	common, err := peft.DecodeFields(data, &c)
	if err != nil {
		return nil, fmt.Errorf("prefix_tuning: %w", err)
	}
	c.PeftConfig = common
	return c, nil
}

// Attach implements [peft.Config].
func (c PrefixTuningConfig) Attach(base site.Base) (peft.Adapter, error) {
	c.ModulesToSave = c.SavedModules(c.ModulesToSave)
	a, err := c.attach(base)
	if err != nil {
		return nil, fmt.Errorf("prefix_tuning: %w", err)
	}
	copies, err := saved(base, c.ModulesToSave, c.PeftConfig)
	if err != nil {
		return nil, fmt.Errorf("prefix_tuning: %w", err)
	}
	return peft.Compose(a, copies), nil
}

func (c PrefixTuningConfig) attach(base site.Base) (peft.Adapter, error) {
	t, err := c.geometry().transformer(base)
	if err != nil {
		return nil, err
	}
	heads, size, err := attention(t)
	if err != nil {
		return nil, err
	}
	layers := t.Layers()
	if err := c.geometry().settle(heads*size, heads, len(layers), layers[0].Attention.Out, layers[0].Heads); err != nil {
		return nil, err
	}
	a := &prefix{config: c, layers: len(layers), heads: heads, size: size}
	rows, features := c.NumVirtualTokens, 2*len(layers)*heads*size
	if !c.PrefixProjection || c.Reading() && !c.Besides() {
		init := normal
		if c.InitWeights == InitZero {
			init = nil
		}
		a.encoder = table{rows, features, init}
	} else {
		a.encoder = projection(rows, int(c.TokenDim), int(c.EncoderHiddenSize), features, c.InitWeights == InitZero)
	}
	return a, nil
}

// projection is the network of prefix tuning: Embedding, Linear, Tanh, Linear.
func projection(rows, width, hidden, features int, zero bool) *network {
	n := newNetwork(rows, width, features)
	n.linear("transform.0", width, hidden)
	if zero {
		n.add("transform.2.weight", nil, features, hidden)
		n.add("transform.2.bias", nil, features)
	} else {
		n.linear("transform.2", hidden, features)
	}
	n.build = func(value func(name string) *graph.Node, _ *site.Pass) *graph.Node {
		return affine(value, "transform.2", graph.Tanh(affine(value, "transform.0", value("embedding.weight"))))
	}
	return n
}

// prefix is a PrefixTuningConfig planned on a base.
type prefix struct {
	encoder
	config              PrefixTuningConfig
	layers, heads, size int
}

var (
	_ peft.PrefixAdapter = (*prefix)(nil)
	_ peft.FileForm      = (*prefix)(nil)
	_ peft.Configured    = (*prefix)(nil)
)

// Params implements [peft.Adapter].
func (a *prefix) Params() []peft.Param { return a.params() }

// Targets implements [peft.Adapter]: no module changes.
func (a *prefix) Targets() []site.Module { return nil }

// Config implements [peft.Configured].
func (a *prefix) Config() peft.Config { return a.config }

// FileForm implements [peft.FileForm].
func (a *prefix) FileForm(value func(name string) []float32) (peft.Config, []peft.FileTensor, error) {
	return fileForm(a.encoder, value)
}

// VirtualTokens implements [peft.PrefixAdapter].
func (a *prefix) VirtualTokens() (slots, rows int) { return a.config.NumVirtualTokens, 0 }

// Prefix implements [peft.PrefixAdapter]. Feature ((2·layer + kv)·heads + head)·size + j of a
// virtual token is element j of that head's key (kv = 0) or value (kv = 1).
func (a *prefix) Prefix(v *peft.Values, p *site.Pass, _ site.Tokens) site.Prefix {
	flat := graph.ConvertDType(a.encode(v, p), p.DType)
	rows := flat.Shape().Dim(0)
	flat = graph.Reshape(flat, rows, 2*a.layers, a.heads, a.size)
	var out site.Prefix
	for i := range a.layers {
		out.Keys = append(out.Keys, graph.Squeeze(graph.SliceAxis(flat, 1, graph.AxisElem(2*i)), 1))
		out.Values = append(out.Values, graph.Squeeze(graph.SliceAxis(flat, 1, graph.AxisElem(2*i+1)), 1))
	}
	return out
}
