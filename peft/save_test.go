package peft_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
)

const (
	configFile  = "adapter_config.json"
	weightsFile = "adapter_model.safetensors"
)

func read(t testing.TB, path ...string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(path...))
	require.NoError(t, err)
	return data
}

func names(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	require.NoError(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if below, _ := filepath.Rel(dir, path); below != "." {
			out = append(out, filepath.ToSlash(below))
		}
		return err
	}))
	return out
}

// What Python's peft wrote is read and written again: byte for byte.
func TestPythonAdaptersSurvive(t *testing.T) {
	for _, g := range basetest.GoldenCases(t) {
		t.Run(filepath.Base(g.Dir), func(t *testing.T) {
			backendtest.Sample(t, 5)
			pm, err := peft.LoadAdapter(family(t, g.Model), g.Dir)
			require.NoError(t, err)
			dir := filepath.Join(t.TempDir(), "new", "adapter")
			require.NoError(t, pm.SavePretrained(dir))
			require.Equal(t, []string{"README.md", configFile, weightsFile}, names(t, dir))
			require.Equal(t, read(t, g.Dir, weightsFile), read(t, dir, weightsFile))
			require.Equal(t, string(read(t, g.Dir, configFile)), string(read(t, dir, configFile)))
		})
	}
}

func TestSaveLoadSave(t *testing.T) {
	base := family(t, "llama")
	config := lora.LoraConfig{
		PeftConfig: peft.PeftConfig{Revision: "main"},
		R:          4, LoraAlpha: 2.5, LoraDropout: 1e-5, UseRSLoRA: true, InitLoraWeights: lora.InitRandom,
		TargetModules: peft.Modules("v_proj", "q_proj", "embed_tokens"), ExcludeModules: peft.Regex(`.*\.0\..*v_proj`),
		RankPattern:  peft.Patterns{{Pattern: "v_proj", Value: 3}, {Pattern: ".*q_proj", Value: 2}},
		AlphaPattern: peft.Patterns{{Pattern: `layers\.1\..*`, Value: 0.5}},
	}
	pm, err := peft.GetPeftModel(base, config, peft.Options{Seed: 7})
	require.NoError(t, err)
	one, two := filepath.Join(t.TempDir(), "one"), filepath.Join(t.TempDir(), "two")
	require.NoError(t, pm.SavePretrained(one))
	again, err := peft.LoadAdapter(base, one, peft.Options{Seed: 8})
	require.NoError(t, err)
	require.NoError(t, again.SavePretrained(two))
	for _, file := range []string{configFile, weightsFile} {
		require.Equal(t, string(read(t, one, file)), string(read(t, two, file)))
	}
	ids, labels := batch()
	require.Equal(t, basetest.Evaluate(t, pm, ids, labels), basetest.Evaluate(t, again, ids, labels))

	got, err := again.Config(peft.DefaultAdapter)
	require.NoError(t, err)
	want, err := pm.Config(peft.DefaultAdapter)
	require.NoError(t, err)
	w, g := want.(lora.LoraConfig), got.(lora.LoraConfig)
	require.Equal(t, "0.21.2", g.Version)
	require.Equal(t, "CAUSAL_LM", g.TaskType)
	require.Len(t, g.Unknown, 1+len(g.FileDefaults())) // auto_mapping and the keys without a field
	w.PeftConfig, g.PeftConfig = peft.PeftConfig{}, peft.PeftConfig{}
	require.Equal(t, w.TargetModules.String(), g.TargetModules.String())
	w.TargetModules, g.TargetModules = peft.Targets{}, peft.Targets{}
	require.Equal(t, w, g)
}

func TestUnknownKeysAreKept(t *testing.T) {
	dir := copyAdapter(t, "llama-qv")
	edit(t, dir, func(c map[string]any) {
		c["from_the_future"] = json.RawMessage(`{"b": [1, 2.50, "é<"], "a": null}`)
		c["peft_version"] = "9.9.9"
		c["R"] = 77 // not r
		delete(c, "lora_alpha")
	})
	pm, err := peft.LoadAdapter(family(t, "llama"), dir)
	require.NoError(t, err)
	config, err := pm.Config("default")
	require.NoError(t, err)
	require.Equal(t, 4, config.(lora.LoraConfig).R)
	require.EqualValues(t, 8, config.(lora.LoraConfig).LoraAlpha)
	out := filepath.Join(t.TempDir(), "out")
	require.NoError(t, pm.SavePretrained(out))
	text := string(read(t, out, configFile))
	require.Contains(t, text, "\"from_the_future\": {\n    \"b\": [\n      1,\n      2.50,\n      \"\\u00e9<\"\n    ],\n    \"a\": null\n  }")
	require.Contains(t, text, `"peft_version": "9.9.9"`)
	require.Contains(t, text, `"R": 77`)
}

// copyAdapter copies a golden adapter into a new folder.
func copyAdapter(t testing.TB, name string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.MkdirAll(dir, 0o777))
	for _, file := range []string{configFile, weightsFile} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, file), read(t, basetest.Fixtures, "lora", name, file), 0o666))
	}
	return dir
}

// edit changes an adapter's configuration.
func edit(t testing.TB, dir string, change func(map[string]any)) {
	t.Helper()
	var c map[string]any
	require.NoError(t, json.Unmarshal(read(t, dir, configFile), &c))
	change(c)
	data, err := json.Marshal(c)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, configFile), data, 0o666))
}

// rewrite changes an adapter's tensors.
func rewrite(t testing.TB, dir string, change func([]safetensors.Tensor) []safetensors.Tensor) {
	t.Helper()
	path := filepath.Join(dir, weightsFile)
	file, err := safetensors.Open(path)
	require.NoError(t, err)
	var list []safetensors.Tensor
	for _, name := range file.Names() {
		info, _ := file.Info(name)
		data, err := file.Bytes(name)
		require.NoError(t, err)
		list = append(list, safetensors.Tensor{Name: name, DType: info.DType, Shape: info.Shape, Bytes: append([]byte{}, data...)})
	}
	require.NoError(t, file.Close())
	require.NoError(t, safetensors.Write(path, nil, change(list)))
}

func as(t testing.TB, d safetensors.DType, values ...float32) []byte {
	t.Helper()
	size, err := d.Size([]int{len(values)})
	require.NoError(t, err)
	data := make([]byte, size)
	require.NoError(t, safetensors.EncodeFloat32s(data, values, d))
	return data
}

// Files of other dtypes and without the prefix load too; extra copies of frozen
// weights are no harm (peft.md 3.9).
func TestLoadAccepts(t *testing.T) {
	base := family(t, "llama")
	golden, err := peft.LoadAdapter(base, filepath.Join(basetest.Fixtures, "lora", "llama-head"))
	require.NoError(t, err)
	want, err := golden.TensorValues("default")
	require.NoError(t, err)
	for _, dtype := range []safetensors.DType{safetensors.F64, safetensors.F32, safetensors.F16, safetensors.BF16} {
		dir := copyAdapter(t, "llama-head")
		rewrite(t, dir, func(list []safetensors.Tensor) []safetensors.Tensor {
			for i, x := range list {
				short := strings.TrimPrefix(x.Name, "base_model.model.")
				list[i] = safetensors.Tensor{Name: short, DType: dtype, Shape: x.Shape, Bytes: as(t, dtype, want[short]...)}
			}
			head := baseWeights(t, "llama", "lm_head.weight")
			head.Name = "base_model.model.lm_head.base_layer.weight"
			return append(list, head)
		})
		pm, err := peft.LoadAdapter(base, dir, peft.Options{Name: "other"})
		require.NoError(t, err)
		require.Equal(t, []string{"other"}, pm.Active())
		got, err := pm.TensorValues("other")
		require.NoError(t, err)
		tolerance := map[safetensors.DType]float64{safetensors.F16: 1e-3, safetensors.BF16: 8e-3}[dtype]
		for name := range want {
			basetest.RequireClose(t, want[name], got[name], tolerance, name)
		}
	}
}

func baseWeights(t testing.TB, model, name string) safetensors.Tensor {
	t.Helper()
	file, err := safetensors.Open(filepath.Join(basetest.Fixtures, "families", model, "model.safetensors"))
	require.NoError(t, err)
	defer file.Close()
	info, ok := file.Info(name)
	require.True(t, ok)
	data, err := file.Bytes(name)
	require.NoError(t, err)
	return safetensors.Tensor{Name: name, DType: info.DType, Shape: info.Shape, Bytes: append([]byte{}, data...)}
}

func TestLoadErrors(t *testing.T) {
	q0 := "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
	tensors := func(change func(x *safetensors.Tensor) bool) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			rewrite(t, dir, func(list []safetensors.Tensor) []safetensors.Tensor {
				var out []safetensors.Tensor
				for _, x := range list {
					if change(&x) {
						out = append(out, x)
					}
				}
				return out
			})
		}
	}
	config := func(key string, value any) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) { edit(t, dir, func(c map[string]any) { c[key] = value }) }
	}
	for name, c := range map[string]struct {
		change func(t *testing.T, dir string)
		want   string
		report bool
	}{
		"no folder":  {func(t *testing.T, dir string) { require.NoError(t, os.RemoveAll(dir)) }, "there is no such folder", false},
		"no config":  {func(t *testing.T, dir string) { require.NoError(t, os.Remove(filepath.Join(dir, configFile))) }, "has no adapter_config.json", false},
		"no weights": {func(t *testing.T, dir string) { require.NoError(t, os.Remove(filepath.Join(dir, weightsFile))) }, "has no adapter_model.safetensors", false},
		"pickle": {func(t *testing.T, dir string) {
			require.NoError(t, os.Rename(filepath.Join(dir, weightsFile), filepath.Join(dir, "adapter_model.bin")))
		}, "adapter_model.bin is a Python pickle", false},
		"a file": {func(t *testing.T, dir string) {
			require.NoError(t, os.RemoveAll(dir))
			require.NoError(t, os.WriteFile(dir, nil, 0o666))
		}, "it is a file, want a folder", false},
		"truncated": {func(t *testing.T, dir string) {
			require.NoError(t, os.Truncate(filepath.Join(dir, weightsFile), 700))
		}, "safetensors", false},
		"lfs pointer": {func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, weightsFile), []byte("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"), 0o666))
		}, "LFS", false},
		"no json": {func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, configFile), []byte("{"), 0o666))
		}, "adapter_config.json: unexpected EOF", false},
		"no type": {func(t *testing.T, dir string) {
			edit(t, dir, func(c map[string]any) { delete(c, "peft_type") })
		}, `missing required key "peft_type"`, false},
		"other type":    {config("peft_type", "XLORA"), `unsupported peft_type "XLORA"`, false},
		"bad type":      {config("r", "eight"), "cannot unmarshal string", false},
		"r 0":           {config("r", 0), "r is 0", false},
		"alpha 0":       {config("lora_alpha", 0), "lora_alpha is 0", false},
		"dora":          {config("use_dora", true), `4 tensors missing, first "model.layers.0.self_attn.q_proj.lora_magnitude_vector"`, true},
		"bias":          {config("bias", "some"), `bias is "some", want "none", "all" or "lora_only"`, false},
		"save":          {config("modules_to_save", []string{"lm_head"}), `1 tensors missing, first "lm_head.weight"`, true},
		"qalora":        {config("use_qalora", true), `option "use_qalora" = true is not supported`, false},
		"loftq":         {config("init_lora_weights", "loftq"), `init_lora_weights "loftq" is not supported in a file`, false},
		"lora_ga":       {config("init_lora_weights", "lora_ga"), `init_lora_weights "lora_ga" is not supported`, false},
		"wrong targets": {config("target_modules", []string{"c_attn"}), `target module "c_attn" matches nothing`, false},
		"rank":          {config("r", 8), `8 tensors do not fit, first "model.layers.0.self_attn.q_proj.lora_A.weight": want shape [8 32], got F32 [4 32]`, true},
		"missing": {tensors(func(x *safetensors.Tensor) bool { return x.Name != q0 }),
			`1 tensors missing, first "model.layers.0.self_attn.q_proj.lora_A.weight"`, true},
		"unexpected": {config("layers_to_transform", []int{1}),
			`4 tensors unexpected, first "model.layers.0.self_attn.q_proj.lora_A.weight"`, true},
		"no key fits": {tensors(func(x *safetensors.Tensor) bool {
			x.Name = strings.Replace(x.Name, "model.layers", "transformer.h", 1)
			return true
		}), `no tensor of the file fits the base: want names like "model.layers.0.self_attn.q_proj.lora_A.weight", the file has names like "transformer.h.0.self_attn.q_proj.lora_A.weight"`, true},
		"empty": {tensors(func(*safetensors.Tensor) bool { return false }), `8 tensors missing`, true},
		"ints": {tensors(func(x *safetensors.Tensor) bool {
			x.DType = safetensors.I32
			return true
		}), `got I32 [4 32]`, true},
		"twice": {func(t *testing.T, dir string) {
			rewrite(t, dir, func(list []safetensors.Tensor) []safetensors.Tensor {
				twin := list[0]
				twin.Name = strings.TrimPrefix(twin.Name, "base_model.model.")
				return append(list, twin)
			})
		}, `1 tensors unexpected`, true},
		"NaN": {tensors(func(x *safetensors.Tensor) bool {
			if x.Name == q0 {
				copy(x.Bytes[4*5:], as(t, safetensors.F32, float32(math.NaN())))
			}
			return true
		}), `tensor "model.layers.0.self_attn.q_proj.lora_A.weight" holds NaN at element 5`, false},
		"Inf": {tensors(func(x *safetensors.Tensor) bool {
			copy(x.Bytes, as(t, safetensors.F32, float32(math.Inf(-1))))
			return true
		}), `holds -Inf at element 0`, false},
		"a changed embedding": {func(t *testing.T, dir string) {
			rewrite(t, dir, func(list []safetensors.Tensor) []safetensors.Tensor {
				head := baseWeights(t, "llama", "lm_head.weight")
				head.Bytes[0]++
				return append(list, head)
			})
		}, `1 tensors unexpected, first "lm_head.weight"`, true},
	} {
		t.Run(name, func(t *testing.T) {
			base := family(t, "llama")
			dir := copyAdapter(t, "llama-qv")
			c.change(t, dir)
			_, err := peft.LoadAdapter(base, dir)
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, fmt.Sprintf("peft: load adapter %q", dir))
			var report *peft.LoadError
			require.Equal(t, c.report, errors.As(err, &report))

			// The same into a model that has adapters: nothing changes.
			pm, err := peft.GetPeftModel(base, lora.LoraConfig{R: 2})
			require.NoError(t, err)
			require.ErrorContains(t, pm.LoadAdapter(dir, peft.Options{Name: "b"}), c.want)
			require.Equal(t, []string{"default"}, pm.Adapters())
		})
	}
}

func TestSeveralAdapters(t *testing.T) {
	base := family(t, "llama")
	pm, err := peft.GetPeftModel(base, lora.LoraConfig{R: 2, InitLoraWeights: lora.InitRandom})
	require.NoError(t, err)
	// Names that are parts of module paths or of each other (peft.md 8, item 37).
	for _, name := range []string{"default2", "v_proj", "lora"} {
		require.NoError(t, pm.AddAdapter(lora.LoraConfig{R: 3, InitLoraWeights: lora.InitRandom}, peft.Options{Name: name, Seed: uint64(len(name))}))
	}
	all, err := pm.With("lora", "default", "v_proj", "default2")
	require.NoError(t, err)
	dir := filepath.Join(t.TempDir(), "all")
	require.NoError(t, all.SavePretrained(dir))
	require.ElementsMatch(t, []string{"README.md", "adapters.json", configFile, weightsFile, "default2", "default2/" + configFile, "default2/" + weightsFile,
		"lora", "lora/" + configFile, "lora/" + weightsFile, "v_proj", "v_proj/" + configFile, "v_proj/" + weightsFile}, names(t, dir))
	again, err := peft.LoadAdapter(base, dir)
	require.NoError(t, err)
	for _, name := range []string{"default2", "v_proj", "lora"} {
		require.NoError(t, again.LoadAdapter(filepath.Join(dir, name), peft.Options{Name: name}))
	}
	for _, name := range pm.Adapters() {
		want, err := pm.TensorValues(name)
		require.NoError(t, err)
		got, err := again.TensorValues(name)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	require.ErrorContains(t, again.LoadAdapter(dir), `adapter "default" already exists`)
	none, err := pm.With()
	require.NoError(t, err)
	require.ErrorContains(t, none.SavePretrained(dir), "no adapter is active")
}

// A diverged adapter is not written, and what was there stays.
func TestSaveRefusesNaN(t *testing.T) {
	base := family(t, "llama")
	pm, err := peft.GetPeftModel(base, lora.LoraConfig{R: 2})
	require.NoError(t, err)
	dir := filepath.Join(t.TempDir(), "adapter")
	require.NoError(t, pm.SavePretrained(dir))
	before := read(t, dir, weightsFile)
	layout, err := pm.Layout("default")
	require.NoError(t, err)
	values, err := pm.TensorValues("default")
	require.NoError(t, err)
	values[layout.Params()[1].Name][3] = float32(math.NaN())
	arguments, err := layout.FromHost(values)
	require.NoError(t, err)
	require.NoError(t, pm.SetValues("default", arguments))
	require.ErrorContains(t, pm.SavePretrained(dir), "holds NaN at element 3")
	require.Equal(t, before, read(t, dir, weightsFile))
	require.Equal(t, []string{"README.md", configFile, weightsFile}, names(t, dir))
	_, err = pm.Merge(t.Context(), filepath.Join(t.TempDir(), "merged"))
	require.ErrorContains(t, err, "holds NaN")
}
