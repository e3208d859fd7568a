package train

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// toy is the smallest language model with all that training depends on: an
// embedding, a mixing of earlier positions, a linear, a head. Each position sees
// the mean of the embeddings up to it.
type toy struct {
	backend compute.Backend
	store   *model.Store
	tied    bool
	// modelType stands in for "toy".
	modelType string
}

const (
	toyVocab  = 11
	toyHidden = 6
)

func toyModules(tied bool) []site.Module {
	head := site.Module{Path: "lm_head", In: toyHidden, Out: toyVocab, Head: true}
	if tied {
		head.TiedTo = "embed_tokens"
	}
	return []site.Module{
		{Path: "embed_tokens", Kind: site.Embedding, In: toyVocab, Out: toyHidden},
		{Path: "layers.0.mix", In: toyHidden, Out: toyHidden},
		{Path: "layers.1.mix", In: toyHidden, Out: toyHidden},
		head,
	}
}

// newToy makes a toy whose weights are a function of nothing else.
func newToy(t testing.TB, tied bool) *toy {
	t.Helper()
	m := &toy{backend: testBackend(t), store: model.NewStore(), tied: tied}
	r := rand.New(rand.NewPCG(1, 2))
	for _, p := range m.Parameters() {
		values := make([]float32, p.Size())
		for i := range values {
			values[i] = float32(r.NormFloat64() * 0.5)
		}
		v, err := m.store.CreateVariable(site.VariablePath(p.Name), tensors.FromFlatDataAndDimensions(values, p.Shape...))
		require.NoError(t, err)
		v.SetTrainable(false)
	}
	return m
}

func testBackend(t testing.TB) compute.Backend {
	t.Helper()
	return backendtest.Open(t)
}

func (m *toy) Backend() compute.Backend    { return m.backend }
func (m *toy) Store() *model.Store         { return m.store }
func (m *toy) DType() dtypes.DType         { return dtypes.Float32 }
func (m *toy) ModelType() string           { return cmp.Or(m.modelType, "toy") }
func (m *toy) NameOrPath() string          { return "toy" }
func (m *toy) Modules() []site.Module      { return toyModules(m.tied) }
func (m *toy) Head() site.Module           { return toyModules(m.tied)[3] }
func (m *toy) VocabSize() int              { return toyVocab }
func (m *toy) MaxPositions() int           { return 64 }
func (m *toy) CacheShape() site.CacheShape { return site.CacheShape{} }

func (m *toy) Parameters() []site.Parameter {
	out := []site.Parameter{
		{Name: "embed_tokens.weight", Shape: []int{toyVocab, toyHidden}},
		{Name: "layers.0.mix.weight", Shape: []int{toyHidden, toyHidden}},
		{Name: "layers.1.mix.weight", Shape: []int{toyHidden, toyHidden}},
	}
	if !m.tied {
		out = append(out, site.Parameter{Name: "lm_head.weight", Shape: []int{toyVocab, toyHidden}})
	}
	return out
}

func (m *toy) weight(p *site.Pass, name string) *graph.Node {
	return p.Parameter(name, func() *graph.Node {
		return graph.StopGradient(m.store.GetVariable(site.VariablePath(name)).NodeValue(p.Graph))
	})
}

func (m *toy) apply(p *site.Pass, i int, x *graph.Node) *graph.Node {
	module := m.Modules()[i]
	return p.Apply(&site.Site{
		Module: module, X: x,
		Base: func(x *graph.Node) *graph.Node {
			if module.Kind == site.Embedding {
				return graph.Gather(m.weight(p, module.Weight()), graph.InsertAxes(x, -1))
			}
			return graphx.MatMulT(x, m.weight(p, module.Weight()))
		},
	})
}

func (m *toy) Hidden(p *site.Pass, in site.Tokens) *graph.Node {
	length := in.IDs.Shape().Dim(1)
	mean := make([][]float32, length)
	for i := range mean {
		mean[i] = make([]float32, length)
		for j := range i + 1 {
			mean[i][j] = 1 / float32(i+1)
		}
	}
	x := graph.Einsum("ij,bjh->bih", graph.Const(p.Graph, mean), m.apply(p, 0, in.IDs))
	for _, layer := range []int{1, 2} {
		if p.Checkpoint {
			x = x.Checkpoint()
		}
		x = graph.Add(x, graph.Tanh(m.apply(p, layer, x)))
		if p.Checkpoint {
			x = x.StopCheckpoint()
		}
	}
	return x
}

func (m *toy) Logits(p *site.Pass, hidden *graph.Node) *graph.Node { return m.apply(p, 3, hidden) }

// toyConfig is a low-rank adapter with the parts that the tests vary.
type toyConfig struct {
	peft.PeftConfig
	Targets []string `json:"target_modules"`
	Dropout float64  `json:"dropout"`
	// Big adds a trainable tensor above the size of a layout's large tensors.
	Big bool `json:"big"`
	// ZeroB starts at B = 0, as LoRA does.
	ZeroB bool `json:"zero_b"`
	// NoDecay are tensors without weight decay.
	NoDecay []string `json:"no_decay"`
	// Full trains a copy of this base parameter instead.
	Full string `json:"full"`
}

const toyRank = 2

func init() {
	peft.Register("TOY", func(data []byte) (peft.Config, error) {
		var c toyConfig
		common, err := peft.DecodeFields(data, &c)
		return c.WithCommon(common), err
	})
}

func (c toyConfig) PeftType() string { return "TOY" }
func (c toyConfig) Validate() error  { return nil }
func (c toyConfig) WithCommon(p peft.PeftConfig) peft.Config {
	c.PeftConfig = p
	return c
}

func (c toyConfig) Attach(base site.Base) (peft.Adapter, error) {
	a := &toyAdapter{config: c, base: base.(*toy)}
	for _, m := range base.Modules() {
		if slices.Contains(c.Targets, m.Path) {
			a.targets = append(a.targets, m)
		}
	}
	return a, nil
}

type toyAdapter struct {
	config  toyConfig
	base    *toy
	targets []site.Module
}

var bigShape = []int{toyHidden, 700_001}

func (a *toyAdapter) Targets() []site.Module { return a.targets }

func (a *toyAdapter) Params() []peft.Param {
	normal := func(r *rand.Rand, values []float32) error {
		for i := range values {
			values[i] = float32(r.NormFloat64() * 0.3)
		}
		return nil
	}
	var out []peft.Param
	for _, m := range a.targets {
		b := peft.Param{Name: m.Path + ".lora_B.weight", Shape: []int{m.Out, toyRank}, Init: normal}
		if a.config.ZeroB {
			b.Init = nil
		}
		out = append(out, peft.Param{Name: m.Path + ".lora_A.weight", Shape: []int{toyRank, m.In}, Init: normal}, b)
		if a.config.Big {
			out = append(out, peft.Param{Name: m.Path + ".big", Shape: bigShape})
		}
	}
	if a.config.Full != "" {
		variable := a.base.store.GetVariable(site.VariablePath(a.config.Full))
		out = append(out, peft.Param{Name: a.config.Full, Shape: variable.Shape().Dimensions, Init: func(_ *rand.Rand, values []float32) error {
			copy(values, tensors.MustCopyFlatData[float32](variable.MustValue()))
			return nil
		}})
	}
	for i := range out {
		out[i].NoDecay = slices.Contains(a.config.NoDecay, out[i].Name)
	}
	return out
}

func (a *toyAdapter) Delta(u *peft.Use) *graph.Node {
	x := u.Pass.Dropout(u.Site.Path, u.X, a.config.Dropout)
	delta := graphx.MatMulT(graphx.MatMulT(x, u.Value("lora_A.weight")), u.Value("lora_B.weight"))
	if a.config.Big {
		scale := graph.ReduceSum(u.Value("big"), -1)
		delta = graph.Add(delta, graph.Mul(u.X, graph.ExpandLeftToRank(scale, u.X.Rank())))
	}
	return delta
}

func (a *toyAdapter) Replaces(name string) bool { return name != "" && name == a.config.Full }

func (a *toyAdapter) Parameter(v *peft.Values, _ *site.Pass, name string, _ func() *graph.Node) *graph.Node {
	return v.Get(name)
}

func newToyPeft(t testing.TB, tied bool, c toyConfig) *peft.PeftModel {
	t.Helper()
	pm, err := peft.GetPeftModel(newToy(t, tied), c)
	require.NoError(t, err)
	return pm
}

// toyBatch makes a ragged batch: rows of different lengths with prompts of
// different lengths, which are not learned.
func toyBatch(rows, length int, seed uint64) Batch {
	r := rand.New(rand.NewPCG(seed, 7))
	b := Batch{Rows: rows, Length: length, IDs: make([]int32, rows*length), Labels: slices.Repeat([]int32{IgnoreIndex}, rows*length)}
	for row := range rows {
		n, prompt := length/2+r.IntN(length/2+1), 1+r.IntN(2)
		for i := range n {
			id := int32(1 + (row+3*i+r.IntN(2))%(toyVocab-1))
			b.IDs[row*length+i] = id
			if i >= prompt {
				b.Labels[row*length+i] = id
			}
		}
	}
	return b
}

func hostValues(t testing.TB, ts []*tensors.Tensor) [][]float32 {
	t.Helper()
	out := make([][]float32, len(ts))
	for i, tensor := range ts {
		values, err := tensors.CopyFlatData[float32](tensor)
		require.NoError(t, err)
		out[i] = values
	}
	return out
}

func maxDifference(a, b []float32) float64 {
	if len(a) != len(b) {
		return math.Inf(1)
	}
	worst := 0.0
	for i := range a {
		d := math.Abs(float64(a[i]) - float64(b[i]))
		if d > worst || math.IsNaN(d) {
			worst = d
		}
	}
	return worst
}

func requireClose(t testing.TB, want, got []float32, tolerance float64, what ...any) {
	t.Helper()
	require.LessOrEqual(t, maxDifference(want, got), tolerance, fmt.Sprint(what...))
}
