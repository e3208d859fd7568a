package prefixtuning_test

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"testing"

	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/models/tokenizer"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/prefixtuning"
	"github.com/gopeft/gopeft/train"
)

// valuesOf are an adapter's tensors as it starts.
func valuesOf(t *testing.T, pm *peft.PeftModel) map[string][]float32 {
	t.Helper()
	values, err := pm.TensorValues(peft.DefaultAdapter)
	require.NoError(t, err)
	return values
}

func moments(values []float32) (mean, deviation float64) {
	for _, v := range values {
		mean += float64(v) / float64(len(values))
	}
	for _, v := range values {
		deviation += (float64(v) - mean) * (float64(v) - mean) / float64(len(values))
	}
	return mean, math.Sqrt(deviation)
}

func TestStarts(t *testing.T) {
	base := family(t, "llama")
	normal := func(values []float32, deviation float64) {
		t.Helper()
		mean, d := moments(values)
		require.InDelta(t, 0, mean, 0.1*deviation)
		require.InDelta(t, deviation, d, 0.1*deviation)
	}
	uniform := func(values []float32, bound float64) {
		t.Helper()
		_, d := moments(values)
		require.InDelta(t, bound/math.Sqrt(3), d, 0.1*bound)
		for _, v := range values {
			require.LessOrEqual(t, math.Abs(float64(v)), bound)
		}
	}
	normal(valuesOf(t, attach(t, base, prefixtuning.PrefixTuningConfig{NumVirtualTokens: 40}))["prompt_embeddings"], 1)
	normal(valuesOf(t, attach(t, base, prefixtuning.PromptTuningConfig{NumVirtualTokens: 40}))["prompt_embeddings"], 1)
	for _, v := range valuesOf(t, attach(t, base, prefixtuning.PrefixTuningConfig{NumVirtualTokens: 4, InitWeights: prefixtuning.InitZero}))["prompt_embeddings"] {
		require.Zero(t, v)
	}
	network := valuesOf(t, attach(t, base, prefixtuning.PrefixTuningConfig{NumVirtualTokens: 40, PrefixProjection: true, InitWeights: prefixtuning.InitZero}))
	normal(network["prompt_encoder.embedding.weight"], 1)
	uniform(network["prompt_encoder.transform.0.weight"], 1/math.Sqrt(16))
	for _, name := range []string{"weight", "bias"} {
		for _, v := range network["prompt_encoder.transform.2."+name] {
			require.Zero(t, v)
		}
	}
	lstm := valuesOf(t, attach(t, base, prefixtuning.PromptEncoderConfig{NumVirtualTokens: 40, EncoderReparameterizationType: prefixtuning.LSTM, EncoderHiddenSize: 20}))
	uniform(lstm["prompt_encoder.lstm_head.weight_ih_l0"], 1/math.Sqrt(20))
	uniform(lstm["prompt_encoder.lstm_head.bias_hh_l1_reverse"], 1/math.Sqrt(20))
	uniform(lstm["prompt_encoder.mlp_head.0.weight"], 1/math.Sqrt(40))
	tasks := valuesOf(t, attach(t, base, prefixtuning.MultitaskPromptTuningConfig{NumVirtualTokens: 40, NumTasks: 4, NumRanks: 3}))
	normal(tasks["prefix_task_cols"], 0.02)
	normal(tasks["prefix_task_rows"], 0.02)
}

// tinyTokenizer is a folder with a tokenizer that begins every text with a special token.
func tinyTokenizer(t *testing.T) string {
	return filepath.Join(basetest.Root(t), "models", "tokenizer", "testdata", "tiny", "bytelevel")
}

// A prompt of a text is the embeddings of its tokens, cut or repeated.
func TestStartsFromText(t *testing.T) {
	base := family(t, "gemma_untied") // whose embeddings have a scale
	tok, err := tokenizer.Load(tinyTokenizer(t))
	require.NoError(t, err)
	const text = "!#"
	ids := tok.Encode(text, tokenizer.EncodeOptions{AddSpecialTokens: true})
	require.Len(t, ids, 3)
	for _, n := range []int{2, 3, 7} {
		rows := make([]int, n)
		for i := range rows {
			rows[i] = int(ids[i%len(ids)])
		}
		want, err := peft.ReadRows(base, base.Words(), rows)
		require.NoError(t, err)
		for i := range want {
			want[i] *= float32(base.WordScale())
		}
		for _, c := range []peft.Config{
			prefixtuning.PromptTuningConfig{NumVirtualTokens: n, PromptTuningInit: prefixtuning.InitText, PromptTuningInitText: text, TokenizerNameOrPath: prefixtuning.Text(tinyTokenizer(t))},
			prefixtuning.MultitaskPromptTuningConfig{NumVirtualTokens: n, PromptTuningInit: prefixtuning.InitText, PromptTuningInitText: text, TokenizerNameOrPath: prefixtuning.Text(tinyTokenizer(t))},
		} {
			pm := attach(t, base, c)
			require.Equal(t, want, valuesOf(t, pm)["prompt_embeddings"])
			_, err = peft.LoadAdapter(base, save(t, pm))
			require.NoError(t, err)
		}
	}
	require.Greater(t, base.WordScale(), 1.0)
}

// Tokens of the vocabulary are embeddings of the base.
func TestStartsFromVocabulary(t *testing.T) {
	base := family(t, "llama")
	got := valuesOf(t, attach(t, base, prefixtuning.PromptTuningConfig{NumVirtualTokens: 5, PromptTuningInit: prefixtuning.InitSampleVocab}))["prompt_embeddings"]
	all := make([]int, base.VocabSize())
	for i := range all {
		all[i] = i
	}
	table, err := peft.ReadRows(base, base.Words(), all)
	require.NoError(t, err)
	for i := 0; i < len(got); i += 32 {
		found := false
		for row := 0; row < len(table); row += 32 {
			found = found || slices.Equal(got[i:i+32], table[row:row+32])
		}
		require.True(t, found, "row %d is no embedding", i/32)
	}
}

// A multitask prompt starts from another one's file, as in peft.
func TestStartsFromTasks(t *testing.T) {
	base := family(t, "llama")
	source := attach(t, base, prefixtuning.MultitaskPromptTuningConfig{NumVirtualTokens: 3, NumTasks: 3, NumRanks: 2})
	path := prefixtuning.Text(filepath.Join(save(t, source), mainFile))
	all := valuesOf(t, source)
	config := prefixtuning.MultitaskPromptTuningConfig{NumVirtualTokens: 3, NumRanks: 2, PromptTuningInitStateDictPath: path, PromptTuningInitTask: 2}

	config.PromptTuningInit = prefixtuning.InitExactSourceTask
	exact := valuesOf(t, attach(t, base, config))
	require.Equal(t, all["prompt_embeddings"], exact["prompt_embeddings"])
	require.Equal(t, all["prefix_task_cols"][2*6:], exact["prefix_task_cols"])
	require.Equal(t, all["prefix_task_rows"][2*64:], exact["prefix_task_rows"])

	config.PromptTuningInit = prefixtuning.InitAverageSourceTasks
	pm := attach(t, base, config)
	average := valuesOf(t, pm)
	for i, got := range average["prefix_task_cols"] {
		require.InDelta(t, (all["prefix_task_cols"][i]+all["prefix_task_cols"][6+i]+all["prefix_task_cols"][12+i])/3, got, 1e-7)
	}
	// The file reads without the source.
	_, err := peft.LoadAdapter(base, save(t, pm))
	require.NoError(t, err)

	config.PromptTuningInit, config.NumTasks = prefixtuning.InitOnlySourceShared, 5
	shared := valuesOf(t, attach(t, base, config))
	require.Equal(t, all["prompt_embeddings"], shared["prompt_embeddings"])
	require.Len(t, shared["prefix_task_cols"], 5*6)

	config.PromptTuningInit, config.NumTasks, config.PromptTuningInitTask = prefixtuning.InitExactSourceTask, 1, 3
	_, err = peft.GetPeftModel(base, config)
	require.ErrorContains(t, err, "prompt_tuning_init_task is 3, but it has 3 tasks")
	config.PromptTuningInitTask, config.NumRanks = 0, 1
	_, err = peft.GetPeftModel(base, config)
	require.ErrorContains(t, err, "want shape")
}

// Several tasks want to be told apart, and those that do not exist make no numbers.
func TestTasks(t *testing.T) {
	base := family(t, "llama")
	pm := attach(t, base, prefixtuning.MultitaskPromptTuningConfig{NumVirtualTokens: 3, NumTasks: 2})
	ids := tensors.FromValue([][]int32{texts[0], texts[0]})
	scores := func(tasks ...int32) []float32 {
		return run(t, pm, input{ids: ids, tasks: tensors.FromValue(tasks)}).scores
	}
	mixed, zero, one := scores(0, 1), scores(0, 0), scores(1, 1)
	half := len(mixed) / 2
	basetest.RequireClose(t, zero[:half], mixed[:half], 1e-6, "task 0")
	basetest.RequireClose(t, one[half:], mixed[half:], 1e-6, "task 1")
	require.NotEqual(t, zero, one)
	for _, wrong := range []int32{2, -1} {
		require.True(t, math.IsNaN(float64(scores(0, wrong)[half])))
	}
	generator, err := models.NewGenerator(pm)
	require.NoError(t, err)
	defer generator.Close()
	_, err = generator.Generate(t.Context(), texts[:1], models.GenerateOptions{MaxNewTokens: 1})
	require.ErrorContains(t, err, "multitask_prompt_tuning: the adapter has 2 tasks, but the batch has no task ids")
	_, err = generator.Generate(t.Context(), texts[:1], models.GenerateOptions{MaxNewTokens: 1, Tasks: []int32{0, 1}})
	require.ErrorContains(t, err, "2 tasks of 1 prompts")
	_, err = generator.Generate(t.Context(), texts[:2], models.GenerateOptions{MaxNewTokens: 1, Tasks: []int32{0, 2}})
	require.ErrorContains(t, err, "prompt 1: task 2, but the adapters know 2 tasks")
	_, err = generator.Generate(t.Context(), [][]int32{long(base.MaxPositions() - 3)}, models.GenerateOptions{Tasks: []int32{0}})
	require.ErrorContains(t, err, fmt.Sprintf("leaves no room: the model has %d positions, 3 of which the adapters take", base.MaxPositions()))

	for task, want := range map[int32]string{-1: "example 0 has no task, but the adapters know 2", 2: "example 0: task 2, but the adapters know 2 tasks"} {
		example := train.Example{IDs: texts[0], Labels: texts[0]}
		if task >= 0 {
			example.Task = &task
		}
		data, err := train.NewDataset([]train.Example{example})
		require.NoError(t, err)
		_, err = train.NewTrainer(pm, data, train.Arguments{OutputDir: t.TempDir(), MaxSteps: 1, Quiet: true})
		require.ErrorContains(t, err, want)
	}
	plan, err := pm.Plan(peft.DefaultAdapter)
	require.NoError(t, err)
	require.Contains(t, plan.String(), "3 virtual tokens before those of every row\n")
}
