package lora_test

import (
	"fmt"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
)

// The same targets with each of LoRA's relatives: what they train in a model of Llama-3.2-1B's shape.
func Example_relatives() {
	base := basetest.Llama(2048, 16, 32, 8, 64, 8192, 128256)
	targets := peft.Modules("q_proj", "v_proj")
	for _, config := range []peft.Config{
		lora.LoraConfig{R: 8, TargetModules: targets},
		lora.AdaLoraConfig{InitR: 12, TargetR: 8, TotalStep: 1000, TargetModules: targets},
		lora.VeraConfig{R: 256, TargetModules: targets},
		lora.LohaConfig{R: 8, TargetModules: targets},
		lora.LokrConfig{R: 8, TargetModules: targets},
		lora.MissConfig{R: 64, TargetModules: targets},
	} {
		plan, err := peft.DryRun(base, config)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(plan.PeftType, plan.Count)
	}
	// Output:
	// LORA trainable params: 851,968 || all params: 1,236,666,368 || trainable%: 0.0689
	// ADALORA trainable params: 1,278,336 || all params: 1,237,092,736 || trainable%: 0.1033
	// VERA trainable params: 49,152 || all params: 1,235,863,552 || trainable%: 0.0040
	// LOHA trainable params: 1,703,936 || all params: 1,237,518,336 || trainable%: 0.1377
	// LOKR trainable params: 53,248 || all params: 1,235,867,648 || trainable%: 0.0043
	// MISS trainable params: 2,621,440 || all params: 1,238,435,840 || trainable%: 0.2117
}
