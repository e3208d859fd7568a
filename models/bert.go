package models

import (
	"fmt"

	. "github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/site"
)

func init() {
	registerEncoder("bert", func(f *fields, configJSON []byte) encoder { return newBert(f, configJSON, "bert", "Bert") })
	for modelType, class := range map[string]string{"roberta": "Roberta", "xlm-roberta": "XLMRoberta"} {
		registerEncoder(modelType, func(f *fields, configJSON []byte) encoder {
			r := &roberta{bert: newBert(f, configJSON, "roberta", class)}
			r.pad = f.integerOr("pad_token_id", 1)
			if r.pad < 0 || r.pad+1 >= r.positions {
				f.fail("pad_token_id: wanted 0 to %d, since positions are counted from it, got %d", r.positions-2, r.pad)
				return r
			}
			r.config.MaxPositions = r.positions - r.pad - 1
			return r
		})
	}
}

// bert is BERT (Devlin et al. 2018, arXiv:1810.04805).
type bert struct {
	*encoderOptions
}

func newBert(f *fields, configJSON []byte, prefix, class string) *bert {
	o := readEncoder(f, configJSON, prefix, class)
	o.act = f.act("hidden_act", "gelu")
	o.types = f.sizeOr("type_vocab_size", 2)
	hidden := f.rate("hidden_dropout_prob", 0.1)
	o.embeddingDropout, o.attentionOutDropout, o.feedForwardDropout = hidden, hidden, hidden
	o.attentionDropout = f.rate("attention_probs_dropout_prob", 0.1)
	o.sequenceDropout = f.rate("classifier_dropout", hidden)
	o.tokenDropout = o.sequenceDropout
	return &bert{o}
}

func (m *bert) layer(i int) blockPaths {
	at := m.path(fmt.Sprintf("encoder.layer.%d.", i))
	return blockPaths{
		query: at + "attention.self.query", key: at + "attention.self.key", value: at + "attention.self.value",
		out: at + "attention.output.dense", attentionNorm: at + "attention.output.LayerNorm",
		up: at + "intermediate.dense", down: at + "output.dense", outputNorm: at + "output.LayerNorm",
		attention: at + "attention.output", feedForward: at + "output",
	}
}

func (m *bert) trunk() []site.Module {
	return m.stackModules(m.layer)
}

func (m *bert) Layers() []site.Layer { return m.stackLayers(m.layer) }

func (m *bert) encode(b *Blocks, in site.Tokens) *Node {
	pass := m.start(b, in)
	return m.stack(b, pass, m.layer, m.embed(b, pass, pass.positions()))
}

func (m *bert) maskedHead() head {
	const at = "cls.predictions."
	return m.maskedHeadOf(at+"transform.dense", at+"transform.LayerNorm", at+"decoder", at+"bias", m.act)
}

func (m *bert) sequenceHead(labels int) head {
	return m.pooledHead(m.path("pooler.dense"), labels)
}

func (m *bert) otherTasks() []string { return []string{"cls.seq_relationship.", "qa_outputs."} }

// Rename also knows the second name of the vocabulary's bias.
func (m *bert) Rename(name string, has func(string) bool) string {
	return m.renameBias(name, "cls.predictions.decoder", "cls.predictions.bias", has)
}

// roberta is RoBERTa (Liu et al. 2019, arXiv:1907.11692), and XLM-RoBERTa (Conneau et
// al. 2019, arXiv:1911.02116), which differs in its tokenizer. Positions are counted
// from pad_token_id+1, over the tokens that are no padding.
type roberta struct {
	*bert
	pad int
}

func (m *roberta) encode(b *Blocks, in site.Tokens) *Node {
	pass := m.start(b, in)
	positions := AddScalar(pass.positions(), m.pad+1)
	if in.Positions == nil {
		positions = pass.countedPositions(m.pad)
	}
	return m.stack(b, pass, m.layer, m.embed(b, pass, positions))
}

func (m *roberta) maskedHead() head {
	return m.maskedHeadOf("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias", graphx.Gelu) // whatever hidden_act says
}

func (m *roberta) sequenceHead(labels int) head {
	hidden := m.config.HiddenSize
	dense := classifierModule("classifier.dense", hidden, hidden)
	out := classifierModule("classifier.out_proj", hidden, labels)
	return head{
		modules: []site.Module{dense, out},
		build: func(b *Blocks, x *Node) *Node {
			x = b.Dropout("classifier.dropout.0", firstToken(x), m.sequenceDropout)
			x = b.Dropout("classifier.dropout.1", Tanh(b.Linear(dense.Path, x)), m.sequenceDropout)
			return b.Linear(out.Path, x)
		},
	}
}

func (m *roberta) otherTasks() []string { return []string{"qa_outputs."} }

// Rename also knows the second name of the vocabulary's bias.
func (m *roberta) Rename(name string, has func(string) bool) string {
	return m.renameBias(name, "lm_head.decoder", "lm_head.bias", has)
}
