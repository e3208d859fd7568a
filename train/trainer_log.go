package train

import (
	"path/filepath"
	"time"
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
	}
	*p = tally{}.Pending
	return r.logRecord(LogRecord{StepLog: entry})
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
