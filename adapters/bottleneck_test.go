package adapters_test

import (
	"testing"

	"github.com/gopeft/gopeft/adapters"
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
