package peft_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	_ "github.com/gomlx/compute/gobackend"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/ml/layers"
	"github.com/gomlx/gomlx/ml/model"

	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/train"
)

// perceptron is an ordinary GoMLX model: [batch, 2] -> [batch, 1].
func perceptron(scope *model.Scope, inputs []*graph.Node) []*graph.Node {
	x := graph.Tanh(layers.DenseWithBias(scope.In("hidden"), inputs[0], 16))
	return []*graph.Node{layers.DenseWithBias(scope.In("readout"), x, 1)}
}

// Attach a LoRA to a GoMLX model that was written without this library, train it, and
// merge it into a copy of the model's store.
func ExampleWrapModel() {
	backend, err := compute.NewWithConfig("go:ops_sequential")
	if err != nil {
		log.Fatal(err)
	}
	store := model.NewStore() // where the trained weights would be
	store.SetParam("/initializer_seed", int64(1))

	base, err := peft.WrapModel(backend, store, perceptron, []shapes.Shape{shapes.Make(dtypes.Float32, 1, 2)})
	if err != nil {
		log.Fatal(err)
	}
	defer base.Close()
	for _, m := range base.Modules() {
		fmt.Println(m.Path, m.Kind, m.In, m.Out)
	}
	pm, err := peft.GetPeftModel(base, lora.LoraConfig{R: 4, LoraAlpha: 8, TargetModules: peft.AllLinear})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(pm.TrainableParameters())

	var x, y []float32 // y = x0·x1
	for i := range 64 {
		a, b := float32(i%8)/4-1, float32(i/8)/4-1
		x, y = append(x, a, b), append(y, a*b)
	}
	data, err := train.NewArrays([]train.Array{train.Floats(x, 64, 2)}, []train.Array{train.Floats(y, 64, 1)})
	if err != nil {
		log.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "wrap")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	trainer, err := train.NewTrainer(pm, data, train.Arguments{
		OutputDir: dir, Loss: train.MeanSquaredError{}, NumTrainEpochs: 60, LearningRate: 0.02, SaveStrategy: train.SaveNo, Quiet: true,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer trainer.Close()
	ctx := context.Background()
	before, err := trainer.Evaluate(ctx, data)
	if err != nil {
		log.Fatal(err)
	}
	if _, err = trainer.Train(ctx); err != nil {
		log.Fatal(err)
	}
	after, err := trainer.Evaluate(ctx, data)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("learned:", after < before/10)

	_, report, err := base.Merged(pm)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("merged tensors:", len(report.Tensors))
	// Output:
	// hidden.dense linear 2 16
	// readout.dense linear 16 1
	// trainable params: 140 || all params: 205 || trainable%: 68.2927
	// learned: true
	// merged tensors: 2
}
