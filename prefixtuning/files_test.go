package prefixtuning_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/prefixtuning"
)

const (
	mainFile   = "adapter_model.safetensors"
	secondFile = "prompt_encoder.safetensors"
)

var projected = prefixtuning.PrefixTuningConfig{NumVirtualTokens: 3, PrefixProjection: true, EncoderHiddenSize: 8}

func save(t *testing.T, pm *peft.PeftModel) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "adapter")
	require.NoError(t, pm.SavePretrained(dir))
	return dir
}

// The second file has the network under the names of peft's PyTorch module.
func TestSecondFile(t *testing.T) {
	base := family(t, "llama")
	pm := attach(t, base, projected)
	dir := save(t, pm)
	shapes := map[string][]int{}
	for name, x := range readAll(t, filepath.Join(dir, secondFile)) {
		shapes[name] = x.shape
	}
	require.Equal(t, map[string][]int{
		"embedding.weight": {3, 16}, "transform.0.weight": {8, 16}, "transform.0.bias": {8}, "transform.2.weight": {64, 8}, "transform.2.bias": {64},
	}, shapes)
	require.Equal(t, []int{3, 64}, readAll(t, filepath.Join(dir, mainFile))["prompt_embeddings"].shape)
}

// What a network makes for the file does not depend on the base's backend, which may round its
// products: a base without one gives the same bits.
func TestNetworkOnHost(t *testing.T) {
	base := family(t, "llama")
	config, err := os.ReadFile(filepath.Join(fixture(t, "families", "llama"), "config.json"))
	require.NoError(t, err)
	blueprint, err := models.NewBlueprint(config)
	require.NoError(t, err)
	require.Nil(t, blueprint.Backend())
	for name, c := range map[string]peft.Config{
		"projection": projected,
		"MLP":        prefixtuning.PromptEncoderConfig{NumVirtualTokens: 3},
		"LSTM":       prefixtuning.PromptEncoderConfig{NumVirtualTokens: 3, EncoderReparameterizationType: prefixtuning.LSTM},
	} {
		t.Run(name, func(t *testing.T) {
			pm := attach(t, base, c)
			values, err := pm.TensorValues(peft.DefaultAdapter)
			require.NoError(t, err)
			plan, err := c.Attach(blueprint)
			require.NoError(t, err)
			_, made, err := plan.(peft.FileForm).FileForm(func(name string) []float32 { return values[name] })
			require.NoError(t, err)
			saved, err := pm.FileTensors(peft.DefaultAdapter)
			require.NoError(t, err)
			require.Equal(t, saved, made)
		})
	}
}

// A second file that is not of the first is an error; without it the prefix is used, and
// trained on, as it is.
func TestSecondFileOfAnother(t *testing.T) {
	base := family(t, "llama")
	pm := attach(t, base, projected)
	dir := save(t, pm)
	in := input{ids: tensors.FromValue(texts[:1])}
	want := run(t, pm, in).scores

	other, err := peft.GetPeftModel(base, projected, peft.Options{Seed: 8})
	require.NoError(t, err)
	data, err := os.ReadFile(filepath.Join(save(t, other), secondFile))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, secondFile), data, 0o600))
	_, err = peft.LoadAdapter(base, dir)
	require.ErrorContains(t, err, secondFile+" does not belong to "+mainFile)

	require.NoError(t, os.Remove(filepath.Join(dir, secondFile)))
	flat, err := peft.LoadAdapter(base, dir)
	require.NoError(t, err)
	basetest.RequireClose(t, want, run(t, flat, in).scores, 1e-6, "without the network")
	before, err := flat.TensorValues(peft.DefaultAdapter)
	require.NoError(t, err)
	fit(t, flat, 1, "")
	after, err := flat.TensorValues(peft.DefaultAdapter)
	require.NoError(t, err)
	require.NotEqual(t, before["prompt_embeddings"], after["prompt_embeddings"])
	require.Len(t, after, 1)

	// Saved where the other was, it leaves no network behind: with foreign files in the folder and without.
	require.NoError(t, pm.SavePretrained(dir))
	require.FileExists(t, filepath.Join(dir, secondFile))
	require.NoError(t, flat.SavePretrained(dir))
	require.NoFileExists(t, filepath.Join(dir, secondFile))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "notes.txt"), nil, 0o600))
	require.NoError(t, pm.SavePretrained(dir))
	require.FileExists(t, filepath.Join(dir, secondFile))
	require.NoError(t, flat.SavePretrained(dir))
	require.NoFileExists(t, filepath.Join(dir, secondFile))
	_, err = peft.LoadAdapter(base, dir)
	require.NoError(t, err)
}

func TestBadSecondFile(t *testing.T) {
	base := family(t, "llama")
	good := readAll(t, filepath.Join(save(t, attach(t, base, projected)), secondFile))
	for name, c := range map[string]struct {
		change func(all map[string]fileTensor)
		want   string
	}{
		"missing":    {func(all map[string]fileTensor) { delete(all, "transform.0.bias") }, `missing`},
		"unexpected": {func(all map[string]fileTensor) { all["transform.4.bias"] = all["transform.0.bias"] }, `unexpected`},
		"shape": {func(all map[string]fileTensor) {
			all["transform.0.bias"] = fileTensor{[]int{2, 4}, all["transform.0.bias"].values}
		}, `do not fit`},
	} {
		t.Run(name, func(t *testing.T) {
			dir := save(t, attach(t, base, projected))
			all := map[string]fileTensor{}
			for key, x := range good {
				all[key] = x
			}
			c.change(all)
			var list []safetensors.Tensor
			for key, x := range all {
				data := make([]byte, 4*len(x.values))
				require.NoError(t, safetensors.EncodeFloat32s(data, x.values, safetensors.F32))
				list = append(list, safetensors.Tensor{Name: key, DType: safetensors.F32, Shape: x.shape, Bytes: data})
			}
			require.NoError(t, safetensors.Write(filepath.Join(dir, secondFile), nil, list))
			_, err := peft.LoadAdapter(base, dir)
			require.ErrorContains(t, err, c.want)
		})
	}
}
