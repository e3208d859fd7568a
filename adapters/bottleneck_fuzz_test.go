package adapters

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/peft"
)

// What is read from a file is a configuration that fits a base, or an error, and what is
// written of it means the same.
func FuzzBottleneck(f *testing.F) {
	for _, seed := range []string{
		`{"peft_type": "BOTTLENECK"}`,
		`{"peft_type": "BOTTLENECK", "mh_adapter": true, "output_adapter": true, "reduction_factor": {"0": 2.5, "default": 8}, "non_linearity": "GELU", "scaling": "channel"}`,
		`{"peft_type": "BOTTLENECK", "is_parallel": true, "scaling": 4.0, "init_weights": "mam_adapter", "leave_out": [1], "dropout": 0.1, "ln_after": true}`,
		`{"peft_type": "BOTTLENECK", "original_ln_before": true, "residual_before_ln": "post_add", "original_ln_after": false, "init_weights_seed": 42}`,
		`{"peft_type": "BOTTLENECK", "target_modules": ["o_proj"], "reduction_factor": 1e1, "residual_before_ln": false, "modules_to_save": ["lm_head"]}`,
		`{"peft_type": "BOTTLENECK", "use_gating": false, "phm_layer": false, "phm_dim": 4}`,
	} {
		f.Add([]byte(seed))
	}
	base := llamaShape(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		config, err := peft.DecodeConfig(data)
		if err != nil || config.PeftType() != BottleneckType {
			return
		}
		plan, err := peft.DryRun(base, config)
		if err != nil {
			return
		}
		require.NotZero(t, plan.Count.Trainable)
		text, err := peft.EncodeConfig(plan.Config)
		require.NoError(t, err)
		again, err := peft.DecodeConfig(text)
		require.NoError(t, err)
		second, err := peft.EncodeConfig(again)
		require.NoError(t, err)
		require.Equal(t, string(text), string(second))
		planned, err := peft.DryRun(base, again)
		require.NoError(t, err)
		require.Equal(t, plan.Targets, planned.Targets)
	})
}

// AdapterHub's adapter_config.json is read as a configuration that makes sense, or refused,
// and written back means the same.
func FuzzAdapterHub(f *testing.F) {
	paths, err := filepath.Glob(hubFixture("*", "adapter_config.json"))
	require.NoError(f, err)
	for _, path := range paths {
		data, err := os.ReadFile(path)
		require.NoError(f, err)
		f.Add(data)
	}
	f.Add([]byte(`{"config": "houlsby", "name": "a", "hidden_size": 768}`))
	f.Add([]byte(`{"config": {"mh_adapter": true, "output_adapter": false, "reduction_factor": 2, "non_linearity": "gelu_orig", "invertible_adapter": null}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := decodeHub(data)
		if err != nil {
			return
		}
		require.NoError(t, file.config.Validate())
		inner, err := file.config.hubJSON()
		require.NoError(t, err)
		text, err := json.Marshal(map[string]any{"config": inner, "version": "adapters.1.3.0"})
		require.NoError(t, err)
		again, err := decodeHub(text)
		require.NoError(t, err)
		second, err := again.config.hubJSON()
		require.NoError(t, err)
		require.Equal(t, inner, second)
	})
}

// head_config.json is read, or refused.
func FuzzAdapterHubHead(f *testing.F) {
	paths, err := filepath.Glob(hubFixture("*", "head_config.json"))
	require.NoError(f, err)
	for _, path := range paths {
		data, err := os.ReadFile(path)
		require.NoError(f, err)
		f.Add(data)
	}
	base := llamaShape(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		head, err := decodeHead(data)
		if err != nil {
			return
		}
		if renamed, err := head.parameters(base); err == nil {
			renamed("heads.task.1.weight")
		}
	})
}
