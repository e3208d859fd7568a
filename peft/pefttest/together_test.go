package pefttest_test

import (
	"testing"

	"github.com/gopeft/gopeft/adapters"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/peft/pefttest"
)

// Methods active at once: see docs/methods.md.
func TestTogether(t *testing.T) {
	loraConfig := lora.LoraConfig{R: 2, TargetModules: peft.Modules("q_proj", "v_proj", "down_proj")}
	ia3 := adapters.IA3Config{TargetModules: peft.Modules("k_proj", "v_proj", "down_proj"), FeedforwardModules: peft.Modules("down_proj")}
	for name, together := range map[string]pefttest.Together{
		"LoRA and IA3":      {Configs: []peft.Config{loraConfig, ia3}},
		"IA3 and norms":     {Configs: []peft.Config{ia3, adapters.LNTuningConfig{}}},
		"LoRA, IA3 and OFT": {Configs: []peft.Config{loraConfig, ia3, lora.OftConfig{OftBlockSize: 4, TargetModules: peft.Modules("o_proj")}}},
	} {
		t.Run(name, together.Run)
	}
}
