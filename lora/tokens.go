package lora

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// trainedTokens plans the rows of embeddings that are trained beside a LoRA, nil without.
// targets are the modules with a LoRA: as in peft they cannot have trained rows too.
func (c LoraConfig) trainedTokens(base site.Base, targets []site.Module) (peft.Adapter, error) {
	if err := c.checkTying(base.Modules(), targets); err != nil || c.TrainableTokenIndices.IsZero() {
		return nil, err
	}
	rows, err := c.TrainableTokenIndices.Rows(base, c.EnsureWeightTying)
	if err != nil {
		return nil, fmt.Errorf("trainable_token_indices: %w", err)
	}
	a, err := peft.NewTokenAdapter(base, rows, peft.TokenTensors{Suffix: "token_adapter.trainable_tokens_delta"})
	if err != nil {
		return nil, fmt.Errorf("trainable_token_indices: %w", err)
	}
	for _, m := range a.Targets() {
		if slices.ContainsFunc(targets, func(t site.Module) bool { return t.Path == m.Path }) {
			return nil, fmt.Errorf("trainable_token_indices: %q has a LoRA: its rows cannot be trained too", m.Path)
		}
		if name, ok := c.saves(m.Path); ok {
			return nil, fmt.Errorf("trainable_token_indices: %q is trained as a whole already (modules_to_save %q): want one of both", m.Path, name)
		}
	}
	return a, nil
}

// saves returns the entry of modules_to_save that a module falls under.
func (c LoraConfig) saves(path string) (string, bool) {
	for _, name := range c.ModulesToSave {
		if name != "" && (strings.HasSuffix(path, name) || strings.Contains(path, name+".")) {
			return name, true
		}
	}
	return "", false
}

// checkTying refuses ensure_weight_tying where it would have to do what is not supported,
// and, unless a file says it, where it does nothing.
func (c LoraConfig) checkTying(modules, targets []site.Module) error {
	if !c.EnsureWeightTying {
		return nil
	}
	tied := map[string]bool{}
	for _, m := range modules {
		if m.TiedTo != "" && !m.Replica {
			tied[m.Path], tied[m.TiedTo] = true, true
		}
	}
	for _, m := range targets {
		if tied[m.Path] {
			return fmt.Errorf("ensure_weight_tying: %q shares its weight and is a target: adapters cannot be tied", m.Path)
		}
	}
	for path := range tied {
		if name, ok := c.saves(path); ok {
			return fmt.Errorf("ensure_weight_tying: %q shares its weight and is in modules_to_save (%q): copies cannot be tied", path, name)
		}
	}
	switch {
	case c.Reading():
	case len(tied) == 0:
		return errors.New("ensure_weight_tying: no modules of the base share a weight")
	case c.TrainableTokenIndices.IsZero():
		return errors.New("ensure_weight_tying has no effect without trainable_token_indices")
	}
	return nil
}
