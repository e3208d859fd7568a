package prefixtuning_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/prefixtuning"
	"github.com/gopeft/gopeft/train"
)

// exampleBase is a small model with random weights.
func exampleBase() *models.Model {
	base, err := models.New(context.Background(), []byte(tinyLlama), 1, models.Options{Backend: "go"})
	if err != nil {
		log.Fatal(err)
	}
	return base
}

func Example() {
	base := exampleBase()
	defer base.Close()
	pm, err := peft.GetPeftModel(base, prefixtuning.PrefixTuningConfig{NumVirtualTokens: 20})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(pm.TrainableParameters())
	fmt.Println(pm.VirtualTokens(), "virtual tokens")
	// Output:
	// trainable params: 1,280 || all params: 20,896 || trainable%: 6.1256
	// 20 virtual tokens
}

func ExamplePrefixTuningConfig() {
	base := exampleBase()
	defer base.Close()
	// Trained through a network, which lies beside what it makes.
	pm, err := peft.GetPeftModel(base, prefixtuning.PrefixTuningConfig{NumVirtualTokens: 20, PrefixProjection: true, EncoderHiddenSize: 8})
	if err != nil {
		log.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "prefix")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := pm.SavePretrained(dir); err != nil {
		log.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, f := range files {
		fmt.Println(filepath.Base(f))
	}
	// Output:
	// README.md
	// adapter_config.json
	// adapter_model.safetensors
	// prompt_encoder.safetensors
}

func ExampleSetTokens() {
	base := exampleBase()
	defer base.Close()
	pm, err := peft.GetPeftModel(base, prefixtuning.PrefixTuningConfig{NumVirtualTokens: 3})
	if err != nil {
		log.Fatal(err)
	}
	// The model goes on from a text, here one of token ids, as if it had read it.
	text, prompt := []int32{5, 33, 7}, []int32{9, 14}
	if err := prefixtuning.SetTokens(pm, peft.DefaultAdapter, text); err != nil {
		log.Fatal(err)
	}
	options := models.GenerateOptions{MaxNewTokens: 4, StopTokens: []int32{}}
	after, err := models.NewGenerator(pm)
	if err != nil {
		log.Fatal(err)
	}
	with, err := after.Generate(context.Background(), [][]int32{prompt}, options)
	if err != nil {
		log.Fatal(err)
	}
	plain, err := models.NewGenerator(base)
	if err != nil {
		log.Fatal(err)
	}
	whole, err := plain.Generate(context.Background(), [][]int32{append(text, prompt...)}, options)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(fmt.Sprint(with[0].IDs) == fmt.Sprint(whole[0].IDs))
	// Output: true
}

func ExamplePromptTuningConfig() {
	base := exampleBase()
	defer base.Close()
	_, err := peft.GetPeftModel(base, prefixtuning.PromptTuningConfig{
		NumVirtualTokens: 8, PromptTuningInit: prefixtuning.InitText, PromptTuningInitText: "Is the mood of this text good or bad?",
	})
	fmt.Println(err)
	// Output: prompt_tuning: prompt text without tokenizer: set tokenizer_name_or_path to a folder with tokenizer.json (the base has none)
}

func ExamplePromptEncoderConfig() {
	base := exampleBase()
	defer base.Close()
	plan, err := peft.DryRun(base, prefixtuning.PromptEncoderConfig{NumVirtualTokens: 8, EncoderReparameterizationType: prefixtuning.LSTM})
	if err != nil {
		log.Fatal(err)
	}
	c := plan.Config.(prefixtuning.PromptEncoderConfig)
	fmt.Println(c.TokenDim, c.EncoderHiddenSize, c.EncoderNumLayers, plan.Count.Trainable)
	// Output: 32 32 2 48480
}

func ExampleMultitaskPromptTuningConfig() {
	base := exampleBase()
	defer base.Close()
	pm, err := peft.GetPeftModel(base, prefixtuning.MultitaskPromptTuningConfig{NumVirtualTokens: 8, NumTasks: 2})
	if err != nil {
		log.Fatal(err)
	}
	row := []int32{5, 9, 12, 9}
	data, err := train.NewDataset([]train.Example{{IDs: row, Labels: row, Task: new(int32(0))}, {IDs: row, Labels: row, Task: new(int32(1))}})
	if err != nil {
		log.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "multitask")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	trainer, err := train.NewTrainer(pm, data, train.Arguments{OutputDir: dir, MaxSteps: 2, PerDeviceTrainBatchSize: 2, LearningRate: 0.1, Quiet: true, SaveStrategy: train.SaveNo})
	if err != nil {
		log.Fatal(err)
	}
	defer trainer.Close()
	result, err := trainer.Train(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(result.GlobalStep, "steps")
	// Output: 2 steps
}
