package adapters_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/adapters"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

func TestLNTuningTargets(t *testing.T) {
	base := basetest.Llama(8, 2, 2, 2, 4, 16, 32)
	base.Add(site.Module{Path: "extra_norm", Kind: site.Norm, In: 8, Out: 8, Bias: true})
	pm, err := peft.GetPeftModel(base, adapters.LNTuningConfig{TargetModules: peft.Modules("model.norm", "extra_norm")})
	require.ErrorContains(t, err, "the base has no values") // planned, but there is nothing to copy
	require.Nil(t, pm)
	plan, err := peft.DryRun(base, adapters.LNTuningConfig{TargetModules: peft.Modules("model.norm", "extra_norm")})
	require.NoError(t, err)
	require.Len(t, plan.Targets, 2)
	require.Equal(t, int64(3*8), plan.Count.Trainable)
	plan, err = peft.DryRun(base, adapters.LNTuningConfig{})
	require.NoError(t, err)
	require.Len(t, plan.Targets, 5)
	require.Equal(t, `["input_layernorm","norm","post_attention_layernorm"]`, plan.Config.(adapters.LNTuningConfig).TargetModules.String())
}

func TestLNTuningErrors(t *testing.T) {
	base := basetest.Llama(8, 2, 2, 2, 4, 16, 32)
	unknown := &basetest.Shape{Type: "phi3"}
	unknown.Add(site.Module{Path: "norm", Kind: site.Norm, In: 8, Out: 8})
	for _, c := range []struct {
		base   site.Base
		config adapters.LNTuningConfig
		want   string
	}{
		{base, adapters.LNTuningConfig{TargetModules: peft.Modules("input_layernrom")}, `ln_tuning: target module "input_layernrom" matches nothing; did you mean "input_layernorm"?`},
		{base, adapters.LNTuningConfig{TargetModules: peft.Modules("embed_tokens")}, `ln_tuning: target module "model.embed_tokens" shares its weight with "lm_head", which would change too: name it in ModulesToSave`},
		{base, adapters.LNTuningConfig{TargetModules: peft.Modules("norm"), ModulesToSave: peft.Strings{"nrom"}}, `modules_to_save: "nrom" matches nothing`},
		{base, adapters.LNTuningConfig{ExcludeModules: peft.AllLinear}, `ln_tuning: exclude_modules cannot be "all-linear"`},
		{unknown, adapters.LNTuningConfig{}, `ln_tuning: no default target modules for model_type "phi3": set TargetModules`},
	} {
		_, err := peft.GetPeftModel(c.base, c.config)
		require.ErrorContains(t, err, c.want)
	}
}
