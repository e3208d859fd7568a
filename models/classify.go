package models

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/models/tokenizer"
	"github.com/gopeft/gopeft/site"
)

// ClassifierView is a classifier seen through a selection of adapters: a *peft.PeftModel
// on a [Classifier], or the classifier itself.
type ClassifierView interface {
	// Base is the classifier below, a [site.Classifier].
	Base() site.Base
	// Arguments, Hook and Structure are those of [site.View].
	Arguments() ([]*tensors.Tensor, error)
	Hook(arguments []*graph.Node) site.Hook
	Structure() string
}

// PredictOptions says how texts are classified.
type PredictOptions struct {
	// BatchSize is the number of texts computed at once. Zero: 32.
	BatchSize int
	// MaxLength is the number of tokens, special ones included, after which a text is
	// cut off. Zero: what the model was made for, less the adapters' virtual tokens.
	MaxLength int
	// Tasks is the task of each text, for adapters that know several, see [site.Tokens].
	// nil: none.
	Tasks []int32
}

// Prediction is what a classifier says of a text or a token.
type Prediction struct {
	// Label is the most probable label, Index its number.
	Label string
	Index int
	// Probability is the label's.
	Probability float32
	// Probabilities are those of all labels, in their order; they add up to 1.
	Probabilities []float32
	// Truncated is true if the text had more than MaxLength tokens.
	Truncated bool
}

// TokenPrediction is what a classifier of tokens says of one.
type TokenPrediction struct {
	// Token is its id, Text as it is written in the vocabulary.
	Token int32
	Text  string
	Prediction
}

// Predict classifies texts, in batches of similar length; the answers are in the
// texts' order. The compiled programs stay with the classifier. At most one
// PredictOptions is used.
func Predict(ctx context.Context, view ClassifierView, texts []string, options ...PredictOptions) ([]Prediction, error) {
	p, err := newPredictor(view, false, options)
	if err != nil {
		return nil, fmt.Errorf("models: predict: %w", err)
	}
	out := make([]Prediction, len(texts))
	err = p.each(ctx, texts, func(i int, row encodedText, probabilities []float32) {
		out[i] = p.prediction(probabilities, row.truncated)
	})
	if err != nil {
		return nil, fmt.Errorf("models: predict: %w", err)
	}
	return out, nil
}

// PredictTokens classifies each token of texts but the special ones, see [Predict].
func PredictTokens(ctx context.Context, view ClassifierView, texts []string, options ...PredictOptions) ([][]TokenPrediction, error) {
	p, err := newPredictor(view, true, options)
	if err != nil {
		return nil, fmt.Errorf("models: predict: %w", err)
	}
	out := make([][]TokenPrediction, len(texts))
	n := p.base.NumLabels()
	err = p.each(ctx, texts, func(i int, row encodedText, probabilities []float32) {
		for k, id := range row.ids {
			if p.base.Tokenizer.IsSpecial(id) {
				continue
			}
			text, _ := p.base.Tokenizer.Token(id)
			out[i] = append(out[i], TokenPrediction{id, text, p.prediction(probabilities[k*n:(k+1)*n], row.truncated)})
		}
	})
	if err != nil {
		return nil, fmt.Errorf("models: predict: %w", err)
	}
	return out, nil
}

// Predict classifies texts with the classifier as it is, see the function [Predict].
func (c *Classifier) Predict(ctx context.Context, texts []string, options ...PredictOptions) ([]Prediction, error) {
	return Predict(ctx, c, texts, options...)
}

// predictor is one call of Predict.
type predictor struct {
	base    *Classifier
	view    ClassifierView
	options PredictOptions
	// positions is the longest row.
	positions int
}

func newPredictor(view ClassifierView, perToken bool, options []PredictOptions) (*predictor, error) {
	if view == nil {
		return nil, errors.New("the view is nil")
	}
	base, ok := view.Base().(*Classifier)
	if !ok {
		return nil, fmt.Errorf("the base is a %T: wanted a *models.Classifier", view.Base())
	}
	p := &predictor{base: base, view: view, positions: base.MaxPositions()}
	if v, ok := view.(site.Prefixed); ok {
		p.positions -= v.VirtualTokens()
	}
	if len(options) > 0 {
		p.options = options[0]
	}
	switch {
	case base.PerToken() && !perToken:
		return nil, errors.New("the classifier scores tokens: use PredictTokens")
	case !base.PerToken() && perToken:
		return nil, errors.New("the classifier scores whole texts: use Predict")
	case base.Tokenizer == nil:
		return nil, errors.New("the classifier has no tokenizer")
	}
	if p.options.BatchSize == 0 {
		p.options.BatchSize = 32
	}
	if p.options.MaxLength == 0 {
		p.options.MaxLength = p.positions
	}
	if p.options.BatchSize < 0 || p.options.MaxLength < 2 || p.options.MaxLength > p.positions {
		return nil, fmt.Errorf("BatchSize %d, MaxLength %d: wanted a positive size and a length of 2 to %d",
			p.options.BatchSize, p.options.MaxLength, p.positions)
	}
	return p, nil
}

type encodedText struct {
	index     int
	ids       []int32
	truncated bool
}

// each classifies texts and hands on the probabilities of one after the other.
func (p *predictor) each(ctx context.Context, texts []string, hand func(i int, row encodedText, probabilities []float32)) error {
	if len(texts) == 0 {
		return errors.New("no text is given")
	}
	if err := p.checkTasks(len(texts)); err != nil {
		return err
	}
	arguments, err := p.view.Arguments()
	if err != nil {
		return err
	}
	rows := make([]encodedText, len(texts))
	for i, text := range texts {
		rows[i].index = i
		rows[i].ids, rows[i].truncated = tokenizer.EncodeUpTo(p.base.Tokenizer, text, p.options.MaxLength)
		if len(rows[i].ids) == 0 {
			return fmt.Errorf("text %d has no tokens", i)
		}
	}
	slices.SortStableFunc(rows, func(a, b encodedText) int { return cmp.Compare(len(a.ids), len(b.ids)) })
	for batch := range slices.Chunk(rows, p.options.BatchSize) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := p.batch(batch, arguments, hand); err != nil {
			return err
		}
	}
	return nil
}

func (p *predictor) checkTasks(texts int) error {
	tasks := p.options.Tasks
	if tasks != nil && len(tasks) != texts {
		return fmt.Errorf("%d tasks of %d texts", len(tasks), texts)
	}
	return checkTasks(p.view, tasks, "text")
}

// batch runs rows of similar length in one program, padded on the right.
func (p *predictor) batch(rows []encodedText, arguments []*tensors.Tensor, hand func(i int, row encodedText, probabilities []float32)) error {
	const shortest = 16
	length := min(powerOfTwo(max(shortest, len(rows[len(rows)-1].ids))), p.positions)
	height := min(powerOfTwo(len(rows)), p.options.BatchSize)
	ids, segments := make([]int32, height*length), make([]int32, height*length)
	var tasks []int32
	if p.options.Tasks != nil {
		tasks = make([]int32, height)
	}
	for r, row := range rows {
		if tasks != nil {
			tasks[r] = p.options.Tasks[row.index]
		}
		copy(ids[r*length:], row.ids)
		for k := range row.ids {
			segments[r*length+k] = 1
		}
	}
	probabilities, err := p.base.programs.run(p.view, arguments, height, length, ids, segments, tasks)
	if err != nil {
		return err
	}
	each := len(probabilities) / height
	for r, row := range rows {
		own := probabilities[r*each : (r+1)*each]
		if p.base.PerToken() {
			own = own[:len(row.ids)*p.base.NumLabels()]
		}
		for _, x := range own {
			if x != x {
				return fmt.Errorf("text %d: the scores are not finite", row.index)
			}
		}
		hand(row.index, row, own)
	}
	return nil
}

func (p *predictor) prediction(probabilities []float32, truncated bool) Prediction {
	best := 0
	for i, x := range probabilities {
		if x > probabilities[best] {
			best = i
		}
	}
	return Prediction{
		Label: p.base.net.labels[best], Index: best, Probability: probabilities[best],
		Probabilities: slices.Clone(probabilities), Truncated: truncated,
	}
}

// classifyPrograms are the compiled programs of one classifier, kept until it is closed:
//
//	arguments, ids, segments, tasks? -> probabilities
type classifyPrograms struct {
	base    *Classifier
	mu      sync.Mutex
	entries map[programKey]*model.Exec
}

func newClassifyPrograms(c *Classifier) *classifyPrograms {
	return &classifyPrograms{base: c, entries: map[programKey]*model.Exec{}}
}

func (c *classifyPrograms) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, exec := range c.entries {
		exec.Finalize()
	}
	clear(c.entries)
}

// run classifies one batch. Runs of one classifier follow one another.
func (c *classifyPrograms) run(view ClassifierView, arguments []*tensors.Tensor, batch, length int, ids, segments, tasks []int32) (probabilities []float32, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	err = graphx.Try(func() error {
		exec, err := c.exec(programKey{structure: view.Structure(), batch: batch, length: length, tasks: tasks != nil}, view, len(arguments))
		if err != nil {
			return err
		}
		var in []any
		for i, t := range arguments {
			if err := t.MaterializeOnDevice(c.base.Backend(), true, 0); err != nil {
				return fmt.Errorf("adapter values %d: %w", i, err)
			}
			in = append(in, t)
		}
		rows := []*tensors.Tensor{tensors.FromFlatDataAndDimensions(ids, batch, length), tensors.FromFlatDataAndDimensions(segments, batch, length)}
		if tasks != nil {
			rows = append(rows, tensors.FromFlatDataAndDimensions(tasks, batch))
		}
		defer free(rows...)
		for _, t := range rows {
			in = append(in, t)
		}
		out, err := exec.Exec(in...)
		if err != nil {
			return err
		}
		defer free(out...)
		probabilities, err = tensors.CopyFlatData[float32](out[0])
		return err
	})
	return probabilities, err
}

func (c *classifyPrograms) exec(key programKey, view ClassifierView, arguments int) (*model.Exec, error) {
	if exec, ok := c.entries[key]; ok {
		return exec, nil
	}
	exec, err := model.NewExec(c.base.Backend(), c.base.Store(), func(_ *model.Scope, in []*graph.Node) []*graph.Node {
		pass := &site.Pass{Graph: in[0].Graph(), DType: c.base.DType(), Hook: view.Hook(in[:arguments])}
		rows := site.Tokens{IDs: in[arguments], Segments: in[arguments+1]}
		if key.tasks {
			rows.Tasks = in[arguments+2]
		}
		scores := c.base.Classify(pass, rows)
		return []*graph.Node{graph.Softmax(graph.ConvertDType(scores, dtypes.Float32), -1)}
	})
	if err != nil {
		return nil, err
	}
	c.entries[key] = exec.WithName("gopeft:classify")
	return exec, nil
}
