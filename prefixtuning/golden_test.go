package prefixtuning_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
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
	"github.com/gopeft/gopeft/peft/pefttest"
	_ "github.com/gopeft/gopeft/prefixtuning"
	"github.com/gopeft/gopeft/site"
	"github.com/gopeft/gopeft/train"
)

// golden is an adapter made by internal/golden/prefixtuning.py.
type golden struct {
	basetest.Golden
	Sequence bool
}

func fixture(t testing.TB, parts ...string) string {
	return filepath.Join(append([]string{basetest.Root(t), "internal", "golden", "testdata"}, parts...)...)
}

func openGolden(t *testing.T, dir string) *golden {
	data, err := os.ReadFile(filepath.Join(dir, "info.json"))
	require.NoError(t, err)
	g := &golden{Golden: basetest.Golden{Dir: dir}}
	require.NoError(t, json.Unmarshal(data, g))
	g.File, err = safetensors.Open(filepath.Join(dir, "golden.safetensors"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, g.File.Close()) })
	return g
}

func (g *golden) has(name string) bool {
	_, ok := g.File.Info(name)
	return ok
}

func (g *golden) optional(t *testing.T, name string) *tensors.Tensor {
	if !g.has(name) {
		return nil
	}
	return g.Tensor(t, name)
}

func loadClassifier(t testing.TB, dir string, perToken bool) *models.Classifier {
	base, err := models.LoadClassifier(t.Context(), dir, models.ClassifierOptions{PerToken: perToken, Options: models.Options{On: backendtest.Open(t), DType: dtypes.Float32}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, base.Close()) })
	return base
}

func (g *golden) base(t *testing.T) site.Base {
	dir := fixture(t, filepath.FromSlash(g.Model))
	if g.Sequence {
		return loadClassifier(t, dir, false)
	}
	return basetest.Load(t, dir)
}

// nameOf maps a tensor's name to that of peft's PyTorch parameter in a fixture.
func nameOf(p peft.Param) string {
	if p.Name == "prompt_embeddings" {
		return "embedding.weight"
	}
	return strings.TrimPrefix(p.Name, "prompt_encoder.")
}

// Adapters that Python's peft made mean the same here, train the same, and are written
// again as they were.
func TestGolden(t *testing.T) {
	dirs, err := filepath.Glob(fixture(t, "prefixtuning", "*"))
	require.NoError(t, err)
	require.NotEmpty(t, dirs)
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			backendtest.Sample(t, 6)
			g := openGolden(t, dir)
			pm, err := peft.LoadAdapter(g.base(t), dir)
			require.NoError(t, err)
			require.Equal(t, g.Printed, pm.TrainableParameters().String())
			for _, kind := range []string{"plain", "right", "left", "placed"} {
				if g.has(kind + "_ids") {
					g.logits(t, pm, kind)
				}
			}
			g.gradients(t, pm)
			g.savedAgain(t, pm)
			if !g.Sequence {
				g.generates(t, pm)
			}
			g.step(t, pm)
			g.withoutEncoder(t)
		})
	}
}

// logits compares those of the tokens that are no padding.
func (g *golden) logits(t *testing.T, pm *peft.PeftModel, kind string) {
	mask := g.optional(t, kind+"_mask")
	got := run(t, pm, input{ids: g.Tensor(t, kind+"_ids"), segments: mask, positions: g.optional(t, kind+"_positions"), tasks: g.optional(t, "tasks")}).scores
	want := basetest.Flat(t, g.Tensor(t, kind+"_logits"))
	require.Len(t, got, len(want), kind)
	if !g.Sequence && mask != nil {
		used := basetest.Ints(t, mask)
		width := len(want) / len(used)
		for i, u := range used {
			if u == 0 {
				clear(want[i*width : (i+1)*width])
				clear(got[i*width : (i+1)*width])
			}
		}
	}
	basetest.RequireClose(t, want, got, 1e-4, "logits: "+kind)
}

func (g *golden) gradients(t *testing.T, pm *peft.PeftModel) {
	got := run(t, pm, input{ids: g.Tensor(t, "right_ids"), segments: g.Tensor(t, "right_mask"), labels: g.Tensor(t, "labels"), tasks: g.optional(t, "tasks")})
	require.InDelta(t, basetest.Flat(t, g.Tensor(t, "loss"))[0], got.loss, 1e-4)
	layout, err := pm.Layout(peft.DefaultAdapter)
	require.NoError(t, err)
	wanted := slices.DeleteFunc(g.File.Names(), func(name string) bool { return !strings.HasPrefix(name, "grad.") })
	require.Len(t, layout.Params(), len(wanted))
	for i, p := range layout.Params() {
		basetest.RequireClose(t, basetest.Flat(t, g.Tensor(t, "grad."+nameOf(p))), got.gradients[i], 1e-4, "gradient of "+p.Name)
	}
}

// savedAgain: what was read is written again as it was, what the encoder made but for rounding.
func (g *golden) savedAgain(t *testing.T, pm *peft.PeftModel) {
	dir := filepath.Join(t.TempDir(), "again")
	require.NoError(t, pm.SavePretrained(dir))
	for _, name := range []string{"adapter_model.safetensors", "prompt_encoder.safetensors"} {
		if _, err := os.Stat(filepath.Join(g.Dir, name)); err != nil {
			require.NoFileExists(t, filepath.Join(dir, name))
			continue
		}
		was, is := readAll(t, filepath.Join(g.Dir, name)), readAll(t, filepath.Join(dir, name))
		require.Len(t, is, len(was))
		for key, want := range was {
			require.Contains(t, is, key)
			require.Equal(t, want.shape, is[key].shape, key)
			basetest.RequireClose(t, want.values, is[key].values, 1e-5, key)
		}
	}
	pefttest.SameConfig(t, g.Dir, dir)
}

type fileTensor struct {
	shape  []int
	values []float32
}

func readAll(t *testing.T, path string) map[string]fileTensor {
	file, err := safetensors.Open(path)
	require.NoError(t, err)
	defer file.Close()
	out := map[string]fileTensor{}
	for _, name := range file.Names() {
		info, _ := file.Info(name)
		values := make([]float32, site.Parameter{Shape: info.Shape}.Size())
		require.NoError(t, file.Float32s(name, values))
		out[name] = fileTensor{info.Shape, values}
	}
	return out
}

// withoutEncoder: what Python writes, without the second file, gives the same scores.
func (g *golden) withoutEncoder(t *testing.T) {
	if _, err := os.Stat(filepath.Join(g.Dir, "prompt_encoder.safetensors")); err != nil {
		return
	}
	dir := t.TempDir()
	for _, name := range []string{"adapter_model.safetensors", "adapter_config.json"} {
		data, err := os.ReadFile(filepath.Join(g.Dir, name))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}
	flat, err := peft.LoadAdapter(g.base(t), dir)
	require.NoError(t, err)
	layout, err := flat.Layout(peft.DefaultAdapter)
	require.NoError(t, err)
	require.Equal(t, "prompt_embeddings", layout.Params()[0].Name)
	g.logits(t, flat, "right")
}

// step makes the optimizer step that the fixture holds, with the trainer.
func (g *golden) step(t *testing.T, pm *peft.PeftModel) {
	mask := basetest.Ints(t, g.Tensor(t, "right_mask"))
	ids, labels := basetest.Ints(t, g.Tensor(t, "right_ids")), basetest.Ints(t, g.Tensor(t, "labels"))
	rows := g.Tensor(t, "right_ids").Shape().Dim(0)
	length := len(ids) / rows
	var examples []train.Example
	for r := range rows {
		n := 0
		for n < length && mask[r*length+n] == 1 {
			n++
		}
		e := train.Example{IDs: ids[r*length : r*length+n]}
		if g.Sequence {
			e.Labels = labels[r : r+1]
		} else {
			e.Labels = labels[r*length : r*length+n]
		}
		if g.has("tasks") {
			e.Task = &basetest.Ints(t, g.Tensor(t, "tasks"))[r]
		}
		examples = append(examples, e)
	}
	data, err := train.NewDataset(examples)
	if g.Sequence {
		data, err = train.NewClassDataset(train.LabelRow, examples, pm.Base().(*models.Classifier).Labels())
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
	got, err := pm.TensorValues(peft.DefaultAdapter)
	require.NoError(t, err)
	layout, err := pm.Layout(peft.DefaultAdapter)
	require.NoError(t, err)
	for _, p := range layout.Params() {
		basetest.RequireClose(t, basetest.Flat(t, g.Tensor(t, "step."+nameOf(p))), got[p.Name], 1e-4, p.Name+" after a step")
	}
}

// generates continues prompts as transformers does, each alone and all in one batch.
func (g *golden) generates(t *testing.T, pm *peft.PeftModel) {
	var prompts [][]int32
	var want [][]int32
	for _, n := range []string{"0", "1", "2"} {
		prompts = append(prompts, basetest.Ints(t, g.Tensor(t, "prompt."+n)))
		want = append(want, basetest.Ints(t, g.Tensor(t, "new."+n)))
	}
	options := models.GenerateOptions{MaxNewTokens: len(want[0]), StopTokens: []int32{}}
	if g.has("tasks") {
		first := basetest.Ints(t, g.Tensor(t, "tasks"))[0]
		options.Tasks = []int32{first, first, first}
	}
	generator, err := models.NewGenerator(pm)
	require.NoError(t, err)
	defer generator.Close()
	together, err := generator.Generate(t.Context(), prompts, options)
	require.NoError(t, err)
	for i := range prompts {
		require.Equal(t, want[i], together[i].IDs, "prompt %d", i)
	}
}

// input is what a model is run on.
type input struct {
	ids, segments, positions, labels, tasks *tensors.Tensor
}

// outcome is what it answers: scores of tokens or rows, and with labels the mean loss and
// the gradients of the trainable tensors.
type outcome struct {
	scores    []float32
	loss      float64
	gradients [][]float32
}

func run(t testing.TB, pm *peft.PeftModel, in input) outcome {
	t.Helper()
	base := pm.Base()
	var names []string
	var arguments []any
	for name, x := range map[string]*tensors.Tensor{"ids": in.ids, "segments": in.segments, "positions": in.positions, "labels": in.labels, "tasks": in.tasks} {
		if x != nil {
			names, arguments = append(names, name), append(arguments, x)
		}
	}
	values, err := pm.Arguments()
	require.NoError(t, err)
	for _, v := range values {
		arguments = append(arguments, v)
	}
	exec, err := model.NewExec(base.Backend(), base.Store(), func(_ *model.Scope, nodes []*graph.Node) []*graph.Node {
		by := map[string]*graph.Node{}
		for i, name := range names {
			by[name] = nodes[i]
		}
		binding, err := pm.Bind(nodes[len(names):])
		require.NoError(t, err)
		pass := &site.Pass{Graph: nodes[0].Graph(), DType: base.DType(), Hook: binding}
		tokens := site.Tokens{IDs: by["ids"], Segments: by["segments"], Positions: by["positions"], Tasks: by["tasks"]}
		var scores *graph.Node
		if c, ok := base.(site.Classifier); ok {
			scores = c.Classify(pass, tokens)
		} else {
			lm := base.(site.LanguageModel)
			scores = lm.Logits(pass, lm.Hidden(pass, tokens))
		}
		scores = graph.ConvertDType(scores, dtypes.Float32)
		if in.labels == nil {
			return []*graph.Node{scores}
		}
		loss := meanLoss(scores, by["labels"])
		return append([]*graph.Node{scores, loss}, graph.Gradient(loss, binding.Views()...)...)
	})
	require.NoError(t, err)
	defer exec.Finalize()
	out, err := exec.Exec(arguments...)
	require.NoError(t, err)
	o := outcome{scores: basetest.Flat(t, out[0])}
	if in.labels != nil {
		o.loss = float64(basetest.Flat(t, out[1])[0])
		for _, x := range out[2:] {
			o.gradients = append(o.gradients, basetest.Flat(t, x))
		}
	}
	return o
}

// meanLoss is the mean cross entropy, of next tokens or of classes.
func meanLoss(scores, labels *graph.Node) *graph.Node {
	if labels.Rank() == 2 && scores.Rank() == 3 { // of next tokens
		n := labels.Shape().Dim(1)
		scores = graph.SliceAxis(scores, 1, graph.AxisRange(0, n-1))
		labels = graph.SliceAxis(labels, 1, graph.AxisRange(1))
	}
	counted := graph.ConvertDType(graph.GreaterOrEqual(labels, graph.ZerosLike(labels)), dtypes.Float32)
	oneHot := graph.OneHot(graph.MaxScalar(labels, 0), scores.Shape().Dim(-1), dtypes.Float32)
	picked := graph.ReduceSum(graph.Mul(graph.LogSoftmax(scores, -1), oneHot), -1)
	return graph.Neg(graph.Div(graph.ReduceAllSum(graph.Mul(picked, counted)), graph.ReduceAllSum(counted)))
}
