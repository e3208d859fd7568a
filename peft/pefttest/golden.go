package pefttest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/train"
)

// keyPrefix is what file keys have before a module's path.
const keyPrefix = "base_model.model."

// golden is an adapter made by internal/golden/methods.py.
type golden struct {
	basetest.Golden
	Merge bool
	// Converted is set where saving gives another form of the adapter. The folder
	// converted has that of peft's own conversion, if it can do it.
	Converted bool
	// LoraPlus says how the optimizer of LoRA+ made several steps in place of AdamW's one.
	LoraPlus *struct {
		Ratio, Embedding, Decay float64
		Steps                   int
	}
}

// Golden holds the method of each fixture that matches pattern ("llama-vera_*"), a
// folder below internal/golden/testdata/methods, against Python's peft: the logits, the
// loss, every gradient, the values after one step of AdamW and the merged logits, and
// the file that is saved again.
func Golden(t *testing.T, pattern string) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(basetest.Root(t), "internal", "golden", "testdata", "methods", pattern, "info.json"))
	require.NoError(t, err)
	require.NotEmpty(t, paths, "no fixture matches %q", pattern)
	for _, path := range paths {
		t.Run(filepath.Base(filepath.Dir(path)), func(t *testing.T) {
			backendtest.Sample(t, 8)
			g := openGolden(t, path)
			pm, err := peft.LoadAdapter(g.base(t), g.Dir)
			require.NoError(t, err)
			require.Equal(t, g.Printed, pm.TrainableParameters().String())
			g.forward(t, pm)
			if g.Converted {
				g.convertedAgain(t, pm)
			} else {
				g.savedAgain(t, pm)
			}
			if g.Merge {
				g.merged(t, pm)
			}
			g.step(t, pm)
		})
	}
}

func openGolden(t *testing.T, path string) *golden {
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	g := &golden{Golden: basetest.Golden{Dir: filepath.Dir(path)}}
	require.NoError(t, json.Unmarshal(data, g))
	g.File, err = safetensors.Open(filepath.Join(g.Dir, "golden.safetensors"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, g.File.Close()) })
	return g
}

func (g *golden) base(t *testing.T) basetest.Model {
	return basetest.Load(t, filepath.Join(basetest.Root(t), "internal", "golden", "testdata", "families", g.Model))
}

// keysOf maps a trained tensor's name to its key in the file.
func keysOf(layout *peft.Layout) map[string]string {
	keys := map[string]string{}
	for _, p := range layout.Params() {
		keys[p.Name] = p.Key
		if p.Key == "" {
			keys[p.Name] = keyPrefix + p.Name
		}
	}
	return keys
}

func (g *golden) forward(t *testing.T, pm *peft.PeftModel) {
	got := basetest.Evaluate(t, pm, g.Tensor(t, "input_ids"), g.Tensor(t, "labels"))
	basetest.RequireClose(t, basetest.Flat(t, g.Tensor(t, "logits")), got.Logits, 1e-4, "logits")
	require.InDelta(t, basetest.Flat(t, g.Tensor(t, "loss"))[0], got.Loss, 1e-4)
	layout, err := pm.Layout(peft.DefaultAdapter)
	require.NoError(t, err)
	wanted := 0
	for _, name := range g.File.Names() {
		if strings.HasPrefix(name, "grad.") {
			wanted++
		}
	}
	require.Len(t, layout.Params(), wanted, "trained tensors")
	for name, key := range keysOf(layout) {
		basetest.RequireClose(t, basetest.Flat(t, g.Tensor(t, "grad."+key)), got.Gradients[name], 1e-4, "gradient of "+name)
	}
}

// savedAgain: what was read is written again as it was.
func (g *golden) savedAgain(t *testing.T, pm *peft.PeftModel) {
	dir := filepath.Join(t.TempDir(), "again")
	require.NoError(t, pm.SavePretrained(dir))
	was, err := safetensors.Open(filepath.Join(g.Dir, "adapter_model.safetensors"))
	require.NoError(t, err)
	defer was.Close()
	is, err := safetensors.Open(filepath.Join(dir, "adapter_model.safetensors"))
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
	SameConfig(t, g.Dir, dir)
}

// convertedAgain: what is saved means the same, as what peft converted does.
func (g *golden) convertedAgain(t *testing.T, pm *peft.PeftModel) {
	dir, theirs := filepath.Join(t.TempDir(), "again"), filepath.Join(g.Dir, "converted")
	require.NoError(t, pm.SavePretrained(dir))
	dirs := []string{dir}
	if _, err := os.Stat(theirs); err == nil {
		SameConfig(t, theirs, dir)
		dirs = append(dirs, theirs)
	}
	for _, dir := range dirs {
		again, err := peft.LoadAdapter(pm.Base(), dir)
		require.NoError(t, err)
		got := basetest.Evaluate(t, again, g.Tensor(t, "input_ids"), g.Tensor(t, "labels"))
		basetest.RequireClose(t, basetest.Flat(t, g.Tensor(t, "logits")), got.Logits, 1e-4, "logits of the converted adapter")
	}
}

// SameConfig compares the configurations of two adapters' folders, lists as sets.
func SameConfig(t *testing.T, wasDir, isDir string) {
	read := func(dir string) map[string]any {
		data, err := os.ReadFile(filepath.Join(dir, "adapter_config.json"))
		require.NoError(t, err)
		var fields map[string]any
		require.NoError(t, json.Unmarshal(data, &fields))
		for key, value := range fields {
			if list, ok := value.([]any); ok {
				texts := make([]string, len(list))
				for i, v := range list {
					texts[i] = fmt.Sprint(v)
				}
				slices.Sort(texts)
				fields[key] = texts
			}
		}
		return fields
	}
	require.Equal(t, read(wasDir), read(isDir))
}

func (g *golden) merged(t *testing.T, pm *peft.PeftModel) {
	dir := filepath.Join(t.TempDir(), "merged")
	report, err := pm.Merge(t.Context(), dir)
	require.NoError(t, err)
	require.NotEmpty(t, report.Tensors)
	require.Greater(t, report.MaxChange, float32(0))
	full, err := peft.GetPeftModel(basetest.Load(t, dir), peft.Full{})
	require.NoError(t, err)
	merged, err := full.With()
	require.NoError(t, err)
	got := basetest.Evaluate(t, merged, g.Tensor(t, "input_ids"), g.Tensor(t, "labels"))
	basetest.RequireClose(t, basetest.Flat(t, g.Tensor(t, "merged_logits")), got.Logits, 1e-4, "merged logits")
}

// step makes the optimizer step that the fixture holds, with the trainer.
func (g *golden) step(t *testing.T, pm *peft.PeftModel) {
	rows := func(name string) [][]int32 {
		x := g.Tensor(t, name)
		flat := basetest.Ints(t, x)
		return slices.Collect(slices.Chunk(flat, x.Shape().Dim(1)))
	}
	ids, labels := rows("input_ids"), rows("labels")
	examples := make([]train.Example, len(ids))
	for i := range ids {
		examples[i] = train.Example{IDs: ids[i], Labels: labels[i]}
	}
	data, err := train.NewDataset(examples)
	require.NoError(t, err)
	arguments := train.Arguments{
		OutputDir: t.TempDir(), MaxSteps: 1, PerDeviceTrainBatchSize: len(examples), NoShuffle: true, Quiet: true,
		LearningRate: 0.01, LrSchedulerType: train.SchedulerConstant, AdamEpsilon: 1e-3, MaxGradNorm: -1, SaveStrategy: train.SaveNo,
	}
	if plus := g.LoraPlus; plus != nil {
		arguments.MaxSteps, arguments.WeightDecay = plus.Steps, plus.Decay
		arguments.LoraPlusLRRatio, arguments.LoraPlusLREmbedding = plus.Ratio, plus.Embedding
	}
	trainer, err := train.NewTrainer(pm, data, arguments)
	require.NoError(t, err)
	defer trainer.Close()
	_, err = trainer.Train(t.Context())
	require.NoError(t, err)
	got, err := pm.TensorValues(peft.DefaultAdapter)
	require.NoError(t, err)
	layout, err := pm.Layout(peft.DefaultAdapter)
	require.NoError(t, err)
	for name, key := range keysOf(layout) {
		basetest.RequireClose(t, basetest.Flat(t, g.Tensor(t, "step."+key)), got[name], 1e-4, name+" after a step")
	}
}
