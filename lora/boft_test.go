package lora

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/peft/pefttest"
	"github.com/gopeft/gopeft/site"
)

// Adapters made by Python's peft mean the same here, and train the same.
func TestBoftGolden(t *testing.T) { pefttest.Golden(t, "*-boft_*") }

func TestBoftConformance(t *testing.T) {
	ends := peft.Modules("q_proj", "down_proj")
	for name, s := range map[string]pefttest.Suite{
		"plain":     {Config: BoftConfig{}, OrderMatters: true},
		"butterfly": {Config: BoftConfig{BoftBlockNum: 4, BoftNButterflyFactor: 3, BoftDropout: 0.3, TargetModules: ends}, OrderMatters: true},
		"random":    {Config: BoftConfig{BoftBlockSize: 16, InitWeights: Off, TargetModules: ends}, NotIdentity: true, OrderMatters: true},
		"biases":    {Config: BoftConfig{BoftBlockSize: 8, Bias: BiasAll, TargetModules: ends}, Family: "llama_bias", Alone: true},
	} {
		t.Run(name, func(t *testing.T) { pefttest.Run(t, s) })
	}
}

func TestBoftSizes(t *testing.T) {
	base := basetest.Llama(24, 1, 6, 6, 4, 20, 8)
	conv := &basetest.Shape{}
	conv.Add(site.Module{Path: "conv", Kind: site.Convolution, In: 4, Out: 4, Conv: &site.Conv{Kernel: []int{3, 3}, Groups: 1}})
	for _, c := range []struct {
		base   site.Base
		config BoftConfig
		want   string
	}{
		{base, BoftConfig{BoftBlockSize: 4, BoftBlockNum: 2}, `boft: boft_block_size is 4 and boft_block_num is 2, want one of both`},
		{base, BoftConfig{BoftBlockSize: -4}, `boft: boft_block_size is -4`},
		{base, BoftConfig{BoftBlockSize: 5}, `boft: boft_block_size is 5, which does not divide the 24 inputs of "model.layers.0.self_attn.q_proj"`},
		{base, BoftConfig{BoftBlockNum: 5}, `boft: boft_block_num is 5, which does not divide the 24 inputs`},
		{base, BoftConfig{BoftBlockSize: 3, BoftNButterflyFactor: 2}, `has 8 blocks of 3 inputs, want a multiple of 2 blocks of an even size`},
		{base, BoftConfig{BoftBlockSize: 4, BoftNButterflyFactor: 3}, `boft: boft_n_butterfly_factor is 3: "model.layers.0.self_attn.q_proj" has 6 blocks of 4 inputs, want a multiple of 4 blocks`},
		{base, BoftConfig{BoftNButterflyFactor: -1}, `boft: boft_n_butterfly_factor is -1, want from 1`},
		{base, BoftConfig{BoftDropout: 1}, `boft: boft_dropout is 1, want a rate in [0, 1)`},
		{base, BoftConfig{Bias: BiasOftOnly}, `boft: bias is "oft_only", want "none", "all" or "boft_only"`},
		{conv, BoftConfig{TargetModules: peft.Modules("conv")}, `boft: target module "conv" is of kind convolution, want a linear layer`},
	} {
		_, err := peft.DryRun(c.base, c.config)
		require.ErrorContains(t, err, c.want)
	}
	plan, err := peft.DryRun(base, BoftConfig{BoftNButterflyFactor: 2})
	require.NoError(t, err)
	require.Equal(t, []peft.Setting{{Name: "factors", Value: "2"}, {Name: "blocks", Value: "6"}, {Name: "size", Value: "4"}}, plan.Targets[0].Settings)
	require.Equal(t, int64(2*(2*6*16+24)), plan.Count.Trainable)
	_, err = peft.DecodeConfig([]byte(`{"peft_type": "BOFT", "boft_block_size": 0}`))
	require.ErrorContains(t, err, "boft: boft_block_size is 0, boft_block_num is 0")
}
