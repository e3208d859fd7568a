package lora

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"
	"gonum.org/v1/gonum/mat"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/peft/pefttest"
	"github.com/gopeft/gopeft/site"
)

// Adapters made by Python's peft mean the same here, and train the same.
func TestOftGolden(t *testing.T) { pefttest.Golden(t, "*-oft_*") }

func TestOftConformance(t *testing.T) {
	ends := peft.Modules("q_proj", "down_proj") // whose inputs differ between models
	for name, s := range map[string]pefttest.Suite{
		"series":        {Config: OftConfig{OftBlockSize: 8, TargetModules: ends}, OrderMatters: true},
		"exact, shared": {Config: OftConfig{R: 4, UseCayleyNeumann: Off, BlockShare: true, TargetModules: peft.AllLinear}, OrderMatters: true},
		"constrained":   {Config: OftConfig{OftBlockSize: 16, TargetModules: ends, Coft: true, Eps: 0.7, ModuleDropout: 0.2}, OrderMatters: true},
		"random":        {Config: OftConfig{R: 2, TargetModules: ends, InitWeights: Off, ModulesToSave: peft.Strings{"lm_head"}}, NotIdentity: true, Alone: true},
	} {
		t.Run(name, func(t *testing.T) { pefttest.Run(t, s) })
	}
}

// randomSkew returns n skew-symmetric matrices of b x b normal numbers times scale.
func randomSkew(n, b int, scale float64) ([]float32, []*mat.Dense) {
	r := rand.New(rand.NewPCG(uint64(b), 5))
	flat := make([]float32, n*b*b)
	var dense []*mat.Dense
	for k := range n {
		q := mat.NewDense(b, b, nil)
		for i := range b {
			for j := range i {
				v := float32(scale * r.NormFloat64())
				flat[(k*b+i)*b+j], flat[(k*b+j)*b+i] = v, -v
				q.Set(i, j, float64(v))
				q.Set(j, i, -float64(v))
			}
		}
		dense = append(dense, q)
	}
	return flat, dense
}

// The Cayley transform in a graph is that of an exact solver, for rotations near to
// nothing and near to half a turn, and so is its gradient.
func TestCayley(t *testing.T) {
	for _, b := range []int{2, 3, 4, 8, 16, 17, 32, 64} {
		for _, scale := range []float64{0, 1e-4, 0.1, 1, 10} {
			const n = 3
			flat, dense := randomSkew(n, b, scale)
			weights := make([]float32, len(flat))
			r := rand.New(rand.NewPCG(1, uint64(b)))
			for i := range weights {
				weights[i] = float32(r.NormFloat64())
			}
			exec := graph.MustNewExec(backendtest.Open(t), func(q, w *graph.Node) (*graph.Node, *graph.Node) {
				out := cayley(q)
				return out, graph.Gradient(graph.ReduceAllSum(graph.Mul(out, w)), q)[0]
			})
			out, err := exec.Call(tensors.FromFlatDataAndDimensions(flat, n, b, b), tensors.FromFlatDataAndDimensions(weights, n, b, b))
			require.NoError(t, err)
			got, gradient := basetest.Flat(t, out[0]), basetest.Flat(t, out[1])
			for k, q := range dense {
				want, err := hostCayley(q)
				require.NoError(t, err)
				var worst float64
				for i := range b {
					for j := range b {
						w := want.At(i, j)
						if i == j {
							w--
						}
						worst = math.Max(worst, math.Abs(w-float64(got[(k*b+i)*b+j])))
					}
				}
				// The condition of I+Q, at most the norm of Q and 1, times the rounding of float32.
				tolerance := 1e-6 * (1 + scale*math.Sqrt(float64(b)))
				require.LessOrEqual(t, worst, tolerance, "b=%d scale=%g", b, scale)
				wantGradient := cayleyGradient(t, q, weights[k*b*b:(k+1)*b*b])
				// Its elements are sums of b products of three such matrices.
				basetest.RequireClose(t, wantGradient, gradient[k*b*b:(k+1)*b*b], max(20, 4*float64(b))*tolerance, "gradient")
			}
		}
	}
}

// cayleyGradient is the gradient of sum(w·(R-I)): -2·(I+Q)⁻ᵀ·(w + ...), from
// dR = -2·(I+Q)⁻¹·dQ·(I+Q)⁻¹, since Q and (I+Q)⁻¹ commute and I-Q = 2I-(I+Q).
func cayleyGradient(t *testing.T, q *mat.Dense, w []float32) []float32 {
	b, _ := q.Dims()
	var plus, inverse, left, all mat.Dense
	plus.CloneFrom(q)
	weights := mat.NewDense(b, b, nil)
	for i := range b {
		plus.Set(i, i, plus.At(i, i)+1)
		for j := range b {
			weights.Set(i, j, float64(w[i*b+j]))
		}
	}
	require.NoError(t, inverse.Inverse(&plus))
	left.Mul(inverse.T(), weights)
	all.Mul(&left, inverse.T())
	out := make([]float32, b*b)
	for i := range b {
		for j := range b {
			out[i*b+j] = float32(-2 * all.At(i, j))
		}
	}
	return out
}

// The rotation of the exact transform keeps lengths.
func TestOftIsOrthogonal(t *testing.T) {
	_, dense := randomSkew(1, 12, 0.7)
	r, err := hostCayley(dense[0])
	require.NoError(t, err)
	var product mat.Dense
	product.Mul(r, r.T())
	for i := range 12 {
		for j := range 12 {
			want := 0.0
			if i == j {
				want = 1
			}
			require.InDelta(t, want, product.At(i, j), 1e-12)
		}
	}
}

func TestOftSizes(t *testing.T) {
	for _, c := range []struct{ in, size, want int }{{48, 20, 16}, {48, 21, 24}, {48, 32, 24}, {48, 16, 16}, {48, 100, 48}, {7, 3, 1}, {12, 5, 4}, {10, 4, 5}, {30, 7, 6}} {
		require.Equal(t, c.want, nearestDivisor(c.in, c.size), "%+v", c)
	}
	base := basetest.Llama(12, 1, 3, 3, 4, 20, 8)
	conv := &basetest.Shape{}
	conv.Add(site.Module{Path: "conv", Kind: site.Convolution, In: 4, Out: 4, Conv: &site.Conv{Kernel: []int{3}, Groups: 1}})
	for _, c := range []struct {
		base   site.Base
		config OftConfig
		want   string
	}{
		{base, OftConfig{OftBlockSize: 4, R: 2}, `oft: r is 2 and oft_block_size is 4, want one of both`},
		{base, OftConfig{R: -1}, `oft: r is -1`},
		{base, OftConfig{OftBlockSize: 5}, `oft: oft_block_size is 5, which does not divide the 12 inputs of "model.layers.0.self_attn.q_proj"; the nearest that does is 4`},
		{base, OftConfig{R: 12}, `oft: r is 12: blocks of one input of "model.layers.0.self_attn.q_proj" cannot turn`},
		{base, OftConfig{OftBlockSize: 4, Eps: -1}, `oft: eps is -1`},
		{base, OftConfig{OftBlockSize: 4, NumCayleyNeumannTerms: 1}, `oft: num_cayley_neumann_terms is 1`},
		{base, OftConfig{OftBlockSize: 4, ModuleDropout: 1}, `oft: module_dropout is 1, want a rate in [0, 1)`},
		{base, OftConfig{OftBlockSize: 4, ModuleDropout: 0.5, BlockShare: true}, `oft: module_dropout has no effect with block_share`},
		{base, OftConfig{OftBlockSize: 4, Bias: "lora_only"}, `oft: bias is "lora_only", want "none", "all" or "oft_only"`},
		{base, OftConfig{OftBlockSize: 4, Bias: BiasOftOnly}, `oft: bias is "oft_only", but no target module has a bias`},
		{base, OftConfig{OftBlockSize: 4, TargetModules: peft.Modules("embed_tokens")}, `oft: target module "model.embed_tokens" is of kind embedding, want a linear layer`},
		{conv, OftConfig{OftBlockSize: 4, TargetModules: peft.Modules("conv")}, `oft: target module "conv" is of kind convolution, want a linear layer`},
	} {
		_, err := peft.DryRun(c.base, c.config)
		require.ErrorContains(t, err, c.want)
	}
	plan, err := peft.DryRun(basetest.Llama(64, 1, 4, 4, 16, 96, 8), OftConfig{})
	require.NoError(t, err)
	require.Equal(t, []peft.Setting{{Name: "blocks", Value: "2"}, {Name: "size", Value: "32"}}, plan.Targets[0].Settings)
	require.Equal(t, int64(2*2*496), plan.Count.Trainable)
}

// Files of older versions of peft, which mean something else, are refused.
func TestOftFiles(t *testing.T) {
	for text, want := range map[string]string{
		`{"peft_type": "OFT", "r": 8}`:                                                                                 `no "oft_block_size"`,
		`{"peft_type": "OFT", "r": 0, "oft_block_size": 0}`:                                                            `r and oft_block_size are 0`,
		`{"peft_type": "OFT", "oft_block_size": 8, "use_cayley_neumann": true}`:                                        `use_cayley_neumann with peft_version "": the series was another one before 0.18.0`,
		`{"peft_type": "OFT", "oft_block_size": 8, "use_cayley_neumann": true, "peft_version": "0.17.1"}`:              `use_cayley_neumann with peft_version "0.17.1"`,
		`{"peft_type": "OFT", "oft_block_size": 8, "use_cayley_neumann": true, "peft_version": "0.18.0.dev0@abcdef"}`:  `use_cayley_neumann with peft_version`,
		`{"peft_type": "OFT", "oft_block_size": 8, "use_cayley_neumann": true, "peft_version": "nonsense"}`:            `use_cayley_neumann with peft_version`,
		`{"peft_type": "OFT", "oft_block_size": 8, "use_cayley_neumann": true, "peft_version": "0.18.2.dev0@UNKNOWN"}`: "",
		`{"peft_type": "OFT", "oft_block_size": 8, "use_cayley_neumann": true, "peft_version": "0.18.0"}`:              "",
		`{"peft_type": "OFT", "oft_block_size": 8, "use_cayley_neumann": true, "peft_version": "1.0"}`:                 "",
		`{"peft_type": "OFT", "oft_block_size": 8, "use_cayley_neumann": false, "peft_version": "0.16.0"}`:             "",
		`{"peft_type": "OFT", "oft_block_size": 8}`:                                                                    "",
	} {
		c, err := peft.DecodeConfig([]byte(text))
		if want != "" {
			require.ErrorContains(t, err, want, text)
			continue
		}
		require.NoError(t, err, text)
		require.NoError(t, c.Validate())
	}
}

// In bfloat16 no rotation at all is still exactly the identity.
func TestRotateByNothing(t *testing.T) {
	exec := graph.MustNewExec(backendtest.Open(t), func(x, q *graph.Node) *graph.Node {
		return graph.Sub(rotate(x, cayley(q), nil), x)
	})
	x, _ := randomSkew(1, 8, 3)
	out, err := exec.Call(tensors.FromFlatDataAndDimensions(x, 2, 4, 8), tensors.FromFlatDataAndDimensions(make([]float32, 32), 2, 4, 4))
	require.NoError(t, err)
	require.Equal(t, make([]float32, 64), basetest.Flat(t, out[0]))
}

// Several rotations and an update of one module merge into what they compute together.
func TestOftMergesInOrder(t *testing.T) {
	base := basetest.Load(t, basetest.Fixtures+"/families/llama")
	targets := peft.Modules("q_proj", "down_proj")
	pm, err := peft.GetPeftModel(base, OftConfig{OftBlockSize: 8, TargetModules: targets, InitWeights: Off}, peft.Options{Seed: 1})
	require.NoError(t, err)
	require.NoError(t, pm.AddAdapter(LoraConfig{R: 2, TargetModules: targets, InitLoraWeights: InitRandom}, peft.Options{Name: "lora", Seed: 2}))
	require.NoError(t, pm.AddAdapter(OftConfig{R: 2, TargetModules: targets, InitWeights: Off, UseCayleyNeumann: Off}, peft.Options{Name: "oft", Seed: 3}))
	ids := tensors.FromValue([][]int32{{5, 9, 17, 33, 5, 40, 9, 12}})
	for _, names := range [][]string{{"default", "oft"}, {"oft", "default"}, {"lora", "default"}, {"default", "lora", "oft"}} {
		view, err := pm.With(names...)
		require.NoError(t, err)
		dir := t.TempDir()
		_, err = view.Merge(t.Context(), dir)
		require.NoError(t, err)
		full, err := peft.GetPeftModel(basetest.Load(t, dir), peft.Full{})
		require.NoError(t, err)
		basetest.RequireClose(t, basetest.Evaluate(t, view, ids, ids).Logits, basetest.Evaluate(t, full, ids, ids).Logits, 2e-5, "merged")
	}
}
