package models

import (
	"fmt"
	"strings"

	. "github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/site"
)

func (m *llama) Config() Config { return m.config }

func (m *llama) CacheShape() site.CacheShape {
	return site.CacheShape{Layers: m.config.NumLayers, KVHeads: m.kvHeads, HeadDim: m.headDim}
}

func (m *llama) Layers() []site.Layer {
	return layersOf(m.config, m.layer, ".self_attn", ".mlp", m.heads, m.CacheShape())
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

func (m *llama) withLayers(from []int) Architecture {
	out := *m
	out.config.NumLayers = len(from)
	out.windows = picked(m.windows, from)
	return &out
}

func (m *llama) Modules() []site.Module {
	modules := []site.Module{{Path: embedTokens, Kind: site.Embedding, In: m.config.VocabSize, Out: m.config.HiddenSize}}
	for i := range m.config.NumLayers {
		modules = append(modules, m.layerModules(m.layer(i))...)
	}
	head := projection(lmHead, m.config.HiddenSize, m.config.VocabSize, false)
	head.Head = true
	if m.config.TieWordEmbeddings {
		head.TiedTo = embedTokens
	}
	return append(modules, rmsNormModule(finalNorm, m.config.HiddenSize), head)
}

func projection(path string, in, out int, bias bool) site.Module {
	return site.Module{Path: path, Kind: site.Linear, In: in, Out: out, Bias: bias}
}

func rmsNormModule(path string, size int) site.Module {
	return site.Module{Path: path, Kind: site.Norm, In: size, Out: size}
}

func (m *llama) layerModules(layer string) []site.Module {
	hidden, q, kv := m.config.HiddenSize, m.heads*m.headDim, m.kvHeads*m.headDim
	at, mlp := layer+".self_attn", layer+".mlp"
	modules := []site.Module{rmsNormModule(layer+".input_layernorm", hidden)}
	if m.fused {
		modules = append(modules, projection(at+".qkv_proj", hidden, q+2*kv, m.qkvBias))
	} else {
		modules = append(modules,
			projection(at+".q_proj", hidden, q, m.qkvBias),
			projection(at+".k_proj", hidden, kv, m.qkvBias),
			projection(at+".v_proj", hidden, kv, m.qkvBias))
	}
	if m.qkNorm {
		modules = append(modules, rmsNormModule(at+".q_norm", m.headDim), rmsNormModule(at+".k_norm", m.headDim))
	}
	modules = append(modules,
		projection(at+".o_proj", q, hidden, m.oBias),
		rmsNormModule(layer+".post_attention_layernorm", hidden))
	if m.outerNorms {
		modules = append(modules, rmsNormModule(layer+".pre_feedforward_layernorm", hidden))
	}
	if m.fused {
		modules = append(modules, projection(mlp+".gate_up_proj", hidden, 2*m.intermediate, m.mlpBias))
	} else {
		modules = append(modules,
			projection(mlp+".gate_proj", hidden, m.intermediate, m.mlpBias),
			projection(mlp+".up_proj", hidden, m.intermediate, m.mlpBias))
	}
	modules = append(modules, projection(mlp+".down_proj", m.intermediate, hidden, m.mlpBias))
	if m.outerNorms {
		modules = append(modules, rmsNormModule(layer+".post_feedforward_layernorm", hidden))
	}
	return modules
}

func (m *llama) Parameters() []site.Parameter { return parametersOf(m.Modules()) }

// shortLength implements [lengthDependent].
func (m *llama) shortLength() int {
	if m.rope.long == nil {
		return 0
	}
	return m.rope.longAfter
}

// initialScale is what norm scales start at.
func (m *llama) initialScale() float32 {
	if m.offsetNorm {
		return 0
	}
	return 1
}

// turns are the rotations of queries and keys in one kind of layer.
type turns struct{ q, k rotation }

func (m *llama) turns(r *rope, pass *attentionPass) turns {
	if cache := pass.in.Cache; cache != nil && cache.Long {
		r = r.longOnly()
	}
	positions, batch := pass.positions(), pass.in.IDs.Shape().Dimensions[0]
	return turns{
		k: r.tables(positions, batch, m.kvHeads, 1),
		q: r.tables(positions, batch, m.heads, m.scoreScale),
	}
}

func (m *llama) Hidden(b *Blocks, in site.Tokens) *Node {
	pass := b.newAttentionPass(in)
	pass.scoreCap = m.scoreCap
	global := m.turns(m.rope, pass)
	local := global
	if m.localRope != nil {
		local = m.turns(m.localRope, pass)
	}
	x := b.Embedding(embedTokens, in.IDs)
	if m.embedScale != 0 {
		x = MulScalar(x, m.embedScale) // the factor is rounded to x's dtype, as transformers does
	}
	x = pass.prepend(x)
	for i := range m.config.NumLayers {
		if b.Checkpoint {
			x = x.Checkpoint()
		}
		turn := global
		if m.windows[i] > 0 {
			turn = local
		}
		x = m.block(b, pass, turn, i, x)
	}
	if b.Checkpoint {
		x = x.StopCheckpoint()
	}
	return m.norm(b, finalNorm, tokensOf(in, x))
}

// block is one layer with its two residual connections.
func (m *llama) block(b *Blocks, pass *attentionPass, turn turns, i int, x *Node) *Node {
	layer, at := m.layer(i), pass.layers[i]
	y := m.attention(b, pass, turn, i, m.norm(b, layer+".input_layernorm", x))
	if !m.outerNorms {
		x = b.add(at.Attention, x, y, nil)
		y = m.feedForward(b, i, m.norm(b, layer+".post_attention_layernorm", x))
		return b.add(at.FeedForward, x, y, nil)
	}
	x = b.add(at.Attention, x, m.norm(b, layer+".post_attention_layernorm", y), nil)
	y = m.feedForward(b, i, m.norm(b, layer+".pre_feedforward_layernorm", x))
	return b.add(at.FeedForward, x, m.norm(b, layer+".post_feedforward_layernorm", y), nil)
}

func (m *llama) norm(b *Blocks, path string, x *Node) *Node {
	if m.offsetNorm {
		return b.OffsetRMSNorm(path, x, m.normEps)
	}
	return b.RMSNorm(path, x, m.normEps)
}

func (m *llama) attention(b *Blocks, pass *attentionPass, turn turns, i int, x *Node) *Node {
	at := m.layer(i) + ".self_attn"
	q, k, v := m.queryKeyValue(b, at, x)
	if m.qkNorm {
		q, k = m.norm(b, at+".q_norm", q), m.norm(b, at+".k_norm", k)
	}
	q, k = turn.q.rotate(q), turn.k.rotate(k)
	k, v = pass.remember(i, k, v)
	return b.Linear(at+".o_proj", pass.attend(q, k, v, m.windows[i]))
}

// queryKeyValue projects x, [batch, length, hidden], onto heads: [batch, length, heads, headDim].
func (m *llama) queryKeyValue(b *Blocks, at string, x *Node) (q, k, v *Node) {
	dims := x.Shape().Dimensions
	split := func(x *Node, heads int) *Node { return Reshape(x, dims[0], dims[1], heads, m.headDim) }
	if m.fused {
		all := split(b.Linear(at+".qkv_proj", x), m.heads+2*m.kvHeads)
		part := func(from, to int) *Node { return SliceAxis(all, 2, AxisRange(from, to)) }
		return part(0, m.heads), part(m.heads, m.heads+m.kvHeads), part(m.heads+m.kvHeads, m.heads+2*m.kvHeads)
	}
	return split(b.Linear(at+".q_proj", x), m.heads), split(b.Linear(at+".k_proj", x), m.kvHeads),
		split(b.Linear(at+".v_proj", x), m.kvHeads)
}

func (m *llama) feedForward(b *Blocks, i int, x *Node) *Node {
	mlp := m.layer(i) + ".mlp"
	var gate, up *Node
	if m.fused {
		both := b.Linear(mlp+".gate_up_proj", x)
		gate = SliceAxis(both, -1, AxisRange(0, m.intermediate))
		up = SliceAxis(both, -1, AxisRange(m.intermediate))
	} else {
		gate, up = b.Linear(mlp+".gate_proj", x), b.Linear(mlp+".up_proj", x)
	}
	return b.Linear(mlp+".down_proj", b.gated(m.act, gate, up))
}

func (m *llama) Logits(b *Blocks, hidden *Node) *Node {
	return softCap(b.Linear(lmHead, hidden), m.logitCap)
}
