package models

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/quant"
)

func loadQuantised(t testing.TB, family string, scheme quant.Scheme) *Model {
	t.Helper()
	o := float32Options(t)
	o.Quantization = scheme
	m, err := Load(t.Context(), filepath.Join(fixtures, family), o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return m
}

func someLogits(t testing.TB, m *Model) []float32 {
	t.Helper()
	ids := tensors.FromValue([][]int32{{3, 9, 4, 27, 11, 60}, {5, 6, 7, 8, 33, 12}})
	return tensors.MustCopyFlatData[float32](logits(t, m, call{ids: ids})[0])
}

// A model that is quantised while it is loaded computes with what its export holds:
// the weights decoded, every family's layout among them.
func TestQuantisedModels(t *testing.T) {
	for _, family := range []string{"llama", "gpt2", "phi3", "gpt_neox", "gemma2"} {
		for name, scheme := range map[string]quant.Scheme{"nf4": quant.NF4{DoubleQuant: true}, "fp4": quant.FP4{BlockSize: 32}, "int8": quant.INT8{}} {
			if family != "llama" && name == "fp4" {
				continue
			}
			t.Run(family+" "+name, func(t *testing.T) {
				backendtest.Sample(t, 5)
				m := loadQuantised(t, family, scheme)
				require.Len(t, m.quantised, len(quantisable(m.network)))
				for v := range m.store.IterVariables() {
					name := strings.ReplaceAll(strings.TrimPrefix(v.Path(), "/"), "/", ".")
					if _, ok := m.quantised[name]; ok {
						require.False(t, v.DType().IsFloat(), "%s is held in full", name)
					}
				}
				got := someLogits(t, m)
				full := someLogits(t, loadQuantised(t, family, nil))
				require.NotEqual(t, full, got)
				dir := t.TempDir()
				require.NoError(t, m.Export(t.Context(), dir, nil))
				exported, err := Load(t.Context(), dir, float32Options(t))
				require.NoError(t, err)
				defer exported.Close()
				require.InDeltaSlice(t, someLogits(t, exported), got, 1e-4)
			})
		}
	}
}

// Quantising twice, on the way in and what bitsandbytes has done, gives the same.
func TestQuantisedCheckpoint(t *testing.T) {
	stored := loadQuantised(t, "llama_nf4", nil)
	dir := t.TempDir()
	require.NoError(t, stored.Export(t.Context(), dir, nil)) // decoded, without quantization_config
	o := float32Options(t)
	o.Quantization = quant.NF4{DoubleQuant: true}
	again, err := Load(t.Context(), dir, o)
	require.NoError(t, err)
	defer again.Close()
	// Decoded values lie on levels: what their blocks' absmax says is found again, but for
	// double quantisation, which rounds it anew.
	require.InDeltaSlice(t, someLogits(t, stored), someLogits(t, again), 0.05)
	_, err = Load(t.Context(), filepath.Join(fixtures, "llama_nf4"), o)
	require.ErrorContains(t, err, "the checkpoint is already quantised")
}

func TestQuantisedSkips(t *testing.T) {
	m := loadQuantised(t, "llama", quant.NF4{Skip: []string{"down_proj", "layers.0.self_attn.q_proj"}})
	for name := range m.quantised {
		require.NotContains(t, name, "down_proj")
		require.NotContains(t, name, "lm_head")
		require.NotEqual(t, "model.layers.0.self_attn.q_proj.weight", name)
	}
	require.Len(t, m.quantised, 14-3)
	_, err := Load(t.Context(), filepath.Join(fixtures, "llama"), Options{Quantization: quant.NF4{BlockSize: 60}})
	require.ErrorContains(t, err, "block size is 60, want a power of two")
}

func TestQuantisedCheckpointErrors(t *testing.T) {
	const weight = "model.layers.1.mlp.up_proj.weight"
	for name, c := range map[string]struct {
		edit func(list []safetensors.Tensor) []safetensors.Tensor
		want string
	}{
		"no absmax": {func(l []safetensors.Tensor) []safetensors.Tensor { return without(l, weight+".absmax") }, `there is no tensor "` + weight + `.absmax"`},
		"no state": {func(l []safetensors.Tensor) []safetensors.Tensor {
			return without(l, weight+".quant_state.bitsandbytes__nf4")
		}, "of the wrong shape or dtype"},
		"truncated codes": {func(l []safetensors.Tensor) []safetensors.Tensor {
			for i := range l {
				if l[i].Name == weight {
					l[i].Shape, l[i].Bytes = []int{len(l[i].Bytes) - 1, 1}, l[i].Bytes[1:]
				}
			}
			return l
		}, "needs 4096 bytes of codes, got 4095"},
		"another's statistics": {func(l []safetensors.Tensor) []safetensors.Tensor {
			return append(l, safetensors.Tensor{Name: "model.norm.weight.absmax", DType: safetensors.F32, Shape: []int{1}, Bytes: make([]byte, 4)})
		}, `1 unexpected`},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			require.NoError(t, os.CopyFS(dir, os.DirFS(filepath.Join(fixtures, "llama_nf4"))))
			editTensors(t, dir, c.edit)
			_, err := Load(t.Context(), dir, float32Options(t))
			require.ErrorContains(t, err, c.want)
		})
	}
}

// editTensors writes a folder's weights anew.
func editTensors(t testing.TB, dir string, edit func([]safetensors.Tensor) []safetensors.Tensor) {
	t.Helper()
	path := filepath.Join(dir, safetensors.SingleName)
	f, err := safetensors.Open(path)
	require.NoError(t, err)
	var list []safetensors.Tensor
	for _, name := range f.Names() {
		info, _ := f.Info(name)
		data, err := f.Bytes(name)
		require.NoError(t, err)
		list = append(list, safetensors.Tensor{Name: name, DType: info.DType, Shape: info.Shape, Bytes: append([]byte{}, data...)})
	}
	require.NoError(t, f.Close())
	require.NoError(t, safetensors.Write(path, nil, edit(list)))
}

func without(list []safetensors.Tensor, name string) []safetensors.Tensor {
	var out []safetensors.Tensor
	for _, tensor := range list {
		if tensor.Name != name {
			out = append(out, tensor)
		}
	}
	return out
}

// Random models can be quantised too: how else would a large one be measured.
func TestQuantisedRandom(t *testing.T) {
	o := float32Options(t)
	o.Quantization = quant.NF4{DoubleQuant: true}
	full := loadQuantised(t, "llama", nil)
	m, err := New(t.Context(), full.Config().JSON, 3, o)
	require.NoError(t, err)
	defer m.Close()
	require.Len(t, m.quantised, 14)
	for _, v := range someLogits(t, m) {
		require.False(t, v != v)
	}
	dir := t.TempDir()
	require.NoError(t, m.Export(t.Context(), dir, nil)) // decoded, as of a model that was loaded
	exported, err := Load(t.Context(), dir, float32Options(t))
	require.NoError(t, err)
	defer exported.Close()
	require.InDeltaSlice(t, someLogits(t, exported), someLogits(t, m), 1e-4)
	values := make([]float32, 32*32)
	dtype, ok, err := m.ReadParameter("model.layers.0.self_attn.q_proj.weight", values)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, dtypes.Float32, dtype)
	_, ok, err = m.ReadParameter("model.norm.weight", nil)
	require.NoError(t, err)
	require.False(t, ok)
}
