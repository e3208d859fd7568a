package lora

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// deltaOf is s·B·A of one module, in float64.
func deltaOf(t testing.TB, pm *peft.PeftModel, name, path string) []float64 {
	t.Helper()
	s, err := newSource(pm, name, 1)
	require.NoError(t, err)
	term, ok := s.terms[path]
	if !ok {
		return nil
	}
	return term.product()
}

// combineGolden loads the three adapters that peft combined.
func combineGolden(t testing.TB) *peft.PeftModel {
	t.Helper()
	base := basetest.Load(t, filepath.Join(basetest.Fixtures, "families", "llama"))
	pm, err := peft.LoadAdapter(base, filepath.Join(basetest.Fixtures, "combine", "a"), peft.Options{Name: "a"})
	require.NoError(t, err)
	for _, name := range []string{"b", "c"} {
		require.NoError(t, pm.LoadAdapter(filepath.Join(basetest.Fixtures, "combine", name), peft.Options{Name: name}))
	}
	return pm
}

// Every type gives what peft's add_weighted_adapter gives (peft.md 8.54).
func TestCombineEqualsPeft(t *testing.T) {
	pm := combineGolden(t)
	var cases map[string]struct {
		Adapters []string
		Weights  []float64
		Type     CombinationType `json:"combination_type"`
		Rank     int             `json:"svd_rank"`
		Density  float64
		Sign     MajoritySign `json:"majority_sign_method"`
	}
	data, err := os.ReadFile(filepath.Join(basetest.Fixtures, "combine", "cases.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &cases))
	file, err := safetensors.Open(filepath.Join(basetest.Fixtures, "combine", "deltas.safetensors"))
	require.NoError(t, err)
	defer file.Close()
	seen := 0
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			report, err := AddWeightedAdapter(pm, name, Combination{Adapters: c.Adapters, Weights: c.Weights, Type: c.Type, Rank: c.Rank, Density: c.Density, MajoritySign: c.Sign})
			require.NoError(t, err)
			modules := 0
			for _, key := range file.Names() {
				path, ok := strings.CutPrefix(key, name+"/")
				if !ok {
					continue
				}
				info, _ := file.Info(key)
				want := make([]float32, info.Shape[0]*info.Shape[1])
				require.NoError(t, file.Float32s(key, want))
				got := make([]float32, len(want))
				rows := info.Shape[1] // peft gives an embedding's delta as its weight: [rows, features]
				for i, v := range deltaOf(t, pm, name, path) {
					if path == "model.embed_tokens" {
						i = i%info.Shape[0]*rows + i/info.Shape[0]
					}
					got[i] = float32(v)
				}
				basetest.RequireClose(t, want, got, 2e-6, key)
				modules++
			}
			require.Len(t, report.Modules, modules)
			require.NotZero(t, modules)
			require.Contains(t, report.String(), fmt.Sprintf("combined %d modules at rank %d", modules, report.Rank))
			seen += modules
		})
	}
	require.Len(t, file.Names(), seen)
}

// several is a model without values to run, with adapters of unequal ranks, scales,
// patterns and targets.
func several(t testing.TB) *peft.PeftModel {
	t.Helper()
	base := &basetest.Shape{}
	base.Add(site.Module{Path: "x.one", Kind: site.Linear, In: 12, Out: 9}, site.Module{Path: "x.two", Kind: site.Linear, In: 7, Out: 11, Transposed: true},
		site.Module{Path: "table", Kind: site.Embedding, In: 13, Out: 6}, site.Module{Path: "conv", Kind: site.Convolution, In: 3, Out: 5, Conv: &site.Conv{Kernel: []int{3, 2}, Groups: 1}},
		site.Module{Path: "grouped", Kind: site.Convolution, In: 4, Out: 4, Conv: &site.Conv{Kernel: []int{3}, Groups: 2}}, site.Module{Path: "rest", Kind: site.Linear, In: 4, Out: 4})
	pm, err := peft.GetPeftModel(base, LoraConfig{R: 3, LoraAlpha: 5, TargetModules: peft.Modules("one", "two", "conv"), InitLoraWeights: InitRandom}, peft.Options{Name: "a"})
	require.NoError(t, err)
	for i, c := range []LoraConfig{
		{R: 2, LoraAlpha: 7, UseRSLoRA: true, TargetModules: peft.Regex("x.*|table"), RankPattern: peft.Patterns{{Pattern: "two", Value: 4}}},
		{R: 3, LoraAlpha: 9, TargetModules: peft.Modules("table", "one", "conv")},
		{R: 1, LoraAlpha: 2, TargetModules: peft.Modules("one"), AlphaPattern: peft.Patterns{{Pattern: "one", Value: -3}}},
	} {
		c.InitLoraWeights = InitRandom
		require.NoError(t, pm.AddAdapter(c, peft.Options{Name: string(rune('b' + i)), Seed: uint64(i) + 1}))
	}
	require.NoError(t, pm.AddAdapter(LoraConfig{R: 2, LoraAlpha: 5, TargetModules: peft.Modules("two"), InitLoraWeights: InitRandom}, peft.Options{Name: "padded", MaxRank: 6}))
	return pm
}

// The report is the distance to Σ w·s·B·A: zero up to rounding for cat, what its rank allows
// for svd, and for all what comes out by computing both.
func TestCombineResidual(t *testing.T) {
	names, weights := []string{"a", "b", "c", "d", "padded"}, []float64{0.5, -2, 1, 0.25, 3}
	for _, c := range []Combination{
		{}, {Type: SVD}, {Type: SVD, Rank: 20}, {Type: SVD, Rank: 1}, {Type: TiesSVD, Density: 0.5}, {Type: DareLinearSVD, Density: 0.7},
		{Type: DareTiesSVD, Density: 0.7, MajoritySign: SignFrequency}, {Type: MagnitudePruneSVD, Density: 1, Rank: 20}, {Type: MagnitudePruneSVD, Density: 0.3},
	} {
		t.Run(fmt.Sprint(c.Type, c.Rank), func(t *testing.T) {
			pm := several(t)
			c.Adapters, c.Weights = names, weights
			report, err := AddWeightedAdapter(pm, "sum", c)
			require.NoError(t, err)
			require.Len(t, report.Modules, 4)
			var squares, largest float64
			for _, m := range report.Modules {
				got := deltaOf(t, pm, "sum", m.Module)
				sum := make([]float64, len(got))
				for i, name := range names {
					for j, v := range deltaOf(t, pm, name, m.Module) {
						sum[j] += weights[i] * v
					}
				}
				var most, frobenius, norm float64
				for j := range sum {
					most = max(most, math.Abs(sum[j]-got[j]))
					frobenius, norm = math.Hypot(frobenius, sum[j]-got[j]), math.Hypot(norm, sum[j])
				}
				require.InDelta(t, most, m.Max, 1e-9)
				require.InDelta(t, frobenius, m.Frobenius, 1e-9)
				require.InDelta(t, norm, m.Norm, 1e-9)
				require.Greater(t, norm, 1.0)
				squares, largest = squares+frobenius*frobenius, max(largest, most)
			}
			require.InDelta(t, math.Sqrt(squares), report.Frobenius, 1e-9)
			require.InDelta(t, largest, report.Max, 1e-9)
			exact := c.Type == "" || c.Rank == 20 // a whole rank: nothing is lost
			require.Equal(t, exact, report.Frobenius < 1e-6*report.Norm, "%s", report)
			if c.Type == "" {
				require.Equal(t, 3+4+3+1+2, report.Rank)
				require.Contains(t, report.String(), "combined 4 modules at rank 13")
			}
		})
	}
	// Less is lost the larger the rank.
	before := math.Inf(1)
	for rank := 1; rank < 6; rank++ {
		report, err := AddWeightedAdapter(several(t), "sum", Combination{Adapters: names, Weights: weights, Type: SVD, Rank: rank})
		require.NoError(t, err)
		require.Less(t, report.Frobenius, before)
		before = report.Frobenius
	}
}

// Negative weights subtract and cancel, one adapter with weight -1 is its negative (peft.md
// 8.54); linear's products of one adapter's B and another's A are in its residual.
func TestCombineSigns(t *testing.T) {
	for _, kind := range []CombinationType{Cat, Linear, SVD} {
		pm := several(t)
		report, err := AddWeightedAdapter(pm, "minus", Combination{Adapters: []string{"a"}, Weights: []float64{-1}, Type: kind})
		require.NoError(t, err)
		require.Less(t, report.Frobenius, 1e-6)
		for i, v := range deltaOf(t, pm, "a", "x.one") {
			require.InDelta(t, -v, deltaOf(t, pm, "minus", "x.one")[i], 1e-6)
		}
		_, err = AddWeightedAdapter(pm, "nothing", Combination{Adapters: []string{"a", "minus"}, Weights: []float64{2, 2}, Type: Cat})
		require.NoError(t, err)
		for _, v := range deltaOf(t, pm, "nothing", "x.one") {
			require.InDelta(t, 0, v, 1e-6)
		}
	}
	pm := several(t)
	report, err := AddWeightedAdapter(pm, "sum", Combination{Adapters: []string{"a", "c"}, Weights: []float64{1, -1}, Type: Linear})
	require.NoError(t, err)
	require.Greater(t, report.Frobenius, 0.1)
}

// Dropping at random keeps the mean and the density, follows from the seed, and differs
// from adapter to adapter.
func TestDare(t *testing.T) {
	values := func(seed uint64, key string) []float64 {
		v := make([]float64, 100_000)
		for i := range v {
			v[i] = 1
		}
		Combination{Density: 0.3, Seed: seed}.dropAtRandom(v, key)
		return v
	}
	v := values(1, "a")
	kept, sum := 0.0, 0.0
	for _, x := range v {
		if x != 0 {
			kept++
		}
		sum += x
	}
	require.InDelta(t, 0.3, kept/1e5, 0.008) // five standard deviations are 0.0072
	require.InDelta(t, 1, sum/1e5, 0.025)
	require.Equal(t, v, values(1, "a"))
	require.NotEqual(t, v, values(2, "a"))
	require.NotEqual(t, v, values(1, "b"))
}

// What cannot be combined says why and changes nothing (peft.md 8.54; issue: bad input).
func TestCombineErrors(t *testing.T) {
	base := basetest.Load(t, filepath.Join(basetest.Fixtures, "families", "llama"))
	pm, err := peft.GetPeftModel(base, LoraConfig{R: 4}, peft.Options{Name: "a"})
	require.NoError(t, err)
	for name, c := range map[string]peft.Config{
		"b": LoraConfig{R: 4}, "small": LoraConfig{R: 2}, "saved": LoraConfig{R: 4, ModulesToSave: peft.Strings{"lm_head"}},
		"full": peft.Full{}, "pattern": LoraConfig{R: 4, RankPattern: peft.Patterns{{Pattern: "q_proj", Value: 2}}},
	} {
		require.NoError(t, pm.AddAdapter(c, peft.Options{Name: name}))
	}
	before := pm.Adapters()
	one := []float64{1, 1}
	for want, c := range map[string]Combination{
		"no adapter is named":                          {},
		"2 adapters have 1 weights":                    {Adapters: []string{"a", "b"}, Weights: []float64{1}},
		`unknown adapter "z"`:                          {Adapters: []string{"a", "z"}, Weights: one},
		`adapter "a" is named twice`:                   {Adapters: []string{"a", "a"}, Weights: one},
		`the weight of "b" is NaN`:                     {Adapters: []string{"a", "b"}, Weights: []float64{1, math.NaN()}},
		`adapter "full": its method is FULL`:           {Adapters: []string{"a", "full"}, Weights: one},
		`adapter "saved" also trains whole modules`:    {Adapters: []string{"a", "saved"}, Weights: one},
		`"a" has rank 4 and others`:                    {Adapters: []string{"small", "a"}, Weights: one, Type: Linear},
		`linear adds A and B apart and needs equal`:    {Adapters: []string{"a", "small"}, Weights: one, Type: Linear},
		`"pattern" has rank 2 and "a" 4`:               {Adapters: []string{"pattern", "a"}, Weights: one, Type: Ties, Density: 0.5},
		`combination type "mean", want one of [cat`:    {Adapters: []string{"a", "b"}, Weights: one, Type: "mean"},
		"ties needs a Density in (0, 1], got 0":        {Adapters: []string{"a", "b"}, Weights: one, Type: Ties},
		"ties needs a Density in (0, 1], got 1.5":      {Adapters: []string{"a", "b"}, Weights: one, Type: Ties, Density: 1.5},
		"svd drops no values: Density has no effect":   {Adapters: []string{"a", "b"}, Weights: one, Type: SVD, Density: 0.5},
		"Rank is 3, and only types with an SVD choose": {Adapters: []string{"a", "b"}, Weights: one, Rank: 3},
		`majority sign "most"`:                         {Adapters: []string{"a", "b"}, Weights: one, MajoritySign: "most"},
	} {
		if strings.HasPrefix(want, `"a" has rank`) {
			want = `"small" has rank 2 and others 4`
		}
		_, err := AddWeightedAdapter(pm, "new", c)
		require.ErrorContains(t, err, want)
		require.Equal(t, before, pm.Adapters())
	}
	require.NoError(t, pm.AddAdapter(LoraConfig{R: 2, UseDora: true}, peft.Options{Name: "dora"}))
	_, err = AddWeightedAdapter(pm, "new", Combination{Adapters: []string{"a", "dora"}, Weights: one})
	require.ErrorContains(t, err, `adapter "dora" has "model.layers.0.self_attn.q_proj.lora_magnitude_vector" besides A and B`)
	grouped := several(t)
	require.NoError(t, grouped.AddAdapter(LoraConfig{R: 2, TargetModules: peft.Modules("grouped")}, peft.Options{Name: "g"}))
	_, err = AddWeightedAdapter(grouped, "new", Combination{Adapters: []string{"a", "g"}, Weights: one})
	require.ErrorContains(t, err, `module "grouped" is a convolution with 2 groups`)
	_, err = AddWeightedAdapter(pm, "b", Combination{Adapters: []string{"a"}, Weights: []float64{1}})
	require.ErrorContains(t, err, `adapter "b" already exists`)
}

// An adapter that started from the base's singular vectors counts as what its file is.
func TestCombinePissa(t *testing.T) {
	base := basetest.Load(t, filepath.Join(basetest.Fixtures, "families", "llama"))
	pm, err := peft.GetPeftModel(base, LoraConfig{R: 2, InitLoraWeights: "pissa"}, peft.Options{Name: "pissa"})
	require.NoError(t, err)
	layout, err := pm.Layout("pissa")
	require.NoError(t, err)
	values, err := pm.TensorValues("pissa")
	require.NoError(t, err)
	for _, v := range values {
		for i := range v {
			v[i] += float32(i%7-3) / 20
		}
	}
	arguments, err := layout.FromHost(values)
	require.NoError(t, err)
	require.NoError(t, pm.SetValues("pissa", arguments))
	report, err := AddWeightedAdapter(pm, "same", Combination{Adapters: []string{"pissa"}, Weights: []float64{1}})
	require.NoError(t, err)
	require.Equal(t, 4, report.Rank)
	same, err := pm.With("same")
	require.NoError(t, err)
	g := basetest.GoldenCases(t)[0]
	ids, labels := g.Tensor(t, "input_ids"), g.Tensor(t, "labels")
	basetest.RequireClose(t, basetest.Evaluate(t, pm, ids, labels).Logits, basetest.Evaluate(t, same, ids, labels).Logits, 1e-4, "pissa")
}

// The result is an adapter like any other: it saves, loads and runs as the weighted sum.
func TestCombinedIsAnAdapter(t *testing.T) {
	pm := combineGolden(t)
	_, err := AddWeightedAdapter(pm, "sum", Combination{Adapters: []string{"a", "b", "c"}, Weights: []float64{1, 1, 1}})
	require.NoError(t, err)
	require.Equal(t, []string{"a"}, pm.Active())
	sum, err := pm.With("sum")
	require.NoError(t, err)
	all, err := pm.With("a", "b", "c")
	require.NoError(t, err)
	g := basetest.GoldenCases(t)[0]
	ids, labels := g.Tensor(t, "input_ids"), g.Tensor(t, "labels")
	want := basetest.Evaluate(t, all, ids, labels).Logits
	basetest.RequireClose(t, want, basetest.Evaluate(t, sum, ids, labels).Logits, 1e-5, "sum")
	dir := t.TempDir()
	require.NoError(t, sum.SavePretrained(dir))
	again, err := peft.LoadAdapter(pm.Base(), filepath.Join(dir, "sum"))
	require.NoError(t, err)
	basetest.RequireClose(t, want, basetest.Evaluate(t, again, ids, labels).Logits, 1e-5, "loaded")
}

// The residual of a 4096 x 4096 module of two adapters of rank 16.
func BenchmarkResidual(b *testing.B) {
	const n, r = 4096, 16
	t := term{weight: 1, scale: 2, a: make([]float32, r*n), b: make([]float32, n*r), rows: n, rank: r, columns: n}
	for i := range t.a {
		t.a[i], t.b[i] = float32(i%7), float32(i%5)
	}
	terms := []term{t, t}
	x, y := concatenate(terms, 2*r)
	for b.Loop() {
		if residual("x", terms, x, y, 2*r).Max > 1e-3 {
			b.Fatal("cat is exact")
		}
	}
}
