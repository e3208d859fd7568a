package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/train"
)

// committed is the folder in the repository.
const committed = "../quickstart/base"

func backendName() string {
	if name := os.Getenv("GOPEFT_TEST_BACKEND"); name != "" {
		return name
	}
	return "go"
}

var (
	lossLine  = regexp.MustCompile(`(?m)^held-out loss (\d+\.\d+) \(nats a token, mean over (\d+) stories of seed (\d+)\)$`)
	storyLine = regexp.MustCompile(`writes (\d+) stories .* seed (\d+)\)`)
)

func numbers(t *testing.T, dir string, line *regexp.Regexp) []float64 {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "README.md"))
	require.NoError(t, err)
	found := line.FindStringSubmatch(string(text))
	require.NotNil(t, found, "README.md has no line %v", line)
	var out []float64
	for _, s := range found[1:] {
		x, err := strconv.ParseFloat(s, 64)
		require.NoError(t, err)
		out = append(out, x)
	}
	return out
}

// measure is the loss of a folder's model on stories.
func measure(t *testing.T, dir string, seed uint64, n int) float64 {
	t.Helper()
	ctx := context.Background()
	model, err := models.Load(ctx, dir, models.Options{Backend: backendName()})
	require.NoError(t, err)
	defer model.Close()
	pm, err := peft.GetPeftModel(model, lora.LoraConfig{R: 1}) // fresh: it changes nothing
	require.NoError(t, err)
	held, err := dataset(model.Tokenizer, stories(seed, n))
	require.NoError(t, err)
	trainer, err := train.NewTrainer(pm, held, train.Arguments{OutputDir: t.TempDir()})
	require.NoError(t, err)
	defer trainer.Close()
	loss, err := trainer.Evaluate(ctx, held)
	require.NoError(t, err)
	return loss
}

func TestCommittedBaseIsWhatItsReadmeSays(t *testing.T) {
	said := numbers(t, committed, lossLine)
	require.InDelta(t, said[0], measure(t, committed, uint64(said[2]), int(said[1])), 2e-4)

	total := int64(0)
	entries, err := os.ReadDir(committed)
	require.NoError(t, err)
	for _, e := range entries {
		info, err := e.Info()
		require.NoError(t, err)
		total += info.Size()
	}
	require.LessOrEqual(t, total, int64(1_500_000))
}

func TestCommittedTokenizerComesFromTheStories(t *testing.T) {
	made := numbers(t, committed, storyLine)
	want, err := os.ReadFile(filepath.Join(committed, "tokenizer.json"))
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, makeTokenizer(dir, stories(uint64(made[1]), int(made[0])), defaults().Vocabulary))
	got, err := os.ReadFile(filepath.Join(dir, "tokenizer.json"))
	require.NoError(t, err)
	require.Equal(t, string(want), string(got))
}

func TestPretrainWritesAModelFolder(t *testing.T) {
	s := defaults()
	s.Out, s.Backend, s.Progress = filepath.Join(t.TempDir(), "base"), backendName(), io.Discard
	s.Stories, s.Held, s.Vocabulary, s.Steps, s.Batch = 200, 4, 550, 2, 2
	loss, err := pretrain(context.Background(), s)
	require.NoError(t, err)
	require.InDelta(t, loss, measure(t, s.Out, s.Seed+1, s.Held), 1e-4)
	require.InDelta(t, loss, numbers(t, s.Out, lossLine)[0], 1e-4)
}

func TestPretrainErrors(t *testing.T) {
	s := defaults()
	s.Stories, s.Vocabulary = 1, 100
	_, err := pretrain(context.Background(), s)
	require.ErrorContains(t, err, "want at least 258 tokens, got 100")
	s.Vocabulary = 5000
	_, err = pretrain(context.Background(), s)
	require.ErrorContains(t, err, "the text gives only")
}
