package quant

import (
	"slices"

	"github.com/gopeft/gopeft/internal/pyjson"
)

// Config is the quantization_config of a config.json, with the names, the order and the
// defaults of transformers' BitsAndBytesConfig. (Block sizes are in the weights' own
// quant_state.)
type Config struct {
	LoadedIn4Bit   bool         `json:"_load_in_4bit"`
	LoadedIn8Bit   bool         `json:"_load_in_8bit"`
	ComputeDType   string       `json:"bnb_4bit_compute_dtype"` // as torch calls it
	QuantStorage   string       `json:"bnb_4bit_quant_storage"`
	QuantType      Type         `json:"bnb_4bit_quant_type"`
	UseDoubleQuant bool         `json:"bnb_4bit_use_double_quant"`
	CPUOffload     bool         `json:"llm_int8_enable_fp32_cpu_offload"`
	FP16Weight     bool         `json:"llm_int8_has_fp16_weight"`
	SkipModules    []string     `json:"llm_int8_skip_modules"` // nil: transformers skips the head
	Threshold      pyjson.Float `json:"llm_int8_threshold"`
	LoadIn4Bit     bool         `json:"load_in_4bit"`
	LoadIn8Bit     bool         `json:"load_in_8bit"`
	QuantMethod    string       `json:"quant_method"`
}

func config(skip []string) Config {
	return Config{
		ComputeDType: "float32", QuantStorage: "uint8", QuantType: Float4,
		SkipModules: slices.Clone(skip), Threshold: 6, QuantMethod: "bitsandbytes",
	}
}

func config4(f FourBit, skip []string) Config {
	c := config(skip)
	c.LoadedIn4Bit, c.LoadIn4Bit, c.QuantType, c.UseDoubleQuant = true, true, f.Type, f.DoubleQuant
	return c
}

// Config implements [Scheme].
func (s NF4) Config() Config { return config4(s.format(), s.Skip) }

// Config implements [Scheme].
func (s FP4) Config() Config { return config4(s.format(), s.Skip) }

// Config implements [Scheme].
func (s INT8) Config() Config {
	c := config(s.Skip)
	c.LoadedIn8Bit, c.LoadIn8Bit = true, true
	return c
}
