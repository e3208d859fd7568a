package parity

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/models/tokenizer"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/quant"
	"github.com/gopeft/gopeft/train"
)

// configs have rows of whole blocks: bitsandbytes 0.50.2 dequantises others wrongly on some CPUs.
var configs = map[string]string{
	"llama": `{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 64, "intermediate_size": 128,
		"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "dtype": "float32",
		"tie_word_embeddings": false, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}`,
	"gpt2": `{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 64, "n_embd": 64, "n_inner": 128, "n_layer": 2, "n_head": 4,
		"n_positions": 128, "dtype": "float32", "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2,
		"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}`,
}

// TestPythonReadsQuantised: transformers loads what Quantise wrote and computes the same,
// and bitsandbytes makes the same tensors of the same weights.
func TestPythonReadsQuantised(t *testing.T) {
	python := need(t, envPython)
	var q questions
	for _, c := range []struct {
		name, family string
		scheme       quant.Scheme
	}{
		{"nf4", "llama", quant.NF4{DoubleQuant: true}},
		{"nf4 but some", "llama", quant.NF4{Skip: []string{"layers.0.self_attn.q_proj", "down_proj"}}},
		{"fp4", "llama", quant.FP4{}},
		{"int8", "llama", quant.INT8{}},
		{"nf4 of Conv1D", "gpt2", quant.NF4{DoubleQuant: true}},
	} {
		base, dir, answer := filepath.Join(t.TempDir(), "base"), filepath.Join(t.TempDir(), "out"), filepath.Join(t.TempDir(), "answer.safetensors")
		m, err := models.New(t.Context(), []byte(configs[c.family]), 5, models.Options{On: backendtest.Open(t), DType: dtypes.Float32})
		require.NoError(t, err, c.name)
		require.NoError(t, m.Export(t.Context(), base, nil))
		require.NoError(t, m.Close())
		report, err := models.Quantise(t.Context(), base, dir, c.scheme)
		require.NoError(t, err, c.name)
		t.Logf("%s: %s", c.name, report)
		ids := [][]int32{{3, 9, 4, 27, 11, 60}, {5, 6, 7, 8, 33, 12}}
		writeAnswer(t, answer, ids, forward(t, basetest.Load(t, dir), ids))
		q.ask(t, "check_quantised", dir, answer, base)
	}
	t.Run("python", func(t *testing.T) { q.answer(t, python) })
}

// worse is by how much, relative, a held-out loss may be larger in NF4, before and after a
// training: what QLoRA is expected to cost.
const worse = 0.03

// task is a text to learn, and how.
type task struct {
	rest, eval *train.Dataset
	arguments  train.Arguments
	lora       lora.LoraConfig
}

// TestStoriesNF4: stories260K in NF4 is nearly the model that it was, and learns as much.
func TestStoriesNF4(t *testing.T) {
	dir := need(t, envAssets, "stories260K", "hf")
	text, err := os.ReadFile(need(t, envAssets, "tinyshakespeare", "input.txt"))
	require.NoError(t, err)
	compareNF4(t, dir, func(m *models.Model) task {
		all := windows(t, m.Tokenizer, string(text[:200_000]), 64)
		return task{
			rest: subset(t, all, 32, 352), eval: subset(t, all, 0, 32),
			arguments: train.Arguments{MaxSteps: 60, PerDeviceTrainBatchSize: 4, LearningRate: 5e-3},
			lora:      lora.LoraConfig{R: 8, LoraAlpha: 16, TargetModules: peft.AllLinear},
		}
	})
}

// TestSmolLM2NF4: a real chat model in NF4 is what bitsandbytes makes of it. (It loses more
// than stories260K does, with either library: see docs/quant.md.)
func TestSmolLM2NF4(t *testing.T) {
	smolQuantised(t, need(t, envSmolLM2), need(t, envPython))
}

// smolQuantised converts the model for Python to compare its logits, and to convert it, too.
func smolQuantised(t *testing.T, dir, python string) {
	var golden []smolAnswer
	readJSON(t, filepath.Join(dir, "golden.json"), &golden)
	to, answer := filepath.Join(t.TempDir(), "out"), filepath.Join(t.TempDir(), "answer.safetensors")
	report, err := models.Quantise(t.Context(), dir, to, quant.NF4{DoubleQuant: true})
	require.NoError(t, err)
	t.Log(report)
	ids := [][]int32{golden[0].IDs}
	writeAnswer(t, answer, ids, forward(t, basetest.Load(t, to), ids))
	var q questions
	q.ask(t, "check_quantised", to, answer, dir, "--tolerance", "1e-3")
	q.answer(t, python)
}

// compareNF4 trains a model and what NF4 with double quantisation makes of it.
func compareNF4(t *testing.T, dir string, prepare func(*models.Model) task) {
	losses := map[bool][2]float64{}
	for _, quantised := range []bool{false, true} {
		o := models.Options{On: backendtest.Open(t), DType: dtypes.Float32}
		if quantised {
			o.Quantization = quant.NF4{DoubleQuant: true}
		}
		m, err := models.Load(t.Context(), dir, o)
		require.NoError(t, err)
		losses[quantised] = learn(t, m, prepare(m))
		require.NoError(t, m.Close())
	}
	full, few := losses[false], losses[true]
	t.Logf("held-out loss before training: %.4f, in NF4 %.4f (%+.2f %%)", full[0], few[0], 100*(few[0]/full[0]-1))
	t.Logf("held-out loss after training: %.4f, in NF4 %.4f (%+.2f %%)", full[1], few[1], 100*(few[1]/full[1]-1))
	require.NotEqual(t, full[0], few[0])
	require.Less(t, few[0], full[0]*(1+worse))
	require.Less(t, few[1], full[1]*(1+worse))
	require.Less(t, few[1], 0.9*few[0], "the training learned little")
}

// learn returns the held-out losses before and after a training.
func learn(t *testing.T, m *models.Model, job task) [2]float64 {
	job.lora.TaskType = "CAUSAL_LM"
	pm, err := peft.GetPeftModel(m, job.lora, peft.Options{Seed: 1})
	require.NoError(t, err)
	a := job.arguments
	a.OutputDir, a.Seed, a.LrSchedulerType, a.SaveStrategy, a.Quiet = t.TempDir(), 1, train.SchedulerConstant, train.SaveNo, true
	a.EvalDataset, a.PerDeviceEvalBatchSize = job.eval, a.PerDeviceTrainBatchSize
	trainer, err := train.NewTrainer(pm, job.rest, a)
	require.NoError(t, err)
	defer trainer.Close()
	before, err := trainer.Evaluate(t.Context(), job.eval)
	require.NoError(t, err)
	result, err := trainer.Train(t.Context())
	require.NoError(t, err)
	return [2]float64{before, result.Evaluations[len(result.Evaluations)-1].Loss}
}

// windows cuts a text into rows of so many tokens.
func windows(t *testing.T, tok *tokenizer.Tokenizer, text string, length int) *train.Dataset {
	var rows []train.Example
	for row := range slices.Chunk(tok.Encode(text, tokenizer.EncodeOptions{}), length) {
		if len(row) == length {
			rows = append(rows, train.Example{IDs: row, Labels: row})
		}
	}
	data, err := train.NewDataset(rows)
	require.NoError(t, err)
	return data
}

func subset(t *testing.T, all *train.Dataset, from, to int) *train.Dataset {
	var rows []train.Example
	for i := from; i < to; i++ {
		rows = append(rows, all.Example(i))
	}
	data, err := train.NewDataset(rows)
	require.NoError(t, err)
	return data
}
