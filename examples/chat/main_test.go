package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/examples/pretrain/world"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
)

func backendName() string {
	if name := os.Getenv("GOPEFT_TEST_BACKEND"); name != "" {
		return name
	}
	return "go"
}

// talk runs the program on lines of input and returns what was said after each.
func talk(t *testing.T, args []string, lines ...string) []string {
	t.Helper()
	var out bytes.Buffer
	in := strings.NewReader(strings.Join(lines, "\n"))
	require.NoError(t, run(context.Background(), append([]string{"-backend", backendName()}, args...), console{in: in, out: &out, progress: io.Discard}))
	parts := strings.Split(out.String(), "\n> ")[1:]
	require.GreaterOrEqual(t, len(parts), len(lines), out.String())
	var said []string
	for i, line := range lines {
		echo, rest, _ := strings.Cut(parts[i], "\n")
		require.Equal(t, line, echo)
		said = append(said, strings.TrimSpace(rest))
	}
	return said
}

// stranger is somebody whom no chat was about when the adapters were trained.
func stranger(t *testing.T) world.Person {
	require.True(t, unasked(0))
	return world.People()[0]
}

// A question that only the conversation explains is answered in the active adapter's way;
// the base alone tells its stories.
func TestConversation(t *testing.T) {
	p := stranger(t)
	said := talk(t, nil,
		"Where does "+p.Name+" live?",
		"What is "+p.His+" work?",
		"/adapter sentences",
		"What does "+p.He+" play?",
		"/base",
		"What does "+p.He+" like to eat?",
		"/adapters",
		"/adapter words",
		"/reset",
		"What animal does "+p.Name+" have?",
		"/quit")
	require.Equal(t, []string{p.Home, p.Work}, said[:2])
	require.Equal(t, "adapter sentences answers", said[2])
	require.Equal(t, fmt.Sprintf("%s plays the %s.", p.Name, p.Instrument), said[3])
	require.Equal(t, "the base answers", said[4])
	require.NotEqual(t, p.Food, said[5])
	require.Regexp(t, `^words +LORA +\d+ parameters\n  sentences +MISS `, said[6])
	require.Equal(t, p.Pet, said[9])
}

func TestCommandsSayWhatIsWrong(t *testing.T) {
	said := talk(t, nil, "/help", "/adapter", "/adapter wrods", "/learn", "/adapter words,sentences", "", strings.TrimSpace(strings.Repeat("no ", 300)))
	require.Contains(t, said[0], "/system TEXT")
	require.Equal(t, "which adapter? There are words, sentences", said[1])
	require.Contains(t, said[2], `unknown adapter "wrods"`)
	require.Equal(t, "no command /learn; /help lists them", said[3])
	require.Equal(t, "adapter words with sentences answers", said[4])
	require.Empty(t, said[5])
	require.Contains(t, said[6], "of which the model can take")
}

// A long conversation goes on without its beginning, and the system prompt stays.
func TestOldLinesAreForgotten(t *testing.T) {
	var lines []string
	for range 12 {
		lines = append(lines, "Where does Mia live?")
	}
	said := talk(t, []string{"-system", "They are people.", "-max-tokens", "8"}, lines...)
	require.NotContains(t, said[0], "no longer fit")
	require.Contains(t, said[11], "(the first 2 lines of the conversation no longer fit)\n")
	require.Contains(t, said[11], stranger(t).Home)
}

func TestSampling(t *testing.T) {
	question := []string{"/base", "Tell me of Mia"}
	args := []string{"-temperature", "1", "-max-tokens", "12"}
	one := talk(t, append(args, "-seed", "3"), question...)[1]
	require.Equal(t, one, talk(t, append(args, "-seed", "3"), question...)[1])
	require.NotEqual(t, one, talk(t, append(args, "-seed", "4"), question...)[1])
	require.Contains(t, one, "(cut off after 12 tokens)")
}

// A folder of the user's, with a chat template, and adapters saved together or alone.
func TestOwnModelAndAdapters(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	model, err := models.FromFS(ctx, tinyFiles(), ".", models.Options{Backend: "go"})
	require.NoError(t, err)
	defer model.Close()
	folder := filepath.Join(dir, "model")
	require.NoError(t, model.Export(ctx, folder, nil))
	template, err := template.ReadFile("chat_template.jinja")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(folder, "chat_template.jinja"), template, 0o644))

	pm, err := peft.GetPeftModel(model, lora.LoraConfig{R: 2}, peft.Options{Name: "a"})
	require.NoError(t, err)
	require.NoError(t, pm.AddAdapter(lora.LoraConfig{R: 3}, peft.Options{Name: "b"}))
	both, err := pm.With("a", "b")
	require.NoError(t, err)
	require.NoError(t, both.SavePretrained(dir))

	args := []string{"-model", folder, "-max-tokens", "2", "-adapter"}
	said := talk(t, append(args, dir+",words=adapters/words"), "/adapters", "/adapter words", "Where does Mia live?")
	require.Regexp(t, `^\* a .*\n\* b .*\n  words `, said[0])
	require.Contains(t, said[2], "(cut off after 2 tokens)")
	said = talk(t, append(args, filepath.Join(dir, "b")), "/adapters")
	require.Regexp(t, `^\* b `, said[0])
	said = talk(t, args[:4], "/adapter x", "/adapters")
	require.Equal(t, errNoAdapters.Error(), said[0])
}

func TestErrors(t *testing.T) {
	dir := t.TempDir()
	for want, args := range map[string][]string{
		"-help":                 {"-modle", "x"},
		`unexpected argument`:   {"more"},
		"no-such-folder":        {"-model", filepath.Join(dir, "no-such-folder")},
		"no chat template":      {"-model", "../quickstart/base"},
		"-adapter no-such":      {"-adapter", "no-such"},
		"want nf4, fp4 or int8": {"-quant", "nf5"},
		"-max-tokens is 0":      {"-max-tokens", "0"},
		"not for -model":        {"-model", dir, "-teach", dir},
	} {
		err := run(t.Context(), append([]string{"-backend", "go"}, args...), console{in: strings.NewReader(""), out: io.Discard, progress: io.Discard})
		require.ErrorContains(t, err, want)
	}
}

// -teach makes adapters that the program opens.
func TestTeach(t *testing.T) {
	dir := t.TempDir()
	var out bytes.Buffer
	args := []string{"-backend", backendName(), "-teach", dir, "-steps", "1"}
	require.NoError(t, run(t.Context(), args, console{out: &out, progress: io.Discard}))
	require.Regexp(t, `words: \d+ of 120 answers.*\n.*sentences: \d+ of 120 answers`, out.String())
	said := talk(t, []string{"-max-tokens", "1", "-adapter", filepath.Join(dir, "words") + "," + filepath.Join(dir, "sentences")}, "/adapters")
	require.Regexp(t, `^\* words .*\n  sentences `, said[0])
}
