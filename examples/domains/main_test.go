package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/examples/pretrain/world"
	"github.com/gopeft/gopeft/examples/quickstart/base"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
)

func backendName() string {
	if name := os.Getenv("GOPEFT_TEST_BACKEND"); name != "" {
		return name
	}
	return "go"
}

// losses are those of a line of the table, on letters and on telegrams.
func losses(t *testing.T, printed, title string) (letters, telegrams float64) {
	found := regexp.MustCompile(`(?m)^ *` + regexp.QuoteMeta(title) + `  +([\d.]+) +([\d.]+) +\d+ of 120$`).FindStringSubmatch(printed)
	require.NotNil(t, found, "%s in %s", title, printed)
	_, err := fmt.Sscan(found[1]+" "+found[2], &letters, &telegrams)
	require.NoError(t, err)
	return letters, telegrams
}

// Each domain's adapter helps with its own texts alone; a swapped adapter and one of a mixed
// batch write the same; the task leaves the domain below it as it was.
func TestRun(t *testing.T) {
	out := t.TempDir()
	var b bytes.Buffer
	require.NoError(t, run(t.Context(), []string{"-backend", backendName(), "-out", out, "-batch", "4", "-steps", "12", "-task-steps", "3"}, &b, io.Discard))
	printed := b.String()

	baseLetters, baseTelegrams := losses(t, printed, "base")
	letters, other := losses(t, printed, "letters")
	require.Less(t, letters, baseLetters/2)
	require.Greater(t, other, letters)
	other, telegrams := losses(t, printed, "telegrams")
	require.Less(t, telegrams, baseTelegrams/2)
	require.Greater(t, other, letters)
	stacked, _ := losses(t, printed, "letters + answers")
	require.NotEqual(t, letters, stacked)

	written := regexp.MustCompile(`(?m)^  letters.*\n    (.+)`).FindAllStringSubmatch(printed, -1)
	require.Len(t, written, 3, printed)
	require.Equal(t, written[0][1], written[1][1], "swapped back")
	require.Equal(t, written[0][1], written[2][1], "in a mixed batch")
	require.True(t, strings.HasPrefix(written[0][1], "This is Mia."), written[0][1])

	require.FileExists(t, filepath.Join(out, "stacked", "adapters.json"))
	below, err := os.ReadFile(filepath.Join(out, "stacked", "letters", "adapter_model.safetensors"))
	require.NoError(t, err)
	alone, err := os.ReadFile(filepath.Join(out, "letters", "adapter_model.safetensors"))
	require.NoError(t, err)
	require.Equal(t, alone, below)

	model, err := models.FromFS(t.Context(), base.Files, ".", models.Options{Backend: "go"})
	require.NoError(t, err)
	defer model.Close()
	pm, err := peft.LoadAdapters(model, filepath.Join(out, "stacked"))
	require.NoError(t, err)
	require.Equal(t, []string{"letters", "answers"}, pm.Active())
	require.Equal(t, []string{"answers"}, pm.Trained())
}

// What is asked about is learned of nobody that is asked.
func TestHeldOutPeopleAreInNoText(t *testing.T) {
	var learned strings.Builder
	for _, e := range append(append(texts(letter, false), texts(telegram, false)...), questions(false)...) {
		learned.WriteString(e.Text + e.Prompt + e.Completion + "\n")
	}
	asked := 0
	for i, p := range world.People() {
		if held(i) {
			require.NotContains(t, learned.String(), opening(p))
			asked++
		}
	}
	require.Len(t, questions(true), 6*asked)
	require.Len(t, texts(letter, true), asked)
	require.True(t, held(0), "somebody is held out")
}

func TestBadFlags(t *testing.T) {
	_, err := parse([]string{"more"}, io.Discard)
	require.EqualError(t, err, `unexpected argument "more"`)
	_, err = parse([]string{"-steps", "0"}, io.Discard)
	require.ErrorContains(t, err, "want at least 1")
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o666))
	_, err = parse([]string{"-out", file}, io.Discard)
	require.ErrorContains(t, err, "-out: ")
}
