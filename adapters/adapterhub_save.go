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

	"github.com/gopeft/gopeft/internal/atomicfile"
	"github.com/gopeft/gopeft/internal/pyjson"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// hubVersion is the version of AdapterHub's library whose format is written.
const hubVersion = "adapters.1.3.0"

// SaveAdapterHub writes the one active adapter of a model, a [BottleneckConfig]'s, to the folder
// dir in the format of AdapterHub's library, which reads it with
// load_adapter(dir, use_safetensors=True). dir must be new, or hold nothing but such files. A
// classifier's head goes along as a head of transformers' own class, which the library reads
// into a model of that class.
//
// What the library cannot express is an error: other modules_to_save, target_modules, a
// family that it does not have.
func SaveAdapterHub(pm *peft.PeftModel, dir string) error {
	if err := saveHub(pm, dir); err != nil {
		return fmt.Errorf("adapters: save AdapterHub's adapter to %q: %w", dir, err)
	}
	return nil
}

func saveHub(pm *peft.PeftModel, dir string) error {
	s, err := newHubSave(pm)
	if err != nil {
		return err
	}
	if err := onlyHubFiles(dir); err != nil {
		return err
	}
	return atomicfile.WriteDir(dir, func(part string) error {
		if err := s.write(part, hubConfigFile, hubWeightsFile, s.config, s.tensors); err != nil {
			return err
		}
		if len(s.head) == 0 {
			return nil
		}
		return s.write(part, hubHeadConfig, hubHeadWeights, s.headConfig, s.head)
	})
}

// onlyHubFiles refuses a folder with other files, which would be lost.
func onlyHubFiles(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	ours := []string{hubConfigFile, hubWeightsFile, hubHeadConfig, hubHeadWeights}
	for _, e := range entries {
		if !slices.Contains(ours, e.Name()) {
			return fmt.Errorf("the folder has other files, such as %q", e.Name())
		}
	}
	return nil
}

// hubSave is what a folder will hold.
type hubSave struct {
	config, headConfig map[string]any
	tensors, head      []safetensors.Tensor
}

func newHubSave(pm *peft.PeftModel) (*hubSave, error) {
	active := pm.Active()
	if len(active) != 1 {
		return nil, fmt.Errorf("%d adapters are active, want one", len(active))
	}
	name := active[0]
	if strings.Contains(name, ".") {
		return nil, fmt.Errorf("the adapter's name %q has a dot, which PyTorch's names cannot have", name)
	}
	general, err := pm.Config(name)
	if err != nil {
		return nil, err
	}
	config, ok := general.(BottleneckConfig)
	if !ok {
		return nil, fmt.Errorf("it is an adapter of method %s, not a bottleneck adapter", general.PeftType())
	}
	family, err := familyOf(pm.Base())
	if err != nil {
		return nil, err
	}
	if err := config.hubCan(pm.Base()); err != nil {
		return nil, err
	}
	s := &hubSave{}
	if err := s.addTensors(pm, name, family, config.LnBefore); err != nil {
		return nil, err
	}
	return s, s.configure(pm.Base(), config, name, family)
}

// hubCan reports what AdapterHub's library has no place for.
func (c BottleneckConfig) hubCan(base site.Base) error {
	if !c.TargetModules.IsZero() {
		return errors.New("target_modules is no option of AdapterHub's: its adapters stand at sublayers")
	}
	if hooked := strings.HasPrefix(base.ModelType(), "qwen"); hooked && c.OriginalLnAfter == peft.Off {
		return errors.New("AdapterHub's library refuses original_ln_after = false for this family")
	}
	return nil
}

// addTensors arranges the adapter's tensors by AdapterHub's keys.
func (s *hubSave) addTensors(pm *peft.PeftModel, name string, family hubFamily, lnBefore bool) error {
	parts, err := pm.Parts(name)
	if err != nil {
		return err
	}
	values, err := pm.TensorValues(name)
	if err != nil {
		return err
	}
	for i, part := range parts {
		for _, p := range part.Params() {
			if err := allFinite(p.Name, values[p.Name]); err != nil {
				return err
			}
			data := make([]byte, 4*p.Size())
			if err := safetensors.EncodeFloat32s(data, values[p.Name], safetensors.F32); err != nil {
				return err
			}
			tensor := safetensors.Tensor{Name: p.Name, DType: safetensors.F32, Shape: p.Shape, Bytes: data}
			if i > 0 {
				if !isHead(pm.Base(), p.Name) {
					return fmt.Errorf("modules_to_save has %q: AdapterHub's library saves nothing beside an adapter but a classifier's head", p.Name)
				}
				s.head = append(s.head, tensor)
				continue
			}
			keys, err := family.keys(p.Name, name, lnBefore, part.Targets())
			if err != nil {
				return err
			}
			for _, tensor.Name = range keys {
				s.tensors = append(s.tensors, tensor)
			}
		}
	}
	return nil
}

// isHead reports whether a parameter belongs to a classifier's head: its name does not begin
// as those of the trunk do, which is what AdapterHub's library goes by.
func isHead(base site.Base, name string) bool {
	_, classifies := base.(site.Classifier)
	t, ok := base.(site.Transformer)
	if !classifies || !ok {
		return false
	}
	trunk, _, _ := strings.Cut(t.Words().Path, ".")
	return !strings.HasPrefix(name, trunk+".")
}

// configure makes the contents of the two configuration files.
func (s *hubSave) configure(base site.Base, c BottleneckConfig, name string, family hubFamily) error {
	inner, err := c.hubJSON()
	if err != nil {
		return err
	}
	hidden := 0
	if t, ok := base.(site.Transformer); ok {
		hidden = t.Layers()[0].FeedForward.Out
	}
	common := map[string]any{
		"hidden_size": hidden, "model_class": family.class + classSuffix(base), "model_name": base.NameOrPath(),
		"model_type": base.ModelType(), "version": hubVersion,
	}
	s.config, s.headConfig = maps.Clone(common), maps.Clone(common)
	s.config["name"], s.config["config"] = name, inner
	s.headConfig["name"], s.headConfig["config"] = nil, nil
	if classifier, ok := base.(site.Classifier); ok {
		s.headConfig["num_labels"] = classifier.NumLabels()
	}
	if named, ok := base.(interface{ Labels() []string }); ok {
		labels := map[string]int{}
		for i, label := range named.Labels() {
			labels[label] = i
		}
		s.headConfig["label2id"] = labels
	}
	return nil
}

// classSuffix is the end of the name of transformers' class for the base.
func classSuffix(base site.Base) string {
	task := ""
	if t, ok := base.(site.Tasked); ok {
		task = t.TaskType()
	}
	switch {
	case task == "SEQ_CLS":
		return "ForSequenceClassification"
	case task == "TOKEN_CLS":
		return "ForTokenClassification"
	case base.ModelType() == "gpt2":
		return "LMHeadModel"
	case slices.Contains([]string{"albert", "bert", "distilbert", "roberta", "xlm-roberta"}, base.ModelType()):
		return "ForMaskedLM"
	}
	return "ForCausalLM"
}

// hubDefaults are the values of the keys of BnConfig that have no field here.
var hubDefaults = map[string]json.RawMessage{
	"use_gating": json.RawMessage(`false`), "inv_adapter": json.RawMessage(`null`), "inv_adapter_reduction_factor": json.RawMessage(`null`),
	"cross_adapter": json.RawMessage(`false`), "phm_layer": json.RawMessage(`false`), "phm_dim": json.RawMessage(`4`),
	"factorized_phm_W": json.RawMessage(`true`), "shared_W_phm": json.RawMessage(`false`), "shared_phm_rule": json.RawMessage(`true`),
	"factorized_phm_rule": json.RawMessage(`false`), "phm_c_init": json.RawMessage(`"normal"`), "phm_init_range": json.RawMessage(`0.0001`),
	"learn_phm": json.RawMessage(`true`), "hypercomplex_nonlinearity": json.RawMessage(`"glorot-uniform"`), "phm_rank": json.RawMessage(`1`),
	"phm_bias": json.RawMessage(`true`), "stochastic_depth": json.RawMessage(`0.0`),
}

// hubJSON is the configuration as AdapterHub's BnConfig.
func (c BottleneckConfig) hubJSON() (map[string]json.RawMessage, error) {
	data, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	object, err := pyjson.Parse(data)
	if err != nil {
		return nil, err
	}
	inner := maps.Clone(hubDefaults)
	for key, value := range c.Unknown {
		inner[key] = value
	}
	for key, value := range object {
		inner[key] = value
	}
	for _, own := range []string{"task_type", "base_model_name_or_path", "auto_mapping", "revision", "peft_version", "target_modules", "exclude_modules", "modules_to_save"} {
		delete(inner, own)
	}
	return inner, nil
}

func (s *hubSave) write(dir, configName, weightsName string, config map[string]any, tensors []safetensors.Tensor) error {
	data, err := pyjson.Marshal(config)
	if err != nil {
		return err
	}
	if err := atomicfile.WriteBytes(filepath.Join(dir, configName), data); err != nil {
		return err
	}
	return safetensors.Write(filepath.Join(dir, weightsName), map[string]string{"format": "pt"}, tensors)
}
