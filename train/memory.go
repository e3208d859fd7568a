package train

import (
	"errors"

	"github.com/gopeft/gopeft/internal/backend"
)

// ProgramMemory is what the largest program of a training needs on its device, in
// bytes, by the compiler's own analysis.
type ProgramMemory struct {
	// Inputs are the program's arguments, the resident base included; Temporaries
	// the most that is alive at once inside it.
	Inputs, Temporaries int64
}

// ProgramMemory returns the compiled program's figures. It is known after the first
// step, and only on XLA: otherwise the error wraps errors.ErrUnsupported.
func (t *Trainer) ProgramMemory() (ProgramMemory, error) {
	s := t.stepper
	s.mu.Lock()
	defer s.mu.Unlock()
	var largest ProgramMemory
	if len(s.execs) == 0 {
		return largest, errors.New("train: program memory: nothing is compiled yet")
	}
	for _, exec := range s.execs {
		m, err := backend.CompiledMemory(exec)
		if err != nil {
			return ProgramMemory{}, err
		}
		if m.Arguments+m.Temporaries > largest.Inputs+largest.Temporaries {
			largest = ProgramMemory{Inputs: m.Arguments, Temporaries: m.Temporaries}
		}
	}
	return largest, nil
}
