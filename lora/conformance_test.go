package lora_test

import (
	"testing"

	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/peft/pefttest"
)

func TestConformance(t *testing.T) {
	for name, s := range map[string]pefttest.Suite{
		"plain":             {Config: lora.LoraConfig{R: 2}},
		"all and rslora":    {Config: lora.LoraConfig{R: 4, UseRSLoRA: true, TargetModules: peft.AllLinear}},
		"random":            {Config: lora.LoraConfig{R: 2, InitLoraWeights: lora.InitRandom}, NotIdentity: true},
		"layer_replication": {Config: lora.LoraConfig{R: 2, LayerReplication: [][2]int{{0, 1}, {0, 2}, {1, 2}}}, NotMergeable: true},
		"modules_to_save":   {Config: lora.LoraConfig{R: 2, ModulesToSave: peft.Strings{"lm_head", "norm"}}, Alone: true},
		"target_parameters": {Config: lora.LoraConfig{R: 2, TargetModules: peft.Modules("v_proj"), TargetParameters: []string{"q_proj.weight"}}},
	} {
		t.Run(name, func(t *testing.T) { pefttest.Run(t, s) })
	}
}
