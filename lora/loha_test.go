package lora_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/peft/pefttest"
	"github.com/gopeft/gopeft/site"
)

func TestLohaGolden(t *testing.T) { pefttest.Golden(t, "*-loha_*") }

func TestLohaConformance(t *testing.T) {
	for name, s := range map[string]pefttest.Suite{
		"dropout":    {Config: lora.LohaConfig{R: 2, RankDropout: 0.2, ModuleDropout: 0.1, TargetModules: peft.AllLinear}, Noise: 0.3},
		"transposed": {Config: lora.LohaConfig{R: 2}, Family: "gpt2", Noise: 0.3},
	} {
		t.Run(name, func(t *testing.T) { pefttest.Run(t, s) })
	}
}

func TestLohaErrors(t *testing.T) {
	base := basetest.Llama(64, 2, 4, 2, 16, 96, 100)
	base.Add(site.Module{Path: "conv", Kind: site.Convolution, In: 4, Out: 4, Conv: &site.Conv{Kernel: []int{3, 3, 3}, Groups: 1}})
	for _, c := range []struct {
		config lora.LohaConfig
		want   string
	}{
		{lora.LohaConfig{}, `loha: r is 0, want a rank of at least 1 (peft's default is 8)`},
		{lora.LohaConfig{R: 4, RankDropout: 1}, `loha: rank_dropout is 1, want a rate in [0, 1)`},
		{lora.LohaConfig{R: 4, ModuleDropout: -0.1}, `loha: module_dropout is -0.1, want a rate in [0, 1)`},
		{lora.LohaConfig{R: 4, InitWeights: lora.LokrLycoris}, `loha: init_weights "lycoris" is not supported`},
		{lora.LohaConfig{R: 4, RankPattern: peft.Patterns{{Pattern: "q_proj", Value: 0}}}, `loha: rank_pattern: "q_proj" is 0, want a rank of at least 1`},
		{lora.LohaConfig{R: 4, AlphaPattern: peft.Patterns{{Pattern: "k_proj", Value: 2}}}, `loha: alpha_pattern: "k_proj" matches none of the adapted modules`},
		{lora.LohaConfig{R: 4, TargetModules: peft.Modules("embed_tokens")}, `loha: target module "model.embed_tokens" is of kind embedding, want a linear layer or a convolution`},
		{lora.LohaConfig{R: 4, TargetModules: peft.Modules("conv")}, `loha: target module "conv" is a convolution over 3 axes, want at most 2`},
	} {
		_, err := peft.GetPeftModel(base, c.config)
		require.ErrorContains(t, err, c.want)
	}
	_, err := peft.DecodeConfig([]byte(`{"peft_type": "LOHA", "alpha": 0}`))
	require.EqualError(t, err, `peft: loha: alpha is 0: the adapter would change nothing`)
}
