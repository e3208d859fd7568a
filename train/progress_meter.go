package train

import "time"

// meterWindow is the number of updates over which speed is measured.
const meterWindow = 32

// meter measures the speed of training over the last updates. The time to the
// first update counts only until there is a second: it holds the compilation.
type meter struct {
	now   func() time.Time
	marks []mark
}

// mark is the state after an update.
type mark struct {
	at           time.Time
	step, tokens int
}

func newMeter(step int, now func() time.Time) *meter {
	return &meter{now: now, marks: []mark{{at: now(), step: step}}}
}

func (m *meter) add(step, tokens int) {
	last := m.marks[len(m.marks)-1]
	m.marks = append(m.marks, mark{m.now(), step, last.tokens + tokens})
	if len(m.marks) == 3 && m.marks[2].step > m.marks[1].step || len(m.marks) > meterWindow+1 {
		m.marks = m.marks[1:]
	}
}

// skip makes the time since the last update count as nothing.
func (m *meter) skip() {
	pause := m.now().Sub(m.marks[len(m.marks)-1].at)
	for i := range m.marks {
		m.marks[i].at = m.marks[i].at.Add(pause)
	}
}

func (m *meter) tokensPerSecond() float64 {
	first, last := m.marks[0], m.marks[len(m.marks)-1]
	seconds := last.at.Sub(first.at).Seconds()
	if seconds <= 0 {
		return 0
	}
	return float64(last.tokens-first.tokens) / seconds
}

// perStep returns the time of an optimizer step, 0 if it is not known.
func (m *meter) perStep() time.Duration {
	first, last := m.marks[0], m.marks[len(m.marks)-1]
	if last.step <= first.step {
		return 0
	}
	return last.at.Sub(first.at) / time.Duration(last.step-first.step)
}
