package adapters

import (
	"fmt"
	"strings"

	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// LNTuningType is the peft_type of [LNTuningConfig].
const LNTuningType = "LN_TUNING"

func init() { peft.Register(LNTuningType, decodeLNTuning) }

// LNTuningConfig trains copies of a model's norms, scale and offset, in their places
// (Zhao et al. 2023, arXiv:2312.11420), field by field the LNTuningConfig of peft.
//
// A copy replaces its norm: two such adapters with a common target cannot be active
// together. Merging puts the copies into the checkpoint.
type LNTuningConfig struct {
	peft.PeftConfig
	// TargetModules says which modules are copied. The zero value means
	// [DefaultNorms] of the base's model_type. Any module can be copied that shares
	// its weight with no other.
	TargetModules peft.Targets `json:"target_modules"`
	// ExcludeModules are never copied: names or a regular expression.
	ExcludeModules peft.Targets `json:"exclude_modules"`
	// ModulesToSave are trained and saved as a whole beside the norms, see [peft.CopyModules].
	ModulesToSave peft.Strings `json:"modules_to_save"`
}

// PeftType implements [peft.Config].
func (LNTuningConfig) PeftType() string { return LNTuningType }

// WithCommon implements [peft.Config].
func (c LNTuningConfig) WithCommon(common peft.PeftConfig) peft.Config {
	c.PeftConfig = common
	return c
}

func (c LNTuningConfig) selection() peft.Selection {
	return peft.Selection{TargetModules: c.TargetModules, ExcludeModules: c.ExcludeModules, ModulesToSave: c.ModulesToSave}
}

// Validate implements [peft.Config].
func (c LNTuningConfig) Validate() error {
	if err := c.selection().Validate(); err != nil {
		return fmt.Errorf("ln_tuning: %w", err)
	}
	return nil
}

func decodeLNTuning(data []byte) (peft.Config, error) {
	var c LNTuningConfig
	common, err := peft.DecodeFields(data, &c)
	if err != nil {
		return nil, fmt.Errorf("ln_tuning: %w", err)
	}
	c.PeftConfig = common
	return c, nil
}

// Attach implements [peft.Config].
func (c LNTuningConfig) Attach(base site.Base) (peft.Adapter, error) {
	c.ModulesToSave = c.SavedModules(c.ModulesToSave)
	a, err := c.attach(base)
	if err != nil {
		return nil, fmt.Errorf("ln_tuning: %w", err)
	}
	saved, err := peft.CopyModules(base, c.ModulesToSave, c.PeftConfig)
	if err != nil {
		return nil, fmt.Errorf("ln_tuning: %w", err)
	}
	return peft.Compose(a, saved), nil
}

// parameterCopies is what [peft.CopyParameters] makes.
type parameterCopies interface {
	peft.ParameterAdapter
	peft.Merger
	peft.Adapter
}

// lnTuning is an LNTuningConfig planned on a base.
type lnTuning struct {
	parameterCopies
	config   LNTuningConfig
	targets  []site.Module
	patterns []peft.PatternCount
}

var (
	_ peft.ParameterAdapter = (*lnTuning)(nil)
	_ peft.Merger           = (*lnTuning)(nil)
	_ peft.Describer        = (*lnTuning)(nil)
	_ peft.Configured       = (*lnTuning)(nil)
)

func (c LNTuningConfig) attach(base site.Base) (*lnTuning, error) {
	allowed := peft.NoneUnused
	if c.Reading() {
		allowed = peft.AnyUnused
	}
	if c.TargetModules.IsZero() {
		targets, ok := DefaultNorms(base.ModelType())
		if !ok {
			return nil, fmt.Errorf("no default target modules for model_type %q: set TargetModules", base.ModelType())
		}
		c.TargetModules, allowed = targets, max(allowed, peft.TargetsUnused)
	}
	modules := base.Modules()
	targets, counts, err := c.selection().Match(modules, allowed)
	if err != nil {
		return nil, err
	}
	var copied []site.Parameter
	for _, m := range targets {
		if with, ok := sharesWeight(m, modules); ok {
			return nil, fmt.Errorf("target module %q shares its weight with %q, which would change too: name it in ModulesToSave to train a copy of its own", m.Path, with)
		}
		own := ownParameters(base, m)
		if len(own) == 0 {
			return nil, fmt.Errorf("target module %q has no parameters", m.Path)
		}
		copied = append(copied, own...)
	}
	copies := peft.CopyParameters(base, copied, func(name string) string {
		path, parameter := cutLast(name)
		return path + ".ln_tuning_layers." + parameter
	})
	return &lnTuning{parameterCopies: copies.(parameterCopies), config: c, targets: targets, patterns: counts}, nil
}

// sharesWeight returns a module that has the same weight as m.
func sharesWeight(m site.Module, modules []site.Module) (string, bool) {
	for _, other := range modules {
		if other.Path != m.Path && other.Weight() == m.Weight() {
			return other.Path, true
		}
	}
	return "", false
}

// ownParameters lists the parameters of a module.
func ownParameters(base site.Base, m site.Module) []site.Parameter {
	var own []site.Parameter
	for _, p := range base.Parameters() {
		if path, _ := cutLast(p.Name); path == m.Path {
			own = append(own, p)
		}
	}
	return own
}

// cutLast cuts a parameter's name into the path of its module and the rest.
func cutLast(name string) (path, last string) {
	i := strings.LastIndexByte(name, '.')
	return name[:max(0, i)], name[i+1:]
}

// Targets implements [peft.Adapter].
func (a *lnTuning) Targets() []site.Module { return a.targets }

// Config implements [peft.Configured].
func (a *lnTuning) Config() peft.Config { return a.config }

// Patterns implements [peft.Describer].
func (a *lnTuning) Patterns() []peft.PatternCount { return a.patterns }

// Describe implements [peft.Describer].
func (a *lnTuning) Describe(site.Module) []peft.Setting { return nil }

// DefaultNorms returns what peft 0.21.2 trains by default in models of a model_type, and
// whether it has a default for it (TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING
// in peft/utils/constants.py).
func DefaultNorms(modelType string) (peft.Targets, bool) {
	t, ok := defaultNorms[modelType]
	return t, ok
}

var (
	llamaNorms  = peft.Modules("input_layernorm", "post_attention_layernorm", "norm")
	gemma2Norms = peft.Modules("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm", "norm")
	bloomNorms  = peft.Modules("input_layernorm", "post_attention_layernorm", "ln_f")
	t5Norms     = peft.Modules("layer_norm", "final_layer_norm")
	qwenNorms   = peft.Modules("post_attention_layernorm")
)

var defaultNorms = map[string]peft.Targets{
	"bart":        peft.Modules("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
	"blip-2":      peft.Modules("layernorm", "LayerNorm", "final_layer_norm", "self_attn_layer_norm"),
	"bloom":       bloomNorms,
	"falcon":      bloomNorms,
	"gemma":       llamaNorms,
	"gemma2":      gemma2Norms,
	"gemma3_text": gemma2Norms,
	"gpt2":        peft.Modules("ln_1", "ln_2", "ln_f"),
	"gptj":        peft.Modules("ln_1", "ln_f"),
	"llama":       llamaNorms,
	"llava":       peft.Modules("multi_modal_projector", "input_layernorm", "post_attention_layernorm", "norm", "embed_tokens", "lm_head"),
	"mistral":     llamaNorms,
	"mt5":         t5Norms,
	"phi":         peft.Modules("input_layernorm", "final_layernorm"),
	"qwen2":       qwenNorms,
	"qwen3":       qwenNorms,
	"t5":          t5Norms,
}
