package peft_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/adapters"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
)

// Adapters of several methods, one of them frozen, come back as they were saved.
func TestLoadAdapters(t *testing.T) {
	base := tinyLlama()
	defer base.Close()
	pm, err := peft.GetPeftModel(base, lora.LoraConfig{R: 2, InitLoraWeights: lora.InitRandom}, peft.Options{Name: "domain"})
	require.NoError(t, err)
	require.NoError(t, pm.AddAdapter(adapters.LNTuningConfig{}, peft.Options{Name: "default"}))
	pm, err = pm.With("domain", "default")
	require.NoError(t, err)
	pm, err = pm.Training("default")
	require.NoError(t, err)

	dir := filepath.Join(t.TempDir(), "both")
	require.NoError(t, pm.SavePretrained(dir))
	got, err := peft.LoadAdapters(base, dir)
	require.NoError(t, err)
	require.Equal(t, []string{"domain", "default"}, got.Active())
	require.Equal(t, []string{"default"}, got.Trained())
	for _, name := range got.Active() {
		want, err := pm.FileTensors(name)
		require.NoError(t, err)
		have, err := got.FileTensors(name)
		require.NoError(t, err)
		require.Equal(t, want, have, name)
	}

	// One alone in the same folder is no longer one of several.
	one, err := got.With("default")
	require.NoError(t, err)
	require.NoError(t, one.SavePretrained(dir))
	_, err = peft.LoadAdapters(base, dir)
	require.ErrorContains(t, err, "has no adapters.json")

	// Again into the same folder, and one of them alone.
	require.NoError(t, got.SavePretrained(dir))
	_, err = peft.LoadAdapter(base, filepath.Join(dir, "domain"))
	require.NoError(t, err)
	for _, broken := range []struct{ index, wrong string }{
		{`{"version": 2}`, "version 2, want 1"},
		{`{"version": 1}`, "lists no adapter"},
		{`{"version": 1, "adapters": [{"name": "a", "folder": "../a"}]}`, `folder "../a" is not below the index`},
		{`{"version": 1, "adapters": [{"name": "a/b", "folder": "a"}]}`, "not usable as a folder name"},
		{`{"version": 1, "adapters": [{"name": "domain", "folder": "domain", "peft_type": "IA3"}]}`, `of type "IA3", its folder says "LORA"`},
		{`{"version": 1, "adapters": [{"name": "a", "folder": "domain", "peft_type": "LORA"}, {"name": "a", "folder": "domain"}]}`, `two adapters have the name "a"`},
		{`{"version": 1, "adapters": [{"name": "domain", "folder": "domain", "peft_type": "LORA", "frozen": true}]}`, "all adapters are frozen"},
		{`[`, "unexpected end"},
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "adapters.json"), []byte(broken.index), 0o666))
		_, err := peft.LoadAdapters(base, dir)
		require.ErrorContains(t, err, broken.wrong)
	}
	require.NoError(t, os.Remove(filepath.Join(dir, "adapter_config.json")))
	_, err = peft.LoadAdapter(base, dir)
	require.ErrorContains(t, err, "which LoadAdapters reads")
	require.NoError(t, os.Remove(filepath.Join(dir, "adapters.json")))
	_, err = peft.LoadAdapters(base, dir)
	require.ErrorContains(t, err, "has no adapters.json")
}
