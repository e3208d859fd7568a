package train

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/models/tokenizer"
	"github.com/gopeft/gopeft/peft"
)

func float32Classifier(t testing.TB, o models.ClassifierOptions) models.ClassifierOptions {
	o.Options = models.Options{On: testBackend(t), DType: dtypes.Float32}
	return o
}

// One step on a classifier, with LoRA on query and value and a copy of the head, gives
// the loss, the gradients and the values that Python's peft gets, and so do four rows
// computed apart.
func TestClassificationStepOfPeft(t *testing.T) {
	for family, count := range map[string]int{"bert": 10, "roberta": 12, "distilbert": 12, "albert": 6} {
		t.Run(family, func(t *testing.T) { testClassificationStep(t, family, family+"_sequence", count) })
	}
	t.Run("on a base that bitsandbytes quantised", func(t *testing.T) { testClassificationStep(t, "bert_nf4", "bert_nf4", 6) })
}

// The adapter has so many tensors.
func testClassificationStep(t *testing.T, family, folder string, count int) {
	dir := filepath.Join(fixtures, "encoders", family+"_lora")
	f, err := safetensors.Open(filepath.Join(dir, "golden.safetensors"))
	require.NoError(t, err)
	defer f.Close()
	labels := readInt32s(t, f, "labels")
	b := Batch{Rows: 4, Length: 12, IDs: readInt32s(t, f, "ids"), Segments: readInt32s(t, f, "mask"), Labels: labels, Kind: LabelRow}
	floats := func(name string) []float32 {
		info, ok := f.Info(name)
		require.True(t, ok, name)
		values := make([]float32, info.Size/4)
		require.NoError(t, f.Float32s(name, values))
		return values
	}
	for _, parts := range []int{1, 4} {
		t.Run(fmt.Sprintf("parts=%d", parts), func(t *testing.T) {
			base, err := models.LoadClassifier(t.Context(), filepath.Join(fixtures, "encoders", folder), float32Classifier(t, models.ClassifierOptions{}))
			require.NoError(t, err)
			defer base.Close()
			pm, err := peft.LoadAdapter(base, dir)
			require.NoError(t, err)
			s, st := newTestStepper(t, pm, stepConfig{adamw: AdamW{}, parts: parts})

			sums := []*tensors.Tensor{}
			for _, v := range st.values {
				sums = append(sums, tensors.FromShape(v.Shape()))
			}
			sums = append(sums, tensors.FromFlatDataAndDimensions([]float32{0, 0}, 2))
			gradients, err := s.gradients(st, sums, b)
			require.NoError(t, err)
			layout, err := pm.Layout(peft.DefaultAdapter)
			require.NoError(t, err)
			host, err := layout.Host(gradients[:len(gradients)-1])
			require.NoError(t, err)
			var largest float64
			for _, got := range host {
				for _, g := range got {
					largest = max(largest, math.Abs(float64(g))/4)
				}
			}
			// Some hundred roundings by 6e-8 of what is summed.
			tolerance := 1e-5 * max(1, 3*largest)
			checked := 0
			for name, got := range host {
				for i := range got {
					got[i] /= 4 // of the sum, not the mean
				}
				require.LessOrEqual(t, maxDifference(floats("gradient/"+name), got), tolerance, name)
				checked++
			}
			require.Equal(t, count, checked)

			e, err := s.evaluate(st.values, b)
			require.NoError(t, err)
			require.Equal(t, 4, e.targets)
			require.Equal(t, hits(floats("logits"), labels), e.hits)

			result, err := s.step(t.Context(), st, []Batch{b}, 1e-2)
			require.NoError(t, err)
			require.InDelta(t, floats("loss")[0], result.loss, 1e-5)
			require.NoError(t, st.publish(pm))
			for name, got := range valuesOf(t, pm) {
				require.LessOrEqual(t, maxDifference(floats("after/"+name), got), 1e-4, name)
			}
		})
	}
}

func hits(logits []float32, labels []int32) (n float64) {
	width := len(logits) / len(labels)
	for i, label := range labels {
		row := logits[i*width : (i+1)*width]
		if slices.Max(row) == row[label] {
			n++
		}
	}
	return n
}

const tinyBert = `{"model_type": "bert", "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
	"intermediate_size": 24, "max_position_embeddings": 32, "initializer_range": 0.1}`

// newTinyClassifier has dropout of its own, 0.1 everywhere.
func newTinyClassifier(t testing.TB, perToken bool) *models.Classifier {
	c, err := models.NewClassifier(t.Context(), []byte(tinyBert),
		float32Classifier(t, models.ClassifierOptions{Labels: []string{"even", "odd", "none"}, PerToken: perToken, Seed: 7}))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

func tinyPeft(t testing.TB, c *models.Classifier) *peft.PeftModel {
	pm, err := peft.GetPeftModel(c, lora.LoraConfig{R: 4, LoraAlpha: 8, LoraDropout: 0.1, TargetModules: peft.Modules("query", "value")}, peft.Options{Seed: 3})
	require.NoError(t, err)
	return pm
}

// parityData asks whether a sequence's first token is even; of a token itself.
func parityData(t testing.TB, n int, kind LabelKind, seed uint64) *Dataset {
	r := rand.New(rand.NewPCG(seed, 1))
	examples := make([]Example, n)
	for i := range examples {
		ids := make([]int32, 3+r.IntN(18))
		for k := range ids {
			ids[k] = int32(3 + r.IntN(8))
		}
		examples[i] = Example{IDs: ids, Labels: []int32{ids[0] % 2}}
		if kind == LabelToken {
			examples[i].Labels = make([]int32, len(ids))
			for k, id := range ids {
				examples[i].Labels[k] = id % 2
			}
			examples[i].Labels[0] = IgnoreIndex
		}
	}
	d, err := NewClassDataset(kind, examples, []string{"even", "odd", "none"})
	require.NoError(t, err)
	return d
}

func classArguments(t testing.TB) Arguments {
	return Arguments{
		OutputDir: filepath.Join(t.TempDir(), "out"), Quiet: true, Seed: 5, PerDeviceTrainBatchSize: 8, LearningRate: 1e-2,
		LoggingSteps: 3, SaveStrategy: SaveNo,
	}
}

// Both kinds of classifier learn a task that they did not know, and an evaluation counts
// what they get right.
func TestTrainerTrainsClassifiers(t *testing.T) {
	for kind, perToken := range map[LabelKind]bool{LabelRow: false, LabelToken: true} {
		t.Run(kind.String(), func(t *testing.T) {
			c := newTinyClassifier(t, perToken)
			args := classArguments(t)
			args.NumTrainEpochs, args.EvalDataset, args.EvalStrategy = 6, parityData(t, 40, kind, 9), EvalEpoch
			var accuracy float64
			args.Callback = func(e Event) error {
				if e.Kind == EventEvaluate {
					accuracy = e.EvalAccuracy
				}
				return nil
			}
			pm := tinyPeft(t, c)
			trainer, err := NewTrainer(pm, parityData(t, 120, kind, 4), args)
			require.NoError(t, err)
			defer trainer.Close()
			before, err := trainer.Measure(t.Context(), args.EvalDataset)
			require.NoError(t, err)
			result, err := trainer.Train(t.Context())
			require.NoError(t, err)
			after := result.Evaluations[len(result.Evaluations)-1]
			t.Logf("loss %.3f -> %.3f, accuracy %.3f -> %.3f", before.Loss, after.Loss, before.Accuracy, after.Accuracy)
			require.Less(t, after.Loss, before.Loss)
			require.Greater(t, after.Accuracy, 0.8)
			require.Greater(t, after.Accuracy, before.Accuracy)
			require.Equal(t, after.Accuracy, accuracy)
			records, err := ReadLog(filepath.Join(args.OutputDir, logFile))
			require.NoError(t, err)
			require.Equal(t, after.Accuracy, records[len(records)-1].EvalAccuracy)

			// The adapter in its file is the one in memory.
			dir := filepath.Join(t.TempDir(), "adapter")
			require.NoError(t, pm.SavePretrained(dir))
			again, err := peft.LoadAdapter(c, dir)
			require.NoError(t, err)
			require.Equal(t, valuesOf(t, pm), valuesOf(t, again))
		})
	}
}

// A classifier's training goes on from a checkpoint bit for bit, its dropout included.
func TestClassifierResumesBitEqual(t *testing.T) {
	c := newTinyClassifier(t, false)
	data := parityData(t, 44, LabelRow, 4)
	train := func(args Arguments) (*peft.PeftModel, *Result) {
		pm := tinyPeft(t, c)
		trainer, err := NewTrainer(pm, data, args)
		require.NoError(t, err)
		defer trainer.Close()
		result, err := trainer.Train(t.Context())
		require.NoError(t, err)
		return pm, result
	}
	args := classArguments(t)
	args.NumTrainEpochs, args.SaveStrategy, args.SaveSteps, args.GradientAccumulationSteps = 2, SaveSteps, 2, 2
	args.EvalDataset = parityData(t, 9, LabelRow, 8)
	whole, want := train(args)

	stopped := args
	stopped.OutputDir = t.TempDir()
	stopped.Callback = func(e Event) error {
		if e.Kind == EventSave && e.Step == 2 {
			return context.Canceled
		}
		return nil
	}
	pm := tinyPeft(t, c)
	trainer, err := NewTrainer(pm, data, stopped)
	require.NoError(t, err)
	_, err = trainer.Train(t.Context())
	require.ErrorIs(t, err, context.Canceled)
	trainer.Close()

	stopped.Callback, stopped.ResumeFromCheckpoint = nil, ResumeLast
	resumed, got := train(stopped)
	require.Equal(t, valuesOf(t, whole), valuesOf(t, resumed))
	require.Equal(t, want.Evaluations, got.Evaluations)
	require.Equal(t, want.TrainingLoss, got.TrainingLoss)
}

func TestClassificationIsChecked(t *testing.T) {
	sequence, token := newTinyClassifier(t, false), newTinyClassifier(t, true)
	rows, tokens := parityData(t, 8, LabelRow, 1), parityData(t, 8, LabelToken, 1)
	data := func(kind LabelKind, e Example, classes ...string) *Dataset {
		d, err := NewClassDataset(kind, []Example{e}, classes)
		require.NoError(t, err)
		return d
	}
	toy := toyModel(t)
	masked, err := models.New(t.Context(), []byte(tinyBert), 1, models.Options{On: testBackend(t)})
	require.NoError(t, err)
	defer masked.Close()
	maskedPeft, err := peft.GetPeftModel(masked, lora.LoraConfig{R: 2, TargetModules: peft.Modules("query")})
	require.NoError(t, err)
	for name, c := range map[string]struct {
		pm   *peft.PeftModel
		data *Dataset
		loss Loss
		want string
	}{
		"tokens for a sequence classifier": {tinyPeft(t, sequence), tokens, nil, "its labels are of a token, but the base is a classifier of a row"},
		"rows for a token classifier":      {tinyPeft(t, token), rows, nil, "its labels are of a row, but the base is a classifier of a token"},
		"next tokens":                      {tinyPeft(t, sequence), toyData(t, 4, 1), nil, "its labels are of a next token"},
		"classes for a language model":     {toy, rows, nil, "its labels are of a row, but the base is a language model"},
		"causal loss on a classifier":      {tinyPeft(t, sequence), rows, CausalLM{}, "train.CausalLM needs a causal language model"},
		"causal loss on an encoder":        {maskedPeft, toyData(t, 4, 1), nil, "train.CausalLM needs a causal language model, and the base bert is none"},
		"classification of a toy":          {toy, toyData(t, 4, 1), Classification{}, "train.Classification needs a classifier"},
		"another label":                    {tinyPeft(t, sequence), data(LabelRow, Example{IDs: []int32{1, 2}, Labels: []int32{1}}, "even", "strange"), nil, `its class 1 is "strange", which is no label of the base`},
		"another order":                    {tinyPeft(t, sequence), data(LabelRow, Example{IDs: []int32{1, 2}, Labels: []int32{1}}, "odd", "even"), nil, `its class 0 is "odd", but label 0 of the base is "even"`},
		"too many classes":                 {tinyPeft(t, sequence), data(LabelRow, Example{IDs: []int32{1, 2}, Labels: []int32{1}}, "even", "odd", "none", "more"), nil, "it has 4 classes, but the base has 3 labels"},
		"label out of range":               {tinyPeft(t, sequence), data(LabelRow, Example{IDs: []int32{1, 2}, Labels: []int32{3}}), nil, "example 0, label 0: it is 3, but the model has a number of labels of 3"},
		"too long":                         {tinyPeft(t, sequence), data(LabelRow, Example{IDs: make([]int32, 33), Labels: []int32{0}}), nil, "example 0 has 33 tokens, the model was made for 32 positions"},
	} {
		t.Run(name, func(t *testing.T) {
			args := classArguments(t)
			args.Loss = c.loss
			_, err := NewTrainer(c.pm, c.data, args)
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestClassDatasetErrors(t *testing.T) {
	for name, c := range map[string]struct {
		kind    LabelKind
		example Example
		want    string
	}{
		"kind":       {LabelNextToken, Example{IDs: []int32{1, 2}, Labels: []int32{1, 2}}, "labels of a next token"},
		"two":        {LabelRow, Example{IDs: []int32{1, 2}, Labels: []int32{0, 0}}, "2 ids and 2 labels; want 1, labels being of a row"},
		"too few":    {LabelToken, Example{IDs: []int32{1, 2}, Labels: []int32{0}}, "want 2, labels being of a token"},
		"class":      {LabelRow, Example{IDs: []int32{1, 2}, Labels: []int32{2}}, "label 2, but there are 2 classes"},
		"unlabelled": {LabelRow, Example{IDs: []int32{1, 2}, Labels: []int32{IgnoreIndex}}, "anything to learn"},
		"packed":     {LabelToken, Example{IDs: []int32{1, 2}, Labels: []int32{0, 0}, Starts: []int{0}}, "cannot be packed"},
	} {
		_, err := NewClassDataset(c.kind, []Example{c.example}, []string{"a", "b"})
		require.ErrorContains(t, err, c.want, name)
	}
	_, err := parityData(t, 4, LabelRow, 1).Pack(64)
	require.ErrorContains(t, err, "cannot be packed")
}

// Padding and the rows that fill the last batch change nothing.
func TestClassificationPadding(t *testing.T) {
	c := newTinyClassifier(t, false)
	examples := []Example{{IDs: []int32{4, 5, 6}, Labels: []int32{0}}, {IDs: []int32{7, 8, 9, 10, 11}, Labels: []int32{1}}, {IDs: []int32{12, 13}, Labels: []int32{2}}}
	loss := func(batch int, buckets []int) float64 {
		d, err := newClassDataset(LabelRow, examples, nil, Report{}, buckets)
		require.NoError(t, err)
		args := classArguments(t)
		args.PerDeviceEvalBatchSize = batch
		trainer, err := NewTrainer(tinyPeft(t, c), d, args)
		require.NoError(t, err)
		defer trainer.Close()
		e, err := trainer.Measure(t.Context(), d)
		require.NoError(t, err)
		require.False(t, math.IsNaN(e.Loss))
		return e.Loss
	}
	want := loss(1, []int{5})
	require.InDelta(t, want, loss(3, []int{5}), 1e-5)
	require.InDelta(t, want, loss(2, []int{16}), 1e-5)
	require.InDelta(t, want, loss(8, nil), 1e-5)
}

// bracketTokenizer puts a token after a sequence, too, as BERT's does.
type bracketTokenizer struct{ wordTokenizer }

func (t bracketTokenizer) Encode(text string, o tokenizer.EncodeOptions) []int32 {
	ids := t.wordTokenizer.Encode(text, o)
	if o.AddSpecialTokens {
		ids = append(ids, wordEOS)
	}
	return ids
}

const csvText = "id,text,category\n1,\"yes, please\",b\n2,\"two\nlines\",a\n3,no,b\n"

func TestReadCSV(t *testing.T) {
	d, err := readCSV(strings.NewReader("\ufeff"+csvText), "x.csv", bracketTokenizer{}, ClassOptions{})
	require.NoError(t, err)
	require.Equal(t, LabelRow, d.Kind())
	require.Equal(t, []string{"a", "b"}, d.Classes())
	require.Equal(t, 3, d.Len())
	require.Equal(t, []int32{1}, d.Example(0).Labels)
	require.Equal(t, []int32{0}, d.Example(1).Labels)
	require.Equal(t, Report{Examples: 3, Rows: 3, Tokens: d.Report().Tokens, Targets: 3}, d.Report())
	given, err := readCSV(strings.NewReader(csvText), "x.csv", bracketTokenizer{}, ClassOptions{Classes: []string{"b", "c", "a"}, TextColumn: "id"})
	require.NoError(t, err)
	require.Equal(t, []int32{2}, given.Example(1).Labels)

	// What is cut off leaves the special tokens around the text.
	cut, err := readCSV(strings.NewReader("text,label\none two three four,x\nfive,y\n"), "x.csv", bracketTokenizer{}, ClassOptions{MaxLength: 4})
	require.NoError(t, err)
	whole := bracketTokenizer{}.Encode("one two three four", tokenizer.EncodeOptions{AddSpecialTokens: true})
	require.Equal(t, []int32{whole[0], whole[1], whole[2], whole[len(whole)-1]}, cut.Example(0).IDs)
	require.Equal(t, 2, cut.Report().Truncated)
}

func TestCSVErrors(t *testing.T) {
	for name, c := range map[string]struct {
		text    string
		options ClassOptions
		want    string
	}{
		"empty":          {"", ClassOptions{}, "x.csv: data set is empty"},
		"header only":    {"text,label\n", ClassOptions{}, "x.csv: data set is empty"},
		"no text":        {"body,label\na,b\n", ClassOptions{}, `x.csv:1: want the column "text", found ["body" "label"]`},
		"no label":       {"text,tag\na,b\n", ClassOptions{}, `want the column "label" or "category"`},
		"named label":    {"text,label\na,b\n", ClassOptions{LabelColumn: "tag"}, `want the column "tag"`},
		"unknown label":  {"text,label\na,b\nc,d\n", ClassOptions{Classes: []string{"b"}}, `x.csv:3: label "d" is not among the 1 classes`},
		"class twice":    {"text,label\na,b\n", ClassOptions{Classes: []string{"b", "b"}}, `Classes has "b" twice`},
		"empty label":    {"text,label\na,\n", ClassOptions{}, "x.csv:2: the label is empty"},
		"empty text":     {"text,label\n ,b\n", ClassOptions{}, "x.csv:2: the text is empty"},
		"another number": {"text,label\na\n", ClassOptions{}, "x.csv: record on line 2: wrong number of fields"},
		"quote":          {"text,label\n\"a,b\n", ClassOptions{}, "x.csv: parse error on line 2"},
		"no UTF-8":       {"text,label\n\xff,b\n", ClassOptions{}, "x.csv:2: not valid UTF-8"},
		"short":          {"text,label\na,b\n", ClassOptions{MaxLength: 2}, "MaxLength is 2"},
		"bucket":         {"text,label\na b c d,b\n", ClassOptions{Buckets: []int{3}}, "raise the bucket"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := readCSV(strings.NewReader(c.text), "x.csv", bracketTokenizer{}, c.options)
			require.ErrorContains(t, err, c.want)
		})
	}
	_, err := LoadCSV(filepath.Join(t.TempDir(), "missing.csv"), bracketTokenizer{}, ClassOptions{})
	require.ErrorContains(t, err, "missing.csv")
}

func FuzzReadCSV(f *testing.F) {
	for _, seed := range []string{csvText, "text,label\n\"a\"\"b\",c\n", "text,category\r\na,b\r\n", "text\n", "\ufefftext,label\na,b\n"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := readCSV(strings.NewReader(text), "x.csv", bracketTokenizer{}, ClassOptions{})
		if err != nil {
			return
		}
		for i := range d.Len() {
			e := d.Example(i)
			require.Len(t, e.Labels, 1)
			require.Less(t, int(e.Labels[0]), len(d.Classes()))
		}
	})
}

func TestShortBuckets(t *testing.T) {
	for longest, want := range map[int][]int{2: {8}, 17: {16, 24}, 40: {16, 24, 32, 40}, 100: {16, 24, 32, 48, 64, 96, 104}} {
		require.Equal(t, want, shortBuckets(longest), longest)
	}
}
