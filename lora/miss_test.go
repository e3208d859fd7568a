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

func TestMissGolden(t *testing.T) { pefttest.Golden(t, "*-miss_*") }

func TestMissConformance(t *testing.T) {
	for name, s := range map[string]pefttest.Suite{
		"padded": {Config: lora.MissConfig{R: 5, MissDropout: 0.1, TargetModules: peft.AllLinear}},
		"random": {Config: lora.MissConfig{R: 4, InitWeights: lora.InitRandom}, NotIdentity: true},
		"bat":    {Config: lora.MissConfig{R: 8, InitWeights: lora.MissBat, TargetModules: peft.AllLinear}, Noise: 0.02},
		"mini":   {Config: lora.MissConfig{R: 4, MiniR: 16, InitWeights: lora.MissMini}},
	} {
		t.Run(name, func(t *testing.T) { pefttest.Run(t, s) })
	}
}

func TestMissErrors(t *testing.T) {
	base := basetest.Llama(64, 2, 4, 2, 16, 96, 100)
	q := peft.Modules("q_proj")
	for _, c := range []struct {
		config lora.MissConfig
		want   string
	}{
		{lora.MissConfig{}, `miss: r is 0, want a rank of at least 1 (peft's default is 64)`},
		{lora.MissConfig{R: 4, MissDropout: 1}, `miss: miss_dropout is 1, want a rate in [0, 1)`},
		{lora.MissConfig{R: 4, InitWeights: "pissa"}, `miss: init_weights "pissa" is not supported`},
		{lora.MissConfig{R: 4, MiniR: 2}, `miss: mini_r is 2, but has no effect without init_weights "mini"`},
		{lora.MissConfig{R: 4, MiniR: -2}, `miss: mini_r is -2, want at least 1`},
		{lora.MissConfig{R: 4, MiniR: 7, InitWeights: lora.MissMini}, `miss: init_weights "mini": mini_r is 7, which does not divide the 64 outputs of "model.layers.0.self_attn.q_proj"`},
		{lora.MissConfig{R: 4, MissDropout: 0.1, InitWeights: lora.MissBat}, `miss: miss_dropout has no effect with init_weights "bat"`},
		{lora.MissConfig{R: 5, InitWeights: lora.MissBat}, `miss: init_weights "bat": r is 5, but the 64 inputs and 64 outputs`},
		{lora.MissConfig{R: 65, TargetModules: q}, `miss: r is 65, but "model.layers.0.self_attn.q_proj" has only 64 inputs`},
		{lora.MissConfig{R: 4, TargetModules: peft.Modules("embed_tokens")}, `miss: target module "model.embed_tokens" is of kind embedding, want a linear layer`},
		{lora.MissConfig{R: 4, TargetModules: peft.Modules("q_porj")}, `miss: target module "q_porj" matches nothing; did you mean "q_proj"?`},
	} {
		_, err := peft.GetPeftModel(base, c.config)
		require.ErrorContains(t, err, c.want)
	}
	foreign := &basetest.Shape{}
	foreign.Add(site.Module{Path: "fc", Kind: site.Linear, In: 4, Out: 4})
	_, err := peft.GetPeftModel(foreign, lora.MissConfig{R: 4})
	require.EqualError(t, err, `miss: no default target modules for model_type "": set TargetModules`)
	_, err = peft.GetPeftModel(base, lora.MissConfig{R: 4, Bias: lora.BiasLoraOnly})
	require.EqualError(t, err, `miss: bias is "lora_only", want "none", "all" or "MiSS_only"`)
	_, err = peft.GetPeftModel(base, lora.MissConfig{R: 4, Bias: lora.BiasMissOnly})
	require.EqualError(t, err, `miss: bias is "MiSS_only", but no target module has a bias`)
}
