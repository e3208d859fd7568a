package models

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models/tokenizer"
	"github.com/gopeft/gopeft/peft"
)

func copyOfEncoder(t testing.TB, name string) string {
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(dir, os.DirFS(filepath.Join(encoderFixtures, name))))
	return dir
}

func TestClassifierErrors(t *testing.T) {
	labels := func(names ...string) ClassifierOptions { return ClassifierOptions{Labels: names} }
	for name, c := range map[string]struct {
		fixture string
		options ClassifierOptions
		change  map[string]any
		weights func(all map[string]safetensors.Tensor)
		want    string
	}{
		"no head":         {"bert_trunk", ClassifierOptions{}, nil, nil, "no classification head: set Labels or NumLabels"},
		"number":          {"bert_sequence", ClassifierOptions{NumLabels: 5}, nil, nil, "the checkpoint's head has 3 labels, wanted 5: set NewHead"},
		"names":           {"bert_sequence", labels("yes", "no", "perhaps"), nil, nil, `label 2 is "maybe" in the checkpoint, wanted "perhaps"`},
		"order":           {"bert_sequence", labels("no", "yes", "maybe"), nil, nil, `label 0 is "yes" in the checkpoint, wanted "no"`},
		"both":            {"bert_trunk", ClassifierOptions{Labels: []string{"a", "b"}, NumLabels: 3}, nil, nil, "NumLabels is 3, but Labels has 2"},
		"twice":           {"bert_trunk", labels("a", "b", "a"), nil, nil, `labels 0 and 2 are both "a"`},
		"nameless":        {"bert_trunk", labels("a", ""), nil, nil, "label 1 has no name"},
		"one":             {"bert_trunk", labels("a"), nil, nil, "regression"},
		"negative":        {"bert_trunk", ClassifierOptions{NumLabels: -2}, nil, nil, "wanted 2 to 1048576 labels, got -2"},
		"new, unnamed":    {"bert_sequence", ClassifierOptions{NewHead: true}, nil, nil, "set Labels or NumLabels for the new head"},
		"token head":      {"bert_token", ClassifierOptions{}, nil, nil, "the checkpoint is a BertForTokenClassification: set PerToken"},
		"sequence head":   {"bert_sequence", ClassifierOptions{PerToken: true}, nil, nil, "BertForSequenceClassification, and PerToken is set"},
		"multiple choice": {"bert_sequence", ClassifierOptions{}, map[string]any{"architectures": []string{"BertForMultipleChoice"}}, nil, "BertForMultipleChoice, which is not supported"},
		"several labels":  {"bert_sequence", ClassifierOptions{}, map[string]any{"problem_type": "multi_label_classification"}, nil, `problem_type "multi_label_classification" is not supported`},
		"ids":             {"bert_sequence", ClassifierOptions{}, map[string]any{"id2label": map[string]string{"0": "a", "2": "b", "3": "c"}}, nil, "id2label: wanted the ids 0 to 2, got none of 1"},
		"half a head": {"bert_sequence", ClassifierOptions{}, nil, func(all map[string]safetensors.Tensor) { delete(all, "classifier.bias") },
			`1 missing, 0 unexpected, 0 of the wrong shape or dtype; wanted "classifier.bias"`},
		"half a pooler": {"bert_trunk", ClassifierOptions{NumLabels: 2}, nil, func(all map[string]safetensors.Tensor) { delete(all, "pooler.dense.bias") },
			`wanted "bert.pooler.dense.bias"`},
		"no pooler under a head": {"bert_sequence", ClassifierOptions{}, nil, func(all map[string]safetensors.Tensor) {
			delete(all, "bert.pooler.dense.bias")
			delete(all, "bert.pooler.dense.weight")
		}, "2 missing"},
		"a stray tensor": {"bert_trunk", ClassifierOptions{NumLabels: 2}, nil, func(all map[string]safetensors.Tensor) {
			x := all["pooler.dense.bias"]
			x.Name = "stray.bias"
			all["stray.bias"] = x
		}, `found "stray.bias"`},
	} {
		t.Run(name, func(t *testing.T) {
			backendtest.Sample(t, 5)
			dir := copyOfEncoder(t, c.fixture)
			if c.change != nil {
				editConfig(t, dir, c.change)
			}
			if c.weights != nil {
				editWeights(t, dir, c.weights)
			}
			c.options.Options = float32Options(t)
			_, err := LoadClassifier(context.Background(), dir, c.options)
			require.ErrorContains(t, err, c.want)
		})
	}
	_, err := LoadClassifier(context.Background(), filepath.Join(fixtures, "llama"), ClassifierOptions{NumLabels: 2})
	require.ErrorContains(t, err, `model_type "llama": classification needs an encoder`)
	_, err = NewClassifier(context.Background(), []byte(`{"model_type": "bert", "vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 1,
		"num_attention_heads": 1, "intermediate_size": 4}`), ClassifierOptions{})
	require.ErrorContains(t, err, "how many labels?")
}

// TestNewHead: NewHead leaves out the checkpoint's, also one of another size or kind.
func TestNewHead(t *testing.T) {
	for name, o := range map[string]ClassifierOptions{
		"bert_sequence": {Labels: []string{"a", "b", "c", "d"}, NewHead: true, Seed: 5},
		"bert_token":    {Labels: []string{"yes", "no", "maybe"}, NewHead: true, Seed: 5},
	} {
		o.Options = float32Options(t)
		c, err := LoadClassifier(context.Background(), filepath.Join(encoderFixtures, name), o)
		require.NoError(t, err)
		require.Contains(t, c.LoadReport().New, "classifier.weight")
		require.Equal(t, o.Labels, c.Labels())
		var squares float64
		for _, x := range values(t, c, "classifier.weight") {
			squares += float64(x * x)
		}
		n := float64(len(o.Labels) * 16)
		require.InDelta(t, 0.02, math.Sqrt(squares/n), 5*0.02/math.Sqrt(2*n)) // five standard deviations
		require.NoError(t, c.Close())
	}
}

// TestClassifierExport: the exported folder is a classifier with its labels and its new
// head, and loads again with the same values.
func TestClassifierExport(t *testing.T) {
	ctx := context.Background()
	for _, name := range []string{"bert_trunk", "roberta_masked", "distilbert_masked", "albert_sequence"} {
		o := ClassifierOptions{Options: float32Options(t), Labels: []string{"a", "b"}, NewHead: true, Seed: 3}
		c, err := LoadClassifier(ctx, filepath.Join(encoderFixtures, name), o)
		require.NoError(t, err)
		dir := filepath.Join(t.TempDir(), "out")
		require.NoError(t, c.Export(ctx, dir, nil))
		again, err := LoadClassifier(ctx, dir, ClassifierOptions{Options: float32Options(t)})
		require.NoError(t, err)
		require.Equal(t, c.Labels(), again.Labels())
		require.Empty(t, again.LoadReport().New)
		require.Empty(t, again.LoadReport().Renamed)
		require.Equal(t, c.Parameters(), again.Parameters())
		for _, p := range c.Parameters() {
			require.Equal(t, values(t, c, p.Name), values(t, again, p.Name), p.Name)
		}
		var config struct {
			Architectures []string
			NumLabels     *int `json:"num_labels"`
		}
		data, err := os.ReadFile(filepath.Join(dir, configFile))
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(data, &config))
		require.Equal(t, []string{c.net.options().class + "ForSequenceClassification"}, config.Architectures)
		require.Nil(t, config.NumLabels)
		require.NoError(t, again.Close())
		require.NoError(t, c.Close())
	}
}

// wordPiece is a tokenizer as BERT's, of ids 0 to 63.
func wordPiece(t testing.TB) *tokenizer.Tokenizer {
	vocab := map[string]int{"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
	for i := 4; i < 64; i++ {
		vocab["w"+string(rune('0'+i/10))+string(rune('0'+i%10))] = i
	}
	special := func(id int, name string) map[string]any {
		return map[string]any{"id": id, "content": name, "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}
	}
	piece := func(name string) any { return map[string]any{"SpecialToken": map[string]any{"id": name, "type_id": 0}} }
	text := map[string]any{"Sequence": map[string]any{"id": "A", "type_id": 0}}
	data, err := json.Marshal(map[string]any{
		"version": "1.0", "added_tokens": []any{special(0, "[PAD]"), special(2, "[CLS]"), special(3, "[SEP]")},
		"pre_tokenizer": map[string]any{"type": "BertPreTokenizer"},
		"model":         map[string]any{"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab},
		"post_processor": map[string]any{"type": "TemplateProcessing", "single": []any{piece("[CLS]"), text, piece("[SEP]")}, "pair": []any{},
			"special_tokens": map[string]any{"[CLS]": map[string]any{"id": "[CLS]", "ids": []int{2}, "tokens": []string{"[CLS]"}},
				"[SEP]": map[string]any{"id": "[SEP]", "ids": []int{3}, "tokens": []string{"[SEP]"}}}},
	})
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, tokenizerFile), data, 0o644))
	tok, err := tokenizer.Load(dir)
	require.NoError(t, err)
	return tok
}

func TestPredict(t *testing.T) {
	ctx := context.Background()
	c, err := LoadClassifier(ctx, filepath.Join(encoderFixtures, "bert_sequence"), ClassifierOptions{Options: float32Options(t)})
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Predict(ctx, []string{"w10"})
	require.ErrorContains(t, err, "has no tokenizer")
	c.Tokenizer = wordPiece(t)
	require.Equal(t, []int32{2, 10, 11, 3}, c.Tokenizer.Encode("w10 w11", tokenizer.EncodeOptions{AddSpecialTokens: true}))

	texts := []string{"w10 w11 w12 w13 w14 w15 w16 w17 w18 w19 w20 w21 w22 w23 w24 w25 w26 w27", "w30", "w31 w32 w33", "w40 w50"}
	together, err := c.Predict(ctx, texts)
	require.NoError(t, err)
	require.Len(t, together, 4)
	for i, text := range texts {
		alone, err := c.Predict(ctx, []string{text}, PredictOptions{BatchSize: 1})
		require.NoError(t, err)
		require.Equal(t, alone[0].Label, together[i].Label)
		require.InDeltaSlice(t, alone[0].Probabilities, together[i].Probabilities, 1e-5)
		var sum float32
		for _, p := range together[i].Probabilities {
			sum += p
			require.LessOrEqual(t, p, together[i].Probability)
		}
		require.InDelta(t, 1, sum, 1e-6)
		require.Equal(t, together[i].Label, c.Labels()[together[i].Index])
		require.False(t, together[i].Truncated)
	}
	cut, err := c.Predict(ctx, texts[:1], PredictOptions{MaxLength: 4})
	require.NoError(t, err)
	require.True(t, cut[0].Truncated)
	short, err := c.Predict(ctx, []string{"w10 w11"})
	require.NoError(t, err)
	require.Equal(t, short[0].Probabilities, cut[0].Probabilities)

	// Through adapters: an untrained one changes nothing, another view its own.
	pm, err := peft.GetPeftModel(c, lora.LoraConfig{R: 2, TargetModules: peft.Modules("query")})
	require.NoError(t, err)
	untrained, err := Predict(ctx, pm, texts)
	require.NoError(t, err)
	require.Equal(t, together[0].Label, untrained[0].Label)
	require.InDeltaSlice(t, together[0].Probabilities, untrained[0].Probabilities, 1e-6)
	trained, err := peft.LoadAdapter(c, filepath.Join(encoderFixtures, "bert_lora"))
	require.NoError(t, err)
	other, err := Predict(ctx, trained, texts)
	require.NoError(t, err)
	require.NotEqual(t, together[0].Probabilities, other[0].Probabilities)
	none, err := trained.With()
	require.NoError(t, err)
	again, err := Predict(ctx, none, texts)
	require.NoError(t, err)
	require.Equal(t, together, again)

	_, err = c.Predict(ctx, nil)
	require.ErrorContains(t, err, "no text is given")
	_, err = c.Predict(ctx, texts, PredictOptions{MaxLength: 41})
	require.ErrorContains(t, err, "a length of 2 to 40")
	_, err = PredictTokens(ctx, c, texts)
	require.ErrorContains(t, err, "scores whole texts")
	_, err = Predict(ctx, nil, texts)
	require.ErrorContains(t, err, "the view is nil")
	stopped, cancel := context.WithCancel(ctx)
	cancel()
	_, err = c.Predict(stopped, texts)
	require.ErrorIs(t, err, context.Canceled)
}

func TestPredictTokens(t *testing.T) {
	ctx := context.Background()
	c, err := LoadClassifier(ctx, filepath.Join(encoderFixtures, "bert_token"), ClassifierOptions{Options: float32Options(t), PerToken: true})
	require.NoError(t, err)
	defer c.Close()
	c.Tokenizer = wordPiece(t)
	out, err := PredictTokens(ctx, c, []string{"w10 w11 w12", "w20"})
	require.NoError(t, err)
	require.Len(t, out[0], 3)
	require.Len(t, out[1], 1)
	require.Equal(t, "w11", out[0][1].Text)
	require.Equal(t, int32(20), out[1][0].Token)
	require.Len(t, out[1][0].Probabilities, 3)
	_, err = c.Predict(ctx, []string{"w10"})
	require.ErrorContains(t, err, "use PredictTokens")
}

// TestEncoderTargets: peft's target names work, heads are no part of "all-linear".
func TestEncoderTargets(t *testing.T) {
	for name, want := range map[string][]string{
		"bert_sequence":       {"bert.encoder.layer.0.attention.self.query", "bert.pooler.dense"},
		"roberta_sequence":    {"roberta.encoder.layer.0.attention.self.query", "roberta.encoder.layer.1.output.dense"},
		"distilbert_sequence": {"distilbert.transformer.layer.0.attention.q_lin", "distilbert.transformer.layer.1.ffn.lin2"},
		"albert_sequence":     {"albert.encoder.embedding_hidden_mapping_in", "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn_output"},
	} {
		c, err := LoadClassifier(context.Background(), filepath.Join(encoderFixtures, name), ClassifierOptions{Options: float32Options(t)})
		require.NoError(t, err)
		plan, err := peft.DryRun(c, lora.LoraConfig{R: 2, TargetModules: peft.AllLinear})
		require.NoError(t, err)
		var paths []string
		for _, target := range plan.Targets {
			paths = append(paths, target.Module.Path)
			// The head is there as a copy of its own, without LoRA's settings.
			require.Equal(t, strings.HasPrefix(target.Module.Path, "classifier"), len(target.Settings) == 0, target.Module.Path)
		}
		require.Subset(t, paths, want)
		require.NoError(t, c.Close())
	}
}
