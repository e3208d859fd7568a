package models

import (
	"fmt"
	"strings"

	"github.com/gomlx/compute/dtypes"

	"github.com/gopeft/gopeft/internal/pyjson"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/site"
)

// quantisedConfig is config.json of the model in few bits.
func (m *core) quantisedConfig(compute dtypes.DType, stored map[safetensors.DType]int) ([]byte, error) {
	if m.scheme == nil {
		return m.config.JSON, nil // it says so already
	}
	object, err := pyjson.Parse(m.config.JSON)
	if err != nil {
		return nil, err
	}
	c := m.scheme.Config()
	if c.LoadIn4Bit {
		if c.ComputeDType, err = torchDType(compute, stored); err != nil {
			return nil, err
		}
	}
	c.SkipModules = m.skippedModules()
	members := map[string]any{quantizationKey: c}
	for key, value := range object {
		if key != quantizationKey {
			members[key] = value
		}
	}
	data, err := pyjson.Marshal(members)
	return append(data, '\n'), err
}

// torchDType names the dtype to compute in: as asked for, or that of most stored weights.
func torchDType(compute dtypes.DType, stored map[safetensors.DType]int) (string, error) {
	switch compute {
	case dtypes.Float32:
		return "float32", nil
	case dtypes.BFloat16:
		return "bfloat16", nil
	case dtypes.Float16:
		return "float16", nil
	case dtypes.InvalidDType:
		half := map[safetensors.DType]dtypes.DType{safetensors.BF16: dtypes.BFloat16, safetensors.F16: dtypes.Float16}
		most := safetensors.F32
		for dtype := range half {
			if stored[dtype] > stored[most] {
				most = dtype
			}
		}
		if most == safetensors.F32 {
			return "float32", nil
		}
		return torchDType(half[most], nil)
	}
	return "", fmt.Errorf("compute dtype: wanted Float32, BFloat16 or Float16, got %s", compute)
}

// skippedModules lists linear layers that keep their weights; nil where these are the
// head alone, which transformers knows by itself.
func (m *core) skippedModules() []string {
	linear := quantisable(m.network)
	_, classifier := m.network.(*classifierNetwork)
	var skipped []string
	explicit := classifier
	for _, module := range m.network.Modules() {
		if module.Kind != site.Linear {
			continue
		}
		if _, ok := linear[module.Weight()]; ok && !m.scheme.Skips(module.Path) {
			continue
		}
		explicit = explicit || !module.Head
		own := storedName(m.network, module.Path+".weight")
		skipped = append(skipped, strings.TrimSuffix(own, ".weight"))
	}
	if !explicit {
		return nil
	}
	return skipped
}
