package train

import (
	"errors"
	"fmt"
	"runtime"
	"slices"

	"github.com/gomlx/compute"
	"github.com/gomlx/gomlx/core/tensors"

	"github.com/gopeft/gopeft/internal/backend"
	"github.com/gopeft/gopeft/peft"
)

// ErrNotFinite is wrapped by the error of a step whose loss or gradient is NaN or
// infinite. The state is that of before the step.
var ErrNotFinite = errors.New("loss or gradient is not finite")

// errStateLost is the error of a step after one whose execution failed when large
// tensors had been donated to it.
var errStateLost = errors.New("train: the trained values were lost in a failed step; resume from the last checkpoint")

// state is all that a run of training changes: for every trained adapter, in the
// order of the view, its values and its first and second moments, each as
// peft.Layout lays it out.
type state struct {
	values, m, v []*tensors.Tensor
	// constants are the other arguments of the view; the first stepped of them change with
	// every step.
	constants []*tensors.Tensor
	stepped   int
	// step counts the optimizer steps that were made.
	step int
	// shared marks values and stepped constants that belong to the model and must not be freed.
	shared bool
	// lost is true once donated tensors went down with a failed execution.
	lost bool
}

// newState starts from the model's values with zero moments.
func newState(pm *peft.PeftModel) (*state, error) {
	s := &state{shared: true}
	if err := s.fromModel(pm); err != nil {
		return nil, err
	}
	for _, t := range s.values {
		s.m = append(s.m, tensors.FromShape(t.Shape()))
		s.v = append(s.v, tensors.FromShape(t.Shape()))
	}
	if err := toDevice(pm.Base().Backend(), slices.Concat(s.arguments(), s.constants)); err != nil {
		return nil, fmt.Errorf("train: values and moments: %w", err)
	}
	return s, nil
}

// fromModel takes the model's values and constants.
func (s *state) fromModel(pm *peft.PeftModel) error {
	arguments, err := pm.Arguments()
	if err != nil {
		return err
	}
	n, stepped, err := pm.NumTrained()
	if err != nil {
		return err
	}
	s.values, s.constants, s.stepped = arguments[:n:n], arguments[n:], stepped
	return nil
}

// arguments are the state's tensors in the order of a program's inputs.
func (s *state) arguments() []*tensors.Tensor {
	return slices.Concat(s.values, s.m, s.v)
}

// replace takes over a step's results and frees what they replace.
func (s *state) replace(results []*tensors.Tensor) {
	n := len(s.values)
	if !s.shared {
		free(s.values)
	}
	free(s.m)
	free(s.v)
	if !s.shared {
		free(s.constants[:s.stepped])
	}
	s.values, s.m, s.v = results[:n:n], results[n:2*n:2*n], results[2*n:3*n:3*n]
	s.constants = slices.Concat(results[3*n:], s.constants[s.stepped:])
	s.shared = false
}

// manyValues are worth a run of the garbage collector: 16 MiB.
const manyValues = 4 << 20

// publish gives the values to the model, which keeps them.
func (s *state) publish(pm *peft.PeftModel) error {
	values, stepped, replaced := s.values, s.constants[:s.stepped], 0
	for _, name := range pm.Trained() {
		layout, err := pm.Layout(name)
		if err != nil {
			return err
		}
		n := layout.NumArguments()
		if err := pm.SetValues(name, values[:n]); err != nil {
			return err
		}
		replaced += layout.NumValues()
		values = values[n:]
		if !pm.Steps(name) {
			continue
		}
		constants, err := pm.ConstantLayout(name)
		if err != nil {
			return err
		}
		if constants == nil {
			continue
		}
		n = constants.NumArguments()
		if err := pm.SetConstants(name, stepped[:n]); err != nil {
			return err
		}
		stepped = stepped[n:]
	}
	// The values published before are not ours to free: a program may be running on
	// them. Nobody else will, and the garbage collector, which frees a device's buffer
	// with the last tensor that refers to it, does not see how large it is and may not
	// run for long. So it is asked to, where a second copy could be the one too many.
	if replaced >= manyValues && !s.shared && !backend.IsGo(pm.Base().Backend()) {
		runtime.GC()
	}
	s.shared = true
	return nil
}

// free releases device and host memory at once: the garbage collector does not
// see the device's.
func free(ts []*tensors.Tensor) {
	for _, t := range ts {
		_ = t.FinalizeAll() // already finalised is fine
	}
}

// toDevice moves tensors made on the host to the backend and drops the host copy.
// Programs that run side by side must not be given a tensor for the first time:
// GoMLX moves it to the device while another looks at it (a data race).
func toDevice(b compute.Backend, ts []*tensors.Tensor) error {
	for _, t := range ts {
		if t.IsOnAnyDevice() {
			continue
		}
		if err := t.ToDevice(b, 0); err != nil {
			return err
		}
	}
	return nil
}
