package adapters

import (
	"errors"
	"fmt"
	"slices"

	"github.com/gopeft/gopeft/internal/suggest"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// IA3Type is the peft_type of [IA3Config].
const IA3Type = "IA3"

func init() { peft.Register(IA3Type, decodeIA3) }

// IA3Config scales activations by trained vectors l, (IA)³ (Liu et al. 2022,
// arXiv:2205.05638), field by field the IA3Config of peft:
//
//	y = W·(x ⊙ l) + b      in feed-forward modules, l of the size of the input
//	y = (W·x + b) ⊙ l      in all other targets, l of the size of the output
//
// A new adapter has ones and changes nothing. Of several that are active together the
// vectors multiply.
type IA3Config struct {
	peft.PeftConfig
	// TargetModules says which modules are scaled: linear layers, and convolutions over two
	// or three axes. The zero value means [DefaultIA3Targets] of the base's model_type.
	TargetModules peft.Targets `json:"target_modules"`
	// ExcludeModules are never scaled: names or a regular expression.
	ExcludeModules peft.Targets `json:"exclude_modules"`
	// FeedforwardModules says which of the targets are scaled at their input. Names must be
	// among those of TargetModules, and count for each target whose path ends in one, at a
	// dot or not; a regular expression must match a whole path. The zero value means
	// [DefaultIA3Feedforward] of the base's model_type; peft.Modules() means none.
	FeedforwardModules peft.Targets `json:"feedforward_modules"`
	// FanInFanOut decides nothing: the base says how its weights are stored. It is saved as
	// Python needs it.
	FanInFanOut bool `json:"fan_in_fan_out"`
	// ModulesToSave are trained and saved as a whole beside the vectors, see [peft.CopyModules].
	ModulesToSave peft.Strings `json:"modules_to_save"`
	// InitIA3Weights: a new adapter has ones. If [peft.Off] its values are drawn from
	// N(0, 1), for tests.
	InitIA3Weights peft.Switch `json:"init_ia3_weights"`
}

// PeftType implements [peft.Config].
func (IA3Config) PeftType() string { return IA3Type }

// WithCommon implements [peft.Config].
func (c IA3Config) WithCommon(common peft.PeftConfig) peft.Config {
	c.PeftConfig = common
	return c
}

func (c IA3Config) selection() peft.Selection {
	return peft.Selection{TargetModules: c.TargetModules, ExcludeModules: c.ExcludeModules, ModulesToSave: c.ModulesToSave}
}

// Validate implements [peft.Config].
func (c IA3Config) Validate() error {
	if err := c.validate(); err != nil {
		return fmt.Errorf("ia3: %w", err)
	}
	return nil
}

func (c IA3Config) validate() error {
	switch {
	case c.FeedforwardModules.IsAllLinear():
		return errors.New(`feedforward_modules cannot be "all-linear"`)
	case slices.Contains(c.FeedforwardModules.Names(), ""):
		return errors.New("feedforward_modules: a module name is empty")
	}
	if err := c.selection().Validate(); err != nil {
		return err
	}
	if c.Reading() { // files have been written whose defaults broke the rule
		return nil
	}
	return c.checkSubset()
}

// checkSubset refuses feed-forward modules that are no targets by their names, as peft does
// when it reads a configuration.
func (c IA3Config) checkSubset() error {
	targets := c.TargetModules.Names()
	if targets == nil {
		return nil
	}
	for _, name := range c.FeedforwardModules.Names() {
		if !slices.Contains(targets, name) {
			return fmt.Errorf("feedforward_modules: %q is not among target_modules %s%s", name, c.TargetModules, suggest.DidYouMean(name, targets))
		}
	}
	return nil
}

func decodeIA3(data []byte) (peft.Config, error) {
	var c IA3Config
	common, err := peft.DecodeFields(data, &c)
	if err != nil {
		return nil, fmt.Errorf("ia3: %w", err)
	}
	c.PeftConfig = common
	return c, nil
}

// Attach implements [peft.Config].
func (c IA3Config) Attach(base site.Base) (peft.Adapter, error) {
	c.ModulesToSave = c.SavedModules(c.ModulesToSave)
	a, err := c.attach(base)
	if err != nil {
		return nil, fmt.Errorf("ia3: %w", err)
	}
	saved, err := peft.CopyModules(base, c.ModulesToSave, c.PeftConfig)
	if err != nil {
		return nil, fmt.Errorf("ia3: %w", err)
	}
	return peft.Compose(append(a.parts(), saved)...), nil
}
