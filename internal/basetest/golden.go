package basetest

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// Fixtures is the folder of golden data, seen from a package one level below the root.
const Fixtures = "../internal/golden/testdata"

// Root is the repository's root folder.
func Root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	require.NoError(t, err)
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		parent := filepath.Dir(dir)
		require.NotEqual(t, dir, parent, "no go.mod above the test's folder")
		dir = parent
	}
}

// Model is a base of the tests.
type Model = *models.Model

// Golden is one adapter made by Python's peft, see internal/golden/lora_golden.py.
type Golden struct {
	Model     string
	Printed   string
	Trainable int64
	All       int64
	Scaling   map[string]float64

	Dir  string            `json:"-"`
	File *safetensors.File `json:"-"`
}

// GoldenCases lists the golden adapters.
func GoldenCases(t testing.TB) []Golden {
	dirs, err := filepath.Glob(filepath.Join(Fixtures, "lora", "*", "info.json"))
	require.NoError(t, err)
	require.NotEmpty(t, dirs)
	var cases []Golden
	for _, path := range dirs {
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		g := Golden{Dir: filepath.Dir(path)}
		require.NoError(t, json.Unmarshal(data, &g))
		g.File, err = safetensors.Open(filepath.Join(g.Dir, "golden.safetensors"))
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, g.File.Close()) })
		cases = append(cases, g)
	}
	return cases
}

// Tensor reads one of the golden values.
func (g Golden) Tensor(t testing.TB, name string) *tensors.Tensor {
	t.Helper()
	info, ok := g.File.Info(name)
	require.True(t, ok, name)
	data, err := g.File.Bytes(name)
	require.NoError(t, err)
	dtype := map[safetensors.DType]dtypes.DType{safetensors.F32: dtypes.Float32, safetensors.I32: dtypes.Int32}[info.DType]
	out, err := tensors.FromRaw(nil, 0, shapes.Make(dtype, info.Shape...), data)
	require.NoError(t, err)
	return out
}

// Load reads a model in float32 onto the backend of the tests.
func Load(t testing.TB, dir string) *models.Model {
	t.Helper()
	m, err := models.Load(context.Background(), dir, models.Options{On: backendtest.Open(t), DType: dtypes.Float32})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return m
}

// Evaluation is a model's answer to a golden batch.
type Evaluation struct {
	Logits    []float32
	Loss      float64
	Gradients map[string][]float32 // by the adapter's tensor names; of the active adapter alone
}

// Evaluate runs a view; the gradients are those of the mean loss. Of a language model labels
// are [batch, length], of a classifier of sequences [batch].
func Evaluate(t testing.TB, pm *peft.PeftModel, ids, labels *tensors.Tensor) Evaluation {
	t.Helper()
	arguments, err := pm.Arguments()
	require.NoError(t, err)
	gradients := len(pm.Active()) == 1
	exec, err := model.NewExec(pm.Base().Backend(), pm.Base().Store(), func(_ *model.Scope, in []*graph.Node) []*graph.Node {
		binding, err := pm.Bind(in[2:])
		require.NoError(t, err)
		pass := &site.Pass{Graph: in[0].Graph(), DType: dtypes.Float32, Hook: binding}
		logits, loss := forward(pm, pass, in[0], in[1])
		out := []*graph.Node{logits, loss}
		if gradients {
			out = append(out, graph.Gradient(loss, binding.Views()...)...)
		}
		return out
	})
	require.NoError(t, err)
	defer exec.Finalize()
	in := []any{ids, labels}
	for _, a := range arguments {
		in = append(in, a)
	}
	out, err := exec.Exec(in...)
	require.NoError(t, err)
	e := Evaluation{Logits: Flat(t, out[0]), Loss: float64(Flat(t, out[1])[0]), Gradients: map[string][]float32{}}
	if gradients {
		layout, err := pm.Layout(pm.Active()[0])
		require.NoError(t, err)
		for i, p := range layout.Params() {
			e.Gradients[p.Name] = Flat(t, out[2+i])
		}
	}
	return e
}

// forward builds the scores and the mean loss.
func forward(pm *peft.PeftModel, pass *site.Pass, ids, labels *graph.Node) (logits, loss *graph.Node) {
	if c, ok := pm.Base().(site.Classifier); ok {
		logits = c.Classify(pass, site.Tokens{IDs: ids})
		oneHot := graph.OneHot(labels, logits.Shape().Dim(-1), dtypes.Float32)
		return logits, graph.Neg(graph.ReduceAllMean(graph.ReduceSum(graph.Mul(graph.LogSoftmax(logits, -1), oneHot), -1)))
	}
	lm := pm.LanguageModel()
	logits = lm.Logits(pass, lm.Hidden(pass, site.Tokens{IDs: ids}))
	return logits, meanLoss(logits, labels)
}

// meanLoss is the mean cross entropy of next tokens, labels of -100 left out.
func meanLoss(logits, labels *graph.Node) *graph.Node {
	length := labels.Shape().Dim(1)
	x := graph.Slice(logits, graph.AxisRange(), graph.AxisRange(0, length-1))
	y := graph.Slice(labels, graph.AxisRange(), graph.AxisRange(1, length))
	counted := graph.ConvertDType(graph.GreaterOrEqual(y, graph.ZerosLike(y)), dtypes.Float32)
	oneHot := graph.OneHot(graph.Max(y, graph.ZerosLike(y)), x.Shape().Dim(-1), dtypes.Float32)
	picked := graph.ReduceSum(graph.Mul(graph.LogSoftmax(x, -1), oneHot), -1)
	return graph.Neg(graph.Div(graph.ReduceAllSum(graph.Mul(picked, counted)), graph.ReduceAllSum(counted)))
}

// Flat copies a float32 tensor to the host.
func Flat(t testing.TB, x *tensors.Tensor) []float32 {
	t.Helper()
	values, err := tensors.CopyFlatData[float32](x)
	require.NoError(t, err)
	return values
}

// Ints copies an int32 tensor to the host.
func Ints(t testing.TB, x *tensors.Tensor) []int32 {
	t.Helper()
	values, err := tensors.CopyFlatData[int32](x)
	require.NoError(t, err)
	return values
}

// RequireClose compares within tol, relative to the largest wanted value if that exceeds 1.
func RequireClose(t testing.TB, want, got []float32, tol float64, what string) {
	t.Helper()
	require.Len(t, got, len(want), what)
	scale, worst := 1.0, 0.0
	for i := range want {
		scale = max(scale, math.Abs(float64(want[i])))
		worst = max(worst, math.Abs(float64(want[i]-got[i])))
	}
	require.False(t, math.IsNaN(worst), what)
	require.LessOrEqual(t, worst, tol*scale, "%s: largest difference %g (largest value %g)", what, worst, scale)
}
