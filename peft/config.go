package peft

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/gopeft/gopeft/internal/pyjson"
	"github.com/gopeft/gopeft/site"
)

// Config is one method's configuration: a plain struct of its package, such as
// lora.LoraConfig.
type Config interface {
	// PeftType is the method's name in adapter_config.json, "LORA".
	PeftType() string
	// Validate reports the first setting that makes no sense on any base.
	Validate() error
	// Attach plans an adapter on a base. It builds no graph and reads no weight,
	// and fails where a pattern of the configuration matches nothing.
	Attach(base site.Base) (Adapter, error)
	// Common returns the fields that all methods share.
	Common() PeftConfig
	// WithCommon returns a copy with other shared fields.
	WithCommon(PeftConfig) Config
}

// PeftConfig holds the fields of adapter_config.json that all methods share. The
// zero value is a causal language model adapter of an unnamed base.
type PeftConfig struct {
	// TaskType is "CAUSAL_LM", "SEQ_CLS", ...; empty for none.
	TaskType string `json:"task_type"`
	// BaseModelNameOrPath is filled from the base when empty.
	BaseModelNameOrPath string `json:"base_model_name_or_path"`
	// Revision of the base model.
	Revision string `json:"revision"`
	// Version is peft_version of the file the configuration was read from.
	Version string `json:"peft_version"`
	// Unknown holds keys of a file that this version does not know. They are
	// written back as they were.
	Unknown map[string]json.RawMessage `json:"-"`

	// reading is set while an adapter of a file is attached, see Reading.
	reading bool
	// maxRank is set while an adapter is attached, see MaxRank.
	maxRank int
	// besides is set while an adapter of a file is attached, see Besides.
	besides bool
}

// MaxRank is the rank that the adapter being attached is to be laid out for, 0 for its own:
// see [Options] and [Swappable].
func (c PeftConfig) MaxRank() int { return c.maxRank }

// Reading reports whether the configuration is being attached to read an adapter's
// file. Then an entry without effect is no error, as the file's tensors say what is
// adapted, nor is an initialisation that this library cannot do.
func (c PeftConfig) Reading() bool { return c.reading }

// Besides reports whether the adapter that is being attached is read from a folder that has
// the second file too, see [Param].Beside. Without it an adapter cannot ask for such tensors.
func (c PeftConfig) Besides() bool { return c.besides }

// Common returns c itself; it makes every struct that embeds a PeftConfig share it.
func (c PeftConfig) Common() PeftConfig { return c }

// A Decoder reads a method's configuration from the bytes of adapter_config.json.
type Decoder func(data []byte) (Config, error)

var registry = struct {
	sync.Mutex
	decoders map[string]Decoder
}{decoders: map[string]Decoder{}}

// Register makes a method known by its peft_type, so that [LoadAdapter] can open
// its files. Methods call it in init; registering a type twice panics.
func Register(peftType string, decode Decoder) {
	registry.Lock()
	defer registry.Unlock()
	if _, ok := registry.decoders[peftType]; ok {
		panic(fmt.Sprintf("peft: method %q registered twice", peftType))
	}
	registry.decoders[peftType] = decode
}

// packages names the import that registers a method, for the error of one that is not imported.
var packages = map[string]string{
	"ADALORA":                 "github.com/gopeft/gopeft/lora",
	"BOFT":                    "github.com/gopeft/gopeft/lora",
	"BOTTLENECK":              "github.com/gopeft/gopeft/adapters",
	"IA3":                     "github.com/gopeft/gopeft/adapters",
	"LN_TUNING":               "github.com/gopeft/gopeft/adapters",
	"LOHA":                    "github.com/gopeft/gopeft/lora",
	"LOKR":                    "github.com/gopeft/gopeft/lora",
	"LORA":                    "github.com/gopeft/gopeft/lora",
	"MISS":                    "github.com/gopeft/gopeft/lora",
	"MULTITASK_PROMPT_TUNING": "github.com/gopeft/gopeft/prefixtuning",
	"OFT":                     "github.com/gopeft/gopeft/lora",
	"PREFIX_TUNING":           "github.com/gopeft/gopeft/prefixtuning",
	"PROMPT_TUNING":           "github.com/gopeft/gopeft/prefixtuning",
	"P_TUNING":                "github.com/gopeft/gopeft/prefixtuning",
	"TRAINABLE_TOKENS":        "github.com/gopeft/gopeft/adapters",
	"VERA":                    "github.com/gopeft/gopeft/lora",
}

// DecodeConfig reads an adapter_config.json of any registered method.
func DecodeConfig(data []byte) (Config, error) {
	c, err := decodeConfig(data)
	if err != nil {
		return nil, fmt.Errorf("peft: %w", err)
	}
	return c, nil
}

func decodeConfig(data []byte) (Config, error) {
	object, err := pyjson.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("adapter_config.json: %w", err)
	}
	raw, ok := object["peft_type"]
	if !ok {
		if _, inner := object["config"]; inner && (object["model_type"] != nil || object["hidden_size"] != nil) {
			return nil, errors.New("adapter_config.json is one of AdapterHub's library: open the folder with adapters.LoadAdapterHub")
		}
		return nil, errors.New(`adapter_config.json: missing required key "peft_type"`)
	}
	var peftType string
	if err := json.Unmarshal(raw, &peftType); err != nil {
		return nil, fmt.Errorf("adapter_config.json: peft_type: %w", err)
	}
	registry.Lock()
	decode, ok := registry.decoders[peftType]
	known := slices.Sorted(maps.Keys(registry.decoders))
	registry.Unlock()
	if !ok {
		if path, ok := packages[peftType]; ok {
			return nil, fmt.Errorf("method %q is not linked into this program: import _ %q", peftType, path)
		}
		return nil, fmt.Errorf("unsupported peft_type %q (this program knows %s)", peftType, strings.Join(known, ", "))
	}
	return decode(data)
}
