package lora

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// Bias says which of the base's biases are trained with the adapter. They are copies: the
// base keeps its own, and without the adapter it is exactly itself. (In peft it is not.)
type Bias string

const (
	// BiasNone trains none. ("none" in peft)
	BiasNone Bias = ""
	// BiasAll trains every bias of the base.
	BiasAll Bias = "all"
	// BiasLoraOnly trains the biases of the target modules.
	BiasLoraOnly Bias = "lora_only"
)

// MarshalJSON writes "none" for the zero value.
func (b Bias) MarshalJSON() ([]byte, error) {
	if b == BiasNone {
		return []byte(`"none"`), nil
	}
	return json.Marshal(string(b))
}

// UnmarshalJSON reads null and "none" as the zero value.
func (b *Bias) UnmarshalJSON(data []byte) error {
	var s *string
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("bias: want a name, got %s", data)
	}
	if *b = BiasNone; s != nil && *s != "none" {
		*b = Bias(*s)
	}
	return nil
}

// check refuses values but none, all, and only, which is the method's own.
func (b Bias) check(only Bias) error {
	switch b {
	case BiasNone, BiasAll, only:
		return nil
	}
	return fmt.Errorf(`bias is %q, want "none", "all" or %q`, string(b), string(only))
}

// trainedBiases plans the copies of the base's biases. In the file a target's bias has
// peft's infix: "q_proj.base_layer.bias". It is an error if there are none to train,
// except for a file.
func trainedBiases(base site.Base, which Bias, targets []site.Module, reading bool) (peft.Adapter, error) {
	if which == BiasNone {
		return nil, nil
	}
	key := map[string]string{} // in the file, by the parameter's name
	for _, m := range base.Modules() {
		if m.Bias && !m.Replica && which == BiasAll {
			key[m.BiasName()] = m.Path + ".bias"
		}
	}
	for _, m := range targets {
		if m.Bias {
			key[m.BiasName()] = m.Path + ".base_layer.bias"
		}
	}
	var chosen []site.Parameter
	for _, p := range base.Parameters() {
		if key[p.Name] == "" && which == BiasAll && strings.HasSuffix("."+p.Name, ".bias") { // of no module
			key[p.Name] = p.Name
		}
		if key[p.Name] != "" {
			chosen = append(chosen, p)
		}
	}
	switch {
	case len(chosen) == 0 && reading:
		return nil, nil
	case len(chosen) == 0:
		why := "no target module has a bias"
		if which == BiasAll {
			why = "the base has no bias"
		}
		return nil, fmt.Errorf("bias is %q, but %s", string(which), why)
	}
	copies := peft.CopyParameters(base, chosen, func(name string) string { return key[name] })
	for i := range copies.Params() {
		copies.Params()[i].InBase = true
	}
	return copies, nil
}
