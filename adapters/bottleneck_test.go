package adapters_test

import (
	"testing"

	"github.com/gopeft/gopeft/adapters"
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
	houlsby := small(adapters.Houlsby())
	houlsby.InitWeights = adapters.InitMAM
	for name, s := range map[string]pefttest.Suite{
		"pfeiffer": {Config: pfeiffer, OrderMatters: true, NotIdentity: true},
		"houlsby":  {Config: houlsby, OrderMatters: true},
		"parallel": {Config: small(adapters.ScaledParallel())},
		"norms":    {Config: rich, Family: "opt_post", OrderMatters: true},
		"linears":  {Config: linears, Alone: true},
	} {
		s.NotMergeable, s.Other = true, "gemma_untied"
		t.Run(name, func(t *testing.T) { pefttest.Run(t, s) })
	}
}
