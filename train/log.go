package train

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"time"

	"github.com/gopeft/gopeft/internal/atomicfile"
)

// LogRecord is one line of a training log: what a training step reports, or an
// evaluation, after Step optimizer steps.
type LogRecord struct {
	Step  int       `json:"step"`
	Epoch float64   `json:"epoch"`
	Time  time.Time `json:"time"`
	*StepLog
	*EvalLog
}

// StepLog is what is logged about training. Means and rates are over the steps
// since the record before.
type StepLog struct {
	// Loss is the mean loss of a target, in nats.
	Loss float64 `json:"loss"`
	// LearningRate is that of the last step.
	LearningRate float64 `json:"learning_rate"`
	// GradNorm is the norm of all gradients before clipping, of the last step.
	GradNorm float64 `json:"grad_norm"`
	// TokensPerSecond counts all tokens of the batches, padding included.
	TokensPerSecond float64 `json:"tokens_per_second"`
	// PeakMemoryBytes is the most main memory that the process has used so far.
	PeakMemoryBytes int64 `json:"peak_memory_bytes"`
	// DeviceMemoryBytes is what the largest compiled program needs on an XLA device,
	// weights and temporaries together, by XLA's own analysis. 0: another backend, and
	// not written.
	DeviceMemoryBytes int64 `json:"device_memory_bytes,omitempty"`
	// PlannedMemoryBytes is what a [MemoryPlan] of the run's first step says of the same.
	PlannedMemoryBytes int64 `json:"planned_memory_bytes,omitempty"`
}

// EvalLog is what is logged about an evaluation.
type EvalLog struct {
	// EvalLoss is the mean loss of a target of the held-out data, in nats.
	EvalLoss float64 `json:"eval_loss"`
	// EvalAccuracy is the part of the targets that were hit, see [Counted]. 0 is not written.
	EvalAccuracy float64 `json:"eval_accuracy,omitempty"`
}

func (r LogRecord) validate() error {
	if r.StepLog == nil && r.EvalLog == nil {
		return errors.New("a record without values")
	}
	check := func(name string, value float64) error {
		if math.IsNaN(value) || math.IsInf(value, 0) {
			return fmt.Errorf("%s is %v, which JSON cannot hold", name, value)
		}
		return nil
	}
	err := check("epoch", r.Epoch)
	if s := r.StepLog; s != nil {
		err = errors.Join(err, check("loss", s.Loss), check("learning_rate", s.LearningRate),
			check("grad_norm", s.GradNorm), check("tokens_per_second", s.TokensPerSecond))
	}
	if e := r.EvalLog; e != nil {
		err = errors.Join(err, check("eval_loss", e.EvalLoss), check("eval_accuracy", e.EvalAccuracy))
	}
	return err
}

// Logger appends records to a file, one JSON object a line. A line is in the
// file, though not synced to disk, when Log returns.
type Logger struct {
	path string
	file *os.File
	now  func() time.Time
}

// CreateLog starts a new log; a file at path is emptied.
func CreateLog(path string) (*Logger, error) {
	return openLog(path, os.O_TRUNC)
}

// ResumeLog goes on with the log at path after a return to an earlier step:
// records of later steps, and a last line that a crash cut off, are dropped.
// Without a file it starts a new one.
func ResumeLog(path string, step int) (*Logger, error) {
	records, err := ReadLog(path)
	if errors.Is(err, fs.ErrNotExist) {
		return openLog(path, 0)
	}
	if err != nil {
		return nil, err
	}
	err = atomicfile.WriteFile(path, func(w io.Writer) error {
		buffered := bufio.NewWriter(w)
		encoder := json.NewEncoder(buffered)
		for _, r := range records {
			if r.Step > step {
				continue
			}
			if err := encoder.Encode(r); err != nil {
				return err
			}
		}
		return buffered.Flush()
	})
	if err != nil {
		return nil, fmt.Errorf("train: resume log: %w", err)
	}
	return openLog(path, 0)
}

// newLogWith starts a new log with the records of a checkpoint.
func newLogWith(path string, history []LogRecord) (*Logger, error) {
	l, err := CreateLog(path)
	if err != nil {
		return nil, err
	}
	for _, r := range history {
		if err := l.Log(r); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return l, nil
}

func openLog(path string, flag int) (*Logger, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND|flag, 0o666)
	if err != nil {
		return nil, fmt.Errorf("train: open log: %w", err)
	}
	return &Logger{path: path, file: f, now: time.Now}, nil
}

// Log appends a record. Without a Time it gets the present one. A record without
// values, or with one that is not finite, is an error and not written.
func (l *Logger) Log(r LogRecord) error {
	if err := r.validate(); err != nil {
		return fmt.Errorf("train: log %s: step %d: %w", l.path, r.Step, err)
	}
	if r.Time.IsZero() {
		r.Time = l.now().UTC().Truncate(time.Millisecond)
	}
	line, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("train: log %s: %w", l.path, err)
	}
	if _, err := l.file.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("train: log: %w", err)
	}
	return nil
}

// Close syncs the log to disk and closes it.
func (l *Logger) Close() error {
	if err := errors.Join(l.file.Sync(), l.file.Close()); err != nil {
		return fmt.Errorf("train: close log: %w", err)
	}
	return nil
}

// ReadLog reads a log, also one that is being written: a last line without its
// end is left out. Any other line that is no record is an error that names file
// and line.
func ReadLog(path string) ([]LogRecord, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("train: read log: %w", err)
	}
	records, err := parseLog(content)
	if err != nil {
		return nil, fmt.Errorf("train: read log: %s:%w", path, err)
	}
	return records, nil
}

// parseLog's errors begin with the number of the line.
func parseLog(content []byte) ([]LogRecord, error) {
	var records []LogRecord
	for number := 1; ; number++ {
		line, rest, complete := bytes.Cut(content, []byte("\n"))
		if !complete {
			return records, nil
		}
		content = rest
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		var r LogRecord
		if err := json.Unmarshal(line, &r); err != nil {
			return nil, fmt.Errorf("%d: not a log record: %w", number, err)
		}
		if err := r.validate(); err != nil {
			return nil, fmt.Errorf("%d: not a log record: %w", number, err)
		}
		records = append(records, r)
	}
}
