package train

import "errors"

// ErrStopTraining, returned by Arguments.Callback, ends a training as if it had
// reached its last step: with the final evaluation and checkpoint and no error.
var ErrStopTraining = errors.New("stop training")

// EventKind says what happened.
type EventKind int

const (
	// EventStep follows every optimizer step. The model's values are not updated yet.
	EventStep EventKind = iota
	// EventEvaluate follows an evaluation; the model has the evaluated values.
	EventEvaluate
	// EventSave follows a checkpoint; the model has the saved values.
	EventSave
	// EventEpoch follows the last step of an epoch, before its evaluation and checkpoint.
	EventEpoch
)

// Event is what Arguments.Callback is told.
type Event struct {
	Kind EventKind
	// Step counts the optimizer steps made, Epoch the passes through the data, of
	// MaxSteps in all.
	Step, MaxSteps int
	Epoch          float64
	// Loss, GradNorm and LearningRate are those of the step, for EventStep.
	Loss, GradNorm, LearningRate float64
	// EvalLoss is the mean loss of a target, EvalAccuracy [Evaluation.Accuracy], for
	// EventEvaluate.
	EvalLoss, EvalAccuracy float64
	// Checkpoint is the folder, for EventSave.
	Checkpoint string
}

// notify tells the callback what happened after the present step.
func (r *run) notify(e Event) error {
	if r.args.Callback == nil {
		return nil
	}
	e.Step, e.MaxSteps, e.Epoch = r.state.step, r.maxSteps, r.epoch()
	err := r.args.Callback(e)
	if errors.Is(err, ErrStopTraining) {
		r.stopped = true
		return nil
	}
	return err
}
