package peft_test

import (
	"math"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/core/tensors/images"
	"github.com/gomlx/gomlx/ml/layers"
	"github.com/gomlx/gomlx/ml/layers/activation"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/gomlx/gomlx/ml/zoo/transformer"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend"
	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/quant"
	"github.com/gopeft/gopeft/site"
	"github.com/gopeft/gopeft/train"
)

// checkpointed recomputes its middle in the backward pass.
func checkpointed(scope *model.Scope, in []*graph.Node) []*graph.Node {
	x := layers.Dense(scope.In("first"), in[0], true, 6).Checkpoint()
	x = graph.Tanh(layers.Dense(scope.In("middle"), x, true, 6)).StopCheckpoint()
	return []*graph.Node{layers.Dense(scope.In("last"), x, true, 3)}
}

// quantisedPair wraps a model in few bits, and the same with the decoded weights.
func quantisedPair(t *testing.T, m foreign, scheme quant.Scheme) (quantised, decoded *peft.WrappedModel) {
	t.Helper()
	plain := wrap(t, m.fn, m.input)
	options := peft.WrapOptions{Quantization: scheme, Head: m.head}
	before := variables(t, plain.Store())
	quantised, err := peft.WrapModel(plain.Backend(), plain.Store(), m.fn, []shapes.Shape{m.input}, options)
	require.NoError(t, err)
	t.Cleanup(quantised.Close)
	require.Equal(t, before, variables(t, plain.Store()), "the store given is as it was")
	require.NotSame(t, plain.Store(), quantised.Store())
	store, err := plain.Store().Clone()
	require.NoError(t, err)
	held := 0
	for _, p := range quantised.Parameters() {
		values := make([]float32, p.Size())
		_, ok, err := quantised.ReadParameter(p.Name, values)
		require.NoError(t, err)
		if ok {
			held++
			require.NoError(t, store.GetVariable(site.VariablePath(p.Name)).SetValue(tensors.FromFlatDataAndDimensions(values, p.Shape...)))
		}
	}
	require.Positive(t, held)
	decoded, err = peft.WrapModel(plain.Backend(), store, m.fn, []shapes.Shape{m.input}, peft.WrapOptions{Head: m.head})
	require.NoError(t, err)
	t.Cleanup(decoded.Close)
	return quantised, decoded
}

// variables are the values of a store, by path.
func variables(t *testing.T, store *model.Store) map[string][]byte {
	all := map[string][]byte{}
	for v := range store.IterVariables() {
		require.NoError(t, v.MustValue().ConstBytes(func(b []byte) { all[v.Path()] = append([]byte{}, b...) }))
	}
	return all
}

// trainingStep is rewritten in a training step, where weights are built again for the backward pass.
func trainingStep(base *peft.WrappedModel, pm *peft.PeftModel) func([]*graph.Node, *graph.Node) []*graph.Node {
	return func(arguments []*graph.Node, in *graph.Node) []*graph.Node {
		zero := graph.Const(in.Graph(), uint32(0))
		random := &site.Random{Seed: zero, Step: zero, MicroStep: zero, RowOffset: zero}
		return base.Call(&site.Pass{Graph: in.Graph(), DType: base.DType(), Hook: pm.Hook(arguments), Random: random}, []*graph.Node{in})
	}
}

// A model in few bits is the model with the decoded weights: alone, with an adapter, in
// training, with gradients, and merged.
func TestWrappedQuantised(t *testing.T) {
	schemes := map[string]quant.Scheme{"nf4": quant.NF4{DoubleQuant: true}, "int8": quant.INT8{}, "fp4": quant.FP4{BlockSize: 32}}
	all := append([]foreign{{name: "checkpointed", fn: checkpointed, input: float32s(4, 5), target: peft.AllLinear}}, foreignModels...)
	for _, m := range all {
		for name, scheme := range schemes {
			if name == "fp4" && m.name != "mlp" {
				continue
			}
			t.Run(m.name+" "+name, func(t *testing.T) {
				backendtest.Sample(t, 6)
				quantised, decoded := quantisedPair(t, m, scheme)
				input := example(m, 3)
				want := run(t, decoded, nil, input)
				require.Less(t, distance(t, want, run(t, quantised, nil, input)), 1e-5)

				pm, reference := attachRandom(t, quantised, m.target), attachRandom(t, decoded, m.target)
				require.Greater(t, distance(t, want, run(t, decoded, reference, input)), 1e-2, "the adapter has no effect")
				for _, build := range []func(*peft.WrappedModel, *peft.PeftModel) func([]*graph.Node, *graph.Node) []*graph.Node{rewritten, trainingStep} {
					want, wantGradient := outputsAndGradient(t, decoded, reference, input, build(decoded, reference))
					got, gradient := outputsAndGradient(t, quantised, pm, input, build(quantised, pm))
					require.Less(t, distance(t, want, got), 1e-5)
					require.Less(t, distance(t, wantGradient, gradient), 1e-4)
				}

				if m.head != "" { // its weight has two deltas
					return
				}
				store, _, err := quantised.Merged(pm)
				require.NoError(t, err)
				merged, err := peft.WrapModel(quantised.Backend(), store, m.fn, []shapes.Shape{m.input})
				require.NoError(t, err)
				defer merged.Close()
				require.Less(t, distance(t, run(t, quantised, pm, input), run(t, merged, nil, input)), 1e-5)
				require.Len(t, variables(t, store), len(variables(t, decoded.Store())))
				_, err = pm.Merge(t.Context(), filepath.Join(t.TempDir(), "merged"))
				require.NoError(t, err)
			})
		}
	}
}

// Programs read codes and statistics: no full weight is among their inputs.
func TestWrappedQuantisedInputs(t *testing.T) {
	wide := func(scope *model.Scope, in []*graph.Node) []*graph.Node {
		x := activation.Gelu(layers.Dense(scope.In("hidden"), in[0], true, 128))
		return []*graph.Node{layers.Dense(scope.In("readout"), x, true, 64)}
	}
	m := foreign{fn: wide, input: float32s(4, 64)}
	quantised, decoded := quantisedPair(t, m, quant.NF4{})
	bytes := func(base *peft.WrappedModel, training bool) (total uint64) {
		pm := attachRandom(t, base, peft.AllLinear)
		arguments, err := pm.Arguments()
		require.NoError(t, err)
		exec, err := model.NewExec(base.Backend(), base.Store(), func(_ *model.Scope, in []*graph.Node) []*graph.Node {
			build := rewritten
			if training {
				build = trainingStep
			}
			out := build(base, pm)(in[:1], in[1])
			out = append(out, graph.Gradient(probe(out), in[0])...)
			for _, n := range in[0].Graph().Nodes() {
				if n.Type() == graph.NodeTypeParameter && n.GetParameterName() != "/"+model.RNGStateVariableName {
					total += uint64(n.Shape().ByteSize())
				}
			}
			for _, n := range in {
				total -= uint64(n.Shape().ByteSize())
			}
			return out
		})
		require.NoError(t, err)
		defer exec.Finalize()
		_, err = exec.Exec(arguments[0], example(m, 1))
		require.NoError(t, err)
		return total
	}
	const weights, biases = 64*128 + 128*64, 128 + 64
	for _, training := range []bool{false, true} {
		require.EqualValues(t, 4*(weights+biases), bytes(decoded, training))
		require.EqualValues(t, weights/2+4*weights/64+4*biases, bytes(quantised, training))
	}
}

// LoRA is trained on a transformer in few bits as on the decoded one, saved, loaded and merged.
func TestWrappedQuantisedTrains(t *testing.T) {
	m := foreign{fn: zooModel(transformer.ArchitectureGemma3, false, 2), input: int32s(2, 5), ids: 17}
	quantised, decoded := quantisedPair(t, m, quant.NF4{DoubleQuant: true})
	before := variables(t, quantised.Store())
	fit := func(base *peft.WrappedModel) (*peft.PeftModel, float64) {
		pm, err := peft.GetPeftModel(base, lora.LoraConfig{R: 2, LoraAlpha: 4, LoraDropout: 0.1, TargetModules: peft.Regex(".*dense")}, peft.Options{Seed: 1})
		require.NoError(t, err)
		result := fitForeign(t, pm, m, 12)
		return pm, result.TrainingLoss
	}
	_, want := fit(decoded)
	pm, got := fit(quantised)
	require.InEpsilon(t, want, got, 1e-4)
	require.Equal(t, before, variables(t, quantised.Store()), "the base")
	input := example(m, 7)
	require.Greater(t, distance(t, run(t, quantised, nil, input), run(t, quantised, pm, input)), 1e-2)

	dir := filepath.Join(t.TempDir(), "adapter")
	require.NoError(t, pm.SavePretrained(dir))
	again, err := peft.LoadAdapter(quantised, dir)
	require.NoError(t, err)
	require.Equal(t, run(t, quantised, pm, input), run(t, quantised, again, input))

	store, report, err := quantised.Merged(pm)
	require.NoError(t, err)
	require.Positive(t, report.MaxChange)
	merged, err := peft.WrapModel(quantised.Backend(), store, m.fn, []shapes.Shape{m.input})
	require.NoError(t, err)
	defer merged.Close()
	require.Less(t, distance(t, run(t, quantised, pm, input), run(t, merged, nil, input)), 1e-5)
}

// fitForeign trains a model to give zeros, and reports that it gets nearer.
func fitForeign(t *testing.T, pm *peft.PeftModel, m foreign, steps int) *train.Result {
	t.Helper()
	const rows = 8
	length := m.input.Dim(1)
	r := rand.New(rand.NewPCG(3, 3))
	ids := make([]int32, rows*length)
	for i := range ids {
		ids[i] = int32(r.IntN(m.ids))
	}
	data, err := train.NewArrays([]train.Array{train.Ints(ids, rows, length)}, []train.Array{train.Floats(make([]float32, rows*length*m.ids), rows, length, m.ids)})
	require.NoError(t, err)
	trainer, err := train.NewTrainer(pm, data, train.Arguments{
		OutputDir: t.TempDir(), MaxSteps: steps, PerDeviceTrainBatchSize: 4, LearningRate: 1e-2, Quiet: true, SaveStrategy: train.SaveNo,
		Loss: train.MeanSquaredError{},
	})
	require.NoError(t, err)
	defer trainer.Close()
	start, err := trainer.Measure(t.Context(), data)
	require.NoError(t, err)
	result, err := trainer.Train(t.Context())
	require.NoError(t, err)
	end, err := trainer.Measure(t.Context(), data)
	require.NoError(t, err)
	require.Less(t, end.Loss, start.Loss)
	return result
}

// What replaces a weight as a whole starts at its decoded values, and takes its place.
func TestWrappedQuantisedReplaced(t *testing.T) {
	m := foreignModels[0]
	quantised, decoded := quantisedPair(t, m, quant.NF4{})
	input := example(m, 2)
	for name, config := range map[string]peft.Config{
		"full":              peft.Full{TargetModules: peft.Modules("middle.dense")},
		"modules_to_save":   lora.LoraConfig{R: 2, TargetModules: peft.Modules("hidden.dense"), ModulesToSave: peft.Strings{"readout.dense"}},
		"target_parameters": lora.LoraConfig{R: 2, TargetModules: peft.Modules("middle.dense"), TargetParameters: []string{"hidden.dense.weights"}},
	} {
		t.Run(name, func(t *testing.T) {
			var outputs [2][]float32
			for i, base := range []*peft.WrappedModel{decoded, quantised} {
				pm, err := peft.GetPeftModel(base, config)
				require.NoError(t, err)
				require.Less(t, distance(t, run(t, decoded, nil, input), run(t, base, pm, input)), 1e-5, "a fresh adapter")
				perturb(t, pm)
				outputs[i] = run(t, base, pm, input)
			}
			require.Less(t, distance(t, outputs[0], outputs[1]), 1e-5)
			require.Greater(t, distance(t, run(t, decoded, nil, input), outputs[1]), 1e-3)
		})
	}
}

// What cannot be held in few bits is an error with its name.
func TestWrappedQuantisedErrors(t *testing.T) {
	read := func(scope *model.Scope, in []*graph.Node) []*graph.Node { // weight decay of its own
		w := variable(scope.In("layer"), in[0].Graph(), "weights", 4, 3)
		return []*graph.Node{graph.Dot(in[0], w).Product(), graph.ReduceAllSum(graph.Square(w))}
	}
	for name, c := range map[string]struct {
		fn     peft.ModelFunc
		input  shapes.Shape
		scheme quant.Scheme
		head   string
		want   string
	}{
		"no linear layer": {func(scope *model.Scope, in []*graph.Node) []*graph.Node {
			return []*graph.Node{graph.Mul(in[0], variable(scope, in[0].Graph(), "gain", 2, 4))}
		}, float32s(2, 4), quant.NF4{}, "", "quantization: the model has no linear layer"},
		"all skipped":  {read, float32s(2, 4), quant.NF4{Skip: []string{"layer"}}, "", "every linear layer is the head, or skipped"},
		"only a head":  {read, float32s(2, 4), quant.INT8{}, "layer", "every linear layer is the head, or skipped"},
		"read besides": {read, float32s(2, 4), quant.NF4{}, "", `the weight of "layer" is also read by the operation `},
		"shared":       {shared, int32s(2, 3), quant.NF4{}, "", `the weight of "embed.linear" is shared by the modules embed, embed.linear`},
		"skip nothing": {mlp, float32s(4, 7), quant.NF4{Skip: []string{"hiden.dense"}}, "", `module to skip "hiden.dense" is no linear layer; did you mean "hidden.dense"?`},
		"convolution":  {convolutions(images.ChannelsLast, 1), float32s(2, 9, 3), quant.NF4{Skip: []string{"first.conv"}}, "", `module to skip "first.conv" is no linear layer`},
		"in a closure": {looped, float32s(2, 3), quant.NF4{}, "", `the weight of "inside" is used inside a closure of While`},
		"captured":     {branched, float32s(2, 3), quant.NF4{Skip: []string{"inside"}}, "", "a closure of If reads"},
		"block size":   {mlp, float32s(4, 7), quant.NF4{BlockSize: 60}, "", "block size is 60, want a power of two"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "captured" && !backend.IsGo(backendtest.Open(t)) {
				t.Skip("on XLA GoMLX cannot build a branch of captured nodes alone")
			}
			_, err := peft.WrapModel(backendtest.Open(t), model.NewStore(), c.fn, []shapes.Shape{c.input}, peft.WrapOptions{Quantization: c.scheme, Head: c.head})
			require.ErrorContains(t, err, c.want)
		})
	}
	_, decoded := quantisedPair(t, foreign{fn: looped, input: float32s(2, 3)}, quant.NF4{Skip: []string{"inside"}})
	require.NotNil(t, decoded)

	store := wrap(t, mlp, float32s(4, 7)).Store()
	v := store.GetVariable("/hidden/dense/weights")
	v.MustValue().MustMutableFlatData(func(flat any) { flat.([]float32)[3] = float32(math.NaN()) })
	_, err := peft.WrapModel(backendtest.Open(t), store, mlp, []shapes.Shape{float32s(4, 7)}, peft.WrapOptions{Quantization: quant.NF4{}})
	require.ErrorContains(t, err, `variable "/hidden/dense/weights": `)
	require.ErrorContains(t, err, "NaN")
}
