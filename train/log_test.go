package train

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func stepRecord(step int) LogRecord {
	return LogRecord{Step: step, Epoch: float64(step) / 10, Time: time.Date(2026, 1, 2, 3, 4, step, 5e6, time.UTC),
		StepLog: &StepLog{Loss: 3.5, LearningRate: 0, GradNorm: 1.25, TokensPerSecond: 1000, PeakMemoryBytes: 1 << 33}}
}

func TestLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log.jsonl")
	require.NoError(t, os.WriteFile(path, []byte("an older log\n"), 0o666))
	log, err := CreateLog(path)
	require.NoError(t, err)
	evaluation := LogRecord{Step: 1, Epoch: 0.1, Time: time.Date(2026, 1, 2, 3, 5, 0, 0, time.UTC), EvalLog: &EvalLog{EvalLoss: 3.25}}
	require.NoError(t, log.Log(stepRecord(1)))
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, `{"step":1,"epoch":0.1,"time":"2026-01-02T03:04:01.005Z","loss":3.5,"learning_rate":0,"grad_norm":1.25,"tokens_per_second":1000,"peak_memory_bytes":8589934592}`+"\n", string(content), "each line is there at once")
	require.NoError(t, log.Log(evaluation))
	require.NoError(t, log.Close())
	records, err := ReadLog(path)
	require.NoError(t, err)
	require.Equal(t, []LogRecord{stepRecord(1), evaluation}, records)
	content, err = os.ReadFile(path)
	require.NoError(t, err)
	require.Contains(t, string(content), `{"step":1,"epoch":0.1,"time":"2026-01-02T03:05:00Z","eval_loss":3.25}`+"\n")
}

func TestLogSetsTime(t *testing.T) {
	log, err := CreateLog(filepath.Join(t.TempDir(), "log.jsonl"))
	require.NoError(t, err)
	log.now = func() time.Time { return time.Date(2026, 5, 6, 7, 8, 9, 123456789, time.UTC) }
	r := stepRecord(1)
	r.Time = time.Time{}
	require.NoError(t, log.Log(r))
	records, err := ReadLog(log.path)
	require.NoError(t, err)
	require.Equal(t, time.Date(2026, 5, 6, 7, 8, 9, 123e6, time.UTC), records[0].Time)
}

func TestLogRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log.jsonl")
	log, err := CreateLog(path)
	require.NoError(t, err)
	bad := stepRecord(3)
	bad.Loss = math.NaN()
	require.ErrorContains(t, log.Log(bad), "step 3: loss is NaN, which JSON cannot hold")
	bad = stepRecord(3)
	bad.GradNorm = math.Inf(1)
	require.ErrorContains(t, log.Log(bad), "grad_norm is +Inf")
	require.ErrorContains(t, log.Log(LogRecord{EvalLog: &EvalLog{EvalLoss: math.Inf(-1)}}), "eval_loss is -Inf")
	require.ErrorContains(t, log.Log(LogRecord{Step: 3}), "a record without values")
	require.NoError(t, log.Close())
	require.ErrorIs(t, log.Log(stepRecord(4)), os.ErrClosed)
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Empty(t, content)
	_, err = CreateLog(filepath.Dir(path))
	require.ErrorContains(t, err, "train: open log: ")
}

func TestResumeLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log.jsonl")
	log, err := ResumeLog(path, 5)
	require.NoError(t, err, "without a file it begins one")
	for step := 1; step <= 4; step++ {
		require.NoError(t, log.Log(stepRecord(step)))
	}
	require.NoError(t, log.Close())
	// A crash cut the last line off.
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString(`{"step":2,"epoch":0.2,"lo`)
	require.NoError(t, errors.Join(err, f.Close()))

	log, err = ResumeLog(path, 2)
	require.NoError(t, err)
	require.NoError(t, log.Log(stepRecord(3)))
	require.NoError(t, log.Close())
	records, err := ReadLog(path)
	require.NoError(t, err)
	require.Equal(t, []LogRecord{stepRecord(1), stepRecord(2), stepRecord(3)}, records)
}

func TestReadLogErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log.jsonl")
	_, err := ReadLog(path)
	require.ErrorIs(t, err, os.ErrNotExist)
	for content, want := range map[string]string{
		"\n{\"step\":1,\"loss\":2}\nno\n": path + ":3: not a log record: invalid character",
		`{"step":1}` + "\n":               path + ":1: not a log record: a record without values",
		`{"step":1.5,"loss":2}` + "\n":    ":1: not a log record: json: cannot unmarshal number 1.5",
		`[]` + "\n":                       ":1: not a log record",
	} {
		require.NoError(t, os.WriteFile(path, []byte(content), 0o666))
		_, err := ReadLog(path)
		require.ErrorContains(t, err, want)
		_, err = ResumeLog(path, 1)
		require.ErrorContains(t, err, want, "what cannot be read is not thrown away")
		left, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, content, string(left))
	}
}

func FuzzParseLog(f *testing.F) {
	f.Add([]byte(`{"step":1,"epoch":0.5,"time":"2026-01-02T03:04:05Z","loss":2}` + "\n" + `{"step":1,"eval_loss":2}` + "\n{"))
	f.Add([]byte("{}\n"))
	f.Add([]byte(`{"loss":1e999}` + "\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		records, err := parseLog(content)
		if err != nil {
			require.Regexp(t, `^[0-9]+: `, err.Error())
			return
		}
		// What was read can be logged and read again.
		log, err := CreateLog(filepath.Join(t.TempDir(), "log.jsonl"))
		require.NoError(t, err)
		defer log.Close()
		for _, r := range records {
			require.NoError(t, log.Log(r))
		}
		again, err := ReadLog(log.path)
		require.NoError(t, err)
		require.Len(t, again, len(records))
		for i := range records {
			require.Equal(t, records[i].Step, again[i].Step)
			require.Equal(t, records[i].StepLog, again[i].StepLog)
			require.Equal(t, records[i].EvalLog, again[i].EvalLog)
		}
	})
}

func TestPeakProcessMemory(t *testing.T) {
	block := make([]byte, 64<<20)
	for i := range len(block) / 4096 {
		block[i*4096] = 1
	}
	for name, measure := range map[string]func() int64{"process": peakProcessMemory, "Go": goMemory} {
		require.Greater(t, measure(), int64(len(block)), name)
		require.Less(t, measure(), int64(1<<40), name)
	}
	require.Equal(t, byte(1), block[4096])
}

func ExampleReadLog() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "log.jsonl")
	log, err := CreateLog(path)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer log.Close()
	log.Log(LogRecord{Step: 10, StepLog: &StepLog{Loss: 3.2, LearningRate: 2e-4}})
	log.Log(LogRecord{Step: 10, EvalLog: &EvalLog{EvalLoss: 3.1}})
	records, err := ReadLog(path)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(records[0].Loss, records[1].EvalLoss)
	// Output: 3.2 3.1
}
