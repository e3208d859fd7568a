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

// writeTexts writes a data file and returns its texts and their classes.
func writeTexts(t *testing.T, dir, name string, offset int) (texts, classes []string) {
	var b strings.Builder
	b.WriteString("text,category\n")
	for i := range 60 {
		class := []string{"money", "card", "other"}[i%3]
		own := words[class]
		text := own[(i/3+offset)%3] + ", " + own[(i/9+offset)%3]
		fmt.Fprintf(&b, "%q,%s\n", text, class)
		texts, classes = append(texts, text), append(classes, class)
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(b.String()), 0o644))
	return texts, classes
}

// line is what the table says of a method.
type line struct {
	trainable, bytes              int64
	seconds                       float64
	lossBefore, lossAfter         float64
	accuracyBefore, accuracyAfter float64
}

func lineOf(t *testing.T, printed, method string) (l line) {
	_, rest, found := strings.Cut(printed, "  trainable  ")
	for found && !strings.HasPrefix(strings.TrimSpace(rest), method+" ") {
		_, rest, found = strings.Cut(rest, "\n")
	}
	require.True(t, found, printed)
	var share float64
	_, err := fmt.Sscanf(strings.TrimSpace(rest), method+" %d %f %% %d %f %f %f %f %f", &l.trainable, &share, &l.bytes, &l.seconds,
		&l.lossBefore, &l.lossAfter, &l.accuracyBefore, &l.accuracyAfter)
	require.NoError(t, err, rest)
	return l
}

// The program learns a small task by each method, says how well, and leaves adapters with
// the head that do as well.
func TestClassify(t *testing.T) {
	encoder, data := writeEncoder(t), t.TempDir()
	writeTexts(t, data, "train.csv", 0)
	texts, classes := writeTexts(t, data, "test.csv", 1)
	var out bytes.Buffer
	result := filepath.Join(t.TempDir(), "out")
	args := []string{"-model", encoder, "-data", data, "-out", result, "-backend", "go", "-epochs", "40", "-batch", "10", "-seq", "16", "-reduction", "2",
		"-virtual-tokens", "4", "-lora-lr", "0.01", "-pfeiffer-lr", "0.05", "-prefix-lr", "0.05"}
	require.NoError(t, run(t.Context(), args, &out, io.Discard))
	require.Contains(t, out.String(), "3 classes; new parameters: bert.pooler.dense.bias, bert.pooler.dense.weight, classifier.bias, classifier.weight\n")
	require.Contains(t, out.String(), "train: 60 examples")
	base, err := models.LoadClassifier(t.Context(), encoder, models.ClassifierOptions{
		Options: models.Options{Backend: "go"}, Labels: []string{"card", "money", "other"}, Seed: 1}) // the new pooler is not in the adapter
	require.NoError(t, err)
	defer base.Close()
	for _, name := range methodNames() {
		l := lineOf(t, out.String(), name)
		require.Greater(t, l.accuracyAfter, 0.75, out.String())
		require.Less(t, l.accuracyBefore, 0.5)
		require.Less(t, l.lossAfter, l.lossBefore)
		require.NotZero(t, l.seconds)

		pm, err := peft.LoadAdapter(base, filepath.Join(result, name, "adapter"))
		require.NoError(t, err)
		require.Equal(t, pm.TrainableParameters().Trainable, l.trainable)
		require.Greater(t, l.bytes, 4*l.trainable) // float32, and more
		answers, err := models.Predict(t.Context(), pm, texts)
		require.NoError(t, err)
		right := 0
		for i, answer := range answers {
			if answer.Label == classes[i] {
				right++
			}
		}
		require.InDelta(t, l.accuracyAfter, float64(right)/float64(len(texts)), 1e-4)
	}
}

// Whatever else is trained before it, a method gives the same.
func TestMethodsDoNotMeet(t *testing.T) {
	encoder, data := writeEncoder(t), t.TempDir()
	writeTexts(t, data, "train.csv", 0)
	writeTexts(t, data, "test.csv", 1)
	one := func(methods string) line {
		var out bytes.Buffer
		require.NoError(t, run(t.Context(), []string{"-model", encoder, "-data", data, "-out", t.TempDir(), "-backend", "go", "-epochs", "1",
			"-methods", methods, "-rows", "20", "-test-rows", "20"}, &out, io.Discard))
		require.Contains(t, out.String(), "train: 20 examples")
		l := lineOf(t, out.String(), "pfeiffer")
		l.seconds = 0
		return l
	}
	require.Equal(t, one("pfeiffer"), one("lora,pfeiffer"))
}

func TestClassifyErrors(t *testing.T) {
	t.Setenv("GOPEFT_MINILM", "")
	require.ErrorContains(t, run(t.Context(), nil, io.Discard, io.Discard), "which model?")
	require.EqualError(t, run(t.Context(), []string{"-model", "x", "banking77"}, io.Discard, io.Discard), `unexpected argument "banking77"`)
	require.EqualError(t, run(t.Context(), []string{"-model", "x", "-methods", "lora,lor"}, io.Discard, io.Discard),
		`-methods lora,lor: "lor" is unknown, or there twice; want some of `+strings.Join(methodNames(), ", "))
	require.ErrorContains(t, run(t.Context(), []string{"-model", "x", "-data", t.TempDir()}, io.Discard, io.Discard), "train.csv")
}
