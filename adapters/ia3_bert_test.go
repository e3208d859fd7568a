package adapters_test

import (
	"path/filepath"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/peft/pefttest"
	"github.com/gopeft/gopeft/site"
	"github.com/gopeft/gopeft/train"
)

func classifier(t *testing.T, dir string) *models.Classifier {
	t.Helper()
	c, err := models.LoadClassifier(t.Context(), dir, models.ClassifierOptions{Options: models.Options{On: backendtest.Open(t), DType: dtypes.Float32}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// classified are the logits of a padded batch, and with labels the loss and the gradients of
// the active adapter.
func classified(t *testing.T, pm *peft.PeftModel, g basetest.Golden, labelled bool) basetest.Evaluation {
	t.Helper()
	base := pm.Base().(*models.Classifier)
	arguments, err := pm.Arguments()
	require.NoError(t, err)
	exec, err := model.NewExec(base.Backend(), base.Store(), func(_ *model.Scope, in []*graph.Node) []*graph.Node {
		binding, err := pm.Bind(in[3:])
		require.NoError(t, err)
		pass := &site.Pass{Graph: in[0].Graph(), DType: dtypes.Float32, Hook: binding}
		logits := base.Classify(pass, site.Tokens{IDs: in[0], Segments: in[1]})
		oneHot := graph.OneHot(in[2], base.NumLabels(), dtypes.Float32)
		loss := graph.Neg(graph.ReduceAllMean(graph.ReduceSum(graph.Mul(graph.LogSoftmax(logits, -1), oneHot), -1)))
		out := []*graph.Node{logits, loss}
		if labelled {
			out = append(out, graph.Gradient(loss, binding.Views()...)...)
		}
		return out
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
	if labelled {
		layout, err := pm.Layout(peft.DefaultAdapter)
		require.NoError(t, err)
		for i, p := range layout.Params() {
			e.Gradients[p.Name] = basetest.Flat(t, out[2+i])
		}
	}
	return e
}

// An adapter of a BERT with its classifier means the same as in Python's peft, and trains
// and merges the same.
func TestIA3OfBert(t *testing.T) {
	root := filepath.Join(basetest.Fixtures, "encoders")
	g := basetest.Golden{Dir: filepath.Join(root, "bert_ia3")}
	var err error
	g.File, err = safetensors.Open(filepath.Join(g.Dir, "golden.safetensors"))
	require.NoError(t, err)
	defer g.File.Close()
	pm, err := peft.LoadAdapter(classifier(t, filepath.Join(root, "bert_sequence")), g.Dir)
	require.NoError(t, err)
	got := classified(t, pm, g, true)
	basetest.RequireClose(t, basetest.Flat(t, g.Tensor(t, "logits")), got.Logits, 1e-4, "logits")
	require.InDelta(t, basetest.Flat(t, g.Tensor(t, "loss"))[0], got.Loss, 1e-4)
	require.Len(t, got.Gradients, 10)
	for name, gradient := range got.Gradients {
		basetest.RequireClose(t, basetest.Flat(t, g.Tensor(t, "gradient/"+name)), gradient, 1e-4, name)
	}

	again := filepath.Join(t.TempDir(), "again")
	require.NoError(t, pm.SavePretrained(again))
	pefttest.SameConfig(t, g.Dir, again)

	merged := t.TempDir()
	_, err = pm.Merge(t.Context(), merged)
	require.NoError(t, err)
	full, err := peft.GetPeftModel(classifier(t, merged), peft.Full{})
	require.NoError(t, err)
	basetest.RequireClose(t, basetest.Flat(t, g.Tensor(t, "merged_logits")), classified(t, full, g, false).Logits, 1e-4, "merged logits")

	var examples []train.Example
	ids, mask, labels := basetest.Ints(t, g.Tensor(t, "ids")), basetest.Ints(t, g.Tensor(t, "mask")), basetest.Ints(t, g.Tensor(t, "labels"))
	length := len(ids) / len(labels)
	for i, label := range labels {
		row := ids[i*length : (i+1)*length]
		n := 0
		for _, m := range mask[i*length : (i+1)*length] {
			n += int(m)
		}
		examples = append(examples, train.Example{IDs: row[:n], Labels: []int32{label}})
	}
	data, err := train.NewClassDataset(train.LabelRow, examples, nil)
	require.NoError(t, err)
	trainer, err := train.NewTrainer(pm, data, train.Arguments{
		OutputDir: t.TempDir(), MaxSteps: 1, PerDeviceTrainBatchSize: len(examples), NoShuffle: true, Quiet: true,
		LearningRate: 0.01, LrSchedulerType: train.SchedulerConstant, MaxGradNorm: -1, SaveStrategy: train.SaveNo,
	})
	require.NoError(t, err)
	defer trainer.Close()
	_, err = trainer.Train(t.Context())
	require.NoError(t, err)
	values, err := pm.TensorValues(peft.DefaultAdapter)
	require.NoError(t, err)
	for name, value := range values {
		basetest.RequireClose(t, basetest.Flat(t, g.Tensor(t, "after/"+name)), value, 1e-4, name+" after a step")
	}
}
