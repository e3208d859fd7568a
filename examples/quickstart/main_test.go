package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/train"
)

var lastLines = regexp.MustCompile(`\nloss before=(\d+\.\d+) after=(\d+\.\d+)\nadapter (.+)\n$`)

// backendName is what the tests run on.
func backendName() string {
	if name := os.Getenv("GOPEFT_TEST_BACKEND"); name != "" {
		return name
	}
	return "go"
}

// start runs the program with output to a folder of the test's own.
func start(ctx context.Context, out string, progress io.Writer, args ...string) (string, error) {
	var stdout bytes.Buffer
	args = append([]string{"-backend", backendName(), "-out", out}, args...)
	err := run(ctx, args, &stdout, progress)
	return stdout.String(), err
}

func TestRunSavesWhatItMeasured(t *testing.T) {
	ctx, out := context.Background(), t.TempDir()
	printed, err := start(ctx, out, io.Discard, "-steps", "3")
	require.NoError(t, err)
	found := lastLines.FindStringSubmatch(printed)
	require.NotNil(t, found, printed)
	require.NotEqual(t, found[1], found[2])
	require.Equal(t, filepath.Join(out, "adapter"), found[3])
	require.FileExists(t, filepath.Join(out, "loss.png"))

	model, err := models.FromFS(ctx, base, "base", models.Options{Backend: backendName()})
	require.NoError(t, err)
	defer model.Close()
	pm, err := peft.LoadAdapter(model, found[3])
	require.NoError(t, err)
	data, err := train.LoadJSONL(filepath.Join(out, "task.jsonl"), model.Tokenizer, train.DataOptions{Fields: []string{"question", "answer"}})
	require.NoError(t, err)
	rest, held, err := data.Split(0.1, 1)
	require.NoError(t, err)
	trainer, err := train.NewTrainer(pm, rest, train.Arguments{OutputDir: t.TempDir()})
	require.NoError(t, err)
	defer trainer.Close()
	loss, err := trainer.Evaluate(ctx, held)
	require.NoError(t, err)
	require.Equal(t, found[2], fmt.Sprintf("%.4f", loss), "the saved adapter")
}

// cancelAt cancels once the progress says a certain text.
type cancelAt struct {
	text   string
	cancel func()
}

func (c cancelAt) Write(p []byte) (int, error) {
	if strings.Contains(string(p), c.text) {
		c.cancel()
	}
	return len(p), nil
}

func TestInterruptedAndResumedIsTheSame(t *testing.T) {
	whole, err := start(context.Background(), t.TempDir(), io.Discard, "-steps", "4")
	require.NoError(t, err)

	out := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	_, err = start(ctx, out, cancelAt{"step 2/4", cancel}, "-steps", "4")
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, "checkpoint-2")
	require.ErrorContains(t, err, "-resume last")
	resumed, err := start(context.Background(), out, io.Discard, "-steps", "4", "-resume", "last")
	require.NoError(t, err)
	require.Equal(t, lastLines.FindStringSubmatch(whole)[1:3], lastLines.FindStringSubmatch(resumed)[1:3])
}

func TestOwnData(t *testing.T) {
	dir := t.TempDir()
	jsonl, text := filepath.Join(dir, "a.jsonl"), filepath.Join(dir, "a.txt")
	require.NoError(t, os.WriteFile(jsonl, []byte(strings.Repeat(`{"in": "Who is it?", "out": " Mia"}`+"\n", 10)), 0o644))
	require.NoError(t, os.WriteFile(text, []byte(strings.Repeat("Mia put the ball in the box. ", 40)), 0o644))
	for name, args := range map[string][]string{
		"JSONL": {"-data", jsonl, "-fields", "in,out", "-targets", "q_proj,v_proj", "-r", "2"},
		"text":  {"-data", text, "-seq", "32"},
	} {
		t.Run(name, func(t *testing.T) {
			printed, err := start(context.Background(), t.TempDir(), io.Discard, append(args, "-steps", "1", "-batch", "2")...)
			require.NoError(t, err)
			require.Regexp(t, lastLines, printed)
			require.NotContains(t, printed, "right answers")
		})
	}
}

func TestErrorsSayWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	empty, file := filepath.Join(dir, "empty.jsonl"), filepath.Join(dir, "file")
	for _, path := range []string{empty, file} {
		require.NoError(t, os.WriteFile(path, nil, 0o644))
	}
	for _, c := range []struct {
		want string
		args []string
	}{
		{"no-such-folder", []string{"-model", filepath.Join(dir, "no-such-folder")}},
		{`did you mean "q_proj"?`, []string{"-targets", "q_porj"}},
		{"empty.jsonl", []string{"-data", empty}},
		{"no-such-file", []string{"-data", filepath.Join(dir, "no-such-file")}},
		{"not a directory", []string{"-out", filepath.Join(file, "results")}},
		{"-help", []string{"-step", "3"}},
		{"want at least 1", []string{"-steps", "0"}},
		{`"extra"`, []string{"extra"}},
		{"no complete checkpoint", []string{"-resume", "last"}},
	} {
		t.Run(c.want, func(t *testing.T) {
			_, err := start(context.Background(), t.TempDir(), io.Discard, c.args...)
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestHelp(t *testing.T) {
	printed, err := start(context.Background(), t.TempDir(), io.Discard, "-help")
	require.Error(t, err)
	for _, name := range strings.Fields("model data fields out backend steps batch seq r targets lr seed resume") {
		require.Contains(t, printed, "\n  -"+name+" ")
	}
}
