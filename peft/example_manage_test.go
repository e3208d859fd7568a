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

// Answer requests for several adapters in one batch.
func ExamplePeftModel_Mixed() {
	base := tinyLlama()
	defer base.Close()
	config := lora.LoraConfig{R: 4, TargetModules: peft.Modules("q_proj", "v_proj"), InitLoraWeights: lora.InitRandom}
	pm, err := peft.GetPeftModel(base, config, peft.Options{Name: "french", Seed: 1})
	if err != nil {
		log.Fatal(err)
	}
	if err := pm.AddAdapter(config, peft.Options{Name: "poems", Seed: 2}); err != nil {
		log.Fatal(err)
	}
	view, err := pm.Mixed("french", peft.BaseModel, "poems")
	if err != nil {
		log.Fatal(err)
	}
	generator, err := models.NewGenerator(view)
	if err != nil {
		log.Fatal(err)
	}
	prompt := []int32{20, 31, 3}
	out, err := generator.Generate(context.Background(), [][]int32{prompt, prompt, prompt}, models.GenerateOptions{MaxNewTokens: 4, StopTokens: []int32{}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(out), "answers")
	_, err = pm.Mixed("french", "peoms")
	fmt.Println(err)
	// Output:
	// 3 answers
	// peft: mixed batch: unknown adapter "peoms" (the model has french, poems, and "__base__" for the base)
}

// Put another adapter in the place of one that is being served, without compiling.
func ExamplePeftModel_SwapAdapter() {
	base := tinyLlama()
	defer base.Close()
	dir, err := os.MkdirTemp("", "adapters")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for name, rank := range map[string]int{"monday": 4, "tuesday": 2} { // made elsewhere
		trained, err := peft.GetPeftModel(base, lora.LoraConfig{R: rank})
		if err != nil {
			log.Fatal(err)
		}
		if err := trained.SavePretrained(filepath.Join(dir, name)); err != nil {
			log.Fatal(err)
		}
	}
	pm, err := peft.LoadAdapter(base, filepath.Join(dir, "monday"), peft.Options{MaxRank: 8})
	if err != nil {
		log.Fatal(err)
	}
	before := pm.Structure()
	if err := pm.SwapAdapter(peft.DefaultAdapter, filepath.Join(dir, "tuesday")); err != nil {
		log.Fatal(err)
	}
	config, _ := pm.Config(peft.DefaultAdapter)
	fmt.Println("rank", config.(lora.LoraConfig).R, "in the same programs:", pm.Structure() == before)
	// Output: rank 2 in the same programs: true
}

// See what a model has and what a view of it selects.
func ExamplePeftModel_ModelStatus() {
	base := tinyLlama()
	defer base.Close()
	pm, err := peft.GetPeftModel(base, lora.LoraConfig{R: 8})
	if err != nil {
		log.Fatal(err)
	}
	if err := pm.AddAdapter(lora.LoraConfig{R: 2, TargetModules: peft.AllLinear}, peft.Options{Name: "other"}); err != nil {
		log.Fatal(err)
	}
	status := pm.ModelStatus()
	for _, a := range status.Adapters {
		fmt.Println(a.Name, a.Method, a.Layers, a.Parameters, a.Active)
	}
	// Output:
	// default LORA 4 1792 true
	// other LORA 14 1856 false
}
