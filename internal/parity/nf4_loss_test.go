package parity

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/models/tokenizer"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/quant"
	"github.com/gopeft/gopeft/train"
)

// The comparison of NF4's losses: so many tokens in a row, rows in a text, and steps.
const nf4Length, nf4Rows, nf4Steps = 160, 8, 6

// TestSmolLM2NF4Loss: NF4 costs a real chat model here what it costs with bitsandbytes, on
// several texts, before and after the same LoRA training.
func TestSmolLM2NF4Loss(t *testing.T) {
	dir, python := need(t, envSmolLM2), need(t, envPython)
	pairs := solved(t, need(t, envAssets, "gsm8k", "train.jsonl"), nf4Rows+4*nf4Steps)
	play, err := os.ReadFile(need(t, envAssets, "tinyshakespeare", "input.txt"))
	require.NoError(t, err)

	adapter, path := filepath.Join(t.TempDir(), "adapter"), filepath.Join(t.TempDir(), "rows.safetensors")
	names := []string{"gsm8k answers", "gsm8k whole", "tinyshakespeare"}
	var list []safetensors.Tensor
	losses := make([]float32, 0, 4*len(names))
	for _, scheme := range []quant.Scheme{nil, quant.NF4{DoubleQuant: true}} {
		m, err := models.Load(t.Context(), dir, models.Options{On: backendtest.Open(t), DType: dtypes.Float32, Quantization: scheme})
		require.NoError(t, err)
		whole := windows(t, m.Tokenizer, string(play[:nf4Length*nf4Rows*6]), nf4Length)
		texts := []*train.Dataset{
			chats(t, m.Tokenizer, pairs[:nf4Rows], true), chats(t, m.Tokenizer, pairs[:nf4Rows], false), subset(t, whole, 0, nf4Rows),
		}
		learned := chats(t, m.Tokenizer, pairs[nf4Rows:], true)
		config := lora.LoraConfig{R: 8, LoraAlpha: 16, TargetModules: peft.Modules("q_proj", "v_proj")}
		config.TaskType = "CAUSAL_LM"
		pm, err := peft.GetPeftModel(m, config, peft.Options{Seed: 1})
		require.NoError(t, err)
		if scheme == nil {
			require.NoError(t, pm.SavePretrained(adapter))
			for i, name := range names {
				list = append(list, tensorsOf(name, texts[i])...)
			}
			list = append(list, tensorsOf("train", learned)...)
		}
		losses = append(losses, measured(t, pm, texts, learned)...)
		require.NoError(t, m.Close())
	}
	data := make([]byte, 4*len(losses))
	require.NoError(t, safetensors.EncodeFloat32s(data, losses, safetensors.F32))
	list = append(list, safetensors.Tensor{Name: "go", DType: safetensors.F32, Shape: []int{2, len(names), 2}, Bytes: data})
	require.NoError(t, safetensors.Write(path, nil, list))
	for i, name := range names {
		n := 2 * len(names)
		t.Logf("%s: %.4f, NF4 %.4f; trained %.4f, NF4 %.4f", name, losses[2*i], losses[n+2*i], losses[2*i+1], losses[n+2*i+1])
		require.NotEqual(t, losses[2*i], losses[n+2*i])
		require.Less(t, losses[n+2*i], losses[2*i]*1.25, "%s: NF4 costs more than was ever seen", name)
	}
	require.Less(t, losses[2*len(names)+1], 0.95*losses[2*len(names)], "the training in NF4 learned little")
	var q questions
	q.ask(t, "check_nf4_loss", dir, adapter, path)
	q.answer(t, python)
}

// measured are the losses of each text before and after the training.
func measured(t *testing.T, pm *peft.PeftModel, texts []*train.Dataset, learned *train.Dataset) []float32 {
	trainer, err := train.NewTrainer(pm, learned, train.Arguments{
		OutputDir: t.TempDir(), MaxSteps: nf4Steps, PerDeviceTrainBatchSize: 4, PerDeviceEvalBatchSize: 4, LearningRate: 1e-3,
		LrSchedulerType: train.SchedulerConstant, MaxGradNorm: -1, NoShuffle: true, SaveStrategy: train.SaveNo, Quiet: true, Seed: 1,
	})
	require.NoError(t, err)
	defer trainer.Close()
	losses := make([]float32, 2*len(texts))
	for when := range 2 {
		if when == 1 {
			_, err := trainer.Train(t.Context())
			require.NoError(t, err)
		}
		for i, text := range texts {
			loss, err := trainer.Evaluate(t.Context(), text)
			require.NoError(t, err)
			losses[2*i+when] = float32(loss)
		}
	}
	return losses
}

// solved reads the first n questions with their answers.
func solved(t *testing.T, path string, n int) (pairs [][2]string) {
	file, err := os.Open(path)
	require.NoError(t, err)
	defer file.Close()
	for lines := bufio.NewScanner(file); len(pairs) < n && lines.Scan(); {
		var pair struct{ Question, Answer string }
		require.NoError(t, json.Unmarshal(lines.Bytes(), &pair))
		pairs = append(pairs, [2]string{pair.Question, pair.Answer})
	}
	require.Len(t, pairs, n)
	return pairs
}

// chats are questions and answers in the model's chat template, whose targets are the
// answers, or everything.
func chats(t *testing.T, tok *tokenizer.Tokenizer, pairs [][2]string, answers bool) *train.Dataset {
	var rows []train.Example
	for _, pair := range pairs {
		prompt, err := tok.ApplyChatTemplate([]tokenizer.Message{{Role: "user", Content: pair[0]}}, tokenizer.ChatOptions{AddGenerationPrompt: true})
		require.NoError(t, err)
		ids := tok.Encode(prompt+pair[1]+"<|im_end|>\n", tokenizer.EncodeOptions{})
		labels := append([]int32{}, ids...)
		if answers {
			for i := range tok.Encode(prompt, tokenizer.EncodeOptions{}) {
				labels[i] = train.IgnoreIndex
			}
		}
		for len(ids) < nf4Length { // all rows of one length need one program
			ids, labels = append(ids, 0), append(labels, train.IgnoreIndex)
		}
		rows = append(rows, train.Example{IDs: ids[:nf4Length], Labels: labels[:nf4Length]})
	}
	data, err := train.NewDataset(rows)
	require.NoError(t, err)
	return data
}

// tensorsOf are a data set's ids and labels.
func tensorsOf(name string, data *train.Dataset) []safetensors.Tensor {
	var ids, labels []byte
	for i := range data.Len() {
		for k, id := range data.Example(i).IDs {
			ids = binary.LittleEndian.AppendUint32(ids, uint32(id))
			labels = binary.LittleEndian.AppendUint32(labels, uint32(data.Example(i).Labels[k]))
		}
	}
	shape := []int{data.Len(), nf4Length}
	return []safetensors.Tensor{
		{Name: name + ".ids", DType: safetensors.I32, Shape: shape, Bytes: ids}, {Name: name + ".labels", DType: safetensors.I32, Shape: shape, Bytes: labels},
	}
}
