package adapters

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/gopeft/gopeft/internal/pyjson"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// hubFile is adapter_config.json as AdapterHub's library writes it.
type hubFile struct {
	Name       string `json:"name"`
	ModelType  string `json:"model_type"`
	ModelName  string `json:"model_name"`
	HiddenSize int    `json:"hidden_size"`
	Version    string `json:"version"`

	config BottleneckConfig
}

// decodeHub reads it.
func decodeHub(data []byte) (*hubFile, error) {
	object, err := pyjson.Parse(data)
	if err != nil {
		return nil, err
	}
	inner, ok := object["config"]
	switch _, isPeft := object["peft_type"]; {
	case isPeft:
		return nil, errors.New("it is a configuration in peft's format: open it with peft.LoadAdapter")
	case !ok:
		return nil, errors.New(`missing required key "config"`)
	}
	var f hubFile
	known := map[string]bool{"name": true, "model_type": true, "model_name": true, "hidden_size": true, "version": true}
	part, err := object.Subset(func(k string) bool { return known[k] })
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(part, &f); err != nil {
		return nil, err
	}
	if f.config, err = decodeHubConfig(inner); err != nil {
		return nil, err
	}
	if f.Version == "" { // of adapter-transformers' first release
		f.config.NonLinearity = renamed(f.config.NonLinearity)
	}
	f.config.BaseModelNameOrPath = f.ModelName
	return &f, f.config.Validate()
}

// renamed is the present name of a non-linearity that was called otherwise.
func renamed(name string) string {
	switch name {
	case "gelu":
		return "gelu_new"
	case "gelu_orig":
		return "gelu"
	}
	return name
}

// hubNames are AdapterHub's names of configurations.
var hubNames = map[string]func() BottleneckConfig{
	"seq_bn": Pfeiffer, "pfeiffer": Pfeiffer,
	"double_seq_bn": Houlsby, "houlsby": Houlsby,
	"par_bn": Parallel, "parallel": Parallel,
	"scaled_par_bn": ScaledParallel, "scaled_parallel": ScaledParallel,
}

// decodeHubConfig reads a BnConfig, or the name of one.
func decodeHubConfig(data json.RawMessage) (c BottleneckConfig, err error) {
	var name string
	if json.Unmarshal(data, &name) == nil && strings.HasPrefix(strings.TrimSpace(string(data)), `"`) {
		preset, ok := hubNames[name]
		if !ok {
			return c, fmt.Errorf("configuration %q is not supported; supported are %s", name, strings.Join(slices.Sorted(maps.Keys(hubNames)), ", "))
		}
		return preset(), nil
	}
	object, err := pyjson.Parse(data)
	if err != nil {
		return c, fmt.Errorf("config: %w", err)
	}
	if method, ok := object["architecture"]; ok && string(method) != "null" {
		return c, fmt.Errorf("it is an adapter of kind %s, not a bottleneck adapter", method)
	}
	for _, key := range []string{"mh_adapter", "output_adapter", "reduction_factor", "non_linearity"} {
		if _, ok := object[key]; !ok {
			return c, fmt.Errorf("config: missing required key %q", key)
		}
	}
	if v, ok := object["invertible_adapter"]; ok && string(v) != "null" {
		return c, errors.New("config: invertible adapters of embeddings are not supported")
	}
	common, err := peft.DecodeFields(data, &c)
	if err != nil {
		return c, fmt.Errorf("config: %w", errors.Unwrap(err)) // the file's name comes before all of these
	}
	if !c.MhAdapter && !c.OutputAdapter {
		return c, errors.New("config: neither mh_adapter nor output_adapter")
	}
	if !c.TargetModules.IsZero() || !c.ExcludeModules.IsZero() || c.ModulesToSave != nil {
		return c, errors.New("config: target_modules, exclude_modules and modules_to_save are no keys of AdapterHub's")
	}
	if err := checkRefused(common.Unknown); err != nil {
		return c, err
	}
	for _, r := range refused {
		delete(common.Unknown, r.key)
	}
	c.PeftConfig = peft.PeftConfig{Unknown: common.Unknown}
	return c, nil
}

// hubFamily says where AdapterHub's models of a family hold the adapters of a block, behind
// the block's path, and how transformers calls its classes.
type hubFamily struct {
	attention, feedForward string
	class                  string
}

var (
	bertBlock  = hubFamily{attention: ".attention.output", feedForward: ".output"}
	otherBlock = hubFamily{attention: ".attention_adapters", feedForward: ".output_adapters"}
)

func (f hubFamily) of(class string) hubFamily {
	f.class = class
	return f
}

// hubFamilies are the families that AdapterHub's library and this one have in common, by
// model_type. It has Gemma 2 and 3, too, but puts their adapters before the norm that
// follows a sublayer, where there is no place for them here.
var hubFamilies = map[string]hubFamily{
	"albert":      {attention: ".attention.attention_adapters", feedForward: ".output_adapters", class: "Albert"},
	"bert":        bertBlock.of("Bert"),
	"distilbert":  otherBlock.of("DistilBert"),
	"gpt2":        otherBlock.of("GPT2"),
	"llama":       otherBlock.of("Llama"),
	"mistral":     otherBlock.of("Mistral"),
	"qwen2":       otherBlock.of("Qwen2"),
	"qwen3":       otherBlock.of("Qwen3"),
	"roberta":     bertBlock.of("Roberta"),
	"xlm-roberta": bertBlock.of("XLMRoberta"),
}

func familyOf(base site.Base) (hubFamily, error) {
	family, ok := hubFamilies[base.ModelType()]
	if !ok {
		return family, fmt.Errorf("AdapterHub's adapters of model_type %q are not supported; supported are %s", base.ModelType(), strings.Join(slices.Sorted(maps.Keys(hubFamilies)), ", "))
	}
	return family, nil
}

// check compares the folder with the base.
func (f *hubFile) check(base site.Base) (hubFamily, error) {
	family, err := familyOf(base)
	if err != nil {
		return family, err
	}
	if f.ModelType != "" && f.ModelType != base.ModelType() {
		return family, fmt.Errorf("it was made for a model of type %q, the base is %q", f.ModelType, base.ModelType())
	}
	t, ok := base.(site.Transformer)
	if !ok {
		return family, errors.New("the base is no transformer whose sublayers are known")
	}
	if layers := t.Layers(); len(layers) > 0 && f.HiddenSize != 0 && f.HiddenSize != layers[0].FeedForward.Out {
		return family, fmt.Errorf("it was made for %d hidden features, the base has %d", f.HiddenSize, layers[0].FeedForward.Out)
	}
	return family, nil
}

// keys returns the keys in AdapterHub's file of one of our tensors, the first of which must be
// there.
func (f hubFamily) keys(name, adapter string, lnBefore bool, targets []site.Module) ([]string, error) {
	for _, m := range targets {
		suffix, ok := strings.CutPrefix(name, m.Path+".adapter_")
		if !ok {
			continue
		}
		at := blockOf(m.Path) + f.feedForward
		if m.Kind == site.Attention {
			at = blockOf(m.Path) + f.attention
		}
		at += ".adapters." + adapter + "."
		down := "adapter_down.0."
		if lnBefore {
			down = "adapter_down.1."
		}
		part, rest, _ := strings.Cut(suffix, ".")
		switch part {
		case "down":
			return []string{at + down + rest}, nil
		case "norm_before": // PyTorch registers it twice
			return []string{at + "adapter_norm_before." + rest, at + "adapter_down.0." + rest}, nil
		case "scaling":
			return []string{at + "scaling"}, nil
		}
		return []string{at + "adapter_" + suffix}, nil
	}
	return nil, fmt.Errorf("tensor %q belongs to no sublayer", name)
}

// blockOf is the path of the block that a sublayer belongs to: up to the last number.
func blockOf(path string) string {
	parts := strings.Split(path, ".")
	for i := len(parts) - 1; i >= 0; i-- {
		if strings.Trim(parts[i], "0123456789") == "" {
			return strings.Join(parts[:i+1], ".")
		}
	}
	return path
}

// legacyKey is the key that AdapterHub's library gives a tensor of its first files.
func legacyKey(key string) string {
	for _, old := range []string{"attention_text_task_adapters", "attention_text_lang_adapters", "layer_text_task_adapters", "layer_text_lang_adapters"} {
		key = strings.ReplaceAll(key, old, "adapters")
	}
	return key
}
