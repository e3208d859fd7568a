package train

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"sync"

	"github.com/gopeft/gopeft/internal/backend"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// Trainer trains the active adapters of a model on a data set. It may be used for
// several trainings, one after the other.
type Trainer struct {
	pm       *peft.PeftModel
	data     *Dataset
	args     Arguments
	stepper  *stepper
	maxSteps int
	schedule Schedule
	// base describes the base, read once.
	base     func() (baseState, error)
	plotLoss func(path string, records []LogRecord) error // PlotLoss, except in tests
}

// NewTrainer checks model, data and arguments against each other. It changes
// nothing on disk and compiles nothing.
func NewTrainer(pm *peft.PeftModel, data *Dataset, args Arguments) (*Trainer, error) {
	if err := args.Validate(); err != nil {
		return nil, err
	}
	if pm == nil {
		return nil, errors.New("train: the model is nil")
	}
	if data == nil || data.Len() == 0 {
		return nil, errors.New("train: the data set is empty")
	}
	if info, err := os.Stat(args.OutputDir); err == nil && !info.IsDir() {
		return nil, fmt.Errorf("train: output folder %q: it is a file, want a folder", args.OutputDir)
	}
	if args.Loss == nil {
		args.Loss = defaultLoss(pm.Base())
	}
	if err := checkLoss(pm.Base(), args.Loss); err != nil {
		return nil, err
	}
	t := &Trainer{pm: pm, data: data, args: args.withDefaults(), plotLoss: PlotLoss}
	t.base = sync.OnceValues(func() (baseState, error) { return describeBase(pm.Base()) })
	if err := t.plan(); err != nil {
		return nil, err
	}
	config := stepConfig{
		loss: t.args.Loss, adamw: t.args.adamw(), rates: t.args.rates(), maxGradNorm: max(0, t.args.MaxGradNorm),
		checkpoint: t.args.GradientCheckpointing, seed: t.args.Seed, parts: 1,
	}
	if backend.IsGo(pm.Base().Backend()) {
		config.parts = defaultParts
	}
	var err error
	if t.stepper, err = newStepper(pm, config); err != nil {
		return nil, err
	}
	if err := t.checkGroups(); err != nil {
		return nil, err
	}
	for name, d := range map[string]*Dataset{"data set": data, "EvalDataset": args.EvalDataset} {
		if err := errors.Join(t.checkTask(d), t.checkTokens(d)); err != nil {
			return nil, fmt.Errorf("train: %s: %w", name, err)
		}
	}
	t.data, t.args.EvalDataset = t.withRoom(t.data), t.withRoom(t.args.EvalDataset)
	return t, nil
}

// withRoom leaves room for virtual tokens where padding would take their positions. The
// examples fit, see checkTokens.
func (t *Trainer) withRoom(d *Dataset) *Dataset {
	base, ok := t.stepper.base.(tokenBase)
	virtual := t.pm.VirtualTokens()
	if d == nil || !ok || virtual == 0 || base.MaxPositions() <= 0 {
		return d
	}
	return d.within(base.MaxPositions() - virtual)
}

// plan computes the number of steps and the schedule.
func (t *Trainer) plan() error {
	batches := NewSampler(t.data, t.args.samplerOptions()).BatchesPerEpoch()
	if batches == 0 {
		return fmt.Errorf("train: the data set has %d rows, fewer than a batch of %d, and DataloaderDropLast leaves them out",
			t.data.Len(), t.args.PerDeviceTrainBatchSize)
	}
	t.maxSteps = t.args.MaxSteps
	if t.maxSteps == 0 {
		perEpoch := (batches + t.args.GradientAccumulationSteps - 1) / t.args.GradientAccumulationSteps
		steps := math.Ceil(t.args.NumTrainEpochs * float64(perEpoch))
		if steps > math.MaxInt32 {
			return fmt.Errorf("train: %g epochs of %d steps are too many", t.args.NumTrainEpochs, perEpoch)
		}
		t.maxSteps = int(steps)
	}
	t.schedule = t.args.schedule(t.maxSteps)
	return t.schedule.Validate()
}

// checkGroups refuses batches that would tear apart the rows that a loss relates.
func (t *Trainer) checkGroups() error {
	n := t.stepper.together
	switch a := t.args; {
	case n <= 1:
		return nil
	case a.PerDeviceTrainBatchSize%n != 0 || a.PerDeviceEvalBatchSize%n != 0:
		return fmt.Errorf("train: loss %T keeps %d rows together, but batches have %d rows in training and %d in evaluation",
			a.Loss, n, a.PerDeviceTrainBatchSize, a.PerDeviceEvalBatchSize)
	case !a.NoShuffle || a.GroupByLength:
		return fmt.Errorf("train: loss %T keeps %d successive rows together: set NoShuffle, and not GroupByLength", a.Loss, n)
	}
	return nil
}

// checkTokens refuses tokens that the model does not have (looking one up would
// silently give another's embedding) and tasks that the adapters do not have.
func (t *Trainer) checkTokens(d *Dataset) error {
	if d == nil {
		return nil
	}
	base, ok := t.stepper.base.(tokenBase)
	if !ok {
		return nil
	}
	vocabulary, positions := base.VocabSize(), base.MaxPositions()
	virtual, taken := t.pm.VirtualTokens(), ""
	if virtual > 0 {
		taken = fmt.Sprintf(", %d of which the adapters take", virtual)
	}
	labels, what := vocabulary, "vocabulary"
	if c, ok := t.pm.Base().(site.Classifier); ok {
		labels, what = c.NumLabels(), "number of labels"
	}
	tasks := t.pm.NumTasks()
	for i := range d.Len() {
		e := d.Example(i)
		if e.Task == nil && tasks > 1 {
			return fmt.Errorf("example %d has no task, but the adapters know %d: set DataOptions.TaskField", i, tasks)
		}
		if e.Task != nil && tasks > 0 && int(*e.Task) >= tasks {
			return fmt.Errorf("example %d: task %d, but the adapters know %d tasks", i, *e.Task, tasks)
		}
		if n := e.longest(); positions > 0 && n+virtual > positions {
			return fmt.Errorf("example %d has %d tokens, the model was made for %d positions%s: lower MaxLength", i, n, positions, taken)
		}
		for k, id := range e.IDs {
			if int(id) >= vocabulary {
				return fmt.Errorf("example %d, token %d: id %d, but the model has a vocabulary of %d: is the tokenizer another model's?", i, k, id, vocabulary)
			}
		}
		for k, label := range e.Labels {
			if int(label) >= labels {
				return fmt.Errorf("example %d, label %d: it is %d, but the model has a %s of %d", i, k, label, what, labels)
			}
		}
	}
	return nil
}

// longest is the number of tokens of the longest sequence packed into the example.
func (e Example) longest() int {
	longest, end := 0, len(e.IDs)
	for i := len(e.Starts) - 1; i >= 0; i-- {
		longest = max(longest, end-e.Starts[i])
		end = e.Starts[i]
	}
	return max(longest, end)
}

// MaxSteps is the number of optimizer steps of the whole training.
func (t *Trainer) MaxSteps() int { return t.maxSteps }

// Evaluate returns the mean loss of a target of data, in nats, with the values that
// the model has now and without dropout.
func (t *Trainer) Evaluate(ctx context.Context, data *Dataset) (float64, error) {
	e, err := t.Measure(ctx, data)
	return e.Loss, err
}

// Measure is [Trainer.Evaluate] with all that an evaluation gives but its place in the
// training.
func (t *Trainer) Measure(ctx context.Context, data *Dataset) (Evaluation, error) {
	if data == nil || data.Len() == 0 {
		return Evaluation{}, errors.New("train: evaluation: the data set is empty")
	}
	if err := errors.Join(t.checkTask(data), t.checkTokens(data)); err != nil {
		return Evaluation{}, fmt.Errorf("train: evaluation: %w", err)
	}
	data = t.withRoom(data)
	values, err := t.pm.Arguments()
	if err == nil {
		err = toDevice(t.pm.Base().Backend(), values)
	}
	if err != nil {
		return Evaluation{}, fmt.Errorf("train: evaluation: %w", err)
	}
	sampler := NewSampler(data, SamplerOptions{BatchSize: t.args.PerDeviceEvalBatchSize})
	var all evaluated
	for {
		if err := ctx.Err(); err != nil {
			return Evaluation{}, fmt.Errorf("train: evaluation: %w", err)
		}
		b, ok := sampler.Next()
		if !ok {
			break
		}
		e, err := t.stepper.evaluate(values, b)
		if err != nil {
			return Evaluation{}, err
		}
		all.sum, all.targets, all.hits = all.sum+e.sum, all.targets+e.targets, all.hits+e.hits
	}
	if all.targets == 0 {
		return Evaluation{}, fmt.Errorf("train: evaluation: nothing to measure: none of the %d examples has a target", data.Len())
	}
	e := Evaluation{Loss: all.sum / float64(all.targets), Accuracy: all.hits / float64(all.targets)}
	if !finite(e.Loss) {
		return Evaluation{}, fmt.Errorf("train: evaluation: %w: it is %g", ErrNotFinite, e.Loss)
	}
	return e, nil
}

// Close frees the compiled programs. The trainer can be used again, and compiles again.
func (t *Trainer) Close() { t.stepper.close() }

// Evaluation is the result of one evaluation.
type Evaluation struct {
	Step  int     `json:"step"`
	Epoch float64 `json:"epoch"`
	// Loss is the mean loss of a target, in nats.
	Loss float64 `json:"loss"`
	// Accuracy is the part of the targets that the model hit, 0 to 1, if the loss is
	// [Counted]; else 0.
	Accuracy float64 `json:"accuracy,omitempty"`
}

// Perplexity is the exponential of the loss.
func (e Evaluation) Perplexity() float64 { return math.Exp(e.Loss) }

// Result is what a training came to, the parts before a resumption included.
type Result struct {
	// GlobalStep counts the optimizer steps.
	GlobalStep int
	Epoch      float64
	// TrainingLoss is the mean loss of a target over all steps, in nats.
	TrainingLoss float64
	// Evaluations are those of EvalDataset, in order; BestStep is the step of the one
	// with the lowest loss, 0 without any.
	Evaluations []Evaluation
	BestStep    int
	// Tokens counts the tokens of all batches, padding included, Targets those learned.
	Tokens, Targets int64
	// Seconds is the time in optimizer steps, compilation included.
	Seconds, TokensPerSecond float64
	// PeakMemory is what the largest program needs on an XLA device, inputs and
	// temporaries, by XLA's own analysis; on the Go backend the most memory that the
	// process has had. In bytes.
	PeakMemory int64
	// Checkpoint is the last checkpoint's folder, "" without any.
	Checkpoint string
}
