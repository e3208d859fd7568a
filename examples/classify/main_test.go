package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
)

// words are the texts' vocabulary; those of a class are its own.
var words = map[string][]string{
	"card":  {"card", "plastic", "chip"},
	"money": {"money", "cash", "coin"},
	"other": {"hello", "weather", "song"},
}

// writeEncoder makes a folder with a tiny encoder without a head and its tokenizer.
func writeEncoder(t *testing.T) string {
	vocab := map[string]int{"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
	for _, class := range []string{"card", "money", "other"} {
		for _, word := range words[class] {
			vocab[word] = len(vocab)
		}
	}
	config := fmt.Sprintf(`{"model_type": "bert", "vocab_size": %d, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
		"intermediate_size": 24, "max_position_embeddings": 32, "initializer_range": 0.2}`, len(vocab))
	m, err := models.New(t.Context(), []byte(config), 1, models.Options{Backend: "go"})
	require.NoError(t, err)
	defer m.Close()
	dir := filepath.Join(t.TempDir(), "encoder")
	require.NoError(t, m.Export(t.Context(), dir, nil))

	special := func(id int, name string) map[string]any {
		return map[string]any{"id": id, "content": name, "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}
	}
	piece := func(name string) any { return map[string]any{"SpecialToken": map[string]any{"id": name, "type_id": 0}} }
	ids := func(name string) any {
		return map[string]any{"id": name, "ids": []int{vocab[name]}, "tokens": []string{name}}
	}
	data, err := json.Marshal(map[string]any{
		"version": "1.0", "added_tokens": []any{special(0, "[PAD]"), special(2, "[CLS]"), special(3, "[SEP]")},
		"pre_tokenizer": map[string]any{"type": "BertPreTokenizer"},
		"model":         map[string]any{"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab},
		"post_processor": map[string]any{"type": "TemplateProcessing", "pair": []any{},
			"single":         []any{piece("[CLS]"), map[string]any{"Sequence": map[string]any{"id": "A", "type_id": 0}}, piece("[SEP]")},
			"special_tokens": map[string]any{"[CLS]": ids("[CLS]"), "[SEP]": ids("[SEP]")}},
	})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "tokenizer.json"), data, 0o644))
	return dir
}

func writeTexts(t *testing.T, dir, name string, offset int) {
	var b strings.Builder
	b.WriteString("text,category\n")
	for i := range 60 {
		class := []string{"money", "card", "other"}[i%3]
		own := words[class]
		fmt.Fprintf(&b, "\"%s, %s\",%s\n", own[(i/3+offset)%3], own[(i/9+offset)%3], class)
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(b.String()), 0o644))
}

// The program learns a small task, says how well, and leaves an adapter with the head.
func TestClassify(t *testing.T) {
	encoder, data := writeEncoder(t), t.TempDir()
	writeTexts(t, data, "train.csv", 0)
	writeTexts(t, data, "test.csv", 1)
	var out bytes.Buffer
	result := filepath.Join(t.TempDir(), "out")
	args := []string{"-model", encoder, "-data", data, "-out", result, "-backend", "go", "-epochs", "12", "-batch", "10", "-lr", "0.01", "-seq", "16"}
	require.NoError(t, run(t.Context(), args, &out, io.Discard))
	require.Contains(t, out.String(), "3 classes; new parameters: bert.pooler.dense.bias, bert.pooler.dense.weight, classifier.bias, classifier.weight\n")
	require.Contains(t, out.String(), "train: 60 examples")
	var before, after float64
	_, line, found := strings.Cut(out.String(), "\naccuracy ")
	require.True(t, found, out.String())
	_, err := fmt.Sscanf(line, "before=%f after=%f", &before, &after)
	require.NoError(t, err)
	require.Greater(t, after, 0.9, out.String())
	require.Less(t, before, after)

	base, err := models.LoadClassifier(t.Context(), encoder, models.ClassifierOptions{
		Options: models.Options{Backend: "go"}, Labels: []string{"card", "money", "other"}, Seed: 1}) // the new pooler is not in the adapter
	require.NoError(t, err)
	defer base.Close()
	pm, err := peft.LoadAdapter(base, filepath.Join(result, "adapter"))
	require.NoError(t, err)
	answers, err := models.Predict(t.Context(), pm, []string{"chip, card", "cash, money", "song, hello"})
	require.NoError(t, err)
	for i, want := range []string{"card", "money", "other"} {
		require.Equal(t, want, answers[i].Label)
	}
}

func TestClassifyErrors(t *testing.T) {
	t.Setenv("GOPEFT_MINILM", "")
	require.ErrorContains(t, run(t.Context(), nil, io.Discard, io.Discard), "which model?")
	require.EqualError(t, run(t.Context(), []string{"-model", "x", "banking77"}, io.Discard, io.Discard), `unexpected argument "banking77"`)
	require.ErrorContains(t, run(t.Context(), []string{"-model", "x", "-data", t.TempDir()}, io.Discard, io.Discard), "train.csv")
}
