package adapters

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gopeft/gopeft/internal/pyjson"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// hubHead is head_config.json.
type hubHead struct {
	Name    string         `json:"name"`
	Labels  map[string]int `json:"label2id"`
	Flex    *flexHead      `json:"config"`
	Classes string         `json:"model_class"`
}

// flexHead is the configuration of one of AdapterHub's heads: layers of dropout and a linear,
// with a non-linearity between them.
type flexHead struct {
	Type       string         `json:"head_type"`
	Layers     int            `json:"layers"`
	Activation *string        `json:"activation_function"`
	UsePooler  bool           `json:"use_pooler"`
	Labels     map[string]int `json:"label2id"`
}

func decodeHead(data []byte) (*hubHead, error) {
	object, err := pyjson.Parse(data)
	if err != nil {
		return nil, err
	}
	part, err := object.Subset(func(k string) bool { return k == "name" || k == "label2id" || k == "config" || k == "model_class" })
	if err != nil {
		return nil, err
	}
	var h hubHead
	if err := json.Unmarshal(part, &h); err != nil {
		return nil, err
	}
	if h.Flex != nil && h.Flex.Labels != nil {
		h.Labels = h.Flex.Labels
	}
	return &h, nil
}

// readHead reads the folder's prediction head, if there is one.
func (f *hubAdapter) readHead(base site.Base, dir string) error {
	if _, err := os.Stat(filepath.Join(dir, hubHeadWeights)); errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(dir, "pytorch_model_head.bin")); err == nil {
			return errors.New("pytorch_model_head.bin is a Python pickle: save it with save_adapter(..., use_safetensors=True)")
		}
		return nil
	}
	data, err := readHubFile(dir, hubHeadConfig)
	if err != nil {
		return err
	}
	head, err := decodeHead(data)
	if err != nil {
		return fmt.Errorf("%s: %w", hubHeadConfig, err)
	}
	if err := head.checkLabels(base); err != nil {
		return err
	}
	file, err := safetensors.Open(filepath.Join(dir, hubHeadWeights))
	if err != nil {
		return err
	}
	defer file.Close()
	renamed, err := head.parameters(base)
	if err != nil {
		return err
	}
	return f.takeHead(base, file, renamed)
}

// checkLabels refuses a head whose scores are in another order than the base's labels say.
func (h *hubHead) checkLabels(base site.Base) error {
	named, ok := base.(interface{ Labels() []string })
	if !ok || len(h.Labels) == 0 {
		return nil
	}
	labels := named.Labels()
	if len(labels) != len(h.Labels) {
		return fmt.Errorf("it scores %d labels (%s), the base has %d", len(h.Labels), strings.Join(slices.Sorted(maps.Keys(h.Labels)), ", "), len(labels))
	}
	for i, label := range labels {
		if at, ok := h.Labels[label]; ok && at != i {
			return fmt.Errorf("label %q is number %d there and number %d in the base: load the base with the labels in the head's order", label, at, i)
		}
	}
	return nil
}

// parameters returns a function from the names of the file to those of the base's parameters.
func (h *hubHead) parameters(base site.Base) (func(name string) string, error) {
	if h.Flex == nil { // of one of transformers' own classes
		return func(name string) string { return name }, nil
	}
	modules, err := h.Flex.modules(base)
	if err != nil {
		return nil, fmt.Errorf("head %q: %w", h.Name, err)
	}
	return func(name string) string {
		rest, ok := strings.CutPrefix(name, "heads."+h.Name+".")
		if !ok {
			return name
		}
		for i, m := range modules {
			// Modules 0, 1, 2 of a layer: dropout, linear, non-linearity.
			if parameter, ok := strings.CutPrefix(rest, fmt.Sprintf("%d.", 3*i+1)); ok {
				return m + "." + parameter
			}
		}
		return name
	}, nil
}

// modules returns the linears of the base's own head that compute the same.
func (h *flexHead) modules(base site.Base) ([]string, error) {
	act := ""
	if h.Activation != nil {
		act = *h.Activation
	}
	task := ""
	if t, ok := base.(site.Tasked); ok {
		task = t.TaskType()
	}
	unsupported := fmt.Errorf("a head of kind %q with %d layers and non-linearity %q is not what the base's head computes", h.Type, h.Layers, act)
	if h.Type == "tagging" && task == "TOKEN_CLS" && h.Layers == 1 {
		return []string{"classifier"}, nil
	}
	if h.Type != "classification" || task != "SEQ_CLS" {
		return nil, unsupported
	}
	model := base.ModelType()
	switch {
	case h.Layers == 1 && h.UsePooler && (model == "bert" || model == "albert"):
		return []string{"classifier"}, nil
	case h.Layers != 2 || h.UsePooler:
		return nil, unsupported
	case model == "bert" && act == "tanh":
		return []string{"bert.pooler.dense", "classifier"}, nil
	case model == "albert" && act == "tanh":
		return []string{"albert.pooler", "classifier"}, nil
	case (model == "roberta" || model == "xlm-roberta") && act == "tanh":
		return []string{"classifier.dense", "classifier.out_proj"}, nil
	case model == "distilbert" && act == "relu":
		return []string{"pre_classifier", "classifier"}, nil
	}
	return nil, unsupported
}

// takeHead makes the modules of the head part of the adapter, and its tensors values. Of a
// language model it leaves what is the base's own.
func (f *hubAdapter) takeHead(base site.Base, file *safetensors.File, renamed func(string) string) error {
	f.wholeHead = f.config.TaskType == "SEQ_CLS" || f.config.TaskType == "TOKEN_CLS"
	shapes := map[string][]int{}
	stored := map[string]string{}
	for _, p := range base.Parameters() {
		shapes[p.Name], stored[p.Name] = p.Shape, p.Name
	}
	for _, m := range base.Modules() {
		if own := peft.OwnWeight(m); shapes[own] == nil {
			shapes[own], stored[own] = m.StoredShape(), m.Weight()
		}
	}
	for _, key := range file.Names() {
		name := renamed(key)
		shape, ok := shapes[name]
		if !ok {
			return fmt.Errorf("the base has nothing like its tensor %q", key)
		}
		info, _ := file.Info(key)
		if !slices.Equal(info.Shape, shape) {
			return fmt.Errorf("tensor %q has shape %v, the base's %q has %v", key, info.Shape, name, shape)
		}
		values := make([]float32, site.Parameter{Shape: shape}.Size())
		if err := file.Float32s(key, values); err != nil {
			return err
		}
		if err := allFinite(key, values); err != nil {
			return err
		}
		if !f.wholeHead {
			own, err := peft.BaseValues(base, site.Parameter{Name: stored[name], Shape: shape})
			if err != nil {
				return err
			}
			if slices.Equal(own, values) {
				continue
			}
		}
		f.values[name] = values
		path, _ := cutLast(name)
		covered := func(saved string) bool { return strings.HasSuffix(path, saved) || strings.Contains(path, saved+".") }
		if !slices.ContainsFunc(f.config.SavedModules(f.config.ModulesToSave), covered) {
			f.config.ModulesToSave = append(f.config.ModulesToSave, path)
		}
	}
	return nil
}
