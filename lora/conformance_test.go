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
		"quantised base":    {Config: lora.LoraConfig{R: 2}, Family: "llama_nf4"},
		"all and rslora":    {Config: lora.LoraConfig{R: 4, UseRSLoRA: true, TargetModules: peft.AllLinear}},
		"random":            {Config: lora.LoraConfig{R: 2, InitLoraWeights: lora.InitRandom}, NotIdentity: true},
		"layer_replication": {Config: lora.LoraConfig{R: 2, LayerReplication: [][2]int{{0, 1}, {0, 2}, {1, 2}}}, NotMergeable: true},
		"dora":              {Config: lora.LoraConfig{R: 2, UseDora: true, LoraDropout: 0.1}},
		"dora and rslora":   {Config: lora.LoraConfig{R: 2, UseDora: true, UseRSLoRA: true, TargetModules: peft.Modules("embed_tokens", "up_proj")}},
		"trained biases":    {Config: lora.LoraConfig{R: 2, Bias: lora.BiasAll}, Family: "qwen2", Alone: true},
		"lora_bias":         {Config: lora.LoraConfig{R: 2, LoraBias: true}, Family: "qwen2"},
		"pissa":             {Config: lora.LoraConfig{R: 2, InitLoraWeights: lora.InitPissa, LoraDropout: 0.1}},
		"pissa and dora":    {Config: lora.LoraConfig{R: 2, InitLoraWeights: lora.InitPissaNiter(4), UseDora: true}},
		"olora":             {Config: lora.LoraConfig{R: 2, InitLoraWeights: lora.InitOlora, UseRSLoRA: true}},
		"modules_to_save":   {Config: lora.LoraConfig{R: 2, ModulesToSave: peft.Strings{"lm_head", "norm"}}, Alone: true},
		"target_parameters": {Config: lora.LoraConfig{R: 2, TargetModules: peft.Modules("v_proj"), TargetParameters: []string{"q_proj.weight"}}},
	} {
		t.Run(name, func(t *testing.T) { pefttest.Run(t, s) })
	}
}
