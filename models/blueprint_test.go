package models_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/quant"
)

// A blueprint says of a model what the model says of itself, its memory included.
func TestBlueprint(t *testing.T) {
	for _, family := range []string{"llama", "llama_tied", "gpt2", "phi3", "llama_nf4", "llama_fp4"} {
		skip := "down_proj"
		if family == "gpt2" {
			skip = "c_proj"
		}
		for name, scheme := range map[string]quant.Scheme{"float": nil, "nf4": quant.NF4{DoubleQuant: true}, "int8": quant.INT8{Skip: []string{skip}}} {
			t.Run(family+"/"+name, func(t *testing.T) {
				dir := filepath.Join(basetest.Fixtures, "families", family)
				config, err := os.ReadFile(filepath.Join(dir, "config.json"))
				require.NoError(t, err)
				options := models.Options{On: backendtest.Open(t), DType: dtypes.Float32, Quantization: scheme}
				b, err := models.NewBlueprint(config, options)
				m, loadErr := models.Load(context.Background(), dir, options)
				if loadErr != nil { // already quantised
					require.ErrorContains(t, err, "already quantised")
					return
				}
				require.NoError(t, err)
				defer m.Close()
				require.Equal(t, m.Modules(), b.Modules())
				require.Equal(t, m.Head(), b.Head())
				require.Equal(t, m.CacheShape(), b.CacheShape())
				for _, p := range m.Parameters() {
					values, statistics := m.ParameterBytes(p)
					plannedValues, plannedStatistics := b.ParameterBytes(p)
					require.Equal(t, [2]int64{values, statistics}, [2]int64{plannedValues, plannedStatistics}, p.Name)
				}
			})
		}
	}
	_, err := models.NewBlueprint([]byte(`{"model_type": "lama"}`))
	require.ErrorContains(t, err, `model_type "lama" is not supported`)
	config, err := os.ReadFile(filepath.Join(basetest.Fixtures, "families", "llama", "config.json"))
	require.NoError(t, err)
	_, err = models.NewBlueprint(config, models.Options{Quantization: quant.NF4{Skip: []string{"donw_proj"}}}) // as when it is loaded
	require.EqualError(t, err, `models: blueprint: quantization: module to skip "donw_proj" is no linear layer; did you mean "down_proj"?`)
}
