package peft_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/adapters"
	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// hookFuncs is a hook made of functions; nil leaves things as they are.
type hookFuncs struct {
	apply     func(p *site.Pass, s *site.Site) *graph.Node
	parameter func(name string, base func() *graph.Node) *graph.Node
}

func (h hookFuncs) Sublayer(_ *site.Pass, s *site.Sublayer) *graph.Node { return s.Join(s.Output) }

func (h hookFuncs) Prefix(*site.Pass, site.Tokens) site.Prefix { return site.Prefix{} }

func (h hookFuncs) Adapts(string) bool { return true }

func (h hookFuncs) Apply(p *site.Pass, s *site.Site) *graph.Node {
	if h.apply == nil {
		return s.Base(s.X)
	}
	return h.apply(p, s)
}

func (h hookFuncs) Parameter(_ *site.Pass, name string, base func() *graph.Node) *graph.Node {
	if h.parameter == nil {
		return base()
	}
	return h.parameter(name, base)
}

// through runs a wrapped model with a hook.
func through(t testing.TB, base *peft.WrappedModel, hook site.Hook, input *tensors.Tensor) []float32 {
	t.Helper()
	exec, err := model.NewExec(base.Backend(), base.Store(), func(_ *model.Scope, in *graph.Node) []*graph.Node {
		return base.Call(&site.Pass{Graph: in.Graph(), DType: base.DType(), Hook: hook}, []*graph.Node{in})
	})
	require.NoError(t, err)
	defer exec.Finalize()
	out, err := exec.Exec(input)
	require.NoError(t, err)
	values, err := tensors.CopyFlatData[float32](out[0])
	require.NoError(t, err)
	return values
}

// What a site says of its module is what the model computes.
func TestWrappedSites(t *testing.T) {
	for _, m := range foreignModels {
		t.Run(m.name, func(t *testing.T) {
			backendtest.Sample(t, 5)
			base := wrap(t, m.fn, m.input)
			input := example(m, 6)
			plain := run(t, base, nil, input)
			require.Equal(t, plain, through(t, base, hookFuncs{}, input), "a hook that changes nothing")

			seen := map[string]int{}
			bias := map[string]*graph.Node{}
			rebuilt := hookFuncs{
				parameter: func(name string, base func() *graph.Node) *graph.Node {
					bias[name] = base()
					return base()
				},
				apply: func(p *site.Pass, s *site.Site) *graph.Node {
					seen[s.Path]++
					y := s.With(s.X, s.FrozenWeight())
					if !y.Shape().Equal(s.Base(s.X).Shape()) {
						t.Errorf("%s: With has shape %s, Base %s", s.Path, y.Shape(), s.Base(s.X).Shape())
					}
					if s.Kind == site.Linear && s.X.Shape().Dim(-1) != s.In || s.Kind == site.Embedding && s.X.DType() != dtypes.Int32 {
						t.Errorf("%s: input %s", s.Path, s.X.Shape())
					}
					if s.X.Rank() > 0 && m.ids == 0 && s.Kind == site.Linear && s.X.Shape().Dim(0) != m.input.Dim(0) {
						t.Errorf("%s: input %s of a batch of %d", s.Path, s.X.Shape(), m.input.Dim(0))
					}
					if s.Kind == site.Linear { // one row of the input alone gives one row of the output
						flat := graph.Reshape(s.X, -1, s.In)
						row := s.Base(graph.Slice(flat, graph.AxisRange(1, 2)))
						if dims := row.Shape().Dimensions; len(dims) != 2 || dims[0] != 1 || dims[1] != s.Out {
							t.Errorf("%s: Base of one row has shape %s", s.Path, row.Shape())
						}
						all := graph.Reshape(s.Base(s.X), -1, s.Out)
						y = graph.Add(y, graph.Reshape(graph.ReduceAllSum(graph.Sub(row, graph.Slice(all, graph.AxisRange(1, 2)))), slices.Repeat([]int{1}, y.Rank())...))
					}
					if s.Bias {
						y = graph.Add(y, s.Expand(bias[s.BiasName()], y.Rank()))
					}
					return y
				},
			}
			require.Less(t, distance(t, plain, through(t, base, rebuilt, input)), 1e-5)
			for _, module := range base.Modules() {
				if module.Kind != site.Norm {
					require.NotZero(t, seen[module.Path], module.Path)
				}
			}
			if m.name == "shared" {
				require.Equal(t, map[string]int{"embed": 1, "again.dense": 2, "embed.linear": 1}, seen)
			}

			// A module on twice its input is the module with twice its weight, its bias as it was.
			twice := hookFuncs{apply: func(_ *site.Pass, s *site.Site) *graph.Node {
				if s.Kind == site.Embedding || s.TiedTo != "" {
					return s.Base(s.X)
				}
				return s.Base(graph.MulScalar(s.X, 2))
			}}
			weights := map[string]bool{}
			for _, module := range base.Modules() {
				weights[module.Weight()] = module.Kind == site.Linear || module.Kind == site.Convolution
			}
			if m.name == "shared" {
				weights["embed.embeddings"] = false
			}
			heavier := hookFuncs{parameter: func(name string, base func() *graph.Node) *graph.Node {
				if weights[name] {
					return graph.MulScalar(base(), 2)
				}
				return base()
			}}
			changed := through(t, base, twice, input)
			require.Greater(t, distance(t, plain, changed), 1e-2)
			require.Less(t, distance(t, through(t, base, heavier, input), changed), 1e-5)
		})
	}
}

// Embeddings that are the head too are two modules: each can be adapted alone.
func TestWrappedTiedHead(t *testing.T) {
	m := foreign{fn: shared, input: int32s(2, 3), ids: 11}
	base := wrap(t, m.fn, m.input, peft.WrapOptions{Names: map[string]string{"embed.linear": "lm_head"}, Head: "lm_head"})
	modules := base.Modules()
	require.Equal(t, "lm_head", modules[2].Path)
	require.Equal(t, "embed", modules[2].TiedTo)
	require.True(t, modules[2].Head)
	input := example(m, 7)
	for _, path := range []string{"embed", "lm_head"} {
		pm := attachRandom(t, base, peft.Modules(path))
		oracle := func(arguments []*graph.Node, in *graph.Node) []*graph.Node {
			layout, err := pm.Layout(peft.DefaultAdapter)
			if err != nil {
				panic(err)
			}
			values := layout.Bind(arguments)
			table := base.Store().GetVariable("/embed/embeddings").NodeValue(in.Graph())
			embeddings, head := table, table
			if path == "embed" {
				delta := graph.Dot(values.Get("embed.lora_embedding_B"), values.Get("embed.lora_embedding_A")).Product()
				embeddings = graph.Add(table, graph.MulScalar(graph.Transpose(delta, 0, 1), 1.5))
			} else {
				delta := graph.Dot(values.Get("lm_head.lora_B.weight"), values.Get("lm_head.lora_A.weight")).Product()
				head = graph.Add(table, graph.MulScalar(delta, 1.5))
			}
			return untied(base.Store().RootScope(), in, embeddings, head)
		}
		want, wantGradient := outputsAndGradient(t, base, pm, input, oracle)
		got, gotGradient := outputsAndGradient(t, base, pm, input, rewritten(base, pm))
		require.Less(t, distance(t, want, got), 1e-5)
		require.Less(t, distance(t, wantGradient, gotGradient), 1e-4)
		_, _, err := base.Merged(pm)
		require.ErrorContains(t, err, "cannot untie them")
	}

	// "all-linear" leaves the head out.
	pm := attachRandom(t, base, peft.AllLinear)
	plan, err := pm.Plan(peft.DefaultAdapter)
	require.NoError(t, err)
	require.Len(t, plan.Targets, 1)
	require.Equal(t, "again.dense", plan.Targets[0].Module.Path)

	// A head that is trained as a whole leaves the embeddings as they are.
	saved, err := peft.GetPeftModel(base, lora.LoraConfig{R: 2, TargetModules: peft.Modules("again.dense"), ModulesToSave: peft.Strings{"lm_head"}})
	require.NoError(t, err)
	require.Equal(t, run(t, base, nil, input), run(t, base, saved, input))
	perturb(t, saved)
	values, err := saved.TensorValues(peft.DefaultAdapter)
	require.NoError(t, err)
	require.Contains(t, values, "lm_head.weight")
	require.Greater(t, distance(t, run(t, base, nil, input), run(t, base, saved, input)), 1e-2)
}

// perturb changes all trained values a little.
func perturb(t testing.TB, pm *peft.PeftModel) {
	t.Helper()
	layout, err := pm.Layout(peft.DefaultAdapter)
	require.NoError(t, err)
	values, err := pm.Values(peft.DefaultAdapter)
	require.NoError(t, err)
	byName, err := layout.Host(values)
	require.NoError(t, err)
	r := rand.New(rand.NewPCG(3, 4))
	for _, p := range layout.Params() {
		v := byName[p.Name]
		for i := range v {
			v[i] += float32(0.1 * r.NormFloat64())
		}
	}
	changed, err := layout.FromHost(byName)
	require.NoError(t, err)
	require.NoError(t, pm.SetValues(peft.DefaultAdapter, changed))
}

// Methods that replace parameters replace them wherever the model reads them.
func TestWrappedParameters(t *testing.T) {
	for _, m := range foreignModels {
		t.Run(m.name, func(t *testing.T) {
			backendtest.Sample(t, 5)
			base := wrap(t, m.fn, m.input)
			pm, err := peft.GetPeftModel(base, peft.Full{})
			require.NoError(t, err)
			require.Len(t, must(pm.Layout(peft.DefaultAdapter)).Params(), len(base.Parameters()))
			input := example(m, 8)
			before := run(t, base, nil, input)
			require.Equal(t, before, run(t, base, pm, input))
			perturb(t, pm)
			store, _, err := base.Merged(pm)
			require.NoError(t, err)
			merged, err := peft.WrapModel(base.Backend(), store, m.fn, []shapes.Shape{m.input})
			require.NoError(t, err)
			defer merged.Close()
			got := run(t, base, pm, input)
			require.Greater(t, distance(t, before, got), 1e-2)
			require.Less(t, distance(t, run(t, merged, nil, input), got), 1e-6)

			oracle := func(arguments []*graph.Node, in *graph.Node) []*graph.Node {
				values := must(pm.Layout(peft.DefaultAdapter)).Bind(arguments)
				original := map[*model.Variable]*graph.Node{}
				for _, p := range base.Parameters() {
					v := base.Store().GetVariable(site.VariablePath(p.Name))
					original[v] = v.NodeValue(in.Graph())
					v.SetNodeValue(values.Get(p.Name))
				}
				out := m.oracle()(base.Store().RootScope(), []*graph.Node{in})
				for v, node := range original {
					v.SetNodeValue(node)
				}
				return out
			}
			_, want := outputsAndGradient(t, base, pm, input, oracle)
			_, gradient := outputsAndGradient(t, base, pm, input, rewritten(base, pm))
			require.Less(t, distance(t, want, gradient), 1e-4)
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Norms are modules whose parameters can be trained.
func TestWrappedNorms(t *testing.T) {
	base := wrap(t, fused, float32s(4, 4))
	norm := base.Modules()[2]
	require.Equal(t, site.Module{Path: "norm.layer_normalization", Kind: site.Norm, In: 5, Out: 5, Bias: true,
		WeightParameter: "norm.layer_normalization.gain", BiasParameter: "norm.layer_normalization.offset"}, norm)
	pm, err := peft.GetPeftModel(base, adapters.LNTuningConfig{TargetModules: peft.Modules("layer_normalization")})
	require.NoError(t, err)
	require.Equal(t, int64(10), pm.TrainableParameters().Trainable)
	input := example(foreignModels[1], 9)
	perturb(t, pm)
	require.Greater(t, distance(t, run(t, base, nil, input), run(t, base, pm, input)), 1e-2)
}
