package adapters_test

import (
	"testing"

	"github.com/gopeft/gopeft/adapters"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/peft/pefttest"
)

// Adapters made by Python's peft mean the same here, and train the same.
func TestMethods(t *testing.T) {
	pefttest.Golden(t, "*-ln_tuning_*")
	pefttest.Golden(t, "*-tokens_*")
	pefttest.Golden(t, "*-ia3_*")
}

func TestLNTuningConformance(t *testing.T) {
	for name, s := range map[string]pefttest.Suite{
		"default": {Config: adapters.LNTuningConfig{}, Family: "gemma2", Alone: true},
		"with a layer trained as a whole": {Config: adapters.LNTuningConfig{
			TargetModules: peft.Modules("input_layernorm"), ModulesToSave: peft.Strings{"up_proj"},
		}, Alone: true},
	} {
		t.Run(name, func(t *testing.T) { pefttest.Run(t, s) })
	}
}

// all tokens of the tiny models but some.
func tokens(from, to int) []int {
	var list []int
	for i := to - 1; i >= from; i-- {
		list = append(list, i)
	}
	return list
}

func TestTrainableTokensConformance(t *testing.T) {
	for _, family := range []string{"gemma_untied", "llama_relu"} {
		t.Run(family, func(t *testing.T) {
			pefttest.Run(t, pefttest.Suite{Config: adapters.TrainableTokensConfig{TokenIndices: tokens(3, 50)}, Family: family, Alone: true})
		})
	}
}
