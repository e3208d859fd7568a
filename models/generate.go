package models

import (
	"context"
	"errors"
	"fmt"

	"github.com/gopeft/gopeft/internal/backend"
	"github.com/gopeft/gopeft/models/tokenizer"
	"github.com/gopeft/gopeft/site"
)

// FinishReason says why a row ended.
type FinishReason string

const (
	// FinishStopToken: the model gave a stop token.
	FinishStopToken FinishReason = "stop"
	// FinishStopString: the text contains a stop string.
	FinishStopString FinishReason = "stop_string"
	// FinishLength: MaxNewTokens or the model's positions are used up.
	FinishLength FinishReason = "length"
)

// Generation is what was generated after one prompt.
type Generation struct {
	// IDs are the new tokens, the stop token included.
	IDs []int32
	// Text follows the prompt's text: no stop token, nothing of a stop string, no
	// special tokens unless they are kept. "" if there is no tokenizer.
	Text string
	// FinishReason says why the row ended.
	FinishReason FinishReason
	// LogProbs, if asked for, are the natural logarithms of the probabilities that
	// the model gave IDs, before penalty, temperature, top-k and top-p.
	LogProbs []float32
}

// Generate continues a prompt and returns the new text. view is a [Model] or a
// model seen through adapters.
//
// The compiled programs stay with the model: later calls, also with other adapter
// values, do not compile again.
func Generate(ctx context.Context, view site.View, prompt string, o GenerateOptions) (string, error) {
	g, err := NewGenerator(view)
	if err != nil {
		return "", err
	}
	defer g.Close()
	out, err := g.GenerateText(ctx, []string{prompt}, o)
	if err != nil {
		return "", err
	}
	return out[0].Text, nil
}

// Generate continues a prompt and returns the new text, see the function [Generate].
func (m *Model) Generate(ctx context.Context, prompt string, o GenerateOptions) (string, error) {
	return Generate(ctx, m, prompt, o)
}

// Generator continues prompts with one view of a model. Adapter values are read at
// the start of each call, so that values set in between take effect and those set
// during a call do not. It is safe for concurrent use, but for Close.
type Generator struct {
	view     site.View
	lm       site.LanguageModel
	programs *programs
	own      bool // programs are not the model's
}

// NewGenerator makes a generator. Generators whose views have the same base, a
// [Model], share compiled programs, which that model keeps.
func NewGenerator(view site.View) (*Generator, error) {
	if view == nil {
		return nil, errors.New("models: generate: the view is nil")
	}
	lm := view.LanguageModel()
	if lm == nil {
		return nil, errors.New("models: generate: the base is not a language model")
	}
	if m, ok := lm.(*Model); ok && m.CacheShape().Layers == 0 {
		return nil, fmt.Errorf("models: generate with %s: %w", lm.ModelType(), errNotCausal)
	}
	if m, ok := lm.(*Model); ok {
		return &Generator{view: view, lm: lm, programs: m.programs}, nil
	}
	return &Generator{view: view, lm: lm, programs: newPrograms(lm), own: true}, nil
}

// Close frees the compiled programs of a base that is not a [Model]; a Model's are
// freed when it is closed.
func (g *Generator) Close() error {
	if g.own {
		g.programs.close()
	}
	return nil
}

// GenerateText continues prompts given as text, all at once. An empty one starts
// from the model's beginning-of-sequence token.
func (g *Generator) GenerateText(ctx context.Context, prompts []string, o GenerateOptions) ([]Generation, error) {
	s, err := o.settle(g.lm)
	if err != nil {
		return nil, fmt.Errorf("models: generate: %w", err)
	}
	if s.Tokenizer == nil {
		return nil, errors.New("models: generate: prompts as text need a tokenizer, and the model has none")
	}
	ids := make([][]int32, len(prompts))
	for i, text := range prompts {
		ids[i] = s.Tokenizer.Encode(text, tokenizer.EncodeOptions{AddSpecialTokens: !o.PromptIsComplete})
	}
	return g.generate(ctx, ids, s)
}

// Generate continues prompts given as token ids, special tokens included, all at
// once; their lengths may differ. An empty one starts from the model's
// beginning-of-sequence token. Each row gives what it would give alone, up to the
// rounding of matrix products of another size.
//
// Errors say which prompt is wrong. When ctx ends, or Stream fails, Generate stops
// at the next token and returns that error.
func (g *Generator) Generate(ctx context.Context, prompts [][]int32, o GenerateOptions) ([]Generation, error) {
	s, err := o.settle(g.lm)
	if err != nil {
		return nil, fmt.Errorf("models: generate: %w", err)
	}
	return g.generate(ctx, prompts, s)
}

func (g *Generator) generate(ctx context.Context, prompts [][]int32, s *settings) ([]Generation, error) {
	if len(prompts) == 0 {
		return nil, errors.New("models: generate: no prompt is given")
	}
	if s.Tasks != nil && len(s.Tasks) != len(prompts) {
		return nil, fmt.Errorf("models: generate: %d tasks of %d prompts", len(s.Tasks), len(prompts))
	}
	if err := checkTasks(g.view, s.Tasks, "prompt"); err != nil {
		return nil, fmt.Errorf("models: generate: %w", err)
	}
	r := &run{programs: g.programs, view: g.view, settings: s, batch: g.batch(len(prompts))}
	if rows, ok := g.view.(site.RowView); ok {
		if rows.Rows() != len(prompts) {
			return nil, fmt.Errorf("models: generate: the view is for %d rows, got %d prompts", rows.Rows(), len(prompts))
		}
		r.view = rows.Pad(r.batch)
	}
	r.structure = r.view.Structure()
	if p, ok := g.view.(site.Prefixed); ok {
		r.virtual = p.VirtualTokens()
		s.virtual = r.virtual
	}
	for i, prompt := range prompts {
		if len(prompt) == 0 && s.bos >= 0 {
			prompt = []int32{s.bos}
		}
		row, err := newRow(s, i, prompt)
		if err != nil {
			return nil, fmt.Errorf("models: generate: prompt %d: %w", i, err)
		}
		r.rows = append(r.rows, row)
	}
	var err error
	if r.arguments, err = r.view.Arguments(); err != nil {
		return nil, fmt.Errorf("models: generate: %w", err)
	}
	if err := r.all(ctx); err != nil {
		return nil, fmt.Errorf("models: generate: %w", err)
	}
	out := make([]Generation, len(r.rows))
	for i, row := range r.rows {
		out[i] = row.out
	}
	return out, nil
}

// batch is how many rows the programs for n prompts have: a power of two where
// compiling is dear.
func (g *Generator) batch(n int) int {
	if backend.IsGo(g.lm.Backend()) {
		return n
	}
	return powerOfTwo(n)
}
