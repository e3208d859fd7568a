package lora

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

// fixed are keys of a file that a method has no field for. Their values are kept as they
// were in the file; one that would change what the adapter computes is refused. The first
// of a key's values is peft's default, which is written when there is no other; the others
// change nothing either, nor does null. "*" stands for all.
type fixed map[string][]string

// loraFixed are those of peft 0.21.2's LoraConfig.
var loraFixed = fixed{
	"alora_invocation_tokens": {"null"},
	"arrow_config":            {"null"},
	"corda_config":            {"null", "*"}, // for init_lora_weights="corda"
	"eva_config":              {"null", "*"}, // for init_lora_weights="eva"
	"kasa_config":             {"null"},
	"lora_ga_config":          {"null", "*"}, // for init_lora_weights="lora_ga"
	"megatron_config":         {"null", "*"}, // how Megatron spreads layers
	"megatron_core":           {`"megatron.core"`, "*"},
	"monteclora_config":       {"null"},
	"qalora_group_size":       {"16", "*"}, // for use_qalora
	"use_bdlora":              {"null", "false"},
	"use_qalora":              {"false"},
	"velora_config":           {"null"},
}

// FileDefaults returns the keys that peft writes and [LoraConfig] has no field for.
func (c LoraConfig) FileDefaults() map[string]json.RawMessage { return loraFixed.defaults() }

// check refuses the first key whose value is not supported.
func (f fixed) check(unknown map[string]json.RawMessage) error {
	for _, key := range slices.Sorted(maps.Keys(f)) {
		if unknown[key] == nil || slices.Contains(f[key], "*") {
			continue
		}
		var text bytes.Buffer
		if err := json.Compact(&text, unknown[key]); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		if got := text.String(); got != "null" && !slices.Contains(f[key], got) {
			return fmt.Errorf("option %q = %s is not supported", key, got)
		}
	}
	return nil
}

func (f fixed) defaults() map[string]json.RawMessage {
	d := make(map[string]json.RawMessage, len(f))
	for key, values := range f {
		d[key] = json.RawMessage(values[0])
	}
	return d
}
