package parity

import (
	"math"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/models/tokenizer"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/train"
)

// smolAnswer is one entry of golden.json: what transformers made of a question.
type smolAnswer struct {
	Question   string
	Prompt     string
	IDs        []int32
	Logits     []float32 `json:"last_logits_16"`
	Argmax     int       `json:"last_argmax"`
	Greedy     []int32   `json:"greedy_40"`
	GreedyText string    `json:"greedy_text"`
}

// TestSmolLM2: a real chat model says here what it says in transformers, and learns.
func TestSmolLM2(t *testing.T) {
	need(t, envPython) // other suites have envSmolLM2 too; on the Go backend this would take an hour
	dir := need(t, envSmolLM2)
	var golden []smolAnswer
	readJSON(t, filepath.Join(dir, "golden.json"), &golden)
	require.Len(t, golden, 3)
	m := basetest.Load(t, dir)
	require.NotNil(t, m.Tokenizer)
	t.Run("tokenizer", func(t *testing.T) { smolTokenizer(t, m.Tokenizer, golden) })
	t.Run("logits", func(t *testing.T) { smolLogits(t, m, golden) })
	t.Run("greedy", func(t *testing.T) { smolGreedy(t, m, golden) })
	t.Run("lora", func(t *testing.T) { smolTraining(t, m, dir, golden[0].IDs) })
}

func smolTokenizer(t *testing.T, tok *tokenizer.Tokenizer, golden []smolAnswer) {
	for _, g := range golden {
		prompt, err := tok.ApplyChatTemplate([]tokenizer.Message{{Role: "user", Content: g.Question}}, tokenizer.ChatOptions{AddGenerationPrompt: true})
		require.NoError(t, err)
		require.Equal(t, g.Prompt, prompt)
		require.Equal(t, g.IDs, tok.Encode(prompt, tokenizer.EncodeOptions{}))
		require.Equal(t, g.GreedyText, tok.Decode(g.Greedy, tokenizer.DecodeOptions{}))
	}
}

// smolLogits compares the logits after the last token of each prompt, within 1e-3.
func smolLogits(t *testing.T, m *models.Model, golden []smolAnswer) {
	longest := 0
	for _, g := range golden {
		longest = max(longest, len(g.IDs))
	}
	// Padding on the right is what no token sees.
	rows := make([][]int32, len(golden))
	for i, g := range golden {
		rows[i] = make([]int32, longest)
		copy(rows[i], g.IDs)
	}
	all, worst := basetest.Flat(t, forward(t, m, rows)), 0.0
	for i, g := range golden {
		vocabulary := m.VocabSize()
		last := all[(i*longest+len(g.IDs)-1)*vocabulary:][:vocabulary]
		best := 0
		for id, logit := range last {
			if logit > last[best] {
				best = id
			}
		}
		require.Equal(t, g.Argmax, best, g.Question)
		require.Len(t, g.Logits, 16)
		for id, want := range g.Logits {
			off := math.Abs(float64(last[id] - want))
			worst = max(worst, off)
			require.LessOrEqual(t, off, 1e-3, "%s: logit %d is %v, Python's %v", g.Question, id, last[id], want)
		}
	}
	t.Logf("last logits: largest difference %.2g", worst)
}

// smolGreedy compares the most probable continuation of each prompt alone and of all
// together, up to the end token or 40 tokens.
func smolGreedy(t *testing.T, m *models.Model, golden []smolAnswer) {
	g, err := models.NewGenerator(m)
	require.NoError(t, err)
	options := models.GenerateOptions{MaxNewTokens: 40, KeepSpecialTokens: true}
	var prompts [][]int32
	for _, want := range golden {
		prompts = append(prompts, want.IDs)
		out, err := g.Generate(t.Context(), [][]int32{want.IDs}, options)
		require.NoError(t, err)
		require.Equal(t, want.Greedy, out[0].IDs, "%s: %q", want.Question, out[0].Text)
	}
	out, err := g.Generate(t.Context(), prompts, options)
	require.NoError(t, err)
	for i, want := range golden {
		require.Equal(t, want.Greedy, out[i].IDs, "in a batch: %s: %q", want.Question, out[i].Text)
		t.Logf("%s -> %q", want.Question, out[i].Text)
	}
}

// smolTraining makes 20 LoRA steps (r 8 on q_proj and v_proj, 4 x 128) on GSM8K; the
// held-out loss must fall, and Python must read the adapter.
func smolTraining(t *testing.T, m *models.Model, dir string, ids []int32) {
	text := need(t, envAssets, "gsm8k", "train.jsonl")
	all, err := train.LoadJSONL(text, m.Tokenizer, train.DataOptions{
		MaxLength: 128, Fields: []string{"question", "answer"}, Separator: "\n", Buckets: []int{128},
	})
	require.NoError(t, err)
	rest, held, err := all.Split(0.1, 1)
	require.NoError(t, err)
	var few []train.Example
	for i := range 32 {
		few = append(few, held.Example(i))
	}
	eval, err := train.NewDataset(few)
	require.NoError(t, err)
	config := lora.LoraConfig{R: 8, LoraAlpha: 16, TargetModules: peft.Modules("q_proj", "v_proj")}
	config.TaskType = "CAUSAL_LM"
	pm, err := peft.GetPeftModel(m, config, peft.Options{Seed: 1})
	require.NoError(t, err)
	trainer, err := train.NewTrainer(pm, rest, train.Arguments{
		OutputDir: t.TempDir(), MaxSteps: 20, PerDeviceTrainBatchSize: 4, LearningRate: 1e-3, Seed: 1,
		LrSchedulerType: train.SchedulerConstant, EvalDataset: eval, PerDeviceEvalBatchSize: 4,
		SaveStrategy: train.SaveNo, Quiet: true,
	})
	require.NoError(t, err)
	defer trainer.Close()
	before, err := trainer.Evaluate(t.Context(), eval)
	require.NoError(t, err)
	result, err := trainer.Train(t.Context())
	require.NoError(t, err)
	after := result.Evaluations[len(result.Evaluations)-1].Loss
	t.Logf("held-out loss %.4f -> %.4f in %d steps, %.0f s", before, after, result.GlobalStep, result.Seconds)
	// 1.65 -> 1.15 was seen.
	require.Less(t, after, before-0.2, "the held-out loss did not fall")

	adapter, answer := t.TempDir(), filepath.Join(t.TempDir(), "answer.safetensors")
	require.NoError(t, pm.SavePretrained(adapter))
	writeAnswer(t, answer, [][]int32{ids}, forward(t, pm, [][]int32{ids}))
	t.Run("python", func(t *testing.T) {
		var q questions
		q.ask(t, "check_adapter", dir, adapter, answer)
		q.answer(t, need(t, envPython))
	})
}
