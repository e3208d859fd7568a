package train_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/train"
)

// Teaches a tiny model with random weights to count, saves checkpoints on the way
// and goes on from one.
func ExampleNewTrainer() {
	ctx := context.Background()
	config := `{"model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32,
		"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}`
	model, err := models.New(ctx, []byte(config), 1, models.Options{Backend: "go"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer model.Close()

	var examples []train.Example
	for i := range int32(16) {
		var ids []int32
		for j := range int32(16) {
			ids = append(ids, i+j)
		}
		examples = append(examples, train.Example{IDs: ids, Labels: ids})
	}
	data, err := train.NewDataset(examples)
	if err != nil {
		fmt.Println(err)
		return
	}

	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	args := train.Arguments{
		OutputDir: filepath.Join(dir, "results"), Quiet: true,
		NumTrainEpochs: 20, PerDeviceTrainBatchSize: 8, LearningRate: 2e-2,
		SaveStrategy: train.SaveSteps, SaveSteps: 10, SaveTotalLimit: 2,
	}
	// A new adapter that starts where the same seed always starts.
	run := func(args train.Arguments) (*train.Result, error) {
		pm, err := peft.GetPeftModel(model, lora.LoraConfig{R: 4, LoraAlpha: 8, TargetModules: peft.AllLinear})
		if err != nil {
			return nil, err
		}
		trainer, err := train.NewTrainer(pm, data, args)
		if err != nil {
			return nil, err
		}
		defer trainer.Close()
		return trainer.Train(ctx)
	}
	result, err := run(args)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(result.GlobalStep, "steps, last checkpoint", filepath.Base(result.Checkpoint))

	args.ResumeFromCheckpoint = filepath.Join(args.OutputDir, "checkpoint-30")
	resumed, err := run(args)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("the same after resuming:", resumed.TrainingLoss == result.TrainingLoss)
	// Output:
	// 40 steps, last checkpoint checkpoint-40
	// the same after resuming: true
}
