package lora_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
)

// edited copies an adapter's folder with members of its configuration changed.
func edited(t *testing.T, dir string, change map[string]any) string {
	t.Helper()
	to := t.TempDir()
	require.NoError(t, os.CopyFS(to, os.DirFS(dir)))
	path := filepath.Join(to, "adapter_config.json")
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	var config map[string]any
	require.NoError(t, json.Unmarshal(data, &config))
	for key, value := range change {
		config[key] = value
	}
	data, err = json.Marshal(config)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, data, 0o644))
	return to
}

// GPT-2's adapters often say fan_in_fan_out: false, which is wrong; peft sets it right.
func TestConv1DWithoutFanInFanOut(t *testing.T) {
	dir := "../internal/golden/testdata/lora/gpt2-conv1d"
	ids := tensors.FromValue([][]int32{{5, 9, 33, 7, 12, 41}})
	var logits [][]float32
	for _, dir := range []string{dir, edited(t, dir, map[string]any{"fan_in_fan_out": false})} {
		pm, err := peft.LoadAdapter(basetest.Load(t, filepath.Join(basetest.Fixtures, "families", "gpt2")), dir)
		require.NoError(t, err)
		logits = append(logits, basetest.Evaluate(t, pm, ids, ids).Logits)
	}
	require.Equal(t, logits[0], logits[1])
}

// An adapter in the shape of DialoGPT-small, on the first six layers of a GPT-2 made here.
func TestDialoGPT(t *testing.T) {
	root := os.Getenv("GOPEFT_ASSETS")
	if root == "" {
		root = "../../shared/assets"
	}
	dir := filepath.Join(root, "lora-dialogpt-synthetic")
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("no %s: set GOPEFT_ASSETS to the folder that has it", dir)
	}
	config := `{"model_type": "gpt2", "vocab_size": 64, "n_embd": 768, "n_layer": 6, "n_head": 12, "n_positions": 32}`
	base, err := models.New(t.Context(), []byte(config), 1, models.Options{On: backendtest.Open(t)})
	require.NoError(t, err)
	defer base.Close()

	// Its targets name c_proj, which the feed-forward has too, and the file has no tensors
	// for that one: peft only warns.
	_, err = peft.LoadAdapter(base, dir)
	require.ErrorContains(t, err, `12 tensors missing, first "transformer.h.0.mlp.c_proj.lora_A.weight"`)

	pm, err := peft.LoadAdapter(base, edited(t, dir, map[string]any{"exclude_modules": []string{"mlp.c_proj"}}))
	require.NoError(t, err)
	require.EqualValues(t, 221_184, pm.TrainableParameters().Trainable)
	ids := tensors.FromValue([][]int32{{5, 9, 33, 7, 12, 41}})
	plain, err := pm.With()
	require.NoError(t, err)
	with, without := basetest.Evaluate(t, pm, ids, ids), basetest.Evaluate(t, plain, ids, ids)
	require.NotEqual(t, without.Logits, with.Logits)
	require.Len(t, with.Gradients, 24)
}
