package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/models/tokenizer"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/train"
)

// settings is one pretraining; the flags of the command.
type settings struct {
	Out, Backend  string
	Stories, Held int
	Vocabulary    int
	Steps, Batch  int
	LearningRate  float64
	Seed          uint64
	Progress      io.Writer
}

// positions is max_position_embeddings, and the length of a row of training data.
const positions = 256

// config is config.json: a Llama small enough for the repository.
func config(vocabulary int) ([]byte, error) {
	return json.MarshalIndent(object{
		"architectures": []string{"LlamaForCausalLM"}, "model_type": "llama", "dtype": "float32",
		"vocab_size": vocabulary, "hidden_size": 96, "intermediate_size": 160,
		"num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16,
		"hidden_act": "silu", "max_position_embeddings": positions, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
		"attention_bias": false, "mlp_bias": false, "attention_dropout": 0.0, "tie_word_embeddings": true,
		"bos_token_id": bosID, "eos_token_id": eosID, "initializer_range": 0.05, "use_cache": true,
	}, "", "  ")
}

// pretrain makes the text, the tokenizer and the model and writes the folder. It
// returns the loss on stories that were held out.
func pretrain(ctx context.Context, s settings) (float64, error) {
	work, err := os.MkdirTemp("", "gopeft-pretrain")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(work)
	texts := stories(s.Seed, s.Stories)
	if err := makeTokenizer(work, texts, s.Vocabulary); err != nil {
		return 0, err
	}
	tok, err := tokenizer.Load(work)
	if err != nil {
		return 0, err
	}
	data, err := dataset(tok, texts)
	if err != nil {
		return 0, err
	}
	held, err := heldOut(tok, s)
	if err != nil {
		return 0, err
	}
	configJSON, err := config(s.Vocabulary)
	if err != nil {
		return 0, err
	}
	model, err := models.New(ctx, configJSON, s.Seed, models.Options{Backend: s.Backend})
	if err != nil {
		return 0, err
	}
	defer model.Close()
	model.Tokenizer = tok

	pm, err := peft.GetPeftModel(model, peft.Full{})
	if err != nil {
		return 0, err
	}
	trainer, err := train.NewTrainer(pm, data, train.Arguments{
		OutputDir: filepath.Join(work, "run"), MaxSteps: s.Steps, PerDeviceTrainBatchSize: s.Batch, Seed: s.Seed,
		LearningRate: s.LearningRate, LrSchedulerType: train.SchedulerCosine, WarmupRatio: 0.05, WeightDecay: 0.01, AdamBeta2: 0.98,
		EvalDataset: held, SaveStrategy: train.SaveNo, Progress: s.Progress,
	})
	if err != nil {
		return 0, err
	}
	defer trainer.Close()
	result, err := trainer.Train(ctx)
	if err != nil {
		return 0, err
	}
	loss := result.Evaluations[len(result.Evaluations)-1].Loss
	if _, err := pm.Merge(ctx, s.Out); err != nil {
		return 0, err
	}
	return loss, writeExtras(s, model.Backend().Name(), loss, result)
}

// dataset tokenises stories, each with <s> and </s>, several to a row.
func dataset(tok *tokenizer.Tokenizer, texts []string) (*train.Dataset, error) {
	examples := make([]train.Example, len(texts))
	for i, text := range texts {
		ids := append(tok.Encode(text, tokenizer.EncodeOptions{AddSpecialTokens: true}), eosID)
		examples[i] = train.Example{IDs: ids, Labels: ids}
	}
	data, err := train.NewDataset(examples)
	if err != nil {
		return nil, err
	}
	return data.Pack(positions)
}

// heldOut makes stories of another seed than those that are learned.
func heldOut(tok *tokenizer.Tokenizer, s settings) (*train.Dataset, error) {
	return dataset(tok, stories(s.Seed+1, s.Held))
}

// writeExtras adds what belongs into a model folder besides what Merge writes.
func writeExtras(s settings, backend string, loss float64, result *train.Result) error {
	generation := fmt.Sprintf("{\n  \"bos_token_id\": %d,\n  \"eos_token_id\": %d\n}\n", bosID, eosID)
	if err := os.WriteFile(filepath.Join(s.Out, "generation_config.json"), []byte(generation), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.Out, "README.md"), []byte(readme(s, backend, loss, result)), 0o644)
}
