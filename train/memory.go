package train

import (
	"errors"
	"fmt"

	"github.com/gopeft/gopeft/internal/backend"
)

// ProgramMemory is what the largest program of a training needs on its device, in
// bytes, by the compiler's own analysis.
type ProgramMemory struct {
	// Inputs are the program's arguments, the resident base included; Temporaries
	// the most that is alive at once inside it.
	Inputs, Temporaries int64
	// Results are the new values and moments, which exist beside the old ones until the
	// step ends; Code is the program itself.
	Results, Code int64
}

// Total is what must fit on the device while the program runs.
func (m ProgramMemory) Total() int64 { return m.Inputs + m.Temporaries + m.Results + m.Code }

// ProgramMemory returns the compiled program's figures. It is known after the first
// step, and only on XLA: otherwise the error wraps errors.ErrUnsupported.
func (t *Trainer) ProgramMemory() (ProgramMemory, error) { return t.stepper.programMemory() }

func (s *stepper) programMemory() (ProgramMemory, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var largest ProgramMemory
	if len(s.execs) == 0 {
		return largest, errors.New("train: program memory: nothing is compiled yet")
	}
	for _, exec := range s.execs {
		m, err := backend.CompiledMemory(exec)
		if err != nil {
			return ProgramMemory{}, fmt.Errorf("train: program memory: %w", err)
		}
		if m.Total() > largest.Total() {
			largest = ProgramMemory{Inputs: m.Arguments, Temporaries: m.Temporaries, Results: m.Outputs - m.Alias, Code: m.GeneratedCode}
		}
	}
	return largest, nil
}

// deviceMemory is the total of programMemory, 0 where nobody knows.
func (s *stepper) deviceMemory() int64 {
	m, err := s.programMemory()
	if err != nil {
		return 0
	}
	return m.Total()
}
