package peft_test

import (
	"math"
	"strings"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	. "github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/layers"
	"github.com/gomlx/gomlx/ml/layers/norm"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/gomlx/gomlx/ml/nn"
	"github.com/gomlx/gomlx/ml/train"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend"
	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

func variable(scope *model.Scope, g *Graph, name string, dims ...int) *Node {
	return scope.VariableWithShape(name, shapes.Make(dtypes.Float32, dims...)).NodeValue(g)
}

// looped uses one layer before a While, one inside it and one behind it.
func looped(scope *model.Scope, in []*Node) []*Node {
	g := in[0].Graph()
	x := layers.Dense(scope.In("before"), in[0], true, 3)
	weight := variable(scope.In("inside"), g, "weights", 3, 3)
	cond := NewClosure(g, func(g *Graph) []*Node {
		i := Parameter(g, "i", shapes.Make(dtypes.Int32))
		Parameter(g, "x", x.Shape())
		return []*Node{LessThan(i, Const(g, int32(3)))}
	})
	body := NewClosure(g, func(g *Graph) []*Node {
		i, x := Parameter(g, "i", shapes.Make(dtypes.Int32)), Parameter(g, "x", x.Shape())
		return []*Node{OnePlus(i), Tanh(Dot(x, weight).Product())}
	})
	x = While(cond, body, Const(g, int32(0)), x)[1]
	return []*Node{layers.Dense(scope.In("behind"), x, true, 2)}
}

// branched reads a layer's output inside both branches of an If.
func branched(scope *model.Scope, in []*Node) []*Node {
	g := in[0].Graph()
	x := layers.Dense(scope.In("before"), in[0], true, 3)
	weight := variable(scope.In("inside"), g, "weights", 3, 3)
	yes := NewClosure(g, func(*Graph) []*Node { return []*Node{Dot(x, weight).Product()} })
	no := NewClosure(g, func(*Graph) []*Node { return []*Node{Neg(x)} })
	out := If(GreaterThan(ReduceAllSum(in[0]), Const(g, float32(0))), yes, no)[0]
	return []*Node{layers.Dense(scope.In("behind"), Add(out, x), true, 2)}
}

func TestWrappedClosures(t *testing.T) {
	input := foreign{input: float32s(2, 3)}
	base := wrap(t, looped, input.input)
	var paths []string
	for _, m := range base.Modules() {
		paths = append(paths, m.Path)
	}
	require.Equal(t, []string{"before.dense", "behind.dense", "inside"}, paths)

	// What lies around the loop can be adapted; the loop gets its changed input.
	pm := attachRandom(t, base, peft.Modules("before.dense", "behind.dense"))
	x := example(input, 1)
	store, _, err := base.Merged(pm)
	require.NoError(t, err)
	merged, err := peft.WrapModel(base.Backend(), store, looped, []shapes.Shape{input.input})
	require.NoError(t, err)
	defer merged.Close()
	got := run(t, base, pm, x)
	require.Greater(t, distance(t, run(t, base, nil, x), got), 1e-2)
	require.Less(t, distance(t, run(t, merged, nil, x), got), 1e-5)

	_, err = peft.GetPeftModel(base, lora.LoraConfig{R: 2, TargetModules: peft.AllLinear})
	require.ErrorContains(t, err, `module "inside" is used inside a closure of While, which cannot be rewritten: exclude it`)
	full, err := peft.GetPeftModel(base, peft.Full{})
	if err == nil {
		_, err = base.Run(full, x)
	}
	require.ErrorContains(t, err, `used inside a closure of While`)

	if !backend.IsGo(base.Backend()) {
		return // on XLA GoMLX cannot build a branch of captured nodes alone
	}
	// A closure keeps the nodes that it captured.
	base = wrap(t, branched, input.input)
	_, err = base.Run(attachRandom(t, base, peft.Modules("before.dense")), x)
	require.ErrorContains(t, err, "a closure of If reads")
	require.ErrorContains(t, err, "which depends on what the adapter changes")
	_, err = base.Run(attachRandom(t, base, peft.Modules("behind.dense")), x)
	require.NoError(t, err)
	_, err = peft.GetPeftModel(base, lora.LoraConfig{R: 2, TargetModules: peft.Modules("inside")})
	require.ErrorContains(t, err, `module "inside" is used inside a closure of If`)
}

// The parts of a model that its author checkpoints stay checkpointed, and their gradients right.
func TestWrappedCheckpoints(t *testing.T) {
	fn := func(scope *model.Scope, in []*Node) []*Node {
		x := layers.Dense(scope.In("before"), in[0], true, 5).Checkpoint()
		x = Tanh(layers.Dense(scope.In("first"), x, true, 5))
		x = Sin(layers.Dense(scope.In("second"), x, true, 5)).StopCheckpoint()
		x = OptimizationBarrier(Cos(x))
		return []*Node{layers.Dense(scope.In("behind"), x, true, 2)}
	}
	input := foreign{input: float32s(3, 4)}
	base := wrap(t, fn, input.input)
	pm := attachRandom(t, base, peft.AllLinear)
	barriers := 0
	call := func(arguments []*Node, in *Node) []*Node {
		out := rewritten(base, pm)(arguments, in)
		Gradient(probe(out), arguments[0])
		for _, n := range in.Graph().Nodes() {
			if n.Type() == NodeTypeSchedulingBarrier {
				barriers++
			}
		}
		return out
	}
	want, wantGradient := outputsAndGradient(t, base, pm, example(input, 1), mergedInGraph(base, fn, pm))
	got, gotGradient := outputsAndGradient(t, base, pm, example(input, 1), call)
	require.Less(t, distance(t, want, got), 1e-5)
	require.Less(t, distance(t, wantGradient, gotGradient), 1e-4)
	require.NotZero(t, barriers, "nothing is computed again in the backward pass")
}

// Frozen inputs of fused operations that have no gradient do not hinder the adapter's.
func TestWrappedFrozenPartWithoutGradient(t *testing.T) {
	fn := func(scope *model.Scope, in []*Node) []*Node {
		g := in[0].Graph()
		y := layers.Dense(scope.In("adapted"), in[0], true, 5)
		y = nn.LayerNorm(y, []int{1}, 1e-3, Add(Expm1(variable(scope.In("gain"), g, "weights", 1, 5)), ScalarOne(g, dtypes.Float32)), nil, nil)
		y = nn.Dense(y, Floor(variable(scope.In("whole"), g, "weights", 5, 5)), nil, 0)
		return []*Node{layers.Dense(scope.In("readout"), y, true, 2)}
	}
	input := foreign{input: float32s(3, 4)}
	base := wrap(t, fn, input.input)
	pm := attachRandom(t, base, peft.Modules("adapted.dense", "readout.dense"))
	got, gradient := outputsAndGradient(t, base, pm, example(input, 1), rewritten(base, pm))
	withFusion(t, false)
	want, wantGradient := outputsAndGradient(t, base, pm, example(input, 1), mergedInGraph(base, fn, pm))
	require.Less(t, distance(t, want, got), 1e-5)
	require.Less(t, distance(t, wantGradient, gradient), 1e-4)
}

// Gradients reach what stands before the model too.
func TestWrappedGradientOfInputs(t *testing.T) {
	fn := func(scope *model.Scope, in []*Node) []*Node {
		x := layers.Dense(scope.In("frozen"), in[0], true, 5)
		// Which row is looked up has no gradient, what is added to it has.
		row := Clamp(Const(x.Graph(), int32(0)), Const(x.Graph(), []int32{7, 1, 0}), Const(x.Graph(), int32(2)))
		x = Add(x, Gather(variable(scope.In("rows"), x.Graph(), "weights", 3, 5), InsertAxes(row, -1)))
		x = layers.Dense(scope.In("adapted"), x, true, 5)
		return []*Node{norm.LayerNorm(scope.In("norm"), x, -1).Done()}
	}
	input := foreign{input: float32s(3, 4)}
	base := wrap(t, fn, input.input)
	pm, err := peft.GetPeftModel(base, peft.Full{TargetModules: peft.Modules("adapted.dense")})
	require.NoError(t, err)
	gradient := func(call func([]*Node, *Node) []*Node) []float32 {
		args := must(pm.Arguments())
		exec := must(model.NewExec(base.Backend(), base.Store(), func(_ *model.Scope, in []*Node) []*Node {
			prompt := Sin(in[1]) // computed, as a trained prompt is
			return Gradient(probe(call(in[:1], prompt)), in[1])
		}))
		defer exec.Finalize()
		out, err := exec.Exec(args[0], example(input, 2))
		require.NoError(t, err)
		return must(tensors.CopyFlatData[float32](out[0]))
	}
	alone := func(_ []*Node, in *Node) []*Node { return fn(base.Store().RootScope(), []*Node{in}) }
	require.Less(t, distance(t, gradient(alone), gradient(rewritten(base, pm))), 1e-4)
}

// An alias names the node that took the place of the one it was given to.
func TestWrappedAliases(t *testing.T) {
	fn := func(scope *model.Scope, in []*Node) []*Node {
		in[0].Graph().PushAliasScope("encoder")
		x := layers.Dense(scope.In("first"), in[0], true, 5).WithAlias("features")
		Tanh(x).WithAlias("unused")
		in[0].Graph().PopAliasScope()
		return []*Node{layers.Dense(scope.In("second"), x, true, 2)}
	}
	input := foreign{input: float32s(3, 4)}
	base := wrap(t, fn, input.input)
	pm := attachRandom(t, base, peft.Modules("first.dense"))
	x := example(input, 1)
	aliased := func(alias string, hooked bool) []float32 {
		exec := must(model.NewExec(base.Backend(), base.Store(), func(_ *model.Scope, in []*Node) []*Node {
			p := &site.Pass{Graph: in[0].Graph(), DType: base.DType()}
			if hooked {
				p.Hook = pm.Hook(in[:1])
			}
			outputs := base.Call(p, in[1:])
			return append([]*Node{in[0].Graph().GetNodeByAlias(alias)}, outputs...)
		}))
		defer exec.Finalize()
		out, err := exec.Exec(must(pm.Arguments())[0], x)
		require.NoError(t, err)
		return must(tensors.CopyFlatData[float32](out[0]))
	}
	features := aliased("/encoder/features", true)
	require.Greater(t, distance(t, aliased("/encoder/features", false), features), 1e-2)
	unused := aliased("/encoder/unused", true)
	require.Len(t, unused, len(features))
	for i := range unused {
		require.InDelta(t, math.Tanh(float64(features[i])), float64(unused[i]), 1e-5)
	}

	absolute := func(scope *model.Scope, in []*Node) []*Node {
		return []*Node{layers.Dense(scope.In("first"), in[0], true, 5).WithAlias("/features")}
	}
	_, err := peft.WrapModel(backendtest.Open(t), model.NewStore(), absolute, []shapes.Shape{input.input})
	require.ErrorContains(t, err, `absolute alias "/features"`)
}

// training makes a pass of a training step in a graph and returns the model's outputs.
func training(base *peft.WrappedModel, pm *peft.PeftModel, step uint32, x *tensors.Tensor) ([]float32, error) {
	exec, err := model.NewExec(base.Backend(), base.Store(), func(_ *model.Scope, in []*Node) []*Node {
		g := in[0].Graph()
		at := func(v uint32) *Node { return Const(g, v) }
		p := &site.Pass{Graph: g, DType: base.DType(), Hook: pm.Hook(in[:1]), Random: &site.Random{Seed: at(1), Step: Reshape(in[1]), MicroStep: at(0), RowOffset: at(0)}}
		var out []*Node
		if err := graphx.Try(func() error { out = base.Call(p, in[2:]); return nil }); err != nil {
			panic(err)
		}
		return out
	})
	if err != nil {
		return nil, err
	}
	defer exec.Finalize()
	arguments, err := pm.Arguments()
	if err != nil {
		return nil, err
	}
	out, err := exec.Exec(arguments[0], []uint32{step}, x)
	if err != nil {
		return nil, err
	}
	return tensors.CopyFlatData[float32](out[0])
}

// A model's own dropout follows the step, not a generator that goes on, and is off in evaluation.
func TestWrappedDropout(t *testing.T) {
	fn := func(scope *model.Scope, in []*Node) []*Node {
		x := layers.DropoutStatic(scope, layers.Dense(scope.In("first"), in[0], true, 8), 0.5)
		return []*Node{layers.Dense(scope.In("second"), layers.DropoutStatic(scope, x, 0.3), true, 2)}
	}
	input := foreign{input: float32s(3, 4)}
	base := wrap(t, fn, input.input)
	pm := attachRandom(t, base, peft.AllLinear)
	x := example(input, 1)
	one, err := training(base, pm, 1, x)
	require.NoError(t, err)
	again, err := training(base, pm, 1, x)
	require.NoError(t, err)
	two, err := training(base, pm, 2, x)
	require.NoError(t, err)
	require.Equal(t, one, again)
	require.NotEqual(t, one, two)
	require.Equal(t, run(t, base, pm, x), run(t, base, pm, x))
	require.NotEqual(t, one, run(t, base, pm, x))

	frozen := wrap(t, fn, input.input, peft.WrapOptions{Inference: true})
	pm = attachRandom(t, frozen, peft.AllLinear)
	one, err = training(frozen, pm, 1, x)
	require.NoError(t, err)
	require.Equal(t, run(t, frozen, pm, x), one)
}

// Batch normalisation would change its averages in training: refused, or frozen.
func TestWrappedBatchNorm(t *testing.T) {
	input := foreign{input: float32s(6, 4)}
	base := wrap(t, batchNormed, input.input)
	x := example(input, 1)
	_, err := training(base, attachRandom(t, base, peft.AllLinear), 1, x)
	require.ErrorContains(t, err, "it changes the variable \"/bn/batch_normalization/")
	require.ErrorContains(t, err, "set WrapOptions.Inference")

	for name, fn := range map[string]peft.ModelFunc{"differentiable": batchNormed, "backend": func(scope *model.Scope, in []*Node) []*Node {
		x := layers.Dense(scope.In("hidden"), in[0], true, 5)
		x = norm.BatchNorm(scope.In("bn"), x, -1).Done()
		return []*Node{layers.Dense(scope.In("readout"), Tanh(x), true, 3)}
	}} {
		t.Run(name, func(t *testing.T) {
			if name == "backend" && backend.IsGo(base.Backend()) {
				t.Skip("the Go backend has no batch normalisation of its own")
			}
			base := wrap(t, fn, input.input, peft.WrapOptions{Inference: true})
			pm := attachRandom(t, base, peft.AllLinear)
			got, gradient := outputsAndGradient(t, base, pm, x, rewritten(base, pm))
			want, wantGradient := outputsAndGradient(t, base, pm, x, mergedInGraph(base, batchNormed, pm))
			require.Less(t, distance(t, want, got), 1e-5)
			require.Less(t, distance(t, wantGradient, gradient), 1e-4)
			inTraining, err := training(base, pm, 1, x)
			require.NoError(t, err)
			require.Less(t, distance(t, got, inTraining), 1e-5)
		})
	}
}

// A loss that the model adds by itself would be lost.
func TestWrappedLosses(t *testing.T) {
	fn := func(scope *model.Scope, in []*Node) []*Node {
		first := layers.Dense(scope.In("first"), in[0], true, 5)
		train.AddRegularizationLoss(ReduceAllMean(Square(first)))
		return []*Node{layers.Dense(scope.In("second"), first, true, 2)}
	}
	input := foreign{input: float32s(3, 4)}
	base := wrap(t, fn, input.input)
	x := example(input, 1)
	_, err := training(base, attachRandom(t, base, peft.Modules("first.dense")), 1, x)
	require.ErrorContains(t, err, "adds a loss of its own")
	_, err = training(base, attachRandom(t, base, peft.Modules("second.dense")), 1, x)
	require.NoError(t, err, "it does not depend on the adapter")
	require.NotEmpty(t, run(t, base, attachRandom(t, base, peft.Modules("first.dense")), x))
}

// A model in several dtypes: each site computes in its own.
func TestWrappedDTypes(t *testing.T) {
	fn := func(scope *model.Scope, in []*Node) []*Node {
		x := layers.Dense(scope.In("wide"), in[0], true, 5)
		g := x.Graph()
		w := scope.In("narrow").VariableWithShape("weights", shapes.Make(dtypes.BFloat16, 5, 5)).NodeValue(g)
		x = ConvertDType(Dot(ConvertDType(x, dtypes.BFloat16), w).Product(), dtypes.Float32)
		cast := variable(scope.In("cast"), g, "weights", 5, 2)
		return []*Node{nn.Dense(x, ConvertDType(ConvertDType(cast, dtypes.Float64), dtypes.Float32), nil, 0)}
	}
	store := model.NewStore()
	base, err := peft.WrapModel(backendtest.Open(t), store, fn, []shapes.Shape{float32s(3, 4)})
	require.NoError(t, err)
	defer base.Close()
	require.Equal(t, dtypes.Float32, base.DType())
	pm := attachRandom(t, base, peft.AllLinear)
	seen := map[string]dtypes.DType{}
	input := foreign{input: float32s(3, 4)}
	through(t, base, hookFuncs{apply: func(p *site.Pass, s *site.Site) *Node {
		seen[s.Path] = p.DType
		if s.X.DType() != p.DType || s.Base(s.X).DType() != p.DType || s.FrozenWeight().DType() != p.DType {
			t.Errorf("%s: input %s, output %s in a pass of %s", s.Path, s.X.DType(), s.Base(s.X).DType(), p.DType)
		}
		return s.Base(s.X)
	}}, example(input, 1))
	require.Equal(t, map[string]dtypes.DType{"wide.dense": dtypes.Float32, "narrow": dtypes.BFloat16, "cast": dtypes.Float32}, seen)
	require.NotEqual(t, run(t, base, nil, example(input, 1)), run(t, base, pm, example(input, 1)))
}

func TestWrapModelRefuses(t *testing.T) {
	b, in := backendtest.Open(t), []shapes.Shape{float32s(2, 3)}
	dense := func(scope *model.Scope, in []*Node) []*Node {
		return []*Node{layers.Dense(scope.In("a"), in[0], true, 2)}
	}
	filled := model.NewStore()
	must(filled.CreateVariable("/b/weights", tensors.FromValue([]float32{1})))
	for want, c := range map[string]struct {
		store   *model.Store
		fn      peft.ModelFunc
		inputs  []shapes.Shape
		options peft.WrapOptions
	}{
		"must not be nil":               {nil, dense, in, peft.WrapOptions{}},
		"no input shape":                {model.NewStore(), dense, nil, peft.WrapOptions{}},
		"WithVariableAsConst":           {model.NewStore().WithVariableAsConst(true), dense, in, peft.WrapOptions{}},
		"no values of 2 variables":      {filled, dense, in, peft.WrapOptions{}},
		"reads no variable":             {model.NewStore(), func(_ *model.Scope, in []*Node) []*Node { return in }, in, peft.WrapOptions{}},
		"has no outputs":                {model.NewStore(), func(*model.Scope, []*Node) []*Node { return nil }, in, peft.WrapOptions{}},
		"output 0 is no node":           {model.NewStore(), func(*model.Scope, []*Node) []*Node { return []*Node{nil} }, in, peft.WrapOptions{}},
		"has a dot in its path":         {model.NewStore(), func(s *model.Scope, in []*Node) []*Node { return dense(s.In("v1.5"), in) }, in, peft.WrapOptions{}},
		`no module "x" to be named "y"`: {model.NewStore(), dense, in, peft.WrapOptions{Names: map[string]string{"x": "y"}}},
		`no module "x" to be the head`:  {model.NewStore(), dense, in, peft.WrapOptions{Head: "x"}},
		"it fails":                      {model.NewStore(), func(*model.Scope, []*Node) []*Node { panic("it fails") }, in, peft.WrapOptions{}},
	} {
		_, err := peft.WrapModel(b, c.store, c.fn, c.inputs, c.options)
		require.ErrorContains(t, err, want)
		require.True(t, strings.HasPrefix(err.Error(), "peft: wrap model: "), err)
	}
	base := wrap(t, dense, in[0])
	_, err := base.Run(nil)
	require.ErrorContains(t, err, "0 inputs, but the model has 1")
	_, err = base.Run(nil, tensors.FromValue([][]float32{{1}}))
	require.Error(t, err)
	other := wrap(t, dense, in[0])
	_, err = base.Run(attachRandom(t, other, peft.AllLinear), tensors.FromValue([][]float32{{1, 2, 3}}))
	require.ErrorContains(t, err, "the view is one of another base")
}
