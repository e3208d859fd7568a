package parity

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// What the tests need from outside, see .ci/parity.sh.
const (
	envPython  = "GOPEFT_PARITY_PYTHON"  // an interpreter with internal/golden/requirements.txt
	envGolden  = "GOPEFT_PARITY_GOLDEN"  // what internal/golden/make_all.sh wrote just now
	envStories = "GOPEFT_PARITY_STORIES" // what internal/golden/stories_reference.py wrote
	envAssets  = "GOPEFT_ASSETS"         // other people's models and texts
	envSmolLM2 = "GOPEFT_SMOLLM2"        // SmolLM2-135M-Instruct with its golden.json
)

// need returns the path that an environment variable names, joined with more parts,
// or skips the test.
func need(t testing.TB, env string, parts ...string) string {
	t.Helper()
	root := os.Getenv(env)
	if root == "" {
		t.Skipf("$%s is not set; .ci/parity.sh sets it", env)
	}
	root, err := filepath.Abs(root)
	require.NoError(t, err)
	path := filepath.Join(append([]string{root}, parts...)...)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("$%s: %v", env, err)
	}
	return path
}

func readJSON(t testing.TB, path string, v any) {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, v), path)
}

// questions are the checks that one Python process shall make: importing torch and
// peft takes longer than a check.
type questions struct {
	lines bytes.Buffer
	count int
}

// ask adds a check: a program of internal/golden by its name, and its arguments.
func (q *questions) ask(t testing.TB, program string, arguments ...string) {
	t.Helper()
	line, err := json.Marshal(append([]string{program}, arguments...))
	require.NoError(t, err)
	q.lines.Write(append(line, '\n'))
	q.count++
}

// answer has Python make the checks and fails the test if one of them fails.
func (q *questions) answer(t testing.TB, python string) {
	t.Helper()
	require.NotZero(t, q.count, "nothing was made to check")
	command := exec.Command(python, "check.py")
	command.Stdin = &q.lines
	out, err := command.CombinedOutput()
	t.Logf("Python says:\n%s", out)
	require.NoError(t, err, "Python does not agree; see its words above")
}
