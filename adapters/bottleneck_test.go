package adapters_test

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/adapters"
	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/peft/pefttest"
)

// small gives a preset a bottleneck for the tiny models.
func small(c adapters.BottleneckConfig) adapters.BottleneckConfig {
	c.ReductionFactor = adapters.ReductionFactor{Default: 4}
	return c
}

func TestBottleneckConformance(t *testing.T) {
	rich := small(adapters.Houlsby())
	rich.LnBefore, rich.LnAfter, rich.InitWeights = true, true, adapters.InitMAM
	rich.Scaling = adapters.Scaling{Learned: adapters.ScalingChannel}
	linears := adapters.BottleneckConfig{
		ReductionFactor: adapters.ReductionFactor{Default: 4}, NonLinearity: "gelu", InitWeights: adapters.InitMAM,
		TargetModules: peft.Modules("o_proj", "down_proj"), ModulesToSave: peft.Strings{"up_proj"},
	}
	pfeiffer := small(adapters.Pfeiffer())
	pfeiffer.Dropout = 0.1
	norms := small(adapters.Pfeiffer())
	norms.MhAdapter, norms.LnBefore, norms.LnAfter, norms.ResidualBeforeLn = true, true, true, adapters.ResidualPostAdd
	houlsby := small(adapters.Houlsby())
	houlsby.InitWeights = adapters.InitMAM
	for name, s := range map[string]pefttest.Suite{
		"pfeiffer": {Config: pfeiffer, OrderMatters: true, NotIdentity: true},
		"houlsby":  {Config: houlsby, OrderMatters: true},
		"parallel": {Config: small(adapters.ScaledParallel())},
		"norms":    {Config: rich, Family: "opt_post", OrderMatters: true},
		"linears":  {Config: linears, Alone: true},
		// Two adapters of a classifier have a head each, of which one can count.
		"classifier":            {Config: houlsby, Family: "encoders/bert_sequence", Other: "encoders/roberta_sequence", Alone: true},
		"norms of a classifier": {Config: norms, Family: "encoders/albert_sequence", Other: "encoders/bert_sequence", Alone: true, NotIdentity: true},
	} {
		s.NotMergeable = true
		if s.Other == "" {
			s.Other = "gemma_untied"
		}
		t.Run(name, func(t *testing.T) { pefttest.Run(t, s) })
	}
}

// Bottleneck adapters beside low-rank updates, and on top of one another.
func TestBottleneckTogether(t *testing.T) {
	low := lora.LoraConfig{R: 2, TargetModules: peft.Modules("q_proj", "down_proj")}
	for name, together := range map[string]pefttest.Together{
		"LoRA and Houlsby":      {Configs: []peft.Config{low, small(adapters.Houlsby())}},
		"Houlsby and Pfeiffer":  {Configs: []peft.Config{small(adapters.Houlsby()), small(adapters.Pfeiffer())}, OrderMatters: true},
		"parallel, IA3, linear": {Configs: []peft.Config{small(adapters.Parallel()), adapters.IA3Config{}, adapters.BottleneckConfig{TargetModules: peft.Modules("o_proj")}}},
	} {
		t.Run(name, together.Run)
	}
}

// Every family has places for adapters: fresh ones change nothing, and each tensor counts.
func TestBottleneckFamilies(t *testing.T) {
	houlsby := small(adapters.Houlsby())
	houlsby.InitWeights = adapters.InitMAM
	parallel := small(adapters.Parallel())
	parallel.MhAdapter = true
	for _, family := range []string{"gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "gpt_neox_sequential", "mistral", "opt", "opt_post", "phi3", "qwen2", "qwen3"} {
		for kind, config := range map[string]adapters.BottleneckConfig{"houlsby": houlsby, "parallel": parallel} {
			t.Run(family+"/"+kind, func(t *testing.T) {
				backendtest.Sample(t, 4)
				base := basetest.Load(t, filepath.Join(basetest.Fixtures, "families", family))
				pm, err := peft.GetPeftModel(base, config)
				require.NoError(t, err)
				plain, err := pm.With()
				require.NoError(t, err)
				want := basetest.Evaluate(t, plain, someIDs, someLabels).Logits
				basetest.RequireClose(t, want, basetest.Evaluate(t, pm, someIDs, someLabels).Logits, 1e-5, "logits of a fresh adapter")
				shift(t, pm, peft.DefaultAdapter, 0.03)
				moved := basetest.Evaluate(t, pm, someIDs, someLabels)
				require.NotEqual(t, want, moved.Logits)
				require.Len(t, moved.Gradients, 4*2*2)
				for name, gradient := range moved.Gradients {
					require.True(t, slices.ContainsFunc(gradient, func(v float32) bool { return v != 0 }), "%s: the gradient is zero", name)
				}
			})
		}
	}
}
