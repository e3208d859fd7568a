package models

import (
	"fmt"

	. "github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/site"
)

func init() {
	registerEncoder("distilbert", func(f *fields, configJSON []byte) encoder {
		f.aliases(map[string]string{"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads", "intermediate_size": "hidden_dim"})
		o := readEncoder(f, configJSON, "distilbert", "DistilBert")
		o.act = f.act("activation", "gelu")
		o.normEps = 1e-12 // no option
		dropout := f.rate("dropout", 0.1)
		o.embeddingDropout, o.feedForwardDropout, o.tokenDropout = dropout, dropout, dropout
		o.attentionDropout = f.rate("attention_dropout", 0.1)
		o.sequenceDropout = f.rate("seq_classif_dropout", 0.2)
		return &distilbert{o}
	})
}

// aliases lets the members of an object be read under other names.
func (f *fields) aliases(names map[string]string) {
	for name, own := range names {
		if v, ok := f.values[own]; ok {
			f.values[name] = v
		}
	}
}

// distilbert is DistilBERT (Sanh et al. 2019, arXiv:1910.01108): BERT without token
// types and pooler.
type distilbert struct {
	*encoderOptions
}

func (m *distilbert) layer(i int) blockPaths {
	at := m.path(fmt.Sprintf("transformer.layer.%d.", i))
	return blockPaths{
		query: at + "attention.q_lin", key: at + "attention.k_lin", value: at + "attention.v_lin",
		out: at + "attention.out_lin", attentionNorm: at + "sa_layer_norm",
		up: at + "ffn.lin1", down: at + "ffn.lin2", outputNorm: at + "output_layer_norm",
		attention: at + "attention", feedForward: at + "ffn",
	}
}

func (m *distilbert) trunk() []site.Module {
	return m.stackModules(m.layer)
}

func (m *distilbert) Layers() []site.Layer { return m.stackLayers(m.layer) }

func (m *distilbert) encode(b *Blocks, in site.Tokens) *Node {
	pass := m.start(b, in)
	return m.stack(b, pass, m.layer, m.embed(b, pass, pass.positions()))
}

func (m *distilbert) maskedHead() head {
	return m.maskedHeadOf("vocab_transform", "vocab_layer_norm", "vocab_projector", "vocab_projector.bias", m.act)
}

func (m *distilbert) sequenceHead(labels int) head {
	hidden := m.config.HiddenSize
	before, classifier := biasedLinear("pre_classifier", hidden, hidden), classifierModule("classifier", hidden, labels)
	return head{
		modules: []site.Module{before, classifier},
		build: func(b *Blocks, x *Node) *Node {
			x = graphx.Relu(b.Linear(before.Path, firstToken(x)))
			return b.Linear(classifier.Path, b.Dropout("classifier.dropout", x, m.sequenceDropout))
		},
	}
}

func (m *distilbert) otherTasks() []string { return []string{"qa_outputs."} }
