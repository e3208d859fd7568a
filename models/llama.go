package models

import (
	"math"
	"slices"
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
// The Gemma and Phi-3 families are built by the same functions.
type llama struct {
	config         Config
	intermediate   int
	heads, kvHeads int
	headDim        int
	normEps        float64
	act            activation
	rope           *rope
	scoreScale     float64 // of a query's product with a key
	qkvBias, oBias bool
	mlpBias        bool
	qkNorm         bool
	windows        []int // per layer; 0: sees everything before it

	fused      bool    // q, k and v are one matrix, and gate and up (Phi-3)
	offsetNorm bool    // norms scale by 1 + weight (Gemma)
	outerNorms bool    // what a block adds is normed too (Gemma 2)
	embedScale float64 // of the embedding's output; 0: none (Gemma)
	localRope  *rope   // of layers with a window; nil: rope (Gemma 3)
	scoreCap   float64 // soft bound of the scores; 0: none (Gemma 2)
	logitCap   float64 // soft bound of the logits; 0: none (Gemma 2)
}

func newLlama(configJSON []byte, family llamaFamily) (Architecture, error) {
	f, err := newFields(configJSON)
	if err != nil {
		return nil, err
	}
	m := newDecoder(f, commonConfig(f, configJSON, family.defaultPositions), family.headDim)
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

// newDecoder reads what all families built by [llama] have.
func newDecoder(f *fields, config Config, defaultHeadDim int) *llama {
	m := &llama{config: config}
	m.intermediate = f.sizeUpTo("intermediate_size", maxWidth)
	m.heads = f.sizeUpTo("num_attention_heads", 1<<16)
	m.kvHeads = f.sizeOr("num_key_value_heads", m.heads)
	if m.heads%m.kvHeads != 0 {
		f.fail("num_key_value_heads: wanted a divisor of num_attention_heads %d, got %d", m.heads, m.kvHeads)
	}
	m.headDim = headDim(f, config.HiddenSize, m.heads, defaultHeadDim)
	m.scoreScale = 1 / math.Sqrt(float64(m.headDim))
	m.normEps = f.number("rms_norm_eps")
	return m
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
		NumLayers:         f.sizeUpTo("num_hidden_layers", maxLayers),
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
// mathematics and that nobody here computes, except those that a family does know.
func refuseOptions(f *fields, known ...string) {
	if n := f.sizeOr("pretraining_tp", 1); n != 1 {
		f.fail("pretraining_tp %d is not supported: wanted 1", n)
	}
	checkQuantization(f)
	for _, name := range []string{"partial_rotary_factor", "embedding_multiplier", "residual_multiplier",
		"logits_scaling", "logit_scale"} {
		if x := f.numberOr(name, 1); x != 1 && !slices.Contains(known, name) {
			f.fail("%s %g is not supported: wanted 1", name, x)
		}
	}
	for _, name := range []string{"attn_logit_softcapping", "final_logit_softcapping", "attention_multiplier", "clip_qkv",
		"num_experts", "num_local_experts", "query_pre_attn_scalar", "no_rope_layers"} {
		if f.has(name) && !slices.Contains(known, name) {
			f.fail("%s %s is not supported", name, short(f.values[name]))
		}
	}
	for _, name := range []string{"use_bidirectional_attention", "add_cross_attention", "is_encoder_decoder", "alibi"} {
		if f.flag(name, false) {
			f.fail("%s is not supported", name)
		}
	}
}
