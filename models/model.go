package models

import (
	"io"

	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"

	"github.com/gopeft/gopeft/models/tokenizer"
	"github.com/gopeft/gopeft/site"
)

// Model is a base transformer: an architecture and its frozen parameters on a
// device. It implements [site.LanguageModel], [site.View] (itself, with no
// adapters) and [site.Exporter]. Its methods may be used concurrently, except Close.
type Model struct {
	// Tokenizer is the folder's; nil if it has none.
	Tokenizer *tokenizer.Tokenizer

	core
	arch     Architecture
	programs *programs
	// original, if not nil, is the model whose parameters this one shares, and layers
	// are those of its layers that this one consists of. See Replicate.
	original *Model
	layers   []int
}

var (
	_ site.LanguageModel = (*Model)(nil)
	_ site.View          = (*Model)(nil)
	_ site.Exporter      = (*Model)(nil)
	_ site.Tasked        = (*Model)(nil)
	_ site.Transformer   = (*Model)(nil)
	_ io.Closer          = (*Model)(nil)
)

// TaskType implements [site.Tasked]: "CAUSAL_LM", or "" for a masked language model,
// for which peft has no name.
func (m *Model) TaskType() string {
	if m.CacheShape().Layers == 0 {
		return ""
	}
	return "CAUSAL_LM"
}

// CacheShape says what a key/value cache holds.
func (m *Model) CacheShape() site.CacheShape { return m.arch.CacheShape() }

// Head is the projection onto the vocabulary.
func (m *Model) Head() site.Module { return headOf(m.arch) }

// Hidden builds the model up to and including the final norm: [batch, length,
// hidden] in p.DType.
//
// Without in.Positions a token's position is its distance from the start of its
// row, or from the row's first used slot if in.Cache has Starts.
func (m *Model) Hidden(p *site.Pass, in site.Tokens) *graph.Node {
	return m.arch.Hidden(m.blocks(p), in)
}

// Logits builds the head: hidden states [..., hidden] -> [..., vocabulary] in p.DType.
func (m *Model) Logits(p *site.Pass, hidden *graph.Node) *graph.Node {
	return m.arch.Logits(m.blocks(p), hidden)
}

func (m *Model) blocks(p *site.Pass) *Blocks { return newBlocks(p, &m.core) }

// LanguageModel is the model itself: a plain base is a view with no adapters.
func (m *Model) LanguageModel() site.LanguageModel { return m }

// Arguments is empty: a base has no adapter values.
func (m *Model) Arguments() ([]*tensors.Tensor, error) { return nil, nil }

// Hook is nil: nothing changes the base.
func (m *Model) Hook([]*graph.Node) site.Hook { return nil }

// Structure is "": every base without adapters builds the same program.
func (m *Model) Structure() string { return "" }

// Close frees the parameters on the device, and the backend if the model opened
// it. Neither the model nor programs built from it may be used afterwards. What
// [Model.Replicate] returned frees only its own programs.
func (m *Model) Close() error {
	if m.programs != nil {
		m.programs.close()
	}
	if m.original != nil {
		return nil
	}
	m.core.close()
	return nil
}
