package adapters_test

import (
	"fmt"

	"github.com/gopeft/gopeft/adapters"
	"github.com/gopeft/gopeft/internal/basetest"
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
