package lora

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/peft"
)

// What is read from a file is a configuration that fits a base, or an error.
func FuzzRotations(f *testing.F) {
	for _, seed := range []string{
		`{"peft_type": "OFT", "oft_block_size": 20, "coft": true, "block_share": true, "num_cayley_neumann_terms": 9}`,
		`{"peft_type": "OFT", "r": 4, "oft_block_size": 0, "use_cayley_neumann": true, "peft_version": "0.18.0.dev0@abc"}`,
		`{"peft_type": "BOFT", "boft_block_size": 0, "boft_block_num": 8, "boft_n_butterfly_factor": 3, "bias": "boft_only"}`,
		`{"peft_type": "LORA", "trainable_token_indices": {"embed_tokens": [3, 1], "lm_head": [2]}, "ensure_weight_tying": true}`,
		`{"peft_type": "LORA", "trainable_token_indices": [63, 0]}`,
	} {
		f.Add([]byte(seed))
	}
	base := basetest.Llama(32, 2, 4, 2, 8, 48, 64)
	f.Fuzz(func(t *testing.T, data []byte) {
		config, err := peft.DecodeConfig(data)
		if err != nil {
			return
		}
		if plan, err := peft.DryRun(base, config); err == nil {
			require.NotZero(t, plan.Count.Trainable)
			text, err := peft.EncodeConfig(plan.Config)
			require.NoError(t, err)
			again, err := peft.DecodeConfig(text)
			require.NoError(t, err)
			second, err := peft.EncodeConfig(again)
			require.NoError(t, err)
			require.Equal(t, string(text), string(second))
		}
	})
}
