package lora_test

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/layers"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
)

func family(t *testing.T, name string) basetest.Model {
	return basetest.Load(t, filepath.Join(basetest.Fixtures, "families", name))
}

// Old files have ".weight" behind DoRA's magnitudes (8.43).
func TestOldMagnitudeKeys(t *testing.T) {
	base, dir := family(t, "llama"), t.TempDir()
	pm, err := peft.GetPeftModel(base, lora.LoraConfig{R: 2, UseDora: true, InitLoraWeights: lora.InitRandom})
	require.NoError(t, err)
	require.NoError(t, pm.SavePretrained(dir))
	path := filepath.Join(dir, "adapter_model.safetensors")
	file, err := safetensors.Open(path)
	require.NoError(t, err)
	var list []safetensors.Tensor
	renamed := 0
	for _, name := range file.Names() {
		info, _ := file.Info(name)
		data, err := file.Bytes(name)
		require.NoError(t, err)
		if strings.HasSuffix(name, "lora_magnitude_vector") {
			name += ".weight"
			renamed++
		}
		list = append(list, safetensors.Tensor{Name: name, DType: info.DType, Shape: info.Shape, Data: func(w io.Writer) error { _, err := w.Write(data); return err }})
	}
	require.Equal(t, 4, renamed)
	require.NoError(t, safetensors.Write(filepath.Join(dir, "new"), map[string]string{"format": "pt"}, list))
	require.NoError(t, file.Close())
	require.NoError(t, os.Rename(filepath.Join(dir, "new"), path))
	old, err := peft.LoadAdapter(base, dir)
	require.NoError(t, err)
	want, err := pm.TensorValues(peft.DefaultAdapter)
	require.NoError(t, err)
	got, err := old.TensorValues(peft.DefaultAdapter)
	require.NoError(t, err)
	require.Equal(t, want, got)
}

// lora_bias adds out values a layer, and merges into a bias of the base only (8.28).
func TestLoraBias(t *testing.T) {
	base := family(t, "llama")
	plain, err := peft.GetPeftModel(base, lora.LoraConfig{R: 2})
	require.NoError(t, err)
	biased, err := peft.GetPeftModel(base, lora.LoraConfig{R: 2, LoraBias: true})
	require.NoError(t, err)
	require.EqualValues(t, 2*(32+16), biased.TrainableParameters().Trainable-plain.TrainableParameters().Trainable)
	_, err = biased.Merge(t.Context(), filepath.Join(t.TempDir(), "merged"))
	require.ErrorContains(t, err, "lora_bias cannot be merged into a layer that has no bias")
}

// Of two adapters that train biases only one can be active (8.51).
func TestOneAdapterWithBiases(t *testing.T) {
	pm, err := peft.GetPeftModel(family(t, "qwen2"), lora.LoraConfig{R: 2, Bias: lora.BiasAll})
	require.NoError(t, err)
	require.NoError(t, pm.AddAdapter(lora.LoraConfig{R: 2, Bias: lora.BiasLoraOnly}, peft.Options{Name: "other"}))
	_, err = pm.With(peft.DefaultAdapter, "other")
	require.ErrorContains(t, err, "bias")
	_, err = pm.With("other")
	require.NoError(t, err)
}

// All options work on a GoMLX model that knows nothing of them: weights [in, out], biases
// under other names. What is merged is what was computed.
func TestOptionsOnForeignModel(t *testing.T) {
	mlp := func(scope *model.Scope, in []*graph.Node) []*graph.Node {
		x := graph.Tanh(layers.Dense(scope.In("hidden"), in[0], true, 24))
		return []*graph.Node{layers.Dense(scope.In("readout"), x, true, 3)}
	}
	input := tensors.FromShape(shapes.Make(dtypes.Float32, 5, 16))
	require.NoError(t, tensors.MutableFlatData(input, func(x []float32) {
		for i := range x {
			x[i] = float32(i%7) - 3
		}
	}))
	base, err := peft.WrapModel(backendtest.Open(t), model.NewStore(), mlp, []shapes.Shape{input.Shape()})
	require.NoError(t, err)
	run := func(base *peft.WrappedModel, pm *peft.PeftModel) []float32 {
		out, err := base.Run(pm, input)
		require.NoError(t, err)
		return basetest.Flat(t, out[0])
	}
	want := run(base, nil)
	for name, c := range map[string]lora.LoraConfig{
		"dora":      {UseDora: true},
		"pissa":     {InitLoraWeights: lora.InitPissa},
		"olora":     {InitLoraWeights: lora.InitOlora, UseDora: true},
		"lora_bias": {LoraBias: true},
		"biases":    {Bias: lora.BiasAll},
		"targets'":  {Bias: lora.BiasLoraOnly, UseDora: true},
	} {
		t.Run(name, func(t *testing.T) {
			backendtest.Sample(t, 5)
			c.R, c.TargetModules = 2, peft.Modules("hidden.dense")
			pm, err := peft.GetPeftModel(base, c)
			require.NoError(t, err)
			basetest.RequireClose(t, want, run(base, pm), 1e-6, "fresh")
			values, err := pm.TensorValues(peft.DefaultAdapter)
			require.NoError(t, err)
			layout, err := pm.Layout(peft.DefaultAdapter)
			require.NoError(t, err)
			moved := map[string][]float32{}
			for _, p := range layout.Params() {
				for i, v := range values[p.Name] {
					moved[p.Name] = append(moved[p.Name], v+0.1*float32(i%5-2))
				}
			}
			set(t, pm, moved)
			changed := run(base, pm)
			require.NotEqual(t, want, changed)
			store, _, err := base.Merged(pm)
			require.NoError(t, err)
			merged, err := peft.WrapModel(backendtest.Open(t), store, mlp, []shapes.Shape{input.Shape()})
			require.NoError(t, err)
			basetest.RequireClose(t, changed, run(merged, nil), 1e-5, "merged")

			dir := t.TempDir()
			require.NoError(t, pm.SavePretrained(dir))
			again, err := peft.LoadAdapter(base, dir)
			require.NoError(t, err)
			basetest.RequireClose(t, changed, run(base, again), 1e-5, "saved and read again")
		})
	}
}
