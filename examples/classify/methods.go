package main

import (
	"github.com/gopeft/gopeft/adapters"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/prefixtuning"
)

// method is a way to adapt the encoder, and the learning rate that suits it.
type method struct {
	name, title string
	rate        float64
	config      func(o options) peft.Config
}

var methods = []method{
	{"lora", "LoRA", 4e-3, func(o options) peft.Config {
		return lora.LoraConfig{R: o.r, LoraAlpha: float64(2 * o.r), LoraDropout: 0.1, TargetModules: peft.Modules("query", "value")}
	}},
	{"pfeiffer", "Pfeiffer adapters", 4e-3, func(o options) peft.Config {
		config := adapters.Pfeiffer()
		config.ReductionFactor.Default = float64(o.reduction)
		return config
	}},
	{"prefix", "prefix tuning", 2e-2, func(o options) peft.Config {
		return prefixtuning.PrefixTuningConfig{NumVirtualTokens: o.virtual}
	}},
}

func methodNames() []string {
	names := make([]string, len(methods))
	for i, m := range methods {
		names[i] = m.name
	}
	return names
}
