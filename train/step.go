package train

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// stepConfig is what is compiled into the programs of a run.
type stepConfig struct {
	loss        Loss
	adamw       AdamW
	rates       groupRates
	maxGradNorm float64
	checkpoint  bool
	seed        uint64
	// parts is the number of pieces a batch is cut into on a backend that computes
	// on one core at a time; the pieces run side by side and their gradients are
	// added in order, so the result depends on parts and not on the cores.
	parts int
}

// stepper makes optimizer steps on the active adapters of a model.
type stepper struct {
	pm     *peft.PeftModel
	base   site.Base
	config stepConfig
	// layouts are those of the trained adapters.
	layouts []*peft.Layout
	// together is RowGroups.RowsTogether of the loss, 1 without.
	together int
	// large marks, for each value argument, tensors that are donated to the program.
	large []bool
	// spans say how the elements of each value argument are treated.
	spans [][]peft.Span
	// numConstants is the number of the view's arguments that are not trained; the first
	// numStepped of them are changed after each step.
	numConstants, numStepped int
	// afterStep is true when some trained adapter takes part in the step, extraLoss when one
	// adds to the loss.
	afterStep, extraLoss bool

	mu    sync.Mutex
	execs map[programKey]*model.Exec
}

type programKey struct {
	kind string
	variant
}

// variant says which optional inputs a batch has.
type variant struct {
	positions, segments, tasks bool
	// inputs and targets count arrays.
	inputs, targets int
}

func variantOf(b Batch) variant {
	return variant{b.Positions != nil, b.Segments != nil, b.Tasks != nil, len(b.arrays.inputs), len(b.arrays.targets)}
}

// stepResult is what a step reports.
type stepResult struct {
	// loss is the mean over targets, gradNorm the global norm before clipping.
	loss, gradNorm float64
	targets        int
}

func newStepper(pm *peft.PeftModel, config stepConfig) (*stepper, error) {
	base := pm.Base()
	if err := checkBase(base); err != nil {
		return nil, err
	}
	if len(pm.Active()) == 0 {
		return nil, errors.New("train: the model view has no active adapter, so nothing to train")
	}
	if config.loss == nil {
		config.loss = defaultLoss(base)
	}
	if err := config.adamw.Validate(); err != nil {
		return nil, err
	}
	config.adamw = config.adamw.withDefaults()
	s := &stepper{pm: pm, base: base, config: config, together: 1, execs: map[programKey]*model.Exec{}}
	if groups, ok := config.loss.(RowGroups); ok {
		if s.together = groups.RowsTogether(); s.together < 0 {
			return nil, fmt.Errorf("train: loss %T keeps %d rows together, want 0 or more", config.loss, s.together)
		}
	}
	if config.rates == (groupRates{}) {
		s.config.rates = groupRates{1, 1, 1}
	}
	arguments, err := pm.Arguments()
	if err != nil {
		return nil, err
	}
	values, stepped, err := pm.NumTrained()
	if err != nil {
		return nil, err
	}
	s.numConstants, s.numStepped = len(arguments)-values, stepped
	s.afterStep = pm.Steps()
	for _, name := range pm.Trained() {
		layout, err := pm.Layout(name)
		if err != nil {
			return nil, err
		}
		parts, err := pm.Parts(name)
		if err != nil {
			return nil, err
		}
		s.extraLoss = s.extraLoss || slices.ContainsFunc(parts, func(a peft.Adapter) bool { _, ok := a.(peft.LossAdapter); return ok })
		s.layouts = append(s.layouts, layout)
		s.spans = append(s.spans, layout.Spans()...)
		for i := range layout.NumArguments() {
			s.large = append(s.large, i > 0)
		}
	}
	return s, nil
}

// step makes one optimizer step on the micro-batches, whose losses and gradients
// are summed and divided by the number of their targets. On error st is as before.
// Cancelling ctx abandons the step between two micro-batches.
func (s *stepper) step(ctx context.Context, st *state, micro []Batch, lr float64) (stepResult, error) {
	return s.stepWith(ctx, st, micro, lr, nil)
}

// stepWith is step with what upload gave for a single batch, which it frees; nil: nothing.
func (s *stepper) stepWith(ctx context.Context, st *state, micro []Batch, lr float64, uploaded []*tensors.Tensor) (stepResult, error) {
	defer func() { free(uploaded) }()
	if err := validateMicro(st, micro); err != nil {
		return stepResult{}, err
	}
	var results []*tensors.Tensor
	err := graphx.Try(func() (err error) {
		if len(micro) == 1 && s.config.parts <= 1 {
			if uploaded == nil {
				uploaded = s.inputs(st.step, lr, micro[0])
			}
			results, err = s.fused(st, micro[0], uploaded)
		} else {
			results, err = s.accumulated(ctx, st, micro, lr)
		}
		return err
	})
	if err != nil {
		return stepResult{}, fmt.Errorf("train: step %d: %w", st.step+1, err)
	}
	report, err := readAndFree(results[len(results)-1])
	if err != nil {
		free(results)
		if slices.Contains(s.large, true) { // the old values went into the step
			st.lost, err = true, errors.Join(errStateLost, err)
		}
		return stepResult{}, fmt.Errorf("train: step %d: %w", st.step+1, err)
	}
	results = results[:len(results)-1]
	sum, count, norm := report[0], report[1], report[2]
	result := stepResult{loss: sum / math.Max(count, 1), gradNorm: norm, targets: int(count)}
	if !finite(sum) || !finite(norm) {
		s.discard(st, results)
		return result, fmt.Errorf("train: step %d: %w: loss %g, gradient norm %g", st.step+1, ErrNotFinite, result.loss, norm)
	}
	st.replace(results)
	st.step++
	return result, nil
}

func validateMicro(st *state, micro []Batch) error {
	if st.lost {
		return errStateLost
	}
	if len(micro) == 0 {
		return errors.New("train: step without a batch")
	}
	targets := 0
	for _, b := range micro {
		if err := b.validate(); err != nil {
			return err
		}
		targets += b.Targets()
	}
	if targets == 0 {
		return fmt.Errorf("train: step %d: nothing to learn: every label of its %d batches is %d", st.step+1, len(micro), IgnoreIndex)
	}
	return nil
}

// discard frees the results of a step that was not finite, except those that stand
// in for donated tensors: they hold the old values.
func (s *stepper) discard(st *state, results []*tensors.Tensor) {
	n := len(s.large)
	free(results[3*n:])
	for k, list := range [][]*tensors.Tensor{st.values, st.m, st.v} {
		for i, result := range results[k*n : (k+1)*n] {
			if s.large[i] && !(k == 0 && st.shared) {
				list[i] = result
			} else {
				free([]*tensors.Tensor{result})
			}
		}
	}
}

func (s *stepper) fused(st *state, b Batch, inputs []*tensors.Tensor) ([]*tensors.Tensor, error) {
	exec, err := s.program("step", variantOf(b), s.fusedGraph(variantOf(b)))
	if err != nil {
		return nil, err
	}
	return s.update(exec, st, tensorArguments(inputs))
}

// accumulated runs the gradients program on each micro-batch and then applies.
func (s *stepper) accumulated(ctx context.Context, st *state, micro []Batch, lr float64) ([]*tensors.Tensor, error) {
	sums := make([]*tensors.Tensor, len(st.values), len(st.values)+1)
	for i, t := range st.values {
		sums[i] = tensors.FromShape(t.Shape())
	}
	sums = append(sums, tensors.FromFlatDataAndDimensions([]float32{0, 0}, 2))
	defer func() { free(sums) }()
	for i, b := range micro {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		next, err := s.gradients(st, sums, b)
		if err != nil {
			return nil, fmt.Errorf("micro-batch %d: %w", i+1, err)
		}
		free(sums)
		sums = next
	}
	exec, err := s.program("apply", variant{}, s.applyGraph())
	if err != nil {
		return nil, err
	}
	rest := append([]any{s.config.adamw.scalars(st.step+1, lr)}, tensorArguments(sums)...)
	return s.update(exec, st, rest)
}

// gradients adds one micro-batch to the sums.
func (s *stepper) gradients(st *state, sums []*tensors.Tensor, b Batch) ([]*tensors.Tensor, error) {
	exec, err := s.program("gradients", variantOf(b), s.gradientsGraph(variantOf(b)))
	if err != nil {
		return nil, err
	}
	call := func(sums []*tensors.Tensor, part Batch) ([]*tensors.Tensor, error) {
		batch := batchTensors(part)
		defer free(batch)
		arguments := append(tensorArguments(st.values, st.constants, sums), s.random(st.step, part.RowOffset))
		return exec.Exec(append(arguments, tensorArguments(batch)...)...)
	}
	if s.config.parts <= 1 {
		return call(sums, b)
	}
	return s.inParts(sums, b, call)
}

// evaluated is what an evaluation of a batch gives: the sum of the loss over its
// targets, their number, and how many of them were hit.
type evaluated struct {
	sum, hits float64
	targets   int
}

// evaluate runs a batch without dropout.
func (s *stepper) evaluate(arguments []*tensors.Tensor, b Batch) (evaluated, error) {
	if err := b.validate(); err != nil {
		return evaluated{}, err
	}
	exec, err := s.program("evaluate", variantOf(b), s.evaluateGraph(variantOf(b)))
	if err != nil {
		return evaluated{}, fmt.Errorf("train: evaluation: %w", err)
	}
	pieces := b.split(max(1, s.config.parts), s.together)
	reports := make([][]float64, len(pieces))
	err = inParallel(len(pieces), func(i int) error {
		batch := batchTensors(pieces[i])
		defer free(batch)
		out, err := exec.Exec(append(append(tensorArguments(arguments), s.random(0, 0)), tensorArguments(batch)...)...)
		if err != nil {
			return err
		}
		reports[i], err = readAndFree(out[0])
		return err
	})
	if err != nil {
		return evaluated{}, fmt.Errorf("train: evaluation: %w", err)
	}
	var e evaluated
	for _, report := range reports {
		e.sum += report[0]
		e.targets += int(report[1])
		e.hits += report[2]
	}
	return e, nil
}

func (s *stepper) program(kind string, v variant, build graphFunc) (*model.Exec, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := programKey{kind, v}
	if exec, ok := s.execs[key]; ok {
		return exec, nil
	}
	exec, err := s.exec(kind, build)
	if err != nil {
		return nil, err
	}
	s.execs[key] = exec
	return exec, nil
}

// close frees the compiled programs.
func (s *stepper) close() {
	for _, exec := range s.execs {
		exec.Finalize()
	}
	clear(s.execs)
}

// update runs a program that takes values, moments and constants first and returns their
// successors. Large tensors are donated: two copies of them would not fit. The
// program is compiled before anything is given away, so that only a failing
// execution can lose them.
func (s *stepper) update(exec *model.Exec, st *state, rest []any) ([]*tensors.Tensor, error) {
	arguments := append(tensorArguments(st.arguments(), st.constants), rest...)
	if !slices.Contains(s.large, true) {
		return exec.Exec(arguments...)
	}
	shapes, err := argumentShapes(arguments)
	if err != nil {
		return nil, err
	}
	if _, err := exec.Compile(shapes...); err != nil {
		return nil, err
	}
	for i, t := range st.arguments() {
		if !s.large[i%len(s.large)] || (st.shared && i < len(s.large)) {
			continue
		}
		if arguments[i], err = graph.DonateTensorBuffer(t, s.base.Backend(), 0); err != nil {
			st.lost = true
			return nil, errors.Join(errStateLost, err)
		}
	}
	results, err := exec.Exec(arguments...)
	if err != nil {
		st.lost = true
		return nil, errors.Join(errStateLost, err)
	}
	return results, nil
}
