package lora_test

import (
	"context"
	"fmt"
	"log"

	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
)

// Make one adapter of two: all of the first, and half of the second taken away.
func ExampleAddWeightedAdapter() {
	base, err := models.Load(context.Background(), "../internal/golden/testdata/families/llama", models.Options{Backend: "go"})
	if err != nil {
		log.Fatal(err)
	}
	defer base.Close()
	config := lora.LoraConfig{R: 4, InitLoraWeights: lora.InitRandom}
	pm, err := peft.GetPeftModel(base, config, peft.Options{Name: "style", Seed: 1})
	if err != nil {
		log.Fatal(err)
	}
	if err := pm.AddAdapter(config, peft.Options{Name: "length", Seed: 2}); err != nil {
		log.Fatal(err)
	}
	sum := lora.Combination{Adapters: []string{"style", "length"}, Weights: []float64{1, -0.5}}
	report, err := lora.AddWeightedAdapter(pm, "both", sum)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("rank", report.Rank, "is exact:", report.Frobenius < 1e-6*report.Norm)

	sum.Type = lora.SVD
	report, err = lora.AddWeightedAdapter(pm, "smaller", sum)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("rank %d loses a share of %.1f\n", report.Rank, report.Frobenius/report.Norm)
	fmt.Println(pm.Adapters())
	// Output:
	// rank 8 is exact: true
	// rank 4 loses a share of 0.3
	// [style length both smaller]
}

// Let the data decide which modules get how much of the rank, and where A starts.
func ExampleCalibrateEVA() {
	ctx := context.Background()
	base, err := models.Load(ctx, "../internal/golden/testdata/families/llama", models.Options{Backend: "go"})
	if err != nil {
		log.Fatal(err)
	}
	defer base.Close()
	batch := lora.Batch{}
	for row := range int32(8) { // token ids of some training examples
		ids := make([]int32, 16)
		for i := range ids {
			ids[i] = 3 + (7*row+int32(i*i))%60
		}
		batch.IDs = append(batch.IDs, ids)
	}
	config := lora.LoraConfig{R: 4, TargetModules: peft.Modules("o_proj", "down_proj")}
	config, err = lora.CalibrateEVA(ctx, base, config, []lora.Batch{batch}, lora.EvaConfig{})
	if err != nil {
		log.Fatal(err)
	}
	for _, p := range config.RankPattern {
		fmt.Println(p.Pattern, p.Value)
	}
	pm, err := peft.GetPeftModel(base, config)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(pm.TrainableParameters())
	// Output:
	// ^model\.layers\.0\.self_attn\.o_proj 5
	// ^model\.layers\.1\.self_attn\.o_proj 3
	// trainable params: 1,152 || all params: 20,768 || trainable%: 5.5470
}
