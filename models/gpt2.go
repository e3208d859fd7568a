package models

import (
	"fmt"
	"math"
	"strings"

	. "github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/site"
)

func init() { Register("gpt2", newGPT2) }

// gpt2 is GPT-2: pre-norm blocks of causal self-attention, whose q, k and v are one
// linear, and a feed-forward, with learned positions (Radford et al. 2019). Its linears
// are stored [in, out].
type gpt2 struct {
	config         Config
	heads, headDim int
	inner          int // width of the feed-forward
	normEps        float64
	act            activation
	scaleHeads     bool      // scores are divided by √headDim
	divisors       []float64 // of each layer's scores, besides: 1, or the number of the layer
}

func newGPT2(configJSON []byte) (Architecture, error) {
	f, err := newFields(configJSON)
	if err != nil {
		return nil, err
	}
	f.alias("n_embd", "hidden_size")
	f.alias("n_layer", "num_hidden_layers")
	f.alias("n_head", "num_attention_heads")
	f.alias("n_positions", "max_position_embeddings")
	m := &gpt2{config: commonConfig(f, configJSON, 1024)}
	m.config.MaxPositions = min(m.config.MaxPositions, maxWidth)
	m.config.TieWordEmbeddings = f.flag("tie_word_embeddings", true)
	m.heads = f.sizeUpTo("num_attention_heads", 1<<16)
	m.headDim = evenHeads(f, m.config.HiddenSize, m.heads)
	m.inner = min(f.sizeOr("n_inner", 4*m.config.HiddenSize), maxWidth)
	m.normEps = f.numberOr("layer_norm_epsilon", 1e-5)
	m.act = f.act("activation_function", "gelu_new")
	m.scaleHeads = f.flag("scale_attn_weights", true)
	byLayer := f.flag("scale_attn_by_inverse_layer_idx", false)
	m.divisors = make([]float64, m.config.NumLayers)
	for i := range m.divisors {
		m.divisors[i] = 1
		if byLayer {
			m.divisors[i] = float64(i + 1)
		}
	}
	f.flag("reorder_and_upcast_attn", false) // only an order of computation: here scores are float32 anyway
	refuseOptions(f)
	if err := f.err(); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *gpt2) Config() Config { return m.config }

func (m *gpt2) CacheShape() site.CacheShape {
	return site.CacheShape{Layers: m.config.NumLayers, KVHeads: m.heads, HeadDim: m.headDim}
}

func (m *gpt2) Layers() []site.Layer {
	return layersOf(m.config, m.layer, ".attn", ".mlp", m.heads, m.CacheShape())
}

// Ignorable: old checkpoints store the causal mask and the number it masks with.
func (m *gpt2) Ignorable(tensor string) bool {
	return strings.HasSuffix(tensor, ".attn.bias") || strings.HasSuffix(tensor, ".attn.masked_bias")
}

// Rename: the checkpoints of GPT2Model, the hub's gpt2 among them, have no prefix.
func (m *gpt2) Rename(name string, _ func(string) bool) string {
	return withPrefix(name, "transformer.", "wte", "wpe", "h", "ln_f")
}

// initialStd scales what is added to the residual stream by 1/√(2·layers), as the
// GPT-2 paper does.
func (m *gpt2) initialStd(parameter string) float64 {
	if strings.HasSuffix(parameter, ".c_proj.weight") {
		return m.config.InitializerRange / math.Sqrt(2*float64(m.config.NumLayers))
	}
	return m.config.InitializerRange
}

const (
	gpt2Tokens    = "transformer.wte"
	gpt2Positions = "transformer.wpe"
	gpt2FinalNorm = "transformer.ln_f"
)

// layer returns the path of layer i.
func (m *gpt2) layer(i int) string { return fmt.Sprintf("transformer.h.%d", i) }

func (m *gpt2) withLayers(from []int) Architecture {
	out := *m
	out.config.NumLayers = len(from)
	out.divisors = picked(m.divisors, from)
	return &out
}

func (m *gpt2) Modules() []site.Module {
	hidden := m.config.HiddenSize
	conv1D := func(path string, in, out int) site.Module {
		linear := projection(path, in, out, true)
		linear.Transposed = true
		return linear
	}
	modules := []site.Module{
		{Path: gpt2Tokens, Kind: site.Embedding, In: m.config.VocabSize, Out: hidden},
		{Path: gpt2Positions, Kind: site.Embedding, In: m.config.MaxPositions, Out: hidden},
	}
	for i := range m.config.NumLayers {
		at := m.layer(i)
		modules = append(modules,
			biasedNorm(at+".ln_1", hidden),
			conv1D(at+".attn.c_attn", hidden, 3*hidden),
			conv1D(at+".attn.c_proj", hidden, hidden),
			biasedNorm(at+".ln_2", hidden),
			conv1D(at+".mlp.c_fc", hidden, m.inner),
			conv1D(at+".mlp.c_proj", m.inner, hidden))
	}
	return append(modules, biasedNorm(gpt2FinalNorm, hidden),
		headModule(lmHead, hidden, m.config.VocabSize, m.config.TieWordEmbeddings, gpt2Tokens))
}

func (m *gpt2) Parameters() []site.Parameter { return parametersOf(m.Modules()) }

func (m *gpt2) Hidden(b *Blocks, in site.Tokens) *Node {
	pass := b.newAttentionPass(in)
	x := pass.prepend(b.Embedding(gpt2Tokens, in.IDs))
	x = Add(x, b.learnedPositions(gpt2Positions, pass, 0))
	x = b.layers(m.config.NumLayers, x, func(i int, x *Node) *Node {
		at := m.layer(i)
		x = b.add(pass.layers[i].Attention, x, m.attention(b, pass, i, b.LayerNorm(at+".ln_1", x, m.normEps)), nil)
		h := b.Linear(at+".mlp.c_fc", b.LayerNorm(at+".ln_2", x, m.normEps))
		return b.add(pass.layers[i].FeedForward, x, b.Linear(at+".mlp.c_proj", b.activated(m.act, h)), nil)
	})
	return b.LayerNorm(gpt2FinalNorm, tokensOf(in, x), m.normEps)
}

func (m *gpt2) attention(b *Blocks, pass *attentionPass, i int, x *Node) *Node {
	at := m.layer(i) + ".attn"
	scale := 1 / m.divisors[i]
	if m.scaleHeads {
		scale /= math.Sqrt(float64(m.headDim))
	}
	qkv := b.Linear(at+".c_attn", x)
	q := graphx.Scale(splitHeads(third(qkv, 0), m.heads), scale)
	k, v := pass.remember(i, splitHeads(third(qkv, 1), m.heads), splitHeads(third(qkv, 2), m.heads))
	return b.Linear(at+".c_proj", pass.attend(q, k, v, 0))
}

func (m *gpt2) Logits(b *Blocks, hidden *Node) *Node { return b.Linear(lmHead, hidden) }
