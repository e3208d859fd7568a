package train

import (
	"errors"
	"fmt"
	"math"
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
	pm      *peft.PeftModel
	lm      site.LanguageModel
	config  stepConfig
	layouts []*peft.Layout
	// large marks, for each value argument, tensors that are donated to the program.
	large []bool

	mu    sync.Mutex
	execs map[programKey]*model.Exec
}

type programKey struct {
	kind string
	variant
}

// variant says which optional inputs a batch has.
type variant struct{ positions, segments bool }

func variantOf(b Batch) variant { return variant{b.Positions != nil, b.Segments != nil} }

// stepResult is what a step reports.
type stepResult struct {
	// loss is the mean over targets, gradNorm the global norm before clipping.
	loss, gradNorm float64
	targets        int
}

func newStepper(pm *peft.PeftModel, config stepConfig) (*stepper, error) {
	lm := pm.LanguageModel()
	if lm == nil {
		return nil, errors.New("train: the base is not a language model")
	}
	if len(pm.Active()) == 0 {
		return nil, errors.New("train: the model view has no active adapter, so nothing to train")
	}
	if config.loss == nil {
		config.loss = CausalLM{}
	}
	if err := config.adamw.Validate(); err != nil {
		return nil, err
	}
	config.adamw = config.adamw.withDefaults()
	s := &stepper{pm: pm, lm: lm, config: config, execs: map[programKey]*model.Exec{}}
	for _, name := range pm.Active() {
		layout, err := pm.Layout(name)
		if err != nil {
			return nil, err
		}
		s.layouts = append(s.layouts, layout)
		for i := range layout.NumArguments() {
			s.large = append(s.large, i > 0)
		}
	}
	return s, nil
}

// step makes one optimizer step on the micro-batches, whose losses and gradients
// are summed and divided by the number of their targets. On error st is as before.
func (s *stepper) step(st *state, micro []Batch, lr float64) (stepResult, error) {
	if len(micro) == 0 {
		return stepResult{}, errors.New("train: step without a batch")
	}
	for _, b := range micro {
		if err := b.validate(); err != nil {
			return stepResult{}, err
		}
	}
	var results []*tensors.Tensor
	err := graphx.Try(func() (err error) {
		if len(micro) == 1 && s.config.parts <= 1 {
			results, err = s.fused(st, micro[0], lr)
		} else {
			results, err = s.accumulated(st, micro, lr)
		}
		return err
	})
	if err != nil {
		return stepResult{}, fmt.Errorf("train: step %d: %w", st.step+1, err)
	}
	report, err := readAndFree(results[len(results)-1])
	if err != nil {
		return stepResult{}, fmt.Errorf("train: step %d: %w", st.step+1, err)
	}
	results = results[:len(results)-1]
	sum, count, norm := report[0], report[1], report[2]
	result := stepResult{loss: sum / math.Max(count, 1), gradNorm: norm, targets: int(count)}
	if !finite(sum) || !finite(norm) {
		s.keepLarge(st, results)
		return result, fmt.Errorf("train: step %d: %w: loss %g, gradient norm %g", st.step+1, ErrNotFinite, result.loss, norm)
	}
	st.replace(results)
	st.step++
	return result, nil
}

// keepLarge puts the guarded results back in the place of donated tensors after a
// step that was not finite, and frees the others.
func (s *stepper) keepLarge(st *state, results []*tensors.Tensor) {
	n := len(s.large)
	for i, large := range s.large {
		for k, list := range [][]*tensors.Tensor{st.values, st.m, st.v} {
			if large {
				list[i] = results[k*n+i]
			} else {
				free(results[k*n+i : k*n+i+1])
			}
		}
	}
}

func (s *stepper) fused(st *state, b Batch, lr float64) ([]*tensors.Tensor, error) {
	exec, err := s.program("step", variantOf(b), s.fusedGraph(variantOf(b)))
	if err != nil {
		return nil, err
	}
	arguments, err := s.stateArguments(st)
	if err != nil {
		return nil, err
	}
	arguments = append(arguments, s.config.adamw.scalars(st.step+1, lr), s.random(st.step, 0, b.RowOffset))
	return exec.Exec(append(arguments, batchArguments(b)...)...)
}

// accumulated runs the gradients program on each micro-batch and then applies.
func (s *stepper) accumulated(st *state, micro []Batch, lr float64) ([]*tensors.Tensor, error) {
	sums := make([]*tensors.Tensor, len(st.values), len(st.values)+1)
	for i, t := range st.values {
		sums[i] = tensors.FromShape(t.Shape())
	}
	sums = append(sums, tensors.FromFlatDataAndDimensions([]float32{0, 0}, 2))
	defer func() { free(sums) }()
	for i, b := range micro {
		next, err := s.gradients(st, sums, b, i)
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
	arguments, err := s.stateArguments(st)
	if err != nil {
		return nil, err
	}
	arguments = append(arguments, s.config.adamw.scalars(st.step+1, lr))
	return exec.Exec(append(arguments, tensorArguments(sums)...)...)
}

// gradients adds one micro-batch to the sums.
func (s *stepper) gradients(st *state, sums []*tensors.Tensor, b Batch, microStep int) ([]*tensors.Tensor, error) {
	exec, err := s.program("gradients", variantOf(b), s.gradientsGraph(variantOf(b)))
	if err != nil {
		return nil, err
	}
	call := func(sums []*tensors.Tensor, part Batch) ([]*tensors.Tensor, error) {
		arguments := append(tensorArguments(st.values, sums), s.random(st.step, microStep, part.RowOffset))
		return exec.Exec(append(arguments, batchArguments(part)...)...)
	}
	if s.config.parts <= 1 {
		return call(sums, b)
	}
	return s.inParts(sums, b, call)
}

// evaluate returns the sum of the loss over a batch's targets, without dropout.
func (s *stepper) evaluate(values []*tensors.Tensor, b Batch) (sum float64, targets int, err error) {
	if err := b.validate(); err != nil {
		return 0, 0, err
	}
	err = graphx.Try(func() error {
		exec, err := s.program("evaluate", variantOf(b), s.evaluateGraph(variantOf(b)))
		if err != nil {
			return err
		}
		out, err := exec.Exec(append(append(tensorArguments(values), s.random(0, 0, 0)), batchArguments(b)...)...)
		if err != nil {
			return err
		}
		report, err := readAndFree(out[0])
		if err != nil {
			return err
		}
		sum, targets = report[0], int(report[1])
		return nil
	})
	if err != nil {
		return 0, 0, fmt.Errorf("train: evaluation: %w", err)
	}
	return sum, targets, nil
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

// stateArguments passes values and moments, donating the large tensors: two copies
// of them would not fit.
func (s *stepper) stateArguments(st *state) ([]any, error) {
	backend := s.lm.Backend()
	arguments := make([]any, 0, 3*len(s.large)+8)
	for i, t := range st.arguments() {
		if !s.large[i%len(s.large)] || (st.shared && i < len(s.large)) {
			arguments = append(arguments, t)
			continue
		}
		donated, err := graph.DonateTensorBuffer(t, backend, 0)
		if err != nil {
			return nil, err
		}
		arguments = append(arguments, donated)
	}
	return arguments, nil
}

// random is the input that dropout derives from.
func (s *stepper) random(step, microStep, rowOffset int) []uint32 {
	seed := s.config.seed
	return []uint32{uint32(seed) ^ uint32(seed>>32)*0x85ebca6b, uint32(step), uint32(microStep), uint32(rowOffset)}
}

// batchArguments shifts the labels into targets and makes the batch's tensors.
func batchArguments(b Batch) []any {
	targets := make([]int32, len(b.Labels))
	for r := range b.Rows {
		row := targets[r*b.Length : (r+1)*b.Length]
		copy(row, b.Labels[r*b.Length+1:(r+1)*b.Length])
		row[b.Length-1] = IgnoreIndex
	}
	matrix := func(values []int32) any { return tensors.FromFlatDataAndDimensions(values, b.Rows, b.Length) }
	arguments := []any{matrix(b.IDs), matrix(targets)}
	if b.Positions != nil {
		arguments = append(arguments, matrix(b.Positions))
	}
	if b.Segments != nil {
		arguments = append(arguments, matrix(b.Segments))
	}
	return arguments
}

func readAndFree(t *tensors.Tensor) ([]float64, error) {
	values, err := tensors.CopyFlatData[float32](t)
	if err != nil {
		return nil, err
	}
	free([]*tensors.Tensor{t})
	out := make([]float64, len(values))
	for i, v := range values {
		out[i] = float64(v)
	}
	return out, nil
}

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }
