package models

import (
	"fmt"
	"math"
	"slices"
	"strings"

	. "github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/site"
)

func init() {
	for modelType, family := range map[string]llamaFamily{
		"llama":   {attentionBias: true, mlpBias: true, defaultPositions: 2048},
		"mistral": {slidingWindow: 4096, defaultPositions: 131072},
		"qwen2":   {qkvBias: true, windowLayers: true, defaultPositions: 32768},
		"qwen3":   {attentionBias: true, qkNorm: true, windowLayers: true, headDim: 128, defaultPositions: 32768},
	} {
		Register(modelType, func(configJSON []byte) (Architecture, error) { return newLlama(configJSON, family) })
	}
}

// llamaFamily says in what the members of the family differ: which options their
// config.json has, and what transformers assumes where one is absent.
type llamaFamily struct {
	attentionBias    bool // option attention_bias: q, k, v and o
	mlpBias          bool // option mlp_bias: gate, up and down
	qkvBias          bool // q, k and v always have a bias, o never
	qkNorm           bool // RMSNorm over each head of q and k
	windowLayers     bool // options use_sliding_window, max_window_layers, layer_types
	slidingWindow    int  // option sliding_window for all layers, with this default
	headDim          int  // default of head_dim; 0: hidden_size / num_attention_heads
	defaultPositions int  // default of max_position_embeddings
}

// llama is the Llama family: pre-norm blocks of causal self-attention with
// rotary positions and grouped keys and values, and of a gated feed-forward
// (Touvron et al. 2023, arXiv:2302.13971 and 2307.09288; Jiang et al. 2023,
// arXiv:2310.06825; Qwen team 2024 and 2025, arXiv:2407.10671 and 2505.09388).
type llama struct {
	config         Config
	intermediate   int
	heads, kvHeads int
	headDim        int
	normEps        float64
	act            activation
	rope           *rope
	qkvBias, oBias bool
	mlpBias        bool
	qkNorm         bool
	windows        []int // per layer; 0: sees everything before it
}

func newLlama(configJSON []byte, family llamaFamily) (Architecture, error) {
	f, err := newFields(configJSON)
	if err != nil {
		return nil, err
	}
	m := &llama{config: commonConfig(f, configJSON, family.defaultPositions)}
	m.intermediate = f.sizeUpTo("intermediate_size", maxWidth)
	m.heads = f.sizeUpTo("num_attention_heads", 1<<16)
	m.kvHeads = f.sizeOr("num_key_value_heads", m.heads)
	if m.heads%m.kvHeads != 0 {
		f.fail("num_key_value_heads: wanted a divisor of num_attention_heads %d, got %d", m.heads, m.kvHeads)
	}
	m.headDim = headDim(f, m.config.HiddenSize, m.heads, family.headDim)
	m.normEps = f.number("rms_norm_eps")
	m.act = f.act("hidden_act", "silu")
	m.rope = newRope(f, m.headDim, m.config.MaxPositions)
	m.qkvBias = family.qkvBias || family.attentionBias && f.flag("attention_bias", false)
	m.oBias = family.attentionBias && m.qkvBias
	m.mlpBias = family.mlpBias && f.flag("mlp_bias", false)
	m.qkNorm = family.qkNorm
	m.windows = windows(f, family, m.config.NumLayers)
	refuseOptions(f)
	if err := f.err(); err != nil {
		return nil, err
	}
	return m, nil
}

// headDim reads head_dim, by default hidden/heads or what the family says.
func headDim(f *fields, hidden, heads, otherwise int) int {
	const limit = 1 << 16
	if otherwise == 0 {
		otherwise = hidden / heads
		if hidden%heads != 0 && !f.has("head_dim") {
			f.fail("hidden_size %d is no multiple of num_attention_heads %d, and head_dim is missing", hidden, heads)
		}
	}
	n := f.sizeOr("head_dim", otherwise)
	if n < 1 || n > limit {
		f.fail("head_dim: wanted 1 to %d, got %d", limit, n)
		return 2
	}
	return n
}

// maxWidth keeps products of two sizes far from overflow.
const maxWidth = 1 << 24

// commonConfig reads what every family has.
func commonConfig(f *fields, configJSON []byte, defaultPositions int) Config {
	return Config{
		ModelType:         f.text("model_type"),
		VocabSize:         f.sizeUpTo("vocab_size", maxWidth),
		HiddenSize:        f.sizeUpTo("hidden_size", maxWidth),
		NumLayers:         f.sizeUpTo("num_hidden_layers", 10000),
		MaxPositions:      f.sizeOr("max_position_embeddings", defaultPositions),
		InitializerRange:  f.numberOr("initializer_range", 0.02),
		TieWordEmbeddings: f.flag("tie_word_embeddings", false),
		BOSTokenID:        f.tokenID("bos_token_id"),
		PadTokenID:        f.tokenID("pad_token_id"),
		EOSTokenIDs:       f.tokenIDs("eos_token_id"),
		JSON:              slices.Clone(configJSON),
	}
}

// windows returns how far each layer sees: sliding_window tokens with its own
// among them, or 0 for everything.
func windows(f *fields, family llamaFamily, layers int) []int {
	out := make([]int, layers)
	if family.slidingWindow > 0 {
		window := f.window(family.slidingWindow)
		for i := range out {
			out[i] = window
		}
		return out
	}
	if !family.windowLayers {
		return out
	}
	window := 0
	if f.flag("use_sliding_window", false) {
		window = f.window(4096)
	}
	first := f.integerOr("max_window_layers", 28)
	kinds := f.layerTypes(layers)
	for i := range out {
		sliding := window > 0 && i >= first
		if kinds != nil {
			sliding = kinds[i] == "sliding_attention"
		}
		if sliding && window == 0 {
			f.fail("layer_types[%d] is sliding_attention but use_sliding_window or sliding_window is not set", i)
			return out
		}
		if sliding {
			out[i] = window
		}
	}
	return out
}

// window reads sliding_window, for which null does not mean the default but none: 0.
func (f *fields) window(otherwise int) int {
	if _, present := f.values["sliding_window"]; present {
		otherwise = 0
	}
	return f.sizeOr("sliding_window", otherwise)
}

// layerTypes reads layer_types; nil when absent or wrong.
func (f *fields) layerTypes(layers int) []string {
	var kinds []string
	if !f.get("layer_types", "a list of strings", &kinds) {
		return nil
	}
	if len(kinds) != layers {
		f.fail("layer_types: wanted %d, one for each of num_hidden_layers, got %d", layers, len(kinds))
		return nil
	}
	for i, kind := range kinds {
		if kind != "full_attention" && kind != "sliding_attention" {
			f.fail("layer_types[%d] %q is not supported; supported are full_attention, sliding_attention", i, kind)
			return nil
		}
	}
	return kinds
}

// refuseOptions names options of relatives of this family that would change the
// mathematics and that nobody here computes.
func refuseOptions(f *fields) {
	if n := f.sizeOr("pretraining_tp", 1); n != 1 {
		f.fail("pretraining_tp %d is not supported: wanted 1", n)
	}
	if f.has("quantization_config") {
		f.fail("quantization_config: quantised checkpoints are not supported yet")
	}
	for _, name := range []string{"partial_rotary_factor", "embedding_multiplier", "residual_multiplier",
		"logits_scaling", "logit_scale"} {
		if x := f.numberOr(name, 1); x != 1 {
			f.fail("%s %g is not supported: wanted 1", name, x)
		}
	}
	for _, name := range []string{"attn_logit_softcapping", "final_logit_softcapping", "attention_multiplier", "clip_qkv",
		"num_experts", "num_local_experts", "query_pre_attn_scalar", "no_rope_layers"} {
		if f.has(name) {
			f.fail("%s %s is not supported", name, short(f.values[name]))
		}
	}
	for _, name := range []string{"use_bidirectional_attention", "add_cross_attention", "is_encoder_decoder", "alibi"} {
		if f.flag(name, false) {
			f.fail("%s is not supported", name)
		}
	}
}

func (m *llama) Config() Config { return m.config }

func (m *llama) CacheShape() site.CacheShape {
	return site.CacheShape{Layers: m.config.NumLayers, KVHeads: m.kvHeads, HeadDim: m.headDim}
}

// Ignorable: old checkpoints store the rotary frequencies, which follow from the configuration.
func (m *llama) Ignorable(tensor string) bool {
	return strings.HasSuffix(tensor, ".rotary_emb.inv_freq")
}

const (
	embedTokens = "model.embed_tokens"
	finalNorm   = "model.norm"
	lmHead      = "lm_head"
)

// layer returns the path of layer i.
func (m *llama) layer(i int) string { return fmt.Sprintf("model.layers.%d", i) }

func (m *llama) Modules() []site.Module {
	hidden, q, kv := m.config.HiddenSize, m.heads*m.headDim, m.kvHeads*m.headDim
	linear := func(path string, in, out int, bias bool) site.Module {
		return site.Module{Path: path, Kind: site.Linear, In: in, Out: out, Bias: bias}
	}
	norm := func(path string, size int) site.Module {
		return site.Module{Path: path, Kind: site.Norm, In: size, Out: size}
	}
	modules := []site.Module{{Path: embedTokens, Kind: site.Embedding, In: m.config.VocabSize, Out: hidden}}
	for i := range m.config.NumLayers {
		at, mlp := m.layer(i)+".self_attn", m.layer(i)+".mlp"
		modules = append(modules,
			norm(m.layer(i)+".input_layernorm", hidden),
			linear(at+".q_proj", hidden, q, m.qkvBias),
			linear(at+".k_proj", hidden, kv, m.qkvBias),
			linear(at+".v_proj", hidden, kv, m.qkvBias))
		if m.qkNorm {
			modules = append(modules, norm(at+".q_norm", m.headDim), norm(at+".k_norm", m.headDim))
		}
		modules = append(modules,
			linear(at+".o_proj", q, hidden, m.oBias),
			norm(m.layer(i)+".post_attention_layernorm", hidden),
			linear(mlp+".gate_proj", hidden, m.intermediate, m.mlpBias),
			linear(mlp+".up_proj", hidden, m.intermediate, m.mlpBias),
			linear(mlp+".down_proj", m.intermediate, hidden, m.mlpBias))
	}
	head := linear(lmHead, hidden, m.config.VocabSize, false)
	head.Head = true
	if m.config.TieWordEmbeddings {
		head.TiedTo = embedTokens
	}
	return append(modules, norm(finalNorm, hidden), head)
}

func (m *llama) Parameters() []site.Parameter { return parametersOf(m.Modules()) }

func (m *llama) Hidden(b *Blocks, in site.Tokens) *Node {
	pass := newAttentionPass(in, m.config.NumLayers)
	positions, batch := pass.positions(), in.IDs.Shape().Dimensions[0]
	turnK := m.rope.tables(positions, batch, m.kvHeads, 1)
	turnQ := m.rope.tables(positions, batch, m.heads, 1/math.Sqrt(float64(m.headDim))) // the scale of the scores
	x := b.Embedding(embedTokens, in.IDs)
	for i := range m.config.NumLayers {
		if b.Checkpoint {
			x = x.Checkpoint()
		}
		x = Add(x, m.attention(b, pass, turnQ, turnK, i, b.RMSNorm(m.layer(i)+".input_layernorm", x, m.normEps)))
		x = Add(x, m.feedForward(b, i, b.RMSNorm(m.layer(i)+".post_attention_layernorm", x, m.normEps)))
	}
	if b.Checkpoint {
		x = x.StopCheckpoint()
	}
	return b.RMSNorm(finalNorm, x, m.normEps)
}

func (m *llama) attention(b *Blocks, pass *attentionPass, turnQ, turnK rotation, i int, x *Node) *Node {
	at := m.layer(i) + ".self_attn"
	dims := x.Shape().Dimensions
	split := func(x *Node, heads int) *Node { return Reshape(x, dims[0], dims[1], heads, m.headDim) }
	q := split(b.Linear(at+".q_proj", x), m.heads)
	k := split(b.Linear(at+".k_proj", x), m.kvHeads)
	v := split(b.Linear(at+".v_proj", x), m.kvHeads)
	if m.qkNorm {
		q, k = b.RMSNorm(at+".q_norm", q, m.normEps), b.RMSNorm(at+".k_norm", k, m.normEps)
	}
	q, k = turnQ.rotate(q), turnK.rotate(k)
	k, v = pass.remember(i, k, v)
	return b.Linear(at+".o_proj", pass.attend(q, k, v, m.windows[i]))
}

func (m *llama) feedForward(b *Blocks, i int, x *Node) *Node {
	mlp := m.layer(i) + ".mlp"
	gate, up := b.Linear(mlp+".gate_proj", x), b.Linear(mlp+".up_proj", x)
	return b.Linear(mlp+".down_proj", b.gated(m.act, gate, up))
}

func (m *llama) Logits(b *Blocks, hidden *Node) *Node { return b.Linear(lmHead, hidden) }
