package adapters

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/peft"
)

// What is saved in AdapterHub's format has the keys, shapes and settings of the folder that
// its library wrote, and loads again with the same values.
func TestSaveAdapterHub(t *testing.T) {
	for _, name := range []string{"bert-norms", "bert-plus", "bert-reductions", "albert-houlsby", "distilbert-houlsby", "roberta-pfeiffer", "llama-scaled_parallel", "gpt2-pfeiffer"} {
		t.Run(name, func(t *testing.T) {
			g := openHubGolden(t, hubFixture(name))
			pm, err := LoadAdapterHub(g.base(t), g.Dir)
			require.NoError(t, err)
			dir := filepath.Join(t.TempDir(), "saved")
			require.NoError(t, SaveAdapterHub(pm, dir))
			// Over that, the same by way of this library's own format.
			own, adapter := t.TempDir(), pm.Active()[0]
			require.NoError(t, pm.SavePretrained(own))
			opened, err := peft.LoadAdapter(pm.Base(), filepath.Join(own, adapter), peft.Options{Name: adapter})
			require.NoError(t, err)
			require.NoError(t, SaveAdapterHub(opened, dir))
			entries, err := os.ReadDir(dir)
			require.NoError(t, err)
			for _, e := range entries {
				if strings.HasSuffix(e.Name(), ".json") {
					requireSameJSON(t, filepath.Join(g.Dir, e.Name()), filepath.Join(dir, e.Name()))
				} else {
					requireSameTensors(t, filepath.Join(g.Dir, e.Name()), filepath.Join(dir, e.Name()))
				}
			}
			again, err := LoadAdapterHub(pm.Base(), dir)
			require.NoError(t, err)
			require.Equal(t, hostValues(t, pm), hostValues(t, again))
		})
	}
}

func requireSameJSON(t *testing.T, want, got string) {
	t.Helper()
	read := func(path string) (value map[string]any) {
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(data, &value))
		value["model_name"] = "" // the path
		return value
	}
	require.Equal(t, read(want), read(got))
}

func requireSameTensors(t *testing.T, want, got string) {
	t.Helper()
	was, err := safetensors.Open(want)
	require.NoError(t, err)
	defer was.Close()
	is, err := safetensors.Open(got)
	require.NoError(t, err)
	defer is.Close()
	require.ElementsMatch(t, was.Names(), is.Names())
	for _, name := range was.Names() {
		wasInfo, _ := was.Info(name)
		isInfo, _ := is.Info(name)
		require.Equal(t, wasInfo.Shape, isInfo.Shape, name)
		wasBytes, err := was.Bytes(name)
		require.NoError(t, err)
		isBytes, err := is.Bytes(name)
		require.NoError(t, err)
		require.Equal(t, wasBytes, isBytes, name)
	}
}

func TestSaveAdapterHubErrors(t *testing.T) {
	base := basetest.Load(t, filepath.Join(basetest.Fixtures, "families", "llama"))
	saved := BottleneckConfig{ReductionFactor: ReductionFactor{Default: 8}, ModulesToSave: peft.Strings{"lm_head"}}
	linears := BottleneckConfig{ReductionFactor: ReductionFactor{Default: 8}, TargetModules: peft.Modules("o_proj")}
	for name, c := range map[string]struct {
		config peft.Config
		name   string
		want   string
	}{
		"modules":      {saved, "a", `modules_to_save has "lm_head.weight"`},
		"linears":      {linears, "a", "target_modules is no option of AdapterHub's"},
		"a dot":        {Pfeiffer(), "a.b", `the adapter's name "a.b" has a dot`},
		"other method": {LNTuningConfig{}, "a", "it is an adapter of method LN_TUNING, not a bottleneck adapter"},
	} {
		t.Run(name, func(t *testing.T) {
			pm, err := peft.GetPeftModel(base, c.config, peft.Options{Name: c.name})
			require.NoError(t, err)
			dir := filepath.Join(t.TempDir(), "saved")
			require.ErrorContains(t, SaveAdapterHub(pm, dir), c.want)
			require.NoDirExists(t, dir)
		})
	}
	pm, err := peft.GetPeftModel(base, Pfeiffer())
	require.NoError(t, err)
	none, err := pm.With()
	require.NoError(t, err)
	require.ErrorContains(t, SaveAdapterHub(none, t.TempDir()), "0 adapters are active, want one")
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "thesis.tex"), nil, 0o600))
	require.ErrorContains(t, SaveAdapterHub(pm, dir), `the folder has other files, such as "thesis.tex"`)
	require.FileExists(t, filepath.Join(dir, "thesis.tex"))
}

// AdapterHub's own library reads what is trained and saved here: the same logits. It needs
// GOPEFT_PYTHON, an interpreter with internal/golden/requirements.txt, and GOPEFT_ADAPTERHUB,
// the folder of requirements-adapters.txt.
func TestAdapterHubReadsOurs(t *testing.T) {
	python, packages := os.Getenv("GOPEFT_PYTHON"), os.Getenv("GOPEFT_ADAPTERHUB")
	if python == "" || packages == "" {
		t.Skip("GOPEFT_PYTHON and GOPEFT_ADAPTERHUB are not set: AdapterHub's library does not read ours")
	}
	where := t.TempDir()
	paths, err := filepath.Glob(hubFixture("*", "adapter.safetensors"))
	require.NoError(t, err)
	wrote := 0
	for _, path := range paths {
		g := openHubGolden(t, filepath.Dir(path))
		if g.Case == "flex" {
			continue
		}
		pm, err := LoadAdapterHub(g.base(t), g.Dir)
		require.NoError(t, err)
		g.step(t, pm)
		at := filepath.Join(where, filepath.Base(g.Dir))
		require.NoError(t, SaveAdapterHub(pm, at))
		info, err := json.Marshal(map[string]string{"model": g.Model})
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(at+".json", info, 0o600))
		g.write(t, at+".safetensors", g.evaluate(t, pm).Logits)
		wrote++
	}
	fixtures, err := filepath.Abs(basetest.Fixtures)
	require.NoError(t, err)
	command := exec.CommandContext(t.Context(), python, filepath.Join(fixtures, "..", "check_adapterhub.py"), fixtures, where)
	command.Env = append(os.Environ(), "PYTHONPATH="+packages)
	out, err := command.CombinedOutput()
	require.NoError(t, err, "%s", out)
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	t.Log(lines[len(lines)-1])
	require.Greater(t, wrote, 20)
}

// write writes the golden ids and mask with logits.
func (g *hubGolden) write(t *testing.T, path string, logits []float32) {
	t.Helper()
	data := make([]byte, 4*len(logits))
	require.NoError(t, safetensors.EncodeFloat32s(data, logits, safetensors.F32))
	info, _ := g.File.Info("logits")
	list := []safetensors.Tensor{{Name: "logits", DType: safetensors.F32, Shape: info.Shape, Bytes: data}}
	for _, name := range []string{"ids", "mask"} {
		if info, ok := g.File.Info(name); ok {
			raw, err := g.File.Bytes(name)
			require.NoError(t, err)
			list = append(list, safetensors.Tensor{Name: name, DType: info.DType, Shape: info.Shape, Bytes: raw})
		}
	}
	require.NoError(t, safetensors.Write(path, map[string]string{"format": "pt"}, list))
}
