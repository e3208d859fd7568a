package train

import (
	"github.com/gomlx/gomlx/core/tensors"

	"github.com/gopeft/gopeft/internal/graphx"
)

// ahead is the batch of the next step, made and moved to the device while the device
// computes the present one: four small copies in turn took 4 ms of a step on an H200.
type ahead struct {
	// epoch, cursor and step are where the training must be for the batch to fit.
	epoch, cursor, step int
	lr                  float64

	done chan struct{}
	// What follows is there once done is closed. sampler is the run's after the batch.
	sampler Sampler
	micro   []Batch
	// inputs are those of stepper.inputs, on the device; nil: making them failed, as it will
	// again, with an error, in the step.
	inputs []*tensors.Tensor
}

// lookAhead begins to make the next step's batch, if there is another step and each is made
// of a whole batch.
func (r *run) lookAhead() {
	step := r.state.step + 1
	if step >= r.maxSteps || r.args.GradientAccumulationSteps > 1 || r.stepper.config.parts > 1 {
		return
	}
	a := &ahead{epoch: r.sampler.epoch, cursor: r.sampler.cursor, step: step, done: make(chan struct{}), sampler: *r.sampler}
	a.lr = r.schedule.LR(step, r.args.LearningRate)
	r.next = a
	go func() {
		defer close(a.done)
		a.micro = r.group(&a.sampler)
		if len(a.micro) == 1 && a.micro[0].validate() == nil {
			a.inputs = r.stepper.upload(step, a.lr, a.micro[0])
		}
	}()
}

// takeAhead returns what lookAhead has made if it is this step's, and nil otherwise.
func (r *run) takeAhead() *ahead {
	a := r.next
	if a == nil || a.epoch != r.sampler.epoch || a.cursor != r.sampler.cursor || a.step != r.state.step {
		r.dropAhead()
		return nil
	}
	r.next = nil
	<-a.done
	*r.sampler = a.sampler
	return a
}

// dropAhead frees what was made for a step that is not taken.
func (r *run) dropAhead() {
	if a := r.next; a != nil {
		<-a.done
		free(a.inputs)
		r.next = nil
	}
}

// upload returns the inputs of a step on the device, nil if that fails.
func (s *stepper) upload(step int, lr float64, b Batch) (inputs []*tensors.Tensor) {
	err := graphx.Try(func() error {
		inputs = s.inputs(step, lr, b)
		return toDevice(s.base.Backend(), inputs)
	})
	if err != nil {
		free(inputs)
		return nil
	}
	return inputs
}

// inputs are what a step on one batch takes besides the state.
func (s *stepper) inputs(step int, lr float64, b Batch) []*tensors.Tensor {
	scalars, random := s.config.adamw.scalars(step+1, lr), s.random(step, b.RowOffset)
	return append([]*tensors.Tensor{
		tensors.FromFlatDataAndDimensions(scalars, len(scalars)), tensors.FromFlatDataAndDimensions(random, len(random)),
	}, batchTensors(b)...)
}
