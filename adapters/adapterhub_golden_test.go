package adapters

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
	"github.com/gopeft/gopeft/train"
)

// hubGolden is an adapter that AdapterHub's library made, see internal/golden/bottleneck.py.
type hubGolden struct {
	basetest.Golden
	Case string
}

func hubFixture(parts ...string) string {
	return filepath.Join(append([]string{basetest.Fixtures, "bottleneck"}, parts...)...)
}

func openHubGolden(t *testing.T, dir string) *hubGolden {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "info.json"))
	require.NoError(t, err)
	g := &hubGolden{}
	require.NoError(t, json.Unmarshal(data, g))
	g.Dir = dir
	g.File, err = safetensors.Open(filepath.Join(dir, "golden.safetensors"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, g.File.Close()) })
	return g
}

// base loads the model that the adapter was made on.
func (g *hubGolden) base(t *testing.T) site.Base {
	t.Helper()
	dir := filepath.Join(basetest.Fixtures, filepath.FromSlash(g.Model))
	if strings.HasPrefix(g.Model, "families") {
		return basetest.Load(t, dir)
	}
	return classifier(t, dir)
}

func classifier(t *testing.T, dir string) *models.Classifier {
	t.Helper()
	c, err := models.LoadClassifier(t.Context(), dir, models.ClassifierOptions{
		Options: models.Options{On: backendtest.Open(t), DType: dtypes.Float32}, PerToken: strings.HasSuffix(dir, "_token"),
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// evaluate runs a view on the golden batch; gradients are those of the mean loss, by the
// names of the one active adapter.
func (g *hubGolden) evaluate(t *testing.T, pm *peft.PeftModel) basetest.Evaluation {
	t.Helper()
	c, ok := pm.Base().(site.Classifier)
	if !ok {
		return basetest.Evaluate(t, pm, g.Tensor(t, "ids"), g.Tensor(t, "labels"))
	}
	arguments, err := pm.Arguments()
	require.NoError(t, err)
	exec, err := model.NewExec(c.Backend(), c.Store(), func(_ *model.Scope, in []*graph.Node) []*graph.Node {
		binding, err := pm.Bind(in[3:])
		require.NoError(t, err)
		pass := &site.Pass{Graph: in[0].Graph(), DType: dtypes.Float32, Hook: binding}
		logits := c.Classify(pass, site.Tokens{IDs: in[0], Segments: in[1]})
		if _, ok := g.File.Info("loss"); !ok {
			return []*graph.Node{logits, graph.ReduceAllSum(logits)}
		}
		oneHot := graph.OneHot(in[2], logits.Shape().Dim(-1), dtypes.Float32)
		loss := graph.Neg(graph.ReduceAllMean(graph.ReduceSum(graph.Mul(graph.LogSoftmax(logits, -1), oneHot), -1)))
		return append([]*graph.Node{logits, loss}, graph.Gradient(loss, binding.Views()...)...)
	})
	require.NoError(t, err)
	defer exec.Finalize()
	in := []any{g.Tensor(t, "ids"), g.Tensor(t, "mask"), g.Tensor(t, "labels")}
	for _, a := range arguments {
		in = append(in, a)
	}
	out, err := exec.Exec(in...)
	require.NoError(t, err)
	e := basetest.Evaluation{Logits: basetest.Flat(t, out[0]), Loss: float64(basetest.Flat(t, out[1])[0]), Gradients: map[string][]float32{}}
	if len(pm.Active()) == 1 && len(out) > 2 {
		layout, err := pm.Layout(pm.Active()[0])
		require.NoError(t, err)
		for i, p := range layout.Params() {
			e.Gradients[p.Name] = basetest.Flat(t, out[2+i])
		}
	}
	return e
}

// torchNames maps the names of an adapter's tensors to PyTorch's.
func torchNames(t *testing.T, pm *peft.PeftModel, name, hubName string) map[string]string {
	t.Helper()
	family, err := familyOf(pm.Base())
	require.NoError(t, err)
	parts, err := pm.Parts(name)
	require.NoError(t, err)
	config, err := pm.Config(name)
	require.NoError(t, err)
	names := map[string]string{}
	for i, part := range parts {
		for _, p := range part.Params() {
			names[p.Name] = p.Name
			if i == 0 {
				keys, err := family.keys(p.Name, hubName, config.(BottleneckConfig).LnBefore, part.Targets())
				require.NoError(t, err)
				names[p.Name] = keys[0]
			}
		}
	}
	return names
}

// Adapters that AdapterHub's library made mean the same here, and train the same: logits,
// loss, every gradient, the values after a step of AdamW.
func TestAdapterHub(t *testing.T) {
	paths, err := filepath.Glob(hubFixture("*", "adapter.safetensors"))
	require.NoError(t, err)
	require.Greater(t, len(paths), 20)
	for _, path := range paths {
		dir := filepath.Dir(path)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			backendtest.Sample(t, 8)
			g := openHubGolden(t, dir)
			pm, err := LoadAdapterHub(g.base(t), dir)
			require.NoError(t, err)
			require.Equal(t, []string{"task"}, pm.Active())
			got := g.evaluate(t, pm)
			basetest.RequireClose(t, basetest.Flat(t, g.Tensor(t, "logits")), got.Logits, 1e-4, "logits")
			if _, ok := g.File.Info("loss"); !ok { // a head in AdapterHub's form
				return
			}
			require.InDelta(t, basetest.Flat(t, g.Tensor(t, "loss"))[0], got.Loss, 1e-4)
			require.EqualValues(t, g.Trainable, pm.TrainableParameters().Trainable)
			names := torchNames(t, pm, "task", "task")
			require.Len(t, got.Gradients, len(names))
			for name, torch := range names {
				basetest.RequireClose(t, basetest.Flat(t, g.Tensor(t, "grad."+torch)), got.Gradients[name], 1e-4, "gradient of "+name)
			}
			again := g.throughOurFile(t, pm)
			basetest.RequireClose(t, got.Logits, g.evaluate(t, again).Logits, 1e-5, "logits from our own file")
			g.step(t, pm)
			for name, values := range hostValues(t, pm) {
				basetest.RequireClose(t, basetest.Flat(t, g.Tensor(t, "step."+names[name])), values, 1e-4, name+" after a step")
			}
		})
	}
}

func hostValues(t *testing.T, pm *peft.PeftModel) map[string][]float32 {
	t.Helper()
	values, err := pm.TensorValues("task")
	require.NoError(t, err)
	return values
}

// throughOurFile saves the adapter in our own format and loads it again.
func (g *hubGolden) throughOurFile(t *testing.T, pm *peft.PeftModel) *peft.PeftModel {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "adapter")
	require.NoError(t, pm.SavePretrained(dir))
	again, err := peft.LoadAdapter(pm.Base(), filepath.Join(dir, "task"), peft.Options{Name: "task"})
	require.NoError(t, err)
	require.Equal(t, hostValues(t, pm), hostValues(t, again))
	return again
}

// step makes the optimizer step that the fixture holds, with the trainer.
func (g *hubGolden) step(t *testing.T, pm *peft.PeftModel) {
	t.Helper()
	ids, labels := g.Tensor(t, "ids"), basetest.Ints(t, g.Tensor(t, "labels"))
	rows, length := ids.Shape().Dim(0), ids.Shape().Dim(1)
	flat := basetest.Ints(t, ids)
	examples := make([]train.Example, rows)
	for i := range examples {
		examples[i].IDs = flat[i*length : (i+1)*length]
		if len(labels) == rows {
			mask := basetest.Ints(t, g.Tensor(t, "mask"))[i*length : (i+1)*length]
			n := 0
			for _, m := range mask {
				n += int(m)
			}
			examples[i] = train.Example{IDs: examples[i].IDs[:n], Labels: labels[i : i+1]}
		} else {
			examples[i].Labels = labels[i*length : (i+1)*length]
		}
	}
	var data *train.Dataset
	var err error
	if c, ok := pm.Base().(*models.Classifier); ok {
		data, err = train.NewClassDataset(train.LabelRow, examples, c.Labels())
	} else {
		data, err = train.NewDataset(examples)
	}
	require.NoError(t, err)
	trainer, err := train.NewTrainer(pm, data, train.Arguments{
		OutputDir: t.TempDir(), MaxSteps: 1, PerDeviceTrainBatchSize: rows, NoShuffle: true, Quiet: true,
		LearningRate: 0.01, LrSchedulerType: train.SchedulerConstant, AdamEpsilon: 1e-3, MaxGradNorm: -1, SaveStrategy: train.SaveNo,
	})
	require.NoError(t, err)
	defer trainer.Close()
	_, err = trainer.Train(t.Context())
	require.NoError(t, err)
}

// Two adapters that are active together are AdapterHub's Stack.
func TestAdapterHubStack(t *testing.T) {
	g := openHubGolden(t, hubFixture("bert-stack"))
	pm, err := LoadAdapterHub(g.base(t), filepath.Join(g.Dir, "first"))
	require.NoError(t, err)
	name, err := AddAdapterHub(pm, filepath.Join(g.Dir, "second"))
	require.NoError(t, err)
	require.Equal(t, "second", name)
	one := g.evaluate(t, pm).Logits
	// The classifier's copies are the base's own in both, and two cannot stand in its place.
	_, err = pm.With("first", "second")
	require.ErrorContains(t, err, "cannot be active together")

	pm, err = LoadAdapterHub(trunkOnly{g.base(t).(*models.Classifier)}, filepath.Join(g.Dir, "first"))
	require.NoError(t, err)
	_, err = AddAdapterHub(pm, filepath.Join(g.Dir, "second"))
	require.NoError(t, err)
	both, err := pm.With("first", "second")
	require.NoError(t, err)
	logits := g.evaluate(t, both).Logits
	basetest.RequireClose(t, basetest.Flat(t, g.Tensor(t, "logits")), logits, 1e-4, "logits")
	require.NotEqual(t, one, logits)
}

// trunkOnly is a classifier whose head is not trained with an adapter.
type trunkOnly struct{ *models.Classifier }

func (trunkOnly) TaskType() string { return "" }

// Every non-linearity has the values and the derivatives of transformers' own.
func TestNonLinearities(t *testing.T) {
	file, err := safetensors.Open(hubFixture("activations.safetensors"))
	require.NoError(t, err)
	defer file.Close()
	read := func(name string) []float32 {
		values := make([]float32, 40)
		require.NoError(t, file.Float32s(name, values))
		return values
	}
	tested := 0
	for _, name := range file.Names() {
		if name == "x" || strings.HasSuffix(name, ".grad") {
			continue
		}
		tested++
		t.Run(name, func(t *testing.T) {
			f, err := nonLinearity(strings.ToUpper(name))
			require.NoError(t, err)
			out, err := graph.CallOnceN(backendtest.Open(t), func(x *graph.Node) []*graph.Node {
				y := f(x)
				return []*graph.Node{y, graph.Gradient(graph.ReduceAllSum(y), x)[0]}
			}, tensors.FromValue(read("x")))
			require.NoError(t, err)
			basetest.RequireClose(t, read(name), basetest.Flat(t, out[0]), 1e-5, "values")
			basetest.RequireClose(t, read(name+".grad"), basetest.Flat(t, out[1]), 1e-5, "derivatives")
		})
	}
	require.Equal(t, 20, tested)
}
