package adapters_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/peft"
)

// What is read from a file is a configuration that fits a base, or an error, and what is
// written of it means the same.
func FuzzIA3(f *testing.F) {
	for _, seed := range []string{
		`{"peft_type": "IA3"}`,
		`{"peft_type": "IA3", "target_modules": ["q_proj", "down_proj"], "feedforward_modules": ["down_proj"], "init_ia3_weights": false}`,
		`{"peft_type": "IA3", "target_modules": "all-linear", "feedforward_modules": [], "modules_to_save": ["lm_head"]}`,
		`{"peft_type": "IA3", "target_modules": "all-linear", "feedforward_modules": "model.*(up|o)_proj", "exclude_modules": ["k_proj"]}`,
		`{"peft_type": "IA3", "target_modules": ["proj", "v_proj"], "feedforward_modules": ["proj"], "fan_in_fan_out": null}`,
	} {
		f.Add([]byte(seed))
	}
	base := basetest.Llama(32, 2, 4, 2, 8, 48, 64)
	f.Fuzz(func(t *testing.T, data []byte) {
		config, err := peft.DecodeConfig(data)
		if err != nil {
			return
		}
		plan, err := peft.DryRun(base, config)
		if err != nil {
			return
		}
		require.NotZero(t, plan.Count.Trainable)
		text, err := peft.EncodeConfig(plan.Config)
		require.NoError(t, err)
		again, err := peft.DecodeConfig(text)
		require.NoError(t, err)
		second, err := peft.EncodeConfig(again)
		require.NoError(t, err)
		require.Equal(t, string(text), string(second))
		// A default may name modules that are excluded, which is an error where they are named.
		if planned, err := peft.DryRun(base, again); err == nil {
			require.Equal(t, plan.Targets, planned.Targets)
		}
	})
}
