package lora_test

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/safetensors"
	_ "github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

const fixtures = "../internal/golden/testdata"

// golden is one adapter made by Python's peft, see internal/golden/lora_golden.py.
type golden struct {
	Model     string
	Printed   string
	Trainable int64
	All       int64
	Scaling   map[string]float64

	dir  string
	file *safetensors.File
}

func goldenCases(t *testing.T) []golden {
	dirs, err := filepath.Glob(filepath.Join(fixtures, "lora", "*", "info.json"))
	require.NoError(t, err)
	require.NotEmpty(t, dirs)
	var cases []golden
	for _, path := range dirs {
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		g := golden{dir: filepath.Dir(path)}
		require.NoError(t, json.Unmarshal(data, &g))
		g.file, err = safetensors.Open(filepath.Join(g.dir, "golden.safetensors"))
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, g.file.Close()) })
		cases = append(cases, g)
	}
	return cases
}

func (g golden) tensor(t *testing.T, name string) *tensors.Tensor {
	t.Helper()
	info, ok := g.file.Info(name)
	require.True(t, ok, name)
	data, err := g.file.Bytes(name)
	require.NoError(t, err)
	dtype := map[safetensors.DType]dtypes.DType{safetensors.F32: dtypes.Float32, safetensors.I32: dtypes.Int32}[info.DType]
	out, err := tensors.FromRaw(nil, 0, shapes.Make(dtype, info.Shape...), data)
	require.NoError(t, err)
	return out
}

func load(t *testing.T, dir string) *models.Model {
	t.Helper()
	m, err := models.Load(context.Background(), dir, models.Options{Backend: os.Getenv("GOMLX_BACKEND"), DType: dtypes.Float32})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return m
}

// evaluation is a model's answer to a golden batch.
type evaluation struct {
	logits    []float32
	loss      float64
	gradients map[string][]float32 // by the adapter's tensor names; of the active adapter alone
}

// evaluate runs a view; the gradients are those of the mean loss.
func evaluate(t *testing.T, pm *peft.PeftModel, ids, labels *tensors.Tensor) evaluation {
	t.Helper()
	lm := pm.LanguageModel()
	arguments, err := pm.Arguments()
	require.NoError(t, err)
	gradients := len(pm.Active()) == 1
	exec, err := model.NewExec(lm.Backend(), lm.Store(), func(_ *model.Scope, in []*graph.Node) []*graph.Node {
		binding, err := pm.Bind(in[2:])
		require.NoError(t, err)
		pass := &site.Pass{Graph: in[0].Graph(), DType: dtypes.Float32, Hook: binding}
		logits := lm.Logits(pass, lm.Hidden(pass, site.Tokens{IDs: in[0]}))
		loss := meanLoss(logits, in[1])
		out := []*graph.Node{logits, loss}
		if gradients {
			out = append(out, graph.Gradient(loss, binding.Views(0)...)...)
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
	e := evaluation{logits: flat(t, out[0]), loss: float64(flat(t, out[1])[0]), gradients: map[string][]float32{}}
	if gradients {
		layout, err := pm.Layout(pm.Active()[0])
		require.NoError(t, err)
		for i, p := range layout.Params() {
			e.gradients[p.Name] = flat(t, out[2+i])
		}
	}
	return e
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

func flat(t *testing.T, x *tensors.Tensor) []float32 {
	t.Helper()
	values, err := tensors.CopyFlatData[float32](x)
	require.NoError(t, err)
	return values
}

// requireClose compares within tol, relative to the largest wanted value if that exceeds 1.
func requireClose(t *testing.T, want, got []float32, tol float64, what string) {
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

// Adapters made by Python's peft give its logits, loss and gradients.
func TestGolden(t *testing.T) {
	for _, g := range goldenCases(t) {
		t.Run(filepath.Base(g.dir), func(t *testing.T) {
			base := load(t, filepath.Join(fixtures, "families", g.Model))
			pm, err := peft.LoadAdapter(base, g.dir)
			require.NoError(t, err)
			require.Equal(t, g.Printed, pm.TrainableParameters().String())

			plan, err := pm.Plan(peft.DefaultAdapter)
			require.NoError(t, err)
			require.Len(t, plan.Targets, len(g.Scaling))
			require.Equal(t, g.Trainable, plan.Count.Trainable)
			for _, target := range plan.Targets {
				scaling, err := strconv.ParseFloat(target.Settings[2].Value, 64)
				require.NoError(t, err)
				require.InEpsilon(t, g.Scaling[target.Module.Path], scaling, 1e-5, target.Module.Path)
			}

			got := evaluate(t, pm, g.tensor(t, "input_ids"), g.tensor(t, "labels"))
			requireClose(t, flat(t, g.tensor(t, "logits")), got.logits, 1e-4, "logits")
			require.InDelta(t, flat(t, g.tensor(t, "loss"))[0], got.loss, 1e-4)
			compared := 0
			for _, name := range g.file.Names() {
				if short, ok := strings.CutPrefix(name, "grad.base_model.model."); ok {
					requireClose(t, flat(t, g.tensor(t, name)), got.gradients[short], 1e-4, name)
					compared++
				}
			}
			require.Equal(t, compared, len(got.gradients))
			require.NotZero(t, compared)
		})
	}
}
