package models

import (
	"fmt"
	"strings"

	. "github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/site"
)

func init() {
	registerEncoder("albert", func(f *fields, configJSON []byte) encoder {
		o := readEncoder(f, configJSON, "albert", "Albert")
		o.act = f.act("hidden_act", "gelu_new")
		o.types = f.sizeOr("type_vocab_size", 2)
		o.embedding = f.sizeOr("embedding_size", 128)
		o.embeddingDropout = f.rate("hidden_dropout_prob", 0)
		o.attentionOutDropout = o.embeddingDropout
		o.attentionDropout = f.rate("attention_probs_dropout_prob", 0)
		o.sequenceDropout = f.rate("classifier_dropout_prob", 0.1)
		o.tokenDropout = o.sequenceDropout
		m := &albert{encoderOptions: o, groups: f.sizeOr("num_hidden_groups", 1), inner: f.sizeOr("inner_group_num", 1)}
		if m.groups > o.config.NumLayers {
			f.fail("num_hidden_groups: wanted at most num_hidden_layers %d, got %d", o.config.NumLayers, m.groups)
		}
		if m.inner > 1000 {
			f.fail("inner_group_num: wanted at most 1000, got %d", m.inner)
			m.inner = 1
		}
		return m
	})
}

// albert is ALBERT (Lan et al. 2019, arXiv:1909.11942): embeddings narrower than the
// blocks, and layers that share the parameters of a few groups, mostly one.
type albert struct {
	*encoderOptions
	// groups of blocks have parameters; each is inner blocks one after the other.
	groups, inner int
}

const albertMapping = "encoder.embedding_hidden_mapping_in"

func (m *albert) inGroup(group, i int) blockPaths {
	at := m.path(fmt.Sprintf("encoder.albert_layer_groups.%d.albert_layers.%d.", group, i))
	return blockPaths{
		query: at + "attention.query", key: at + "attention.key", value: at + "attention.value",
		out: at + "attention.dense", attentionNorm: at + "attention.LayerNorm",
		up: at + "ffn", down: at + "ffn_output", outputNorm: at + "full_layer_layer_norm",
		attention: at + "attention", feedForward: strings.TrimSuffix(at, "."),
	}
}

func (m *albert) trunk() []site.Module {
	modules := append(m.embeddingModules(), biasedLinear(m.path(albertMapping), m.embedding, m.config.HiddenSize))
	for group := range m.groups {
		for i := range m.inner {
			modules = append(modules, m.blockModules(m.inGroup(group, i))...)
		}
	}
	return modules
}

// group says whose parameters a layer has.
func (m *albert) group(layer int) int {
	return int(float64(layer) / (float64(m.config.NumLayers) / float64(m.groups)))
}

func (m *albert) Layers() []site.Layer {
	var out []site.Layer
	for layer := range m.config.NumLayers {
		for i := range m.inner {
			out = append(out, m.layer(m.inGroup(m.group(layer), i)))
		}
	}
	return out
}

func (m *albert) encode(b *Blocks, in site.Tokens) *Node {
	pass := m.start(b, in)
	x := b.Linear(m.path(albertMapping), m.embed(b, pass, pass.positions()))
	for layer := range m.config.NumLayers {
		for i := range m.inner {
			x = m.block(b, pass, m.inGroup(m.group(layer), i), layer, x)
		}
	}
	if b.Checkpoint {
		x = x.StopCheckpoint()
	}
	return x
}

func (m *albert) maskedHead() head {
	const at = "predictions."
	return m.maskedHeadOf(at+"dense", at+"LayerNorm", at+"decoder", at+"bias", m.act)
}

func (m *albert) sequenceHead(labels int) head {
	return m.pooledHead(m.path("pooler"), labels)
}

func (m *albert) otherTasks() []string { return []string{"sop_classifier.", "qa_outputs."} }

// Rename also knows the second name of the vocabulary's bias.
func (m *albert) Rename(name string, has func(string) bool) string {
	return m.renameBias(name, "predictions.decoder", "predictions.bias", has)
}
