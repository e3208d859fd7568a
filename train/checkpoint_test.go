package train

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend"
)

func TestRotation(t *testing.T) {
	args := toyArguments(t)
	args.SaveStrategy, args.SaveSteps, args.SaveTotalLimit = SaveSteps, 2, 2
	var seen [][]string
	args.Callback = func(e Event) error {
		if e.Kind == EventSave {
			seen = append(seen, checkpointsIn(t, args.OutputDir))
		}
		return nil
	}
	_, err := newToyTrainer(t, toyModel(t), args).Train(t.Context())
	require.NoError(t, err)
	require.Equal(t, [][]string{
		{"checkpoint-2"}, {"checkpoint-2", "checkpoint-4"}, {"checkpoint-4", "checkpoint-6"},
		{"checkpoint-6", "checkpoint-8"}, {"checkpoint-8", "checkpoint-10"},
	}, seen)
}

func checkpointsIn(t testing.TB, dir string) []string {
	t.Helper()
	found, err := listCheckpoints(dir)
	require.NoError(t, err)
	var names []string
	for _, c := range found {
		names = append(names, filepath.Base(c.path))
	}
	return names
}

func TestEarlierTrainingInTheFolder(t *testing.T) {
	args := toyArguments(t)
	args.SaveStrategy, args.SaveSteps = SaveSteps, 5
	_, err := newToyTrainer(t, toyModel(t), args).Train(t.Context())
	require.NoError(t, err)

	_, err = newToyTrainer(t, toyModel(t), args).Train(t.Context())
	require.ErrorContains(t, err, "has checkpoints of an earlier training, up to step 10")

	// They stay until the new training has one of its own.
	args.OverwriteOutputDir, args.SaveSteps = true, 3
	var seen [][]string
	args.Callback = func(e Event) error {
		if e.Kind == EventSave || e.Step == 2 {
			seen = append(seen, checkpointsIn(t, args.OutputDir))
		}
		return nil
	}
	args.MaxSteps = 4
	_, err = newToyTrainer(t, toyModel(t), args).Train(t.Context())
	require.NoError(t, err)
	require.Equal(t, [][]string{{"checkpoint-5", "checkpoint-10"}, {"checkpoint-3"}, {"checkpoint-3", "checkpoint-4"}}, seen)
}

// Going back to an earlier checkpoint makes the later ones obsolete.
func TestResumeFromEarlierCheckpoint(t *testing.T) {
	args := toyArguments(t)
	args.SaveStrategy, args.SaveSteps = SaveSteps, 3
	whole, err := newToyTrainer(t, toyModel(t), args).Train(t.Context())
	require.NoError(t, err)
	want := contents(t, whole.Checkpoint)

	args.ResumeFromCheckpoint = filepath.Join(args.OutputDir, "checkpoint-3")
	var first []string
	args.Callback = func(e Event) error {
		if e.Kind == EventSave && first == nil {
			first = checkpointsIn(t, args.OutputDir)
		}
		return nil
	}
	resumed, err := newToyTrainer(t, toyModel(t), args).Train(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"checkpoint-3", "checkpoint-6"}, first)
	require.Equal(t, want, contents(t, resumed.Checkpoint))
}

// A checkpoint of another folder begins a training: the output folder's own
// checkpoints and log are another's.
func TestResumeFromAnotherFolder(t *testing.T) {
	source := toyArguments(t)
	source.SaveStrategy, source.SaveSteps, source.LoggingSteps = SaveSteps, 3, 1
	whole, err := newToyTrainer(t, toyModel(t), source).Train(t.Context())
	require.NoError(t, err)

	other := toyArguments(t)
	other.SaveStrategy, other.SaveSteps, other.LearningRate, other.MaxSteps = SaveSteps, 5, 0.5, 15
	_, err = newToyTrainer(t, toyModel(t), other).Train(t.Context())
	require.NoError(t, err)
	before := namesIn(t, other.OutputDir)
	log, err := os.ReadFile(filepath.Join(other.OutputDir, logFile))
	require.NoError(t, err)

	args := source
	args.OutputDir, args.ResumeFromCheckpoint = other.OutputDir, filepath.Join(source.OutputDir, "checkpoint-3")
	pm := toyModel(t)
	values := valuesOf(t, pm)
	_, err = newToyTrainer(t, pm, args).Train(t.Context())
	require.ErrorContains(t, err, "has checkpoints of an earlier training, up to step 15")
	require.Equal(t, before, namesIn(t, args.OutputDir))
	after, err := os.ReadFile(filepath.Join(args.OutputDir, logFile))
	require.NoError(t, err)
	require.Equal(t, string(log), string(after))
	require.Equal(t, values, valuesOf(t, pm))

	args.OverwriteOutputDir, args.SaveSteps = true, 4
	var seen [][]string
	args.Callback = func(e Event) error {
		if e.Kind == EventSave || e.Kind == EventStep && e.Step == 4 {
			seen = append(seen, checkpointsIn(t, args.OutputDir))
		}
		return nil
	}
	resumed, err := newToyTrainer(t, pm, args).Train(t.Context())
	require.NoError(t, err)
	require.Equal(t, [][]string{{"checkpoint-5", "checkpoint-10", "checkpoint-15"}, {"checkpoint-4"},
		{"checkpoint-4", "checkpoint-8"}, {"checkpoint-4", "checkpoint-8", "checkpoint-10"}}, seen)
	require.Equal(t, contents(t, whole.Checkpoint), contents(t, resumed.Checkpoint))
	requireSameLog(t, source.OutputDir, args.OutputDir)
	require.Equal(t, []string{"checkpoint-3", "checkpoint-6", "checkpoint-9", "checkpoint-10"}, checkpointsIn(t, source.OutputDir))

	// The own checkpoint by another path is still the own one.
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(args.OutputDir, link))
	args.OverwriteOutputDir, args.Callback = false, nil
	args.ResumeFromCheckpoint = filepath.Join(link, "checkpoint-8")
	_, err = newToyTrainer(t, toyModel(t), args).Train(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"checkpoint-4", "checkpoint-8", "checkpoint-10"}, checkpointsIn(t, args.OutputDir))
}

func TestFolderIsCleaned(t *testing.T) {
	args := toyArguments(t)
	half := filepath.Join(args.OutputDir, "checkpoint-7.part-0123456789abcdef")
	deleted := filepath.Join(args.OutputDir, deletedPrefix+"checkpoint-2")
	notes := filepath.Join(args.OutputDir, "checkpoint-7.part-of-my-notes")
	for _, dir := range []string{half, deleted, notes} {
		require.NoError(t, os.MkdirAll(dir, 0o777))
	}
	_, err := newToyTrainer(t, toyModel(t), args).Train(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"checkpoint-7.part-of-my-notes", "log.jsonl"}, namesIn(t, args.OutputDir))
}

// A checkpoint that cannot be written is an error that names it; the one before and
// the trained values are still there.
func TestSaveFails(t *testing.T) {
	args := toyArguments(t)
	args.SaveStrategy, args.SaveSteps = SaveSteps, 3
	blocked := filepath.Join(args.OutputDir, "checkpoint-6")
	args.Callback = func(e Event) error {
		if e.Kind == EventStep && e.Step == 6 {
			return os.WriteFile(blocked, nil, 0o666)
		}
		return nil
	}
	pm := toyModel(t)
	result, err := newToyTrainer(t, pm, args).Train(t.Context())
	require.ErrorContains(t, err, blocked)
	require.ErrorContains(t, err, "it is a file, want a folder")
	require.ErrorContains(t, err, `the last checkpoint is "`+filepath.Join(args.OutputDir, "checkpoint-3"))
	require.Equal(t, 6, result.GlobalStep)

	require.NoError(t, os.Remove(blocked))
	args.Callback, args.ResumeFromCheckpoint = nil, ResumeLast
	resumed, err := newToyTrainer(t, toyModel(t), args).Train(t.Context())
	require.NoError(t, err)
	require.Equal(t, 10, resumed.GlobalStep)
}

// The test runs itself as a trainer and kills it, again and again, without warning.
func TestKilledTraining(t *testing.T) {
	if dir := os.Getenv("GOPEFT_TEST_KILLED"); dir != "" {
		args := killedArguments(t, dir)
		args.Callback = func(e Event) error {
			time.Sleep(2 * time.Millisecond)
			return nil
		}
		_, err := newToyTrainer(t, toyModel(t), args).Train(context.Background())
		require.NoError(t, err)
		return
	}
	if runtime.GOOS == "windows" || !backend.IsGo(testBackend(t)) {
		t.Skip("processes are not killed the same way on Windows, and take too long to begin on XLA")
	}
	args := killedArguments(t, filepath.Join(t.TempDir(), "whole"))
	whole, err := newToyTrainer(t, toyModel(t), args).Train(t.Context())
	require.NoError(t, err)

	dir := filepath.Join(t.TempDir(), "killed")
	self, err := os.Executable()
	require.NoError(t, err)
	kills := 0
	for wait := 60 * time.Millisecond; ; wait += 17 * time.Millisecond {
		cmd := exec.Command(self, "-test.run=^TestKilledTraining$")
		cmd.Env = append(os.Environ(), "GOPEFT_TEST_KILLED="+dir)
		require.NoError(t, cmd.Start())
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		finished := false
		select {
		case err := <-done:
			require.NoError(t, err, "the trainer fails by itself")
			finished = true
		case <-time.After(wait):
			require.NoError(t, cmd.Process.Kill())
			finished = <-done == nil
			kills++
		}
		if last, err := LastCheckpoint(dir); err == nil {
			require.NoError(t, checkComplete(last))
		}
		if finished {
			break
		}
	}
	require.Positive(t, kills)
	last, err := LastCheckpoint(dir)
	require.NoError(t, err)
	require.Equal(t, contents(t, whole.Checkpoint), contents(t, last))
	require.Len(t, checkpointsIn(t, dir), 3)
}

// killedArguments save at every step and keep three; they resume if there is something.
func killedArguments(t testing.TB, dir string) Arguments {
	args := toyArguments(t)
	args.OutputDir, args.SaveStrategy, args.SaveSteps, args.SaveTotalLimit, args.MaxSteps = dir, SaveSteps, 1, 3, 40
	if _, err := LastCheckpoint(dir); err == nil {
		args.ResumeFromCheckpoint = ResumeLast
	}
	return args
}
