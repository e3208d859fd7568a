package peft_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
)

// tinyLlama loads a model of two layers that the tests use; a hub id or any folder
// of a Hugging Face checkpoint would do.
func tinyLlama() *models.Model {
	base, err := models.Load(context.Background(), "../internal/golden/testdata/families/llama", models.Options{Backend: "go"})
	if err != nil {
		log.Fatal(err)
	}
	return base
}

// Attach a LoRA to a model and see what would be trained.
func ExampleGetPeftModel() {
	base := tinyLlama()
	defer base.Close()
	pm, err := peft.GetPeftModel(base, lora.LoraConfig{
		R: 8, LoraAlpha: 32, LoraDropout: 0.1,
		TargetModules: peft.Modules("q_proj", "v_proj"),
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(pm.TrainableParameters())

	_, err = peft.GetPeftModel(base, lora.LoraConfig{R: 8, TargetModules: peft.Modules("q_porj")})
	fmt.Println(err)
	// Output:
	// trainable params: 1,792 || all params: 21,408 || trainable%: 8.3707
	// lora: target module "q_porj" matches nothing; did you mean "q_proj"?
}

// See which modules a configuration adapts, and how, before making anything.
func ExampleDryRun() {
	base := tinyLlama()
	defer base.Close()
	plan, err := peft.DryRun(base, lora.LoraConfig{
		R: 4, LoraAlpha: 8,
		TargetModules: peft.Regex(`.*self_attn\.[qv]_proj`),
		RankPattern:   peft.Patterns{{Pattern: `layers\.1\..*`, Value: 2}},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(plan)
	// Output:
	// module                           kind    in  out  r  alpha  scaling  parameters
	// model.layers.0.self_attn.q_proj  linear  32  32   4  8      2        256
	// model.layers.0.self_attn.v_proj  linear  32  16   4  8      2        192
	// model.layers.1.self_attn.q_proj  linear  32  32   2  8      4        128
	// model.layers.1.self_attn.v_proj  linear  32  16   2  8      4        96
	// target_modules ".*self_attn\\.[qv]_proj": 4 modules
	// rank_pattern "layers\\.1\\..*": 2 modules
	// trainable params: 672 || all params: 20,288 || trainable%: 3.3123
}

// Save an adapter in peft's format and load it again.
func ExamplePeftModel_SavePretrained() {
	base := tinyLlama()
	defer base.Close()
	pm, err := peft.GetPeftModel(base, lora.LoraConfig{R: 8})
	if err != nil {
		log.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "adapter")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := pm.SavePretrained(dir); err != nil {
		log.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, file := range files {
		fmt.Println(filepath.Base(file))
	}
	again, err := peft.LoadAdapter(base, dir)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(again.TrainableParameters())
	// Output:
	// README.md
	// adapter_config.json
	// adapter_model.safetensors
	// trainable params: 1,792 || all params: 21,408 || trainable%: 8.3707
}

// Write a checkpoint with the adapter merged into the weights.
func ExamplePeftModel_Merge() {
	base := tinyLlama()
	defer base.Close()
	pm, err := peft.LoadAdapter(base, "../internal/golden/testdata/lora/llama-qv")
	if err != nil {
		log.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "merged")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	report, err := pm.Merge(context.Background(), dir)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(report.Tensors), "tensors changed")
	// Output: 4 tensors changed
}
