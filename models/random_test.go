package models

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/site"
)

// requireNormal checks mean, spread and tails of numbers from N(0, std²).
func requireNormal(t *testing.T, values []float32, std float64) {
	t.Helper()
	var sum, square, beyond float64
	for _, v := range values {
		x := float64(v) / std
		sum += x
		square += x * x
		if math.Abs(x) > 2 {
			beyond++
		}
	}
	n := float64(len(values))
	require.InDelta(t, 0, sum/n, 5/math.Sqrt(n))
	require.InDelta(t, 1, square/n, 8/math.Sqrt(n))
	require.InDelta(t, 0.0455, beyond/n, 1.5/math.Sqrt(n))
}

func TestNew(t *testing.T) {
	config, err := os.ReadFile(filepath.Join(fixtures, "qwen2", configFile))
	require.NoError(t, err)
	values := func(seed uint64, name string) []float32 {
		m, err := New(context.Background(), config, seed, float32Options(t))
		require.NoError(t, err)
		defer m.Close()
		require.Equal(t, len(m.Parameters()), m.Store().NumVariables())
		return tensors.MustCopyFlatData[float32](m.Store().GetVariable(site.VariablePath(name)).MustValue())
	}
	const q, k = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"
	requireNormal(t, values(1, q+".weight"), 0.02)
	require.Equal(t, values(1, q+".weight"), values(1, q+".weight"))
	require.NotEqual(t, values(1, q+".weight"), values(2, q+".weight"))
	require.NotEqual(t, values(1, q+".weight"), values(1, k+".weight"))
	require.Zero(t, values(1, q+".bias")[3])
	require.Equal(t, float32(1), values(1, "model.norm.weight")[3])
	_, err = New(context.Background(), []byte(`{"model_type": "llama"}`), 1, float32Options(t))
	require.ErrorContains(t, err, "vocab_size is missing")
}

// TestDeviceNormal: what a device with its own memory makes of large matrices.
func TestDeviceNormal(t *testing.T) {
	d := newDeviceNormal(backendtest.Open(t), dtypes.Float32)
	defer d.close()
	values := func(name string, seed uint64) []float32 {
		out, err := d.make(site.Parameter{Name: name, Shape: []int{300, 128}}, seed, 0.5)
		require.NoError(t, err)
		require.Equal(t, []int{300, 128}, out.Shape().Dimensions)
		return tensors.MustCopyFlatData[float32](out)
	}
	a := values("a", 1)
	requireNormal(t, a, 0.5)
	require.Equal(t, a, values("a", 1))
	require.Len(t, d.programs, 1)
	for name, other := range map[string][]float32{"name": values("b", 1), "seed": values("a", 2)} {
		var product float64
		for i := range a {
			product += float64(a[i]) * float64(other[i]) / 0.25
		}
		require.InDelta(t, 0, product/float64(len(a)), 5/math.Sqrt(float64(len(a))), name)
	}
	// Neighbours are independent too.
	var product float64
	for i := range a[1:] {
		product += float64(a[i]) * float64(a[i+1]) / 0.25
	}
	require.InDelta(t, 0, product/float64(len(a)), 5/math.Sqrt(float64(len(a))))
}
