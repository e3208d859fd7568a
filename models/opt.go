package models

import (
	"fmt"
	"math"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	. "github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/site"
)

func init() { Register("opt", newOPT) }

// opt is OPT (Zhang et al. 2022, arXiv:2205.01068): blocks of causal self-attention and
// a feed-forward with learned positions, the norms before or (350M) after each half.
type opt struct {
	config         Config
	heads, headDim int
	inner          int // width of the feed-forward
	embedding      int // width of the token embedding and the head
	act            activation
	bias           bool // linears of the blocks have biases
	affine         bool // norms have a scale and an offset
	normBefore     bool
	finalNorm      bool
}

// optNormEps is PyTorch's default, which OPT's configuration cannot change.
const optNormEps = 1e-5

// optOffset is the row of position 0: fairseq began to count after its padding id 1.
const optOffset = 2

func newOPT(configJSON []byte) (Architecture, error) {
	f, err := newFields(configJSON)
	if err != nil {
		return nil, err
	}
	m := &opt{config: commonConfig(f, configJSON, 2048)}
	m.config.MaxPositions = min(m.config.MaxPositions, maxWidth)
	m.config.TieWordEmbeddings = f.flag("tie_word_embeddings", true)
	m.config.InitializerRange = f.numberOr("init_std", 0.02)
	m.heads = f.sizeUpTo("num_attention_heads", 1<<16)
	m.headDim = evenHeads(f, m.config.HiddenSize, m.heads)
	m.inner = f.sizeUpTo("ffn_dim", maxWidth)
	m.embedding = min(f.sizeOr("word_embed_proj_dim", m.config.HiddenSize), maxWidth)
	m.act = f.act("activation_function", "relu")
	m.bias = f.flag("enable_bias", true)
	m.affine = f.flag("layer_norm_elementwise_affine", true)
	m.normBefore = f.flag("do_layer_norm_before", true)
	m.finalNorm = m.normBefore && !f.flag("_remove_final_layer_norm", false)
	refuseOptions(f)
	if err := f.err(); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *opt) Config() Config { return m.config }

func (m *opt) CacheShape() site.CacheShape {
	return site.CacheShape{Layers: m.config.NumLayers, KVHeads: m.heads, HeadDim: m.headDim}
}

// Layers: OPT has no module for its feed-forward sublayer; the path is of our making.
func (m *opt) Layers() []site.Layer {
	return layersOf(m.config, m.layer, ".self_attn", ".feed_forward", m.heads, m.CacheShape())
}

func (m *opt) Ignorable(string) bool { return false }

// Rename: the checkpoints of OPTModel have no prefix.
func (m *opt) Rename(name string, _ func(string) bool) string {
	return withPrefix(name, "model.", "decoder")
}

const (
	optTokens     = "model.decoder.embed_tokens"
	optPositions  = "model.decoder.embed_positions"
	optProjectIn  = "model.decoder.project_in"
	optProjectOut = "model.decoder.project_out"
	optFinalNorm  = "model.decoder.final_layer_norm"
)

// layer returns the path of layer i.
func (m *opt) layer(i int) string { return fmt.Sprintf("model.decoder.layers.%d", i) }

func (m *opt) withLayers(from []int) Architecture {
	out := *m
	out.config.NumLayers = len(from)
	return &out
}

func (m *opt) Modules() []site.Module {
	hidden := m.config.HiddenSize
	modules := []site.Module{
		{Path: optTokens, Kind: site.Embedding, In: m.config.VocabSize, Out: m.embedding},
		{Path: optPositions, Kind: site.Embedding, In: m.config.MaxPositions + optOffset, Out: hidden},
	}
	norm := func(path string, wanted bool) {
		if wanted && m.affine { // without parameters a norm is no module that anyone can adapt
			modules = append(modules, biasedNorm(path, hidden))
		}
	}
	linear := func(path string, in, out int) {
		modules = append(modules, projection(path, in, out, m.bias))
	}
	if m.projects() {
		modules = append(modules, projection(optProjectIn, m.embedding, hidden, false))
	}
	for i := range m.config.NumLayers {
		at := m.layer(i)
		norm(at+".self_attn_layer_norm", m.normBefore)
		for _, name := range []string{"q_proj", "k_proj", "v_proj", "out_proj"} {
			linear(at+".self_attn."+name, hidden, hidden)
		}
		norm(at+".self_attn_layer_norm", !m.normBefore)
		norm(at+".final_layer_norm", m.normBefore)
		linear(at+".fc1", hidden, m.inner)
		linear(at+".fc2", m.inner, hidden)
		norm(at+".final_layer_norm", !m.normBefore)
	}
	norm(optFinalNorm, m.finalNorm)
	if m.projects() {
		modules = append(modules, projection(optProjectOut, hidden, m.embedding, false))
	}
	return append(modules, headModule(lmHead, m.embedding, m.config.VocabSize, m.config.TieWordEmbeddings, optTokens))
}

// projects reports whether embedding and head have another width than the blocks.
func (m *opt) projects() bool { return m.embedding != m.config.HiddenSize }

func (m *opt) Parameters() []site.Parameter { return parametersOf(m.Modules()) }

func (m *opt) Hidden(b *Blocks, in site.Tokens) *Node {
	pass := b.newAttentionPass(in)
	x, positions := pass.prepend(b.Embedding(optTokens, in.IDs)), b.learnedPositions(optPositions, pass, optOffset)
	if m.projects() {
		x = b.Linear(optProjectIn, x)
	}
	x = b.layers(m.config.NumLayers, Add(x, positions), func(i int, x *Node) *Node {
		at := m.layer(i)
		x = m.half(b, pass.layers[i].Attention, at+".self_attn_layer_norm", x, func(x *Node) *Node { return m.attention(b, pass, i, x) })
		return m.half(b, pass.layers[i].FeedForward, at+".final_layer_norm", x, func(x *Node) *Node {
			return b.Linear(at+".fc2", b.activated(m.act, b.Linear(at+".fc1", x)))
		})
	})
	x = tokensOf(in, x)
	if m.finalNorm {
		x = m.norm(b, optFinalNorm, x)
	}
	if m.projects() {
		x = b.Linear(optProjectOut, x)
	}
	return x
}

// half adds f to the residual stream, with the norm where this model has it.
func (m *opt) half(b *Blocks, module site.Module, norm string, x *Node, f func(x *Node) *Node) *Node {
	if m.normBefore {
		return b.add(module, x, f(m.norm(b, norm, x)), nil)
	}
	return b.add(module, x, f(x), func(sum *Node) *Node { return m.norm(b, norm, sum) })
}

func (m *opt) norm(b *Blocks, path string, x *Node) *Node {
	if m.affine {
		return b.LayerNorm(path, x, optNormEps)
	}
	return b.recomputed([]*Node{x}, func(in []*Node) *Node {
		ones := Ones(b.Graph, shapes.Make(dtypes.Float32, m.config.HiddenSize))
		return ConvertDType(layerNorm(in[0], ones, m.config.HiddenSize, optNormEps), x.DType())
	})
}

func (m *opt) attention(b *Blocks, pass *attentionPass, i int, x *Node) *Node {
	at := m.layer(i) + ".self_attn"
	q := graphx.Scale(b.Linear(at+".q_proj", x), 1/math.Sqrt(float64(m.headDim)))
	k, v := b.Linear(at+".k_proj", x), b.Linear(at+".v_proj", x)
	k, v = pass.remember(i, splitHeads(k, m.heads), splitHeads(v, m.heads))
	return b.Linear(at+".out_proj", pass.attend(splitHeads(q, m.heads), k, v, 0))
}

func (m *opt) Logits(b *Blocks, hidden *Node) *Node { return b.Linear(lmHead, hidden) }
