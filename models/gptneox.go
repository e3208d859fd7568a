package models

import (
	"fmt"
	"math"
	"strings"

	. "github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/site"
)

func init() { Register("gpt_neox", newGPTNeoX) }

// gptNeoX is GPT-NeoX (Black et al. 2022, arXiv:2204.06745; Pythia, arXiv:2304.01373):
// blocks whose attention and feed-forward read the same residual stream or follow each
// other, with q, k and v in one linear, head by head, and heads that rotate in part.
type gptNeoX struct {
	config         Config
	heads, headDim int
	inner          int // width of the feed-forward
	normEps        float64
	act            activation
	rope           *rope
	parallel       bool
	bias           bool // of the attention's linears; those of the feed-forward always have one
}

func newGPTNeoX(configJSON []byte) (Architecture, error) {
	f, err := newFields(configJSON)
	if err != nil {
		return nil, err
	}
	m := &gptNeoX{config: commonConfig(f, configJSON, 2048)}
	m.heads = f.sizeUpTo("num_attention_heads", 1<<16)
	m.headDim = evenHeads(f, m.config.HiddenSize, m.heads)
	m.inner = f.sizeUpTo("intermediate_size", maxWidth)
	m.normEps = f.numberOr("layer_norm_eps", 1e-5)
	m.act = f.act("hidden_act", "gelu")
	m.rope = neoxRope(f, m.headDim, m.config.MaxPositions)
	m.parallel = f.flag("use_parallel_residual", true)
	m.bias = f.flag("attention_bias", true)
	refuseOptions(f, "partial_rotary_factor")
	if err := f.err(); err != nil {
		return nil, err
	}
	return m, nil
}

// neoxRope reads rotary_pct and rotary_emb_base, which are this family's names for
// partial_rotary_factor and rope_theta; the rope object comes before them.
func neoxRope(f *fields, headDim, maxPositions int) *rope {
	r := ropeObject(f)
	for own, common := range map[string]string{"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"} {
		if f.has(common) && !f.has(own) && (r == nil || !r.has(common)) {
			f.fail("%s %s without %s, which transformers reads: wanted both", common, short(f.values[common]), own)
		}
		f.alias(own, common)
	}
	partial := f.numberOr("partial_rotary_factor", 0.25)
	o := ropeOptions{theta: f.numberOr("rope_theta", 10000), partial: true, maxPositions: maxPositions}
	if r != nil {
		partial = r.numberOr("partial_rotary_factor", partial)
		o.original = originalPositions(f, r, maxPositions)
	}
	if partial > 1 {
		f.fail("partial_rotary_factor: wanted at most 1, got %g", partial)
		partial = 1
	}
	o.dims = int(float64(headDim) * partial)
	return readRope(f, r, o)
}

func (m *gptNeoX) Config() Config { return m.config }

func (m *gptNeoX) CacheShape() site.CacheShape {
	return site.CacheShape{Layers: m.config.NumLayers, KVHeads: m.heads, HeadDim: m.headDim}
}

func (m *gptNeoX) Layers() []site.Layer {
	return layersOf(m.config, m.layer, ".attention", ".mlp", m.heads, m.CacheShape())
}

// Ignorable: old checkpoints store the causal mask, the number it masks with, and the
// rotary frequencies.
func (m *gptNeoX) Ignorable(tensor string) bool {
	for _, buffer := range []string{".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"} {
		if strings.HasSuffix(tensor, buffer) {
			return true
		}
	}
	return false
}

// neoxStoredHead is the head's name in checkpoints; transformers 5, and so peft, call
// the module lm_head.
const neoxStoredHead = "embed_out.weight"

// Rename: see neoxStoredHead; the checkpoints of GPTNeoXModel have no prefix.
func (m *gptNeoX) Rename(name string, _ func(string) bool) string {
	if name == neoxStoredHead {
		return lmHead + ".weight"
	}
	return withPrefix(name, "gpt_neox.", "embed_in", "layers", "final_layer_norm")
}

// stored is the name under which a parameter is written, which every version of
// transformers reads.
func (m *gptNeoX) stored(parameter string) string {
	if parameter == lmHead+".weight" {
		return neoxStoredHead
	}
	return parameter
}

const (
	neoxTokens    = "gpt_neox.embed_in"
	neoxFinalNorm = "gpt_neox.final_layer_norm"
)

// layer returns the path of layer i.
func (m *gptNeoX) layer(i int) string { return fmt.Sprintf("gpt_neox.layers.%d", i) }

func (m *gptNeoX) withLayers(from []int) Architecture {
	out := *m
	out.config.NumLayers = len(from)
	return &out
}

func (m *gptNeoX) Modules() []site.Module {
	hidden := m.config.HiddenSize
	modules := []site.Module{{Path: neoxTokens, Kind: site.Embedding, In: m.config.VocabSize, Out: hidden}}
	for i := range m.config.NumLayers {
		at := m.layer(i)
		modules = append(modules,
			biasedNorm(at+".input_layernorm", hidden),
			projection(at+".attention.query_key_value", hidden, 3*hidden, m.bias),
			projection(at+".attention.dense", hidden, hidden, m.bias),
			biasedNorm(at+".post_attention_layernorm", hidden),
			projection(at+".mlp.dense_h_to_4h", hidden, m.inner, true),
			projection(at+".mlp.dense_4h_to_h", m.inner, hidden, true))
	}
	return append(modules, biasedNorm(neoxFinalNorm, hidden),
		headModule(lmHead, hidden, m.config.VocabSize, m.config.TieWordEmbeddings, neoxTokens))
}

func (m *gptNeoX) Parameters() []site.Parameter { return parametersOf(m.Modules()) }

func (m *gptNeoX) Hidden(b *Blocks, in site.Tokens) *Node {
	pass := b.newAttentionPass(in)
	positions, batch := pass.positions(), in.IDs.Shape().Dimensions[0]
	turnK := m.rope.tables(positions, batch, m.heads, 1)
	turnQ := m.rope.tables(positions, batch, m.heads, 1/math.Sqrt(float64(m.headDim))) // the scale of the scores
	x := pass.prepend(b.Embedding(neoxTokens, in.IDs))
	x = b.layers(m.config.NumLayers, x, func(i int, x *Node) *Node {
		at := m.layer(i)
		y := m.attention(b, pass, turnQ, turnK, i, b.LayerNorm(at+".input_layernorm", x, m.normEps))
		y = b.add(pass.layers[i].Attention, x, y, nil)
		if !m.parallel {
			x = y
		}
		h := b.Linear(at+".mlp.dense_h_to_4h", b.LayerNorm(at+".post_attention_layernorm", x, m.normEps))
		return b.add(pass.layers[i].FeedForward, y, b.Linear(at+".mlp.dense_4h_to_h", b.activated(m.act, h)), nil)
	})
	return b.LayerNorm(neoxFinalNorm, tokensOf(in, x), m.normEps)
}

func (m *gptNeoX) attention(b *Blocks, pass *attentionPass, turnQ, turnK rotation, i int, x *Node) *Node {
	at := m.layer(i) + ".attention"
	qkv := splitHeads(b.Linear(at+".query_key_value", x), m.heads)
	q, k := turnQ.rotate(third(qkv, 0)), turnK.rotate(third(qkv, 1))
	k, v := pass.remember(i, k, third(qkv, 2))
	return b.Linear(at+".dense", pass.attend(q, k, v, 0))
}

func (m *gptNeoX) Logits(b *Blocks, hidden *Node) *Node { return b.Linear(lmHead, hidden) }
