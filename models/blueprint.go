package models

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/ml/model"

	"github.com/gopeft/gopeft/quant"
	"github.com/gopeft/gopeft/site"
)

// Blueprint is a base without parameters and without a backend: what a config.json says
// of a model. Adapters and memory can be planned on it, see peft.DryRun and
// train.PlanMemory; no program can be built from it.
type Blueprint struct {
	arch   Architecture
	dtype  dtypes.DType
	scheme quant.Scheme
	linear map[string]site.Module // see quantisable
}

var _ site.Transformer = (*Blueprint)(nil)

// NewBlueprint reads a config.json. Of the options, DType (zero: bfloat16, as on CUDA) and
// Quantization count; a configuration of a checkpoint that bitsandbytes has quantised needs none.
func NewBlueprint(configJSON []byte, options ...Options) (*Blueprint, error) {
	arch, err := NewArchitecture(configJSON)
	if err != nil {
		return nil, err
	}
	o := first(options)
	if o.Quantization != nil {
		if err := checkScheme(arch, o.Quantization); err != nil {
			return nil, fmt.Errorf("models: blueprint: %w", err)
		}
	}
	b := &Blueprint{arch: arch, dtype: o.DType, scheme: o.Quantization, linear: quantisable(arch)}
	if stored, err := storedScheme(configJSON); err != nil {
		return nil, fmt.Errorf("models: config.json: %w", err)
	} else if stored != nil && b.scheme != nil {
		return nil, fmt.Errorf("models: blueprint: %w", ErrQuantised)
	} else if stored != nil {
		b.scheme = stored
	}
	switch o.DType {
	case dtypes.InvalidDType:
		b.dtype = dtypes.BFloat16
	case dtypes.Float32, dtypes.BFloat16, dtypes.Float16:
	default:
		return nil, fmt.Errorf("models: blueprint: dtype: wanted Float32, BFloat16 or Float16, got %s", o.DType)
	}
	return b, nil
}

// Config describes the model.
func (b *Blueprint) Config() Config { return b.arch.Config() }

// Backend implements [site.Base]; there is none.
func (b *Blueprint) Backend() compute.Backend { return nil }

// Store implements [site.Base]; there is none.
func (b *Blueprint) Store() *model.Store { return nil }

// DType is the dtype of parameters that are not quantised, and of computation.
func (b *Blueprint) DType() dtypes.DType { return b.dtype }

// ModelType is config.json's model_type.
func (b *Blueprint) ModelType() string { return b.Config().ModelType }

// NameOrPath is "".
func (b *Blueprint) NameOrPath() string { return "" }

// Modules lists every module that can be a site, in the order of the forward pass.
func (b *Blueprint) Modules() []site.Module { return b.arch.Modules() }

// Parameters lists every parameter once.
func (b *Blueprint) Parameters() []site.Parameter { return b.arch.Parameters() }

// Layers lists the blocks in the order of the forward pass.
func (b *Blueprint) Layers() []site.Layer { return b.arch.Layers() }

// Words is the embedding of token ids.
func (b *Blueprint) Words() site.Module { return wordsOf(b.arch) }

// WordScale is what the model multiplies the output of Words with; 1 in most.
func (b *Blueprint) WordScale() float64 { return wordScale(b.arch) }

// CacheShape says what a key/value cache holds.
func (b *Blueprint) CacheShape() site.CacheShape { return b.arch.CacheShape() }

// Head is the projection onto the vocabulary.
func (b *Blueprint) Head() site.Module { return headOf(b.arch) }

func headOf(n network) site.Module {
	modules := n.Modules()
	return modules[slices.IndexFunc(modules, func(m site.Module) bool { return m.Head })]
}

// VocabSize is the number of token ids.
func (b *Blueprint) VocabSize() int { return b.Config().VocabSize }

// MaxPositions is the longest sequence the model was made for.
func (b *Blueprint) MaxPositions() int { return b.Config().MaxPositions }

// ParameterBytes is the memory that a parameter takes on the device: its values or codes,
// and what a quantised one has besides.
func (b *Blueprint) ParameterBytes(p site.Parameter) (values, statistics int64) {
	if module, ok := b.linear[p.Name]; ok && b.scheme != nil && !b.scheme.Skips(module.Path) {
		return layoutBytes(b.scheme.Layout(module.WeightShape(), fileDType(b.dtype)))
	}
	return int64(p.Size()) * int64(b.dtype.Size()), 0
}

// storedScheme is how bitsandbytes has quantised the checkpoint of a config.json, nil if it
// has not.
func storedScheme(configJSON []byte) (quant.Scheme, error) {
	var c struct {
		Q *struct {
			Four   bool     `json:"load_in_4bit"`
			Old4   bool     `json:"_load_in_4bit"`
			Type   string   `json:"bnb_4bit_quant_type"`
			Double bool     `json:"bnb_4bit_use_double_quant"`
			Skip   []string `json:"llm_int8_skip_modules"`
		} `json:"quantization_config"`
	}
	if err := json.Unmarshal(configJSON, &c); err != nil {
		return nil, err
	}
	switch {
	case c.Q == nil:
		return nil, nil
	case !c.Q.Four && !c.Q.Old4:
		return quant.INT8{Skip: c.Q.Skip}, nil
	case c.Q.Type == string(quant.NormalFloat):
		return quant.NF4{DoubleQuant: c.Q.Double, Skip: c.Q.Skip}, nil
	case c.Q.Type == string(quant.Float4) || c.Q.Type == "":
		return quant.FP4{DoubleQuant: c.Q.Double, Skip: c.Q.Skip}, nil
	}
	return nil, fmt.Errorf("quantization_config: bnb_4bit_quant_type %q: want nf4 or fp4", c.Q.Type)
}
