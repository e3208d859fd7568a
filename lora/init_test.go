package lora

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"
	"gonum.org/v1/gonum/mat"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/internal/linalg"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// kolmogorovSmirnov returns the probability that values drawn from a distribution lie as
// far from its cumulative distribution function as these do, or farther.
func kolmogorovSmirnov(values []float32, cdf func(x float64) float64) float64 {
	sorted := make([]float64, len(values))
	for i, v := range values {
		sorted[i] = float64(v)
	}
	slices.Sort(sorted)
	n, distance := float64(len(sorted)), 0.0
	for i, v := range sorted {
		f := cdf(v)
		distance = max(distance, f-float64(i)/n, float64(i+1)/n-f)
	}
	x := (math.Sqrt(n) + 0.12 + 0.11/math.Sqrt(n)) * distance
	var p float64
	for k := 1; k <= 100; k++ {
		p += 2 * math.Pow(-1, float64(k-1)) * math.Exp(-2*float64(k*k)*x*x)
	}
	return min(1, max(0, p))
}

func normalCDF(std float64) func(float64) float64 {
	return func(x float64) float64 { return 0.5 * math.Erfc(-x/std/math.Sqrt2) }
}

func uniformCDF(bound float64) func(float64) float64 {
	return func(x float64) float64 { return min(1, max(0, (x/bound+1)/2)) }
}

// The initial values of every kind of module are distributed as peft's (8.12): tests of
// Kolmogorov and Smirnov accept the right distribution and refuse one of the same width.
func TestInitialDistributions(t *testing.T) {
	base := &basetest.Shape{}
	base.Add(
		site.Module{Path: "fc", Kind: site.Linear, In: 300, Out: 200},
		site.Module{Path: "table", Kind: site.Embedding, In: 250, Out: 200},
		site.Module{Path: "conv", Kind: site.Convolution, In: 24, Out: 200, Conv: &site.Conv{Kernel: []int{3, 4}, Groups: 2}},
	)
	values := func(init Init, targets ...string) map[string][]float32 {
		pm, err := peft.GetPeftModel(base, LoraConfig{R: 20, TargetModules: peft.Modules(targets...), InitLoraWeights: init, LoraBias: init == InitRandom && targets[0] == "fc"})
		require.NoError(t, err)
		v, err := pm.TensorValues(peft.DefaultAdapter)
		require.NoError(t, err)
		return v
	}
	uniform := func(x []float32, bound float64) {
		t.Helper()
		require.Greater(t, kolmogorovSmirnov(x, uniformCDF(bound)), 0.01)
		require.Less(t, kolmogorovSmirnov(x, normalCDF(bound/math.Sqrt(3))), 0.01)
	}
	normal := func(x []float32, std float64) {
		t.Helper()
		require.Greater(t, kolmogorovSmirnov(x, normalCDF(std)), 0.01)
		require.Less(t, kolmogorovSmirnov(x, uniformCDF(std*math.Sqrt(3))), 0.01)
	}
	zero := func(x []float32) {
		t.Helper()
		require.Equal(t, make([]float32, len(x)), x)
	}
	v := values(InitDefault, "fc", "table", "conv")
	uniform(v["fc.lora_A.weight"], 1/math.Sqrt(300))
	uniform(v["conv.lora_A.weight"], 1/math.Sqrt(24*3*4))
	normal(v["table.lora_embedding_B"], 1)
	zero(v["fc.lora_B.weight"])
	zero(v["conv.lora_B.weight"])
	zero(v["table.lora_embedding_A"])

	v = values(InitGaussian, "fc", "table", "conv")
	normal(v["fc.lora_A.weight"], 1.0/20)
	normal(v["conv.lora_A.weight"], 1.0/20)
	normal(v["table.lora_embedding_B"], 1)
	zero(v["fc.lora_B.weight"])
	zero(v["conv.lora_B.weight"])

	v = values(InitRandom, "table", "conv")
	uniform(v["conv.lora_A.weight"], 1/math.Sqrt(24*3*4))
	uniform(v["conv.lora_B.weight"], 1/math.Sqrt(20/2))
	normal(v["table.lora_embedding_A"], 1)
	normal(v["table.lora_embedding_B"], 1)
	v = values(InitRandom, "fc")
	uniform(v["fc.lora_A.weight"], 1/math.Sqrt(300))
	uniform(v["fc.lora_B.weight"], 1/math.Sqrt(20))
	require.Greater(t, kolmogorovSmirnov(v["fc.lora_B.bias"], uniformCDF(1/math.Sqrt(20))), 0.01)

	// An element is a sum of products of a normal number and one of an orthonormal row: its
	// variance is 1/2 of 1/100, and that of many rows together normal enough.
	v = values(InitOrthogonal, "fc", "table")
	for _, x := range [][]float32{v["fc.lora_A.weight"], v["fc.lora_B.weight"]} {
		_, std, _, _ := moments(x)
		require.InEpsilon(t, 0.1/math.Sqrt2, std, 0.03)
	}
	for i, x := range product(v["fc.lora_B.weight"], v["fc.lora_A.weight"], 200, 20, 300, 1) {
		require.InDelta(t, 0, x, 1e-7, "element %d of B·A", i)
	}
	zero(v["table.lora_embedding_A"]) // as by default
}

// Scaling is alpha/r, with rsLoRA alpha/√r, of each module's own alpha and rank (8.13).
func TestScalingOfPatterns(t *testing.T) {
	for _, c := range []struct {
		rslora bool
		ranks  peft.Patterns
		alphas peft.Patterns
		q, v   float64
	}{
		{false, nil, nil, 2, 2},
		{true, nil, nil, 4, 4},
		{false, peft.Patterns{{Pattern: "q_proj", Value: 16}}, nil, 0.5, 2},
		{true, peft.Patterns{{Pattern: "q_proj", Value: 16}}, nil, 2, 4},
		{false, nil, peft.Patterns{{Pattern: "q_proj", Value: 12}}, 3, 2},
		{true, nil, peft.Patterns{{Pattern: "q_proj", Value: 12}}, 6, 4},
		{false, peft.Patterns{{Pattern: "q_proj", Value: 16}}, peft.Patterns{{Pattern: "q_proj", Value: 12}}, 0.75, 2},
		{true, peft.Patterns{{Pattern: "q_proj", Value: 16}}, peft.Patterns{{Pattern: "q_proj", Value: 12}}, 3, 4},
	} {
		a, err := attach(LoraConfig{R: 4, LoraAlpha: 8, UseRSLoRA: c.rslora, RankPattern: c.ranks, AlphaPattern: c.alphas}, basetest.Llama(16, 1, 2, 2, 8, 32, 10))
		require.NoError(t, err)
		require.Equal(t, c.q, a.layers["model.layers.0.self_attn.q_proj"].scaling)
		require.Equal(t, c.v, a.layers["model.layers.0.self_attn.v_proj"].scaling)
	}
}

// A fresh adapter leaves the output as it is (8.11, 8.14, 8.15), though A and B are not zero;
// so does what is saved of it, in peft's form.
func TestFreshIsIdentity(t *testing.T) {
	base := llamaBase(t)
	ids := tensors.FromValue([][]int32{{5, 6, 7, 8, 9, 10, 11}})
	targets := peft.Modules("q_proj", "up_proj", "down_proj")
	for name, c := range map[string]LoraConfig{
		"dora":         {R: 4, UseDora: true},
		"pissa":        {R: 4, InitLoraWeights: InitPissa},
		"pissa_niter":  {R: 4, InitLoraWeights: InitPissaNiter(3), UseRSLoRA: true},
		"pissa dora":   {R: 4, InitLoraWeights: InitPissa, UseDora: true},
		"olora":        {R: 4, InitLoraWeights: InitOlora},
		"loftq":        {R: 4, InitLoraWeights: InitLoftq, LoftqConfig: LoftqConfig{Bits: 8}},
		"orthogonal":   {R: 4, InitLoraWeights: InitOrthogonal},
		"ortho dora":   {R: 4, InitLoraWeights: InitOrthogonal, UseDora: true},
		"mixed ranks":  {R: 4, InitLoraWeights: InitPissa, RankPattern: peft.Patterns{{Pattern: "up_proj", Value: 2}}, AlphaPattern: peft.Patterns{{Pattern: "q_proj", Value: 3}}},
		"an embedding": {R: 4, InitLoraWeights: InitPissa, UseRSLoRA: true, TargetModules: peft.Modules("q_proj", "embed_tokens")},
	} {
		t.Run(name, func(t *testing.T) {
			if c.TargetModules.IsZero() {
				c.TargetModules = targets
			}
			pm, err := peft.GetPeftModel(base, c)
			require.NoError(t, err)
			alone, err := pm.With()
			require.NoError(t, err)
			want := basetest.Evaluate(t, alone, ids, ids).Logits
			// peft's tests ask for 1e-6; logits here are up to 10 and a sum of some hundred terms.
			basetest.RequireClose(t, want, basetest.Evaluate(t, pm, ids, ids).Logits, 2e-6, "fresh")
			dir := t.TempDir()
			require.NoError(t, pm.SavePretrained(dir))
			again, err := peft.LoadAdapter(base, dir)
			require.NoError(t, err)
			basetest.RequireClose(t, want, basetest.Evaluate(t, again, ids, ids).Logits, 5e-6, "saved and read again")
			saved, err := again.Config(peft.DefaultAdapter)
			require.NoError(t, err)
			if c.InitLoraWeights.residual() {
				require.Equal(t, 8, saved.(LoraConfig).R)
				require.Equal(t, InitDefault, saved.(LoraConfig).InitLoraWeights)
			}
		})
	}
}

// The base's weights are never changed by an initialisation that peft writes into them.
func TestResidualLeavesBase(t *testing.T) {
	base := llamaBase(t)
	q := site.Parameter{Name: "model.layers.0.self_attn.q_proj.weight", Shape: []int{32, 32}}
	before, err := peft.BaseValues(base, q)
	require.NoError(t, err)
	pm, err := peft.GetPeftModel(base, LoraConfig{R: 4, InitLoraWeights: InitPissa})
	require.NoError(t, err)
	basetest.Evaluate(t, pm, tensors.FromValue([][]int32{{5, 6, 7}}), tensors.FromValue([][]int32{{5, 6, 7}}))
	after, err := peft.BaseValues(base, q)
	require.NoError(t, err)
	require.Equal(t, before, after)
}

// randomWeight has the singular values of [spectrum].
func randomWeight(rows, columns int) *mat.Dense {
	r := rand.New(rand.NewPCG(9, 9))
	n := min(rows, columns)
	U, _ := linalg.ThinQR(normals(r, rows, n))
	V, _ := linalg.ThinQR(normals(r, columns, n))
	S := make([]float64, n)
	for i := range S {
		S[i] = spectrum(i)
	}
	var W mat.Dense
	W.Product(U, mat.NewDiagDense(n, S), V.T())
	return &W
}

func spectrum(i int) float64 { return math.Exp(-float64(i) / 8) }

// With enough iterations the randomised decomposition is the exact one.
func TestPissaNiter(t *testing.T) {
	W := randomWeight(96, 64)
	l := layer{Module: site.Module{Path: "a.b", In: 64, Out: 96}, r: 8, scaling: 2}
	best, err := l.pissaStart(W, exact)
	require.NoError(t, err)
	want := multiplied(l, best, l.scaling)
	last := math.Inf(1)
	for _, niter := range []int{0, 2, 16} {
		s, err := l.pissaStart(W, niter)
		require.NoError(t, err)
		var off float64
		for i, v := range multiplied(l, s, l.scaling) {
			off += square(v - want[i])
		}
		off = math.Sqrt(off)
		require.Less(t, off, last, "niter %d", niter)
		last = off
	}
	require.Less(t, last, 0.02)
	// The best approximation of rank 8 leaves the other singular values.
	var left, wantLeft float64
	for i, v := range want {
		left += square(float32(W.At(i/64, i%64)) - v)
	}
	for i := 8; i < 64; i++ {
		wantLeft += spectrum(i) * spectrum(i)
	}
	require.InEpsilon(t, wantLeft, left, 1e-5)
}

// An exact start of a large weight, which is not decomposed as a whole, is the best one too.
func TestPissaLarge(t *testing.T) {
	for _, shape := range [][2]int{{300, 260}, {256, 400}} {
		W := randomWeight(shape[0], shape[1])
		svd, err := topSingular(W, 5, exact, nil)
		require.NoError(t, err)
		var got, left mat.Dense
		got.Product(svd.U, mat.NewDiagDense(5, svd.S), svd.V.T())
		for i, v := range svd.S {
			require.InDelta(t, spectrum(i), v, 1e-10)
		}
		left.Sub(W, &got)
		var want float64
		for i := 5; i < min(shape[0], shape[1]); i++ {
			want += spectrum(i) * spectrum(i)
		}
		require.InEpsilon(t, want, math.Pow(mat.Norm(&left, 2), 2), 1e-9)
	}
}

// A rank that the weight does not have is refused, as is a negative scale.
func TestStartErrors(t *testing.T) {
	base := llamaBase(t)
	for _, c := range []struct {
		config LoraConfig
		want   string
	}{
		{LoraConfig{R: 64, InitLoraWeights: InitPissa}, `the rank 64 is larger than the weight [`},
		{LoraConfig{R: 4, LoraAlpha: -1, InitLoraWeights: InitOlora}, `lora_alpha is -1, want more than 0`},
	} {
		_, err := peft.GetPeftModel(base, c.config)
		require.ErrorContains(t, err, c.want)
	}
}

// Decompositions of a weight of 1024 x 1024.
func BenchmarkPissa(b *testing.B) {
	W := normals(seeded("hard"), 1024, 1024) // whose values lie close
	l := layer{Module: site.Module{Path: "a.b", In: 1024, Out: 1024}, r: 16, scaling: 2}
	for _, niter := range []int{exact, 4, 16} {
		b.Run(fmt.Sprint(niter), func(b *testing.B) {
			for b.Loop() {
				start := time.Now()
				_, err := l.pissaStart(W, niter)
				require.NoError(b, err)
				b.ReportMetric(time.Since(start).Seconds(), "s")
			}
		})
	}
}
