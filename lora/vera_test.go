package lora_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/peft/pefttest"
)

// The case "seed" has no A and B in its file: they are drawn as PyTorch draws them.
func TestVeraGolden(t *testing.T) { pefttest.Golden(t, "*-vera_*") }

func TestVeraConformance(t *testing.T) {
	for name, s := range map[string]pefttest.Suite{
		"plain":         {Config: lora.VeraConfig{R: 8}},
		"no projection": {Config: lora.VeraConfig{R: 8, SaveProjection: lora.Off, ProjectionPRNGKey: 3, VeraDropout: 0.1, TargetModules: peft.AllLinear}},
	} {
		t.Run(name, func(t *testing.T) { pefttest.Run(t, s) })
	}
}

// A and B of a new adapter are bit by bit those that peft draws and saves.
func TestVeraProjectionEqualsPeft(t *testing.T) {
	dir := filepath.Join(basetest.Fixtures, "methods", "llama-vera_sizes")
	file, err := safetensors.Open(filepath.Join(dir, "adapter_model.safetensors"))
	require.NoError(t, err)
	defer file.Close()
	data, err := os.ReadFile(filepath.Join(dir, "adapter_config.json"))
	require.NoError(t, err)
	config, err := peft.DecodeConfig(data)
	require.NoError(t, err)
	base := basetest.Load(t, filepath.Join(basetest.Fixtures, "families", "llama"))
	pm, err := peft.GetPeftModel(base, config)
	require.NoError(t, err)
	out := filepath.Join(t.TempDir(), "out")
	require.NoError(t, pm.SavePretrained(out))
	ours, err := safetensors.Open(filepath.Join(out, "adapter_model.safetensors"))
	require.NoError(t, err)
	defer ours.Close()
	for _, name := range []string{"base_model.vera_A", "base_model.vera_B"} {
		want, err := file.Bytes(name)
		require.NoError(t, err)
		got, err := ours.Bytes(name)
		require.NoError(t, err)
		require.Equal(t, want, got, name)
	}
}

// peft shares one pair of A and B between all adapters of a model, and so refuses another
// key, other sizes, and files with and without A and B beside each other (item 16 of its
// acceptance list). Here each adapter has its own pair, and all of these work.
func TestVeraAdaptersAreIndependent(t *testing.T) {
	base := basetest.Load(t, filepath.Join(basetest.Fixtures, "families", "llama"))
	dir := func(name string) string { return filepath.Join(basetest.Fixtures, "methods", "llama-vera_"+name) }
	pm, err := peft.LoadAdapter(base, dir("plain"))
	require.NoError(t, err)
	require.NoError(t, pm.LoadAdapter(dir("sizes"), peft.Options{Name: "sizes"})) // larger matrices
	require.NoError(t, pm.LoadAdapter(dir("seed"), peft.Options{Name: "seed"}))   // another key, no matrices
	for name, adapter := range map[string]string{"plain": peft.DefaultAdapter, "sizes": "sizes", "seed": "seed"} {
		file, err := safetensors.Open(filepath.Join(dir(name), "golden.safetensors"))
		require.NoError(t, err)
		defer file.Close()
		g := basetest.Golden{File: file}
		view, err := pm.With(adapter)
		require.NoError(t, err)
		got := basetest.Evaluate(t, view, g.Tensor(t, "input_ids"), g.Tensor(t, "labels"))
		basetest.RequireClose(t, basetest.Flat(t, g.Tensor(t, "logits")), got.Logits, 1e-4, name)
	}
}

// A file that lacks A and B though its configuration promises them is refused, and so is
// one that has them though it should not (items 16 and 41).
func TestVeraFilesAndSaveProjection(t *testing.T) {
	base := basetest.Load(t, filepath.Join(basetest.Fixtures, "families", "llama"))
	save := func(s lora.Switch) string {
		pm, err := peft.GetPeftModel(base, lora.VeraConfig{R: 4, SaveProjection: s})
		require.NoError(t, err)
		dir := filepath.Join(t.TempDir(), "out")
		require.NoError(t, pm.SavePretrained(dir))
		return dir
	}
	with, without := save(lora.On), save(lora.Off)
	swap := func(config, weights string) string {
		dir := t.TempDir()
		for file, from := range map[string]string{"adapter_config.json": config, "adapter_model.safetensors": weights} {
			data, err := os.ReadFile(filepath.Join(from, file))
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(dir, file), data, 0o600))
		}
		return dir
	}
	_, err := peft.LoadAdapter(base, swap(with, without))
	var report *peft.LoadError
	require.ErrorAs(t, err, &report)
	require.Equal(t, []string{"vera_A", "vera_B"}, report.Report.Missing)
	_, err = peft.LoadAdapter(base, swap(without, with))
	require.ErrorAs(t, err, &report)
	require.Equal(t, []string{"base_model.vera_A", "base_model.vera_B"}, report.Report.Unexpected)
}

func TestVeraErrors(t *testing.T) {
	base := basetest.Llama(64, 2, 4, 2, 16, 96, 100)
	for _, c := range []struct {
		config lora.VeraConfig
		want   string
	}{
		{lora.VeraConfig{}, `vera: r is 0, want a rank of at least 1 (peft's default is 256)`},
		{lora.VeraConfig{R: 4, VeraDropout: -1}, `vera: vera_dropout is -1, want a rate in [0, 1)`},
		{lora.VeraConfig{R: 4, InitWeights: lora.MissBat}, `vera: init_weights "bat" is not supported`},
		{lora.VeraConfig{R: 4, TargetModules: peft.Modules("norm")}, `vera: target module "model.norm" is of kind norm, want a linear layer`},
		{lora.VeraConfig{R: 4, LayersPattern: []string{"layers"}}, `vera: layers_pattern needs layers_to_transform`},
	} {
		_, err := peft.GetPeftModel(base, c.config)
		require.ErrorContains(t, err, c.want)
	}
	_, err := peft.DecodeConfig([]byte(`{"peft_type": "VERA", "d_initial": 0}`))
	require.ErrorContains(t, err, `vera: d_initial is 0`)
}
