package train

import (
	"fmt"
	"math"
)

// SchedulerType is the shape of a learning rate over the steps of training.
type SchedulerType int

const (
	// SchedulerLinear falls in a straight line from the full rate to 0 at the last step.
	SchedulerLinear SchedulerType = iota
	// SchedulerCosine falls along half a cosine from the full rate to 0 at the last step.
	SchedulerCosine
	// SchedulerConstant keeps the full rate. With warm-up it is what transformers
	// calls constant_with_warmup.
	SchedulerConstant
)

var schedulerNames = [...]string{"linear", "cosine", "constant"}

// String returns the name in transformers, "linear", "cosine" or "constant".
func (t SchedulerType) String() string {
	if t < 0 || int(t) >= len(schedulerNames) {
		return fmt.Sprintf("SchedulerType(%d)", int(t))
	}
	return schedulerNames[t]
}

// MarshalText writes the name; a value that is none of the constants is an error.
func (t SchedulerType) MarshalText() ([]byte, error) {
	if t < 0 || int(t) >= len(schedulerNames) {
		return nil, fmt.Errorf("train: scheduler: no name for %v", t)
	}
	return []byte(t.String()), nil
}

// UnmarshalText reads the name of a schedule; "constant_with_warmup" is "constant".
func (t *SchedulerType) UnmarshalText(text []byte) error {
	name := string(text)
	if name == "constant_with_warmup" {
		name = "constant"
	}
	for i, known := range schedulerNames {
		if name == known {
			*t = SchedulerType(i)
			return nil
		}
	}
	return fmt.Errorf("train: scheduler %q, want linear, cosine, constant or constant_with_warmup", text)
}

// Schedule gives the learning rate of every optimizer step. The rates are those
// of transformers' get_scheduler with its defaults (cosine: num_cycles 0.5).
type Schedule struct {
	// Type is the shape after the warm-up. Zero: [SchedulerLinear].
	Type SchedulerType
	// Warmup is the number of steps over which the rate rises in a straight line;
	// the first of them has rate 0. Zero: none.
	Warmup int
	// Total is the number of optimizer steps of the whole training, warm-up
	// included. [SchedulerConstant] does not need it.
	Total int
}

// Validate reports a type that does not exist, negative numbers and a warm-up
// longer than the training.
func (s Schedule) Validate() error {
	switch {
	case s.Type < 0 || int(s.Type) >= len(schedulerNames):
		return fmt.Errorf("train: schedule: unknown type %d", int(s.Type))
	case s.Warmup < 0:
		return fmt.Errorf("train: schedule: %d warm-up steps, want 0 or more", s.Warmup)
	case s.Type != SchedulerConstant && s.Total <= 0:
		return fmt.Errorf("train: schedule: %s over %d steps, want 1 or more", s.Type, s.Total)
	case s.Total > 0 && s.Warmup > s.Total:
		return fmt.Errorf("train: schedule: %d warm-up steps in a training of %d", s.Warmup, s.Total)
	}
	return nil
}

// LR returns the learning rate of an optimizer step, counted from 0, where base
// is the full rate. After the last step the rate stays as it is there.
func (s Schedule) LR(step int, base float64) float64 {
	if step < s.Warmup {
		return base * float64(step) / float64(s.Warmup)
	}
	if s.Type == SchedulerConstant {
		return base
	}
	step = min(step, max(s.Total, s.Warmup))
	decay := float64(max(1, s.Total-s.Warmup))
	if s.Type == SchedulerCosine {
		return base * max(0, 0.5*(1+math.Cos(math.Pi*float64(step-s.Warmup)/decay)))
	}
	return base * max(0, float64(s.Total-step)/decay)
}
