package adapters_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/gopeft/gopeft/adapters"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
)

// Vectors on keys, values and the inputs of the last feed-forward layer, peft's default, in a
// model of Llama-3.2-3B's shape.
func ExampleIA3Config() {
	base := basetest.Llama(3072, 28, 24, 8, 128, 8192, 128256)
	plan, err := peft.DryRun(base, adapters.IA3Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(plan.Count)
	for _, target := range plan.Targets[:3] {
		fmt.Println(target.Module.Path, target.Settings[0].Value, target.Parameters)
	}
	// Output:
	// trainable params: 286,720 || all params: 3,213,036,544 || trainable%: 0.0089
	// model.layers.0.self_attn.k_proj outputs 1024
	// model.layers.0.self_attn.v_proj outputs 1024
	// model.layers.0.mlp.down_proj inputs 8192
}

// A feed-forward module that is no target would have no effect.
func ExampleIA3Config_feedforward() {
	base := basetest.Llama(64, 2, 4, 2, 16, 128, 100)
	_, err := peft.DryRun(base, adapters.IA3Config{
		TargetModules:      peft.Modules("q_proj", "up_proj"),
		FeedforwardModules: peft.Modules("up_porj"),
	})
	fmt.Println(err)
	// Output:
	// ia3: feedforward_modules: "up_porj" is not among target_modules ["q_proj","up_proj"]; did you mean "up_proj"?
}

// Adapters after both sublayers of each block, of 16 features each, with another width in the
// first block and none in the last.
func ExampleHoulsby() {
	base, err := models.NewBlueprint([]byte(`{"model_type": "bert", "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12,
		"num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 512}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	config := adapters.Houlsby()
	config.ReductionFactor = adapters.ReductionFactor{Default: 48, Layers: map[int]float64{0: 12}}
	config.LeaveOut = []int{11}
	plan, err := peft.DryRun(base, config)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, target := range plan.Targets[:3] {
		fmt.Println(target.Module.Path, target.Settings[0].Value, target.Parameters)
	}
	fmt.Println(plan.Count)

	config.ReductionFactor = adapters.ReductionFactor{Default: 0.5}
	_, err = peft.DryRun(base, config)
	fmt.Println(err)
	// Output:
	// bert.encoder.layer.0.attention.output 64 99136
	// bert.encoder.layer.0.output 64 99136
	// bert.encoder.layer.1.attention.output 16 25360
	// trainable params: 705,472 || all params: 110,219,770 || trainable%: 0.6401
	// bottleneck: "bert.encoder.layer.0.attention.output": reduction_factor 0.5 gives a bottleneck of 1536 features, wider than the layer's 768
}

// Open an adapter that AdapterHub's Python library saved, with its classification head, and
// write it in the format of this library.
func ExampleLoadAdapterHub() {
	const testdata = "../internal/golden/testdata/"
	base, err := models.LoadClassifier(context.Background(), testdata+"encoders/bert_sequence", models.ClassifierOptions{Options: models.Options{Backend: "go"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer base.Close()
	pm, err := adapters.LoadAdapterHub(base, testdata+"bottleneck/bert-pfeiffer")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(pm.Active(), pm.TrainableParameters())

	dir, err := os.MkdirTemp("", "adapterhub")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	if err := pm.SavePretrained(dir); err != nil {
		fmt.Println(err)
		return
	}
	again, err := peft.LoadAdapter(base, filepath.Join(dir, "task"), peft.Options{Name: "task"})
	fmt.Println(again.Active(), err)
	// Output:
	// [task] trainable params: 347 || all params: 6,318 || trainable%: 5.4922
	// [task] <nil>
}
