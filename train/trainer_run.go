package train

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"
)

// The files of an output folder beside the checkpoints.
const (
	logFile  = "log.jsonl"
	plotFile = "loss.png"
)

// run is one call of [Trainer.Train].
type run struct {
	*Trainer
	state    *state
	sampler  *Sampler
	next     *ahead // nil: not begun
	tally    tally
	log      *Logger
	progress *Progress
	// planned is the memory plan of the run's first step, beside log.jsonl's figure of the
	// compiled program; 0: none.
	planned int64
	// stopped is true once a callback has asked for the end.
	stopped bool
	// saved is the step whose state the last checkpoint holds, -1 without; checkpoint
	// is its folder.
	saved      int
	checkpoint string
	// obsolete are checkpoints of an earlier training, to be deleted after the first save.
	obsolete []string
}

// tally is what a run accumulates; it is part of a checkpoint.
type tally struct {
	// Of all steps.
	LossSum float64 `json:"loss_sum"`
	Targets int64   `json:"targets"`
	Tokens  int64   `json:"tokens"`
	Seconds float64 `json:"seconds"`
	// Pending is the same of the steps since the last log record.
	Pending struct {
		LossSum float64 `json:"loss_sum"`
		Targets int64   `json:"targets"`
		Tokens  int64   `json:"tokens"`
		Seconds float64 `json:"seconds"`
		// Of the last of them.
		GradNorm     float64 `json:"grad_norm"`
		LearningRate float64 `json:"learning_rate"`
	} `json:"pending"`
	Evaluations []Evaluation `json:"evaluations"`
	LogHistory  []LogRecord  `json:"log_history"`
}

// Train trains until the last step. The model then has the trained values, as it
// has after every evaluation and checkpoint, and also when Train fails.
//
// When ctx is cancelled, the step in flight ends or is given up, a checkpoint is
// written whatever the strategy, and the error wraps ctx's and names the checkpoint.
// A loss or gradient that is not finite is an error that wraps [ErrNotFinite]; the
// step that met it changed nothing, and no checkpoint is written after it. The
// result is that of the steps made, with an error too; it is nil only if the
// training did not begin.
func (t *Trainer) Train(ctx context.Context) (*Result, error) {
	r, err := t.start()
	if err != nil {
		return nil, err
	}
	defer r.progress.Close()
	err = r.loop(ctx)
	r.dropAhead()
	if err == nil {
		err = r.finish(ctx)
	}
	if err != nil {
		err = r.halt(ctx, err)
	}
	err = errors.Join(err, r.log.Close())
	if plotErr := r.plot(); err == nil {
		err = plotErr
	}
	return r.result(), err
}

// start makes the output folder ready and the state, new or resumed.
func (t *Trainer) start() (_ *run, err error) {
	r := &run{Trainer: t, sampler: NewSampler(t.data, t.args.samplerOptions()), saved: -1}
	if err := os.MkdirAll(t.args.OutputDir, 0o777); err != nil {
		return nil, fmt.Errorf("train: output folder %q: %w", t.args.OutputDir, err)
	}
	if err := cleanFolder(t.args.OutputDir); err != nil {
		return nil, fmt.Errorf("train: output folder %q: %w", t.args.OutputDir, err)
	}
	if _, err := t.base(); err != nil { // before hours of training, not at the first checkpoint
		return nil, err
	}
	path := filepath.Join(t.args.OutputDir, logFile)
	if t.args.ResumeFromCheckpoint != "" {
		imported, err := r.resume()
		if err != nil {
			return nil, err
		}
		if imported {
			r.log, err = newLogWith(path, r.tally.LogHistory)
		} else {
			r.log, err = ResumeLog(path, r.state.step)
		}
		if err != nil {
			return nil, err
		}
	} else {
		if r.obsolete, err = t.earlierCheckpoints(); err != nil {
			return nil, err
		}
		if r.state, err = newState(t.pm); err != nil {
			return nil, err
		}
		if r.log, err = CreateLog(path); err != nil {
			return nil, err
		}
	}
	r.progress = NewProgress(ProgressOptions{Out: t.args.Progress, Total: t.maxSteps, Done: r.state.step, Silent: t.args.Quiet})
	return r, r.compareTotalSteps()
}

// loop makes the steps that are left. It begins with what was still to do after the
// step that a checkpoint was written at.
func (r *run) loop(ctx context.Context) error {
	if r.state.step > 0 {
		if err := r.afterStep(ctx); err != nil {
			return err
		}
	}
	for r.state.step < r.maxSteps && !r.stopped {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := r.oneStep(ctx); err != nil {
			return err
		}
		if err := r.afterStep(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) oneStep(ctx context.Context) error {
	start, place := time.Now(), r.sampler.State()
	lr := r.schedule.LR(r.state.step, r.args.LearningRate)
	next := r.takeAhead()
	if next == nil {
		next = &ahead{micro: r.group(r.sampler)}
	}
	micro := next.micro
	r.lookAhead()
	result, err := r.stepper.stepWith(ctx, r.state, micro, lr, next.inputs)
	if err != nil {
		return errors.Join(err, r.sampler.Restore(place))
	}
	tokens := 0
	for _, b := range micro {
		tokens += b.Tokens()
	}
	r.tally.add(result, lr, tokens, time.Since(start))
	r.compareMemory(micro)
	if r.state.step == 1 || r.state.step%r.args.LoggingSteps == 0 || r.state.step == r.maxSteps {
		if err := r.logStep(); err != nil {
			return err
		}
	}
	r.progress.Update(ProgressUpdate{Step: r.state.step, Epoch: r.epoch(), Loss: result.loss, Tokens: tokens})
	if err := r.notify(Event{Kind: EventStep, Loss: result.loss, GradNorm: result.gradNorm, LearningRate: lr}); err != nil {
		return err
	}
	if r.epochEnds() {
		return r.notify(Event{Kind: EventEpoch})
	}
	return nil
}

// group returns the batches of the next step; they never span two epochs.
func (r *run) group(sampler *Sampler) []Batch {
	var micro []Batch
	rows := 0
	for len(micro) < r.args.GradientAccumulationSteps {
		b, ok := sampler.Next()
		if !ok && len(micro) > 0 {
			break
		}
		if !ok {
			continue // at the beginning of the next epoch
		}
		b.RowOffset = rows
		rows += b.Rows
		micro = append(micro, b)
		if sampler.epochEnds() {
			break
		}
	}
	return micro
}

func (r *run) epochEnds() bool { return r.sampler.epochEnds() }

// epoch is the number of passes through the data made so far.
func (r *run) epoch() float64 {
	place := r.sampler.State()
	return float64(place.Epoch) + float64(place.Cursor)/float64(r.sampler.BatchesPerEpoch())
}

// afterStep evaluates and saves where that is due and not done yet.
func (r *run) afterStep(ctx context.Context) error {
	due := r.args.EvalStrategy == EvalSteps && r.state.step%r.args.EvalSteps == 0 || r.args.EvalStrategy == EvalEpoch && r.epochEnds()
	if due || r.args.EvalDataset != nil && r.state.step == r.maxSteps {
		if err := r.evaluate(ctx); err != nil {
			return err
		}
	}
	if r.args.SaveStrategy == SaveSteps && r.state.step%r.args.SaveSteps == 0 || r.args.SaveStrategy == SaveEpoch && r.epochEnds() {
		return r.save()
	}
	return nil
}

// evaluate does nothing if the present step was evaluated already.
func (r *run) evaluate(ctx context.Context) error {
	if n := len(r.tally.Evaluations); n > 0 && r.tally.Evaluations[n-1].Step == r.state.step {
		return nil
	}
	defer r.progress.Skip()
	if err := r.state.publish(r.pm); err != nil {
		return err
	}
	e, err := r.Measure(ctx, r.args.EvalDataset)
	if err != nil {
		return err
	}
	e.Step, e.Epoch = r.state.step, r.epoch()
	r.tally.Evaluations = append(r.tally.Evaluations, e)
	r.saved = -1 // a checkpoint of this step lacks the evaluation
	if err := r.logRecord(LogRecord{EvalLog: &EvalLog{EvalLoss: e.Loss, EvalAccuracy: e.Accuracy}}); err != nil {
		return err
	}
	second := fmt.Sprintf("perplexity %.4g", e.Perplexity())
	if _, counted := r.args.Loss.(Counted); counted {
		second = fmt.Sprintf("accuracy %.4f", e.Accuracy)
	}
	r.progress.Print(fmt.Sprintf("step %d: evaluation loss %.4f, %s", e.Step, e.Loss, second))
	return r.notify(Event{Kind: EventEvaluate, EvalLoss: e.Loss, EvalAccuracy: e.Accuracy})
}

// finish does what belongs to the end of a training.
func (r *run) finish(ctx context.Context) error {
	if r.tally.Pending.Targets > 0 {
		if err := r.logStep(); err != nil {
			return err
		}
	}
	if r.args.EvalDataset != nil {
		if err := r.evaluate(ctx); err != nil {
			return err
		}
	}
	if err := r.state.publish(r.pm); err != nil {
		return err
	}
	if r.args.SaveStrategy != SaveNo {
		return r.save()
	}
	return nil
}

// halt ends a training that met an error: it publishes what was trained, writes a
// checkpoint unless the error is one of a step, and says where the last one is.
func (r *run) halt(ctx context.Context, cause error) error {
	if r.state.lost {
		return fmt.Errorf("%w; %s", cause, r.lastCheckpoint())
	}
	if err := r.state.publish(r.pm); err != nil {
		return errors.Join(cause, err)
	}
	cancelled := ctx.Err() != nil && errors.Is(cause, ctx.Err())
	var failed *saveError
	if !errors.As(cause, &failed) && !errors.Is(cause, ErrNotFinite) && r.state.step > 0 {
		if err := r.save(); err != nil {
			cause = errors.Join(cause, err)
		}
	}
	if cancelled {
		return fmt.Errorf("train: stopped after step %d of %d; %s: %w", r.state.step, r.maxSteps, r.lastCheckpoint(), cause)
	}
	return fmt.Errorf("%w; %s", cause, r.lastCheckpoint())
}

func (r *run) lastCheckpoint() string {
	if r.checkpoint == "" {
		return "no checkpoint was written"
	}
	return fmt.Sprintf("the last checkpoint is %q", r.checkpoint)
}

func (r *run) result() *Result {
	result := &Result{
		GlobalStep: r.state.step, Epoch: r.epoch(), Evaluations: r.tally.Evaluations,
		Tokens: r.tally.Tokens, Targets: r.tally.Targets, Seconds: r.tally.Seconds,
		PeakMemory: cmp.Or(r.stepper.deviceMemory(), peakProcessMemory()), Checkpoint: r.checkpoint,
	}
	if r.tally.Targets > 0 {
		result.TrainingLoss = r.tally.LossSum / float64(r.tally.Targets)
	}
	if r.tally.Seconds > 0 {
		result.TokensPerSecond = float64(r.tally.Tokens) / r.tally.Seconds
	}
	best := math.Inf(1)
	for _, e := range r.tally.Evaluations {
		if e.Loss < best {
			best, result.BestStep = e.Loss, e.Step
		}
	}
	return result
}
