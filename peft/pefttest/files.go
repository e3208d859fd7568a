package pefttest

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/peft"
)

const weights = "adapter_model.safetensors"

func (s Suite) configRoundTrip(t *testing.T) {
	pm := s.fresh(t, s.base(t), 1)
	config, err := pm.Config(peft.DefaultAdapter)
	require.NoError(t, err)
	data, err := peft.EncodeConfig(config)
	require.NoError(t, err)
	var fields map[string]any
	require.NoError(t, json.Unmarshal(data, &fields))
	require.Equal(t, config.PeftType(), fields["peft_type"])
	if s.NoFile {
		return
	}
	read, err := peft.DecodeConfig(data)
	require.NoError(t, err)
	require.NoError(t, read.Validate())
	again, err := peft.EncodeConfig(read)
	require.NoError(t, err)
	require.Equal(t, string(data), string(again))
	// A key that this version does not know is kept.
	fields["a_new_option"] = []int{1, 2}
	data, err = json.Marshal(fields)
	require.NoError(t, err)
	read, err = peft.DecodeConfig(data)
	require.NoError(t, err)
	again, err = peft.EncodeConfig(read)
	require.NoError(t, err)
	require.Contains(t, string(again), "a_new_option")
}

func (s Suite) save(t *testing.T, pm *peft.PeftModel) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "adapter")
	require.NoError(t, pm.SavePretrained(dir))
	return dir
}

func (s Suite) saveAndLoad(t *testing.T) {
	pm := s.moved(t, s.base(t))
	if s.NoFile {
		require.Error(t, pm.SavePretrained(t.TempDir()))
		return
	}
	want, dir := logits(t, pm), s.save(t, pm)
	var names []string
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	files := []string{"README.md", "adapter_config.json", weights}
	if s.Beside {
		files = append(files, "prompt_encoder.safetensors")
	}
	require.Equal(t, files, names)
	again, err := peft.LoadAdapter(s.base(t), dir)
	require.NoError(t, err)
	basetest.RequireClose(t, want, logits(t, again), 1e-4, "logits after loading")
	// The same file under two names gives the same model.
	require.NoError(t, again.LoadAdapter(dir, peft.Options{Name: "twice"}))
	require.Equal(t, logits(t, again), logits(t, with(t, again, "twice")))
	// Loading draws nothing: saved again, the file is the same.
	first, err := os.ReadFile(filepath.Join(dir, weights))
	require.NoError(t, err)
	second, err := os.ReadFile(filepath.Join(s.save(t, again), weights))
	require.NoError(t, err)
	require.Equal(t, first, second)
}

func (s Suite) names(t *testing.T) {
	if s.NoFile {
		t.Skip("the method has no file")
	}
	base := s.base(t)
	pm := s.moved(t, base)
	want := logits(t, pm)
	reference := s.save(t, pm)
	for _, name := range []string{"default2", "other_default", "efaul", "q_proj", "lora", "weight"} {
		require.NoError(t, pm.LoadAdapter(reference, peft.Options{Name: name}))
		view := with(t, pm, name)
		require.Equal(t, want, logits(t, view), name)
		dir := filepath.Join(s.save(t, view), name)
		same, err := os.ReadFile(filepath.Join(reference, weights))
		require.NoError(t, err)
		got, err := os.ReadFile(filepath.Join(dir, weights))
		require.NoError(t, err)
		require.Equal(t, same, got, "%s: its name shows in the file", name)
	}
}

// rewrite writes the adapter's file with other tensors.
func rewrite(t *testing.T, from string, change func(list []safetensors.Tensor) []safetensors.Tensor) string {
	t.Helper()
	dir := t.TempDir()
	config, err := os.ReadFile(filepath.Join(from, "adapter_config.json"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "adapter_config.json"), config, 0o600))
	file, err := safetensors.Open(filepath.Join(from, weights))
	require.NoError(t, err)
	defer file.Close()
	var list []safetensors.Tensor
	for _, name := range file.Names() {
		info, _ := file.Info(name)
		data, err := file.Bytes(name)
		require.NoError(t, err)
		list = append(list, safetensors.Tensor{Name: name, DType: info.DType, Shape: info.Shape, Bytes: append([]byte{}, data...)})
	}
	require.NoError(t, safetensors.Write(filepath.Join(dir, weights), map[string]string{"format": "pt"}, change(list)))
	return dir
}

func (s Suite) badFiles(t *testing.T) {
	if s.NoFile {
		t.Skip("the method has no file")
	}
	base := s.base(t)
	good := s.save(t, s.moved(t, base))
	type change = func(list []safetensors.Tensor) []safetensors.Tensor
	for name, c := range map[string]struct {
		change change
		report bool
		want   string
	}{
		"missing": {func(l []safetensors.Tensor) []safetensors.Tensor {
			if len(l) == 1 {
				l[0].Name += ".other"
				return l
			}
			return l[1:]
		}, true, ""},
		"unexpected": {func(l []safetensors.Tensor) []safetensors.Tensor {
			extra := l[0]
			extra.Name = "base_model.model.model.layers.77.other"
			return append(l, extra)
		}, true, "unexpected"},
		"another shape": {func(l []safetensors.Tensor) []safetensors.Tensor {
			l[0].Shape = append([]int{1, 1, 1}, l[0].Shape...)
			return l
		}, true, "do not fit"},
		"no name fits": {func(l []safetensors.Tensor) []safetensors.Tensor {
			for i := range l {
				l[i].Name = strings.ReplaceAll("other."+l[i].Name, "layers", "blocks")
			}
			return l
		}, true, "the file has names like"},
		"NaN": {func(l []safetensors.Tensor) []safetensors.Tensor {
			copy(l[0].Bytes, []byte{0, 0, 0xc0, 0x7f})
			return l
		}, false, "NaN"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := peft.LoadAdapter(base, rewrite(t, good, c.change))
			require.ErrorContains(t, err, c.want)
			var report *peft.LoadError
			require.Equal(t, c.report, errors.As(err, &report), "%v", err)
		})
	}
	t.Run("truncated", func(t *testing.T) {
		dir := rewrite(t, good, func(l []safetensors.Tensor) []safetensors.Tensor { return l })
		info, err := os.Stat(filepath.Join(dir, weights))
		require.NoError(t, err)
		require.NoError(t, os.Truncate(filepath.Join(dir, weights), info.Size()-1))
		_, err = peft.LoadAdapter(base, dir)
		require.Error(t, err)
	})
	t.Run("another model", func(t *testing.T) {
		if s.AnyModel {
			t.Skip("it fits")
		}
		other := "llama_headdim"
		if strings.HasPrefix(s.Family, other) {
			other = "llama"
		}
		if s.Other != "" {
			other = s.Other
		}
		s.Family = other
		_, err := peft.LoadAdapter(s.base(t), good)
		require.Error(t, err)
	})
}
