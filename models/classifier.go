package models

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"

	"github.com/gopeft/gopeft/models/tokenizer"
	"github.com/gopeft/gopeft/site"
)

// Classifier is an encoder with a head that scores labels, for each sequence or for
// each token. It implements [site.Classifier], [site.Tasked], [site.Exporter] and
// [ClassifierView] (itself, with no adapters); it is no language model. Its methods
// may be used concurrently, except Close.
type Classifier struct {
	// Tokenizer is the folder's; nil if it has none.
	Tokenizer *tokenizer.Tokenizer

	core
	net      *classifierNetwork
	programs *classifyPrograms
}

var (
	_ site.Classifier  = (*Classifier)(nil)
	_ site.Tasked      = (*Classifier)(nil)
	_ site.Transformer = (*Classifier)(nil)
	_ site.Exporter    = (*Classifier)(nil)
	_ ClassifierView   = (*Classifier)(nil)
	_ io.Closer        = (*Classifier)(nil)
)

// Labels are the names of the labels, in the order of the scores.
func (c *Classifier) Labels() []string { return slices.Clone(c.net.labels) }

// NumLabels is the number of labels.
func (c *Classifier) NumLabels() int { return len(c.net.labels) }

// PerToken is true for a classifier of tokens, false for one of sequences.
func (c *Classifier) PerToken() bool { return c.net.perToken }

// TaskType is "SEQ_CLS" or "TOKEN_CLS".
func (c *Classifier) TaskType() string {
	if c.net.perToken {
		return "TOKEN_CLS"
	}
	return "SEQ_CLS"
}

// Classify builds the scores before softmax: [batch, labels], or [batch, length,
// labels] if PerToken. A row padded on either side needs in.Segments, 0 for padding;
// a sequence is judged by its first token, so padding is best on the right. With a prompt
// that is the first virtual token, as in peft.
func (c *Classifier) Classify(p *site.Pass, in site.Tokens) *graph.Node {
	b := newBlocks(p, &c.core)
	hidden := c.net.encode(b, in)
	if c.net.perToken {
		hidden = tokensOf(in, hidden)
	}
	return c.net.head.build(b, hidden)
}

// Export writes the classifier, its head included, to the folder dir as a Hugging Face
// checkpoint of a sequence or token classifier; see [Model.Export].
func (c *Classifier) Export(ctx context.Context, dir string, edit func(p site.Parameter, values []float32) (changed bool, err error)) error {
	return c.export(ctx, dir, c.Tokenizer, edit)
}

// Base is the classifier itself: a plain base is a view with no adapters.
func (c *Classifier) Base() site.Base { return c }

// Arguments is empty: a base has no adapter values.
func (c *Classifier) Arguments() ([]*tensors.Tensor, error) { return nil, nil }

// Hook is nil: nothing changes the base.
func (c *Classifier) Hook([]*graph.Node) site.Hook { return nil }

// Structure is "": every base without adapters builds the same program.
func (c *Classifier) Structure() string { return "" }

// Close frees the parameters on the device, and the backend if the classifier opened
// it. Neither the classifier nor programs built from it may be used afterwards.
func (c *Classifier) Close() error {
	if c.programs != nil {
		c.programs.close()
	}
	c.core.close()
	return nil
}

// classifierNetwork is an encoder under a classification head.
type classifierNetwork struct {
	encoder
	head     head
	labels   []string
	perToken bool
	config   Config
}

func newClassifierNetwork(e encoder, labels []string, perToken bool) (*classifierNetwork, error) {
	n := &classifierNetwork{encoder: e, labels: labels, perToken: perToken, config: e.options().config}
	if perToken {
		n.head = tokenHead(e.options(), len(labels))
	} else {
		n.head = e.sequenceHead(len(labels))
	}
	var err error
	n.config.JSON, err = withLabels(n.config.JSON, e.options().class, labels, perToken)
	return n, err
}

func (n *classifierNetwork) Config() Config { return n.config }

func (n *classifierNetwork) Modules() []site.Module { return append(n.trunk(), n.head.all()...) }

func (n *classifierNetwork) Parameters() []site.Parameter {
	return append(parametersOf(n.trunk()), n.head.parameters()...)
}

// Ignorable: the head that the encoder was pre-trained with, among others.
func (n *classifierNetwork) Ignorable(tensor string) bool {
	masked := n.maskedHead()
	return ignorable(n.encoder, tensor) || slices.Contains(masked.spare, tensor) ||
		slices.ContainsFunc(masked.bare, func(p site.Parameter) bool { return p.Name == tensor }) ||
		slices.ContainsFunc(masked.modules, func(m site.Module) bool { return tensor == m.Path+".weight" || tensor == m.Path+".bias" })
}

// encoderOf returns the encoder of an architecture.
func encoderOf(arch Architecture) (encoder, error) {
	m, ok := arch.(*maskedLM)
	if !ok {
		return nil, fmt.Errorf("model_type %q: classification needs an encoder; supported are albert, bert, distilbert, roberta, xlm-roberta", arch.Config().ModelType)
	}
	return m.encoder, nil
}
