package train

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/gopeft/gopeft/peft"
)

// add counts a step.
func (r *tally) add(result stepResult, lr float64, tokens int, elapsed time.Duration) {
	sum := result.loss * float64(result.targets)
	r.LossSum += sum
	r.Targets += int64(result.targets)
	r.Tokens += int64(tokens)
	r.Seconds += elapsed.Seconds()
	p := &r.Pending
	p.LossSum += sum
	p.Targets += int64(result.targets)
	p.Tokens += int64(tokens)
	p.Seconds += elapsed.Seconds()
	p.GradNorm, p.LearningRate = result.gradNorm, lr
}

// logStep logs the means since the last record.
func (r *run) logStep() error {
	p := &r.tally.Pending
	entry := &StepLog{
		Loss: p.LossSum / float64(max(1, p.Targets)), LearningRate: p.LearningRate, GradNorm: p.GradNorm,
		TokensPerSecond: float64(p.Tokens) / max(p.Seconds, 1e-9), PeakMemoryBytes: peakProcessMemory(), DeviceMemoryBytes: r.stepper.deviceMemory(),
		PlannedMemoryBytes: r.planned,
	}
	*p = tally{}.Pending
	return r.logRecord(LogRecord{StepLog: entry})
}

// compareMemory shows the plan of the run's first step beside what its program needs, where
// both are known.
func (r *run) compareMemory(micro []Batch) {
	if r.planned != 0 || len(micro) > 1 {
		return
	}
	compiled, err := r.stepper.programMemory()
	if err != nil {
		return
	}
	plan, err := r.planMemory(micro[0].Length)
	if err != nil {
		return
	}
	r.planned = plan.Total() - plan.Idle
	r.progress.Print(fmt.Sprintf("device memory of a step on %d x %d tokens: planned %s, compiled %s",
		plan.Batch, plan.Length, binarySize(r.planned), binarySize(compiled.Total())))
}

func (r *run) logRecord(entry LogRecord) error {
	entry.Step, entry.Epoch, entry.Time = r.state.step, r.epoch(), time.Now().UTC().Truncate(time.Millisecond)
	if err := r.log.Log(entry); err != nil {
		return err
	}
	r.tally.LogHistory = append(r.tally.LogHistory, entry)
	return nil
}

// plot draws loss.png, if there is anything to draw.
func (r *run) plot() error {
	if len(r.tally.LogHistory) == 0 {
		return nil
	}
	return r.plotLoss(filepath.Join(r.args.OutputDir, plotFile), r.tally.LogHistory)
}

// compareTotalSteps says which adapters are made for a training of another length: their
// schedule would end early, or never.
func (r *run) compareTotalSteps() error {
	for _, name := range r.pm.Trained() {
		parts, err := r.pm.Parts(name)
		if err != nil {
			return err
		}
		for _, part := range parts {
			if s, ok := part.(peft.ScheduledAdapter); ok && s.TotalSteps() != 0 && s.TotalSteps() != r.maxSteps {
				r.progress.Print(fmt.Sprintf("WARNING: adapter %q is made for a training of %d steps (its total_step), but this one has %d", name, s.TotalSteps(), r.maxSteps))
			}
		}
	}
	return nil
}
