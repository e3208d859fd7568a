package peft_test

import (
	"strings"
	"testing"

	"github.com/gomlx/compute/shapes"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/adapters"
	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/quant"
)

// Methods do to a wrapped model what they do to any, in few bits or not: with them it is the
// model with their merged weights.
func TestWrappedMethods(t *testing.T) {
	for _, m := range foreignModels {
		if m.name == "shared" {
			continue
		}
		linear := m.target
		if m.modules == nil {
			linear = peft.AllLinear
		}
		for name, config := range map[string]peft.Config{
			"dora":          lora.LoraConfig{R: 2, TargetModules: linear, InitLoraWeights: lora.InitRandom, UseDora: true},
			"bias":          lora.LoraConfig{R: 2, TargetModules: linear, InitLoraWeights: lora.InitRandom, Bias: "all"},
			"loha":          lora.LohaConfig{R: 2, TargetModules: linear},
			"miss":          lora.MissConfig{R: 2, TargetModules: linear},
			"oft":           lora.OftConfig{OftBlockSize: 2, TargetModules: linear},
			"boft":          lora.BoftConfig{BoftBlockSize: 1, TargetModules: linear},
			"vera":          lora.VeraConfig{R: 2, TargetModules: linear},
			"lokr":          lora.LokrConfig{R: 2, TargetModules: linear},
			"ia3":           adapters.IA3Config{TargetModules: linear, FeedforwardModules: peft.Modules()},
			"ia3 of inputs": adapters.IA3Config{TargetModules: linear, FeedforwardModules: peft.Regex(".*")},
		} {
			if (name == "oft" || name == "miss" || name == "boft" || name == "vera") && strings.HasPrefix(m.name, "conv") {
				continue // these adapt linear layers only
			}
			if strings.HasPrefix(name, "ia3") && m.name == "conv1d" {
				continue // peft has none over one axis
			}
			if name == "oft" && m.modules != nil {
				continue // an odd number of inputs has no blocks of two
			}
			if name == "bias" && (strings.HasPrefix(m.name, "gemma3") || m.name == "by hand") {
				continue // it has no biases
			}
			t.Run(m.name+"/"+name, func(t *testing.T) {
				backendtest.Sample(t, 5)
				quantised, decoded := quantisedPair(t, m, quant.NF4{})
				for _, base := range []*peft.WrappedModel{decoded, quantised} {
					pm, err := peft.GetPeftModel(base, config)
					require.NoError(t, err)
					perturb(t, pm)
					input := example(m, 5)
					got := run(t, base, pm, input)
					require.Greater(t, distance(t, run(t, base, nil, input), got), 1e-3)
					store, _, err := base.Merged(pm)
					require.NoError(t, err)
					merged, err := peft.WrapModel(base.Backend(), store, m.fn, []shapes.Shape{m.input})
					require.NoError(t, err)
					defer merged.Close()
					require.Less(t, distance(t, run(t, merged, nil, input), got), 2e-5)
				}
			})
		}
	}
}
