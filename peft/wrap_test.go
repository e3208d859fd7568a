package peft_test

import (
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

	"github.com/gopeft/gopeft/internal/backend"
	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// attachRandom attaches a LoRA whose product is not zero.
func attachRandom(t testing.TB, base site.Base, targets peft.Targets) *peft.PeftModel {
	t.Helper()
	pm, err := peft.GetPeftModel(base, lora.LoraConfig{R: 2, LoraAlpha: 3, TargetModules: targets, InitLoraWeights: lora.InitRandom})
	require.NoError(t, err)
	return pm
}

// probe is a loss that depends on every output.
func probe(outputs []*graph.Node) *graph.Node {
	var sum *graph.Node
	for _, out := range outputs {
		weights := graph.Sin(graph.AddScalar(graph.IotaFull(out.Graph(), shapes.Make(dtypes.Float32, out.Shape().Dimensions...)), 1))
		term := graph.ReduceAllSum(graph.Mul(graph.ConvertDType(out, dtypes.Float32), weights))
		if sum == nil {
			sum = term
		} else {
			sum = graph.Add(sum, term)
		}
	}
	return sum
}

// outputsAndGradient runs a model and differentiates the probe of its outputs.
func outputsAndGradient(t *testing.T, base *peft.WrappedModel, pm *peft.PeftModel, input *tensors.Tensor,
	call func(arguments []*graph.Node, in *graph.Node) []*graph.Node) (outputs, gradient []float32) {
	t.Helper()
	arguments, err := pm.Arguments()
	require.NoError(t, err)
	exec, err := model.NewExec(base.Backend(), base.Store(), func(_ *model.Scope, in []*graph.Node) []*graph.Node {
		n := len(arguments)
		out := call(in[:n], in[n])
		return append(out, graph.Gradient(probe(out), in[0])...)
	})
	require.NoError(t, err)
	defer exec.Finalize()
	var all []any
	for _, a := range append(arguments, input) {
		all = append(all, a)
	}
	results, err := exec.Exec(all...)
	require.NoError(t, err)
	for i, r := range results {
		values, err := tensors.CopyFlatData[float32](r)
		require.NoError(t, err)
		if i < len(results)-1 {
			outputs = append(outputs, values...)
		} else {
			gradient = values
		}
	}
	return outputs, gradient
}

// mergedInGraph is the oracle: the model itself, its variables read as W + s·B·A while it is built.
func mergedInGraph(base *peft.WrappedModel, fn peft.ModelFunc, pm *peft.PeftModel) func([]*graph.Node, *graph.Node) []*graph.Node {
	return func(arguments []*graph.Node, in *graph.Node) []*graph.Node {
		g := in.Graph()
		layout, err := pm.Layout(peft.DefaultAdapter)
		if err != nil {
			panic(err)
		}
		values := layout.Bind(arguments)
		plan, err := pm.Plan(peft.DefaultAdapter)
		if err != nil {
			panic(err)
		}
		original := map[*model.Variable]*graph.Node{}
		for _, target := range plan.Targets {
			m := target.Module
			v := base.Store().GetVariable(site.VariablePath(m.Weight()))
			if _, ok := original[v]; !ok {
				original[v] = v.NodeValue(g)
			}
			var delta *graph.Node
			if m.Kind == site.Embedding {
				delta = graph.Transpose(graph.Dot(values.Get(m.Path+".lora_embedding_B"), values.Get(m.Path+".lora_embedding_A")).Product(), 0, 1)
			} else if m.Kind == site.Convolution {
				a, b := values.Get(m.Path+".lora_A.weight"), values.Get(m.Path+".lora_B.weight")
				delta = graph.Dot(graph.Reshape(b, m.Out, -1), graph.Reshape(a, a.Shape().Dim(0), -1)).Product()
				delta = m.Stored(graph.Reshape(delta, m.WeightShape()...))
			} else {
				delta = graph.Dot(values.Get(m.Path+".lora_B.weight"), values.Get(m.Path+".lora_A.weight")).Product()
				if m.Transposed {
					delta = graph.Transpose(delta, 0, 1)
				}
			}
			delta = graph.Reshape(graph.MulScalar(delta, 1.5), v.Shape().Dimensions...)
			v.SetNodeValue(graph.Add(v.NodeValue(g), delta))
		}
		out := fn(base.Store().RootScope(), []*graph.Node{in})
		for v, node := range original {
			v.SetNodeValue(node)
		}
		return out
	}
}

func rewritten(base *peft.WrappedModel, pm *peft.PeftModel) func([]*graph.Node, *graph.Node) []*graph.Node {
	return func(arguments []*graph.Node, in *graph.Node) []*graph.Node {
		return base.Call(&site.Pass{Graph: in.Graph(), DType: base.DType(), Hook: pm.Hook(arguments)}, []*graph.Node{in})
	}
}

// distance is the largest difference relative to the largest value.
func distance(t *testing.T, want, got []float32) float64 {
	t.Helper()
	require.Len(t, got, len(want))
	var difference, largest float64
	for i := range want {
		difference = max(difference, math.Abs(float64(want[i]-got[i])))
		largest = max(largest, math.Abs(float64(want[i])))
	}
	require.NotZero(t, largest)
	return difference / largest
}

func withFusion(t *testing.T, on bool) {
	value := "0"
	if on {
		value = "1"
	}
	old, had := os.LookupEnv(graph.FusionEnv)
	require.NoError(t, os.Setenv(graph.FusionEnv, value))
	t.Cleanup(func() {
		if had {
			os.Setenv(graph.FusionEnv, old)
		} else {
			os.Unsetenv(graph.FusionEnv)
		}
	})
}

// A LoRA on a rewritten model is the model with merged weights, outputs and gradients.
func TestWrappedEqualsMergedWeights(t *testing.T) {
	for _, fusion := range []bool{true, false} {
		if !fusion && !backend.IsGo(backendtest.Open(t)) {
			continue // it has no fused operations
		}
		for _, m := range foreignModels {
			if m.name == "shared" { // its head and its embedding have deltas of their own
				continue
			}
			t.Run(map[bool]string{true: "fused/", false: "plain/"}[fusion]+m.name, func(t *testing.T) {
				backendtest.Sample(t, 5)
				withFusion(t, fusion)
				base := wrap(t, m.fn, m.input)
				pm := attachRandom(t, base, m.target)
				input := example(m, 3)
				want, wantGradient := outputsAndGradient(t, base, pm, input, mergedInGraph(base, m.oracle(), pm))
				got, gotGradient := outputsAndGradient(t, base, pm, input, rewritten(base, pm))
				alone, err := base.Run(nil, input)
				require.NoError(t, err)
				plain, err := tensors.CopyFlatData[float32](alone[0])
				require.NoError(t, err)
				require.Greater(t, distance(t, plain, got[:len(plain)]), 1e-2, "the adapter has no effect")
				require.Less(t, distance(t, want, got), 1e-5)
				require.Less(t, distance(t, wantGradient, gotGradient), 1e-4)
			})
		}
	}
}

func TestWrappedModules(t *testing.T) {
	for _, m := range foreignModels {
		if m.modules == nil {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			backendtest.Sample(t, 5)
			base := wrap(t, m.fn, m.input)
			var paths []string
			for _, module := range base.Modules() {
				paths = append(paths, module.Path)
			}
			require.Equal(t, m.modules, paths)
		})
	}
}

// Merging gives the model that the adapter makes: in a copy of the store, and in a file.
func TestWrappedMerge(t *testing.T) {
	for _, m := range foreignModels {
		if m.name == "shared" {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			backendtest.Sample(t, 5)
			base := wrap(t, m.fn, m.input)
			pm := attachRandom(t, base, m.target)
			input := example(m, 4)
			want := run(t, base, pm, input)
			before := run(t, base, nil, input)

			store, report, err := base.Merged(pm)
			require.NoError(t, err)
			merged, err := peft.WrapModel(base.Backend(), store, m.fn, []shapes.Shape{m.input})
			require.NoError(t, err)
			defer merged.Close()
			require.Less(t, distance(t, want, run(t, merged, nil, input)), 1e-5)
			require.Equal(t, before, run(t, base, nil, input), "the base is as it was")

			dir := filepath.Join(t.TempDir(), "merged")
			written, err := pm.Merge(t.Context(), dir)
			require.NoError(t, err)
			require.Equal(t, report.MaxChange, written.MaxChange)
			require.ElementsMatch(t, report.Tensors, written.Tensors)
			file, err := safetensors.Open(filepath.Join(dir, "model.safetensors"))
			require.NoError(t, err)
			defer file.Close()
			for _, p := range merged.Parameters() {
				data, err := file.Bytes(p.Name)
				require.NoError(t, err)
				require.NoError(t, store.GetVariable(site.VariablePath(p.Name)).MustValue().ConstBytes(func(b []byte) {
					require.Equal(t, b, data, p.Name)
				}))
			}
			_, err = pm.Merge(t.Context(), dir)
			require.NoError(t, err, "a model may be replaced")
			require.NoError(t, os.WriteFile(filepath.Join(dir, "notes.txt"), nil, 0o600))
			_, err = pm.Merge(t.Context(), dir)
			require.ErrorContains(t, err, "notes.txt")
		})
	}
}

func run(t testing.TB, base *peft.WrappedModel, pm *peft.PeftModel, input *tensors.Tensor) []float32 {
	t.Helper()
	outputs, err := base.Run(pm, input)
	require.NoError(t, err)
	var all []float32
	for _, out := range outputs {
		values, err := tensors.CopyFlatData[float32](out)
		require.NoError(t, err)
		all = append(all, values...)
	}
	return all
}

// What was trained on a wrapped model loads again, on a base with the same modules only.
func TestWrappedSaveAndLoad(t *testing.T) {
	m := foreignModels[0]
	base := wrap(t, m.fn, m.input, peft.WrapOptions{ModelType: "points", NameOrPath: "acme/points"})
	pm := attachRandom(t, base, m.target)
	dir := filepath.Join(t.TempDir(), "adapter")
	require.NoError(t, pm.SavePretrained(dir))
	file, err := safetensors.Open(filepath.Join(dir, "adapter_model.safetensors"))
	require.NoError(t, err)
	defer file.Close()
	require.Contains(t, file.Names(), "base_model.model.hidden.dense.lora_A.weight")
	loaded, err := peft.LoadAdapter(base, dir)
	require.NoError(t, err)
	require.Equal(t, run(t, base, pm, example(m, 1)), run(t, base, loaded, example(m, 1)))
	config, err := loaded.Config(peft.DefaultAdapter)
	require.NoError(t, err)
	require.Equal(t, "acme/points", config.Common().BaseModelNameOrPath)

	other := wrap(t, fused, float32s(4, 4))
	_, err = peft.LoadAdapter(other, dir)
	require.Error(t, err)
	_, err = peft.GetPeftModel(base, lora.LoraConfig{R: 2, TargetModules: peft.Modules("hiden.dense")})
	require.ErrorContains(t, err, `target module "hiden.dense" matches nothing; did you mean "hidden.dense"?`)
}
