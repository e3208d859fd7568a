package lora

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
)

// other is a key of peft 0.21.2's LoraConfig that has no field here. Its value is
// kept as it was in the file; one that would change what the adapter computes is
// refused.
type other struct {
	key string
	// value is peft's default, which is written when there is no other.
	value string
	// harmless are further values that change nothing; "*" stands for all.
	harmless []string
}

var others = []other{
	{"alora_invocation_tokens", "null", nil},
	{"arrow_config", "null", nil},
	{"corda_config", "null", []string{"*"}}, // for init_lora_weights="corda"
	{"eva_config", "null", []string{"*"}},   // for init_lora_weights="eva"
	{"kasa_config", "null", nil},
	{"lora_ga_config", "null", []string{"*"}},  // for init_lora_weights="lora_ga"
	{"megatron_config", "null", []string{"*"}}, // how Megatron spreads layers
	{"megatron_core", `"megatron.core"`, []string{"*"}},
	{"monteclora_config", "null", nil},
	{"qalora_group_size", "16", []string{"*"}}, // for use_qalora
	{"use_bdlora", "null", []string{"false"}},
	{"use_qalora", "false", nil},
	{"velora_config", "null", nil},
}

// checkOther refuses the first key whose value is not supported.
func (c LoraConfig) checkOther() error {
	for _, o := range others {
		value, ok := c.Unknown[o.key]
		if !ok || slices.Contains(o.harmless, "*") {
			continue
		}
		var text bytes.Buffer
		if err := json.Compact(&text, value); err != nil {
			return fmt.Errorf("%s: %w", o.key, err)
		}
		if got := text.String(); got != o.value && got != "null" && !slices.Contains(o.harmless, got) {
			return fmt.Errorf("option %q = %s is not supported", o.key, got)
		}
	}
	return nil
}

// FileDefaults returns the keys that peft writes and [LoraConfig] has no field for.
func (c LoraConfig) FileDefaults() map[string]json.RawMessage {
	defaults := make(map[string]json.RawMessage, len(others))
	for _, o := range others {
		defaults[o.key] = json.RawMessage(o.value)
	}
	return defaults
}
