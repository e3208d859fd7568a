package pefttest_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/adapters"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/peft/pefttest"
	"github.com/gopeft/gopeft/prefixtuning"
)

// Methods active at once: see docs/methods.md.
func TestTogether(t *testing.T) {
	var (
		loraConfig = lora.LoraConfig{R: 2, TargetModules: peft.Modules("q_proj", "v_proj", "down_proj")}
		oft        = lora.OftConfig{OftBlockSize: 4, TargetModules: peft.Modules("o_proj")}
		ia3        = adapters.IA3Config{TargetModules: peft.Modules("k_proj", "v_proj", "down_proj"), FeedforwardModules: peft.Modules("down_proj")}
		houlsby    = adapters.Houlsby()
		parallel   = adapters.Parallel()
		prefix     = prefixtuning.PrefixTuningConfig{NumVirtualTokens: 3}
		projected  = prefixtuning.PrefixTuningConfig{NumVirtualTokens: 2, PrefixProjection: true}
		prompt     = prefixtuning.PromptTuningConfig{NumVirtualTokens: 2}
		encoder    = prefixtuning.PromptEncoderConfig{NumVirtualTokens: 2, EncoderHiddenSize: 8}
	)
	for name, together := range map[string]pefttest.Together{
		"LoRA and IA3":                  {Configs: []peft.Config{loraConfig, ia3}},
		"LoRA and prefix":               {Configs: []peft.Config{loraConfig, prefix}},
		"LoRA and bottleneck":           {Configs: []peft.Config{loraConfig, houlsby}},
		"IA3 and prompt":                {Configs: []peft.Config{ia3, prompt}},
		"IA3 and norms":                 {Configs: []peft.Config{ia3, adapters.LNTuningConfig{}}},
		"LoRA, IA3 and OFT":             {Configs: []peft.Config{loraConfig, ia3, oft}},
		"prefix and prompt":             {Configs: []peft.Config{projected, prompt}},
		"bottleneck, P-tuning and LoRA": {Configs: []peft.Config{parallel, encoder, loraConfig}},
		"two bottlenecks, one upon one": {Configs: []peft.Config{houlsby, adapters.Pfeiffer()}, OrderMatters: true},
		"LoRA, prefix, bottleneck, IA3": {Configs: []peft.Config{loraConfig, prefix, parallel, ia3}},
	} {
		t.Run(name, together.Run)
	}
}

// Of virtual tokens there can be one adapter of keys and values, and one of embeddings.
func TestTwoPrefixes(t *testing.T) {
	base := basetest.Load(t, basetest.Root(t)+"/internal/golden/testdata/families/llama")
	prefix, prompt := prefixtuning.PrefixTuningConfig{NumVirtualTokens: 3}, prefixtuning.PromptTuningConfig{NumVirtualTokens: 2}
	pm, err := peft.GetPeftModel(base, prefix, peft.Options{Name: "one"})
	require.NoError(t, err)
	require.NoError(t, pm.AddAdapter(prefix, peft.Options{Name: "two"}))
	require.NoError(t, pm.AddAdapter(prompt, peft.Options{Name: "three"}))
	require.NoError(t, pm.AddAdapter(prompt, peft.Options{Name: "four"}))
	_, err = pm.With("one", "two")
	require.EqualError(t, err, `peft: adapters "one" and "two" are both prefixes of keys and values: only one can be active`)
	_, err = pm.With("three", "four")
	require.EqualError(t, err, `peft: adapters "three" and "four" are both prompts of embeddings: only one can be active`)
	both, err := pm.With("one", "three")
	require.NoError(t, err)
	require.Equal(t, 5, both.VirtualTokens())
	_, err = pm.Mixed("one", "two")
	require.ErrorContains(t, err, "rows cannot differ in that")
}
