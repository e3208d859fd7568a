package models

import (
	"fmt"
	"io"
	"slices"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"

	"github.com/gopeft/gopeft/models/tokenizer"
	"github.com/gopeft/gopeft/site"
)

// Model is a base transformer: an architecture and its frozen parameters on a
// device. It implements [site.LanguageModel], [site.View] (itself, with no
// adapters) and [site.Exporter]. Its methods may be used concurrently, except Close.
type Model struct {
	// Tokenizer is the folder's; nil if it has none.
	Tokenizer *tokenizer.Tokenizer

	config     Config
	arch       Architecture
	modules    map[string]site.Module
	store      *model.Store
	backend    compute.Backend
	dtype      dtypes.DType
	recompute  bool // see Blocks.recomputed
	nameOrPath string
	folder     *folder // nil for a model made in memory
	programs   *programs
	close      func() // closes a backend that the model opened
}

var (
	_ site.LanguageModel = (*Model)(nil)
	_ site.View          = (*Model)(nil)
	_ site.Exporter      = (*Model)(nil)
	_ io.Closer          = (*Model)(nil)
)

// Config describes the model.
func (m *Model) Config() Config { return m.config }

// Backend runs the model's programs.
func (m *Model) Backend() compute.Backend { return m.backend }

// Store holds the parameters, none of them trainable.
func (m *Model) Store() *model.Store { return m.store }

// DType is the dtype of the stored parameters and, by default, of a pass.
func (m *Model) DType() dtypes.DType { return m.dtype }

// ModelType is config.json's model_type.
func (m *Model) ModelType() string { return m.config.ModelType }

// NameOrPath is what the model was loaded from, "" if it was made in memory.
func (m *Model) NameOrPath() string { return m.nameOrPath }

// Modules lists every module that can be a site, in the order of the forward pass.
func (m *Model) Modules() []site.Module { return m.arch.Modules() }

// Parameters lists every parameter once.
func (m *Model) Parameters() []site.Parameter { return m.arch.Parameters() }

// VocabSize is the number of logits.
func (m *Model) VocabSize() int { return m.config.VocabSize }

// MaxPositions is the longest sequence the model was made for.
func (m *Model) MaxPositions() int { return m.config.MaxPositions }

// CacheShape says what a key/value cache holds.
func (m *Model) CacheShape() site.CacheShape { return m.arch.CacheShape() }

// Head is the projection onto the vocabulary.
func (m *Model) Head() site.Module {
	modules := m.arch.Modules()
	return modules[slices.IndexFunc(modules, func(m site.Module) bool { return m.Head })]
}

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

func (m *Model) blocks(p *site.Pass) *Blocks {
	if p.DType == dtypes.InvalidDType {
		panic(fmt.Errorf("models: the pass has no dtype; %s computes in %s", m.config.ModelType, m.dtype))
	}
	return &Blocks{Pass: p, model: m}
}

// LanguageModel is the model itself: a plain base is a view with no adapters.
func (m *Model) LanguageModel() site.LanguageModel { return m }

// Arguments is empty: a base has no adapter values.
func (m *Model) Arguments() ([]*tensors.Tensor, error) { return nil, nil }

// Hook is nil: nothing changes the base.
func (m *Model) Hook([]*graph.Node) site.Hook { return nil }

// Structure is "": every base without adapters builds the same program.
func (m *Model) Structure() string { return "" }

// Close frees the parameters on the device, and the backend if the model opened
// it. Neither the model nor programs built from it may be used afterwards.
func (m *Model) Close() error {
	if m.programs != nil {
		m.programs.close()
	}
	if m.store != nil {
		m.store.Finalize()
		m.store = nil
	}
	if m.close != nil {
		m.close()
		m.close = nil
	}
	return nil
}
