package lora_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/peft/pefttest"
)

func TestLokrGolden(t *testing.T) { pefttest.Golden(t, "*-lokr_*") }

func TestLokrConformance(t *testing.T) {
	for name, s := range map[string]pefttest.Suite{
		"dropout": {Config: lora.LokrConfig{R: 2, RankDropout: 0.2, RankDropoutScale: true, ModuleDropout: 0.1, TargetModules: peft.AllLinear}, Noise: 0.3},
		"both":    {Config: lora.LokrConfig{R: 1, DecomposeBoth: true, DecomposeFactor: 4, InitWeights: lora.LokrLycoris}, Noise: 0.3},
	} {
		t.Run(name, func(t *testing.T) { pefttest.Run(t, s) })
	}
}

func TestLokrErrors(t *testing.T) {
	base := basetest.Llama(64, 2, 4, 2, 16, 96, 100)
	for _, c := range []struct {
		config lora.LokrConfig
		want   string
	}{
		{lora.LokrConfig{}, `lokr: r is 0, want a rank of at least 1 (peft's default is 8)`},
		{lora.LokrConfig{R: 4, DecomposeFactor: -2}, `lokr: decompose_factor is -2, want -1 (near the square root) or at least 1`},
		{lora.LokrConfig{R: 4, RankDropoutScale: true}, `lokr: rank_dropout_scale has no effect without rank_dropout`},
		{lora.LokrConfig{R: 4, RankDropout: 2}, `lokr: rank_dropout is 2, want a rate in [0, 1)`},
		{lora.LokrConfig{R: 4, InitWeights: lora.MissMini}, `lokr: init_weights "mini" is not supported`},
		{lora.LokrConfig{R: 4, TargetModules: peft.Modules("norm")}, `lokr: target module "model.norm" is of kind norm, want a linear layer or a convolution`},
	} {
		_, err := peft.GetPeftModel(base, c.config)
		require.ErrorContains(t, err, c.want)
	}
	_, err := peft.DecodeConfig([]byte(`{"peft_type": "LOKR", "alpha": 0}`))
	require.EqualError(t, err, `peft: lokr: alpha is 0: the adapter would change nothing`)
}
