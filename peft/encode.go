package peft

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	"github.com/gopeft/gopeft/internal/pyjson"
)

// FormatVersion is the version of peft whose file format is written: peft_version
// of new adapters. One that was read keeps its own.
const FormatVersion = "0.21.2"

// FileDefaulter is a [Config] that lacks fields for some keys of its file.
type FileDefaulter interface {
	// FileDefaults returns the values to write for those keys.
	FileDefaults() map[string]json.RawMessage
}

// EncodeConfig returns adapter_config.json as peft writes it: every key of
// [FormatVersion], sorted, and the unknown keys that the configuration was read with.
func EncodeConfig(c Config) ([]byte, error) {
	data, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("peft: encoding %s configuration: %w", c.PeftType(), err)
	}
	fields, err := pyjson.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("peft: encoding %s configuration: %w", c.PeftType(), err)
	}
	common := c.Common()
	members := map[string]any{"auto_mapping": nil}
	if d, ok := c.(FileDefaulter); ok {
		for k, v := range d.FileDefaults() {
			members[k] = v
		}
	}
	for k, v := range common.Unknown {
		members[k] = v
	}
	for k, v := range fields {
		members[k] = v
	}
	for k, v := range map[string]string{
		"task_type": common.TaskType, "base_model_name_or_path": common.BaseModelNameOrPath, "revision": common.Revision,
	} {
		members[k] = v
		if v == "" {
			members[k] = nil
		}
	}
	members["peft_type"] = c.PeftType()
	members["peft_version"] = common.Version
	if common.Version == "" {
		members["peft_version"] = FormatVersion
	}
	members["inference_mode"] = true // as every saved file says
	return pyjson.Marshal(members)
}

// DecodeFields fills config, a pointer to a struct that embeds a [PeftConfig], from
// the bytes of adapter_config.json, for a [Decoder]. Keys are exact; those without a
// field are kept in the Unknown of the PeftConfig returned.
func DecodeFields(data []byte, config any) (PeftConfig, error) {
	object, err := pyjson.Parse(data)
	if err != nil {
		return PeftConfig{}, fmt.Errorf("adapter_config.json: %w", err)
	}
	known := jsonKeys(reflect.TypeOf(config).Elem())
	part, err := object.Subset(func(k string) bool { return known[k] })
	if err != nil {
		return PeftConfig{}, fmt.Errorf("adapter_config.json: %w", err)
	}
	if err := json.Unmarshal(part, config); err != nil {
		return PeftConfig{}, fmt.Errorf("adapter_config.json: %w", err)
	}
	var common PeftConfig
	if err := json.Unmarshal(part, &common); err != nil {
		return PeftConfig{}, fmt.Errorf("adapter_config.json: %w", err)
	}
	for k, v := range object {
		// What every file is written with.
		if known[k] || k == "peft_type" || k == "inference_mode" {
			continue
		}
		if common.Unknown == nil {
			common.Unknown = map[string]json.RawMessage{}
		}
		common.Unknown[k] = v
	}
	return common, nil
}

// jsonKeys returns the keys that encoding/json gives the fields of a struct.
func jsonKeys(t reflect.Type) map[string]bool {
	keys := map[string]bool{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			for k := range jsonKeys(f.Type) {
				keys[k] = true
			}
		case f.IsExported() && name != "-" && name != "":
			keys[name] = true
		}
	}
	return keys
}
