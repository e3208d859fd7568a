package lora

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

func TestScaling(t *testing.T) {
	require.Equal(t, 4.0, Scaling(32, 8, false))
	require.Equal(t, 8.0, Scaling(32, 16, true))
	require.Equal(t, 0.5, Scaling(8, 16, false))
}

// moments returns mean, standard deviation, minimum and maximum.
func moments(values []float32) (mean, std, low, high float64) {
	low, high = math.Inf(1), math.Inf(-1)
	var sum, squares float64
	for _, v := range values {
		x := float64(v)
		sum, squares = sum+x, squares+x*x
		low, high = min(low, x), max(high, x)
	}
	n := float64(len(values))
	return sum / n, math.Sqrt(squares/n - sum/n*sum/n), low, high
}

// The initial values are distributed as those that peft draws (init_facts.json holds
// what a script found in peft).
func TestInitialValues(t *testing.T) {
	var facts map[string]struct {
		In, Out, R int
		Bound, Std float64
		InFeatures int `json:"in_features"`
	}
	data, err := os.ReadFile("../internal/golden/testdata/lora/init_facts.json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &facts))

	base := &basetest.Shape{}
	in, out, r := facts["default"].InFeatures, 48, facts["default"].R
	base.Add(site.Module{Path: "fc", Kind: site.Linear, In: in, Out: out}, site.Module{Path: "table", Kind: site.Embedding, In: in, Out: out})
	values := func(init Init) (a, b, tableA, tableB []float32) {
		pm, err := peft.GetPeftModel(base, LoraConfig{R: r, TargetModules: peft.Modules("fc", "table"), InitLoraWeights: init})
		require.NoError(t, err)
		v, err := pm.TensorValues(peft.DefaultAdapter)
		require.NoError(t, err)
		return v["fc.lora_A.weight"], v["fc.lora_B.weight"], v["table.lora_embedding_A"], v["table.lora_embedding_B"]
	}
	uniformWithin := func(x []float32, bound float64) {
		t.Helper()
		mean, std, low, high := moments(x)
		require.InDelta(t, 0, mean, 0.03*bound)
		require.InEpsilon(t, bound/math.Sqrt(3), std, 0.02)
		require.GreaterOrEqual(t, low, -bound)
		require.LessOrEqual(t, high, bound)
	}
	normalWith := func(x []float32, want float64) {
		t.Helper()
		mean, std, low, high := moments(x)
		require.InDelta(t, 0, mean, 0.04*want)
		require.InEpsilon(t, want, std, 0.03)
		require.Greater(t, max(high, -low), 3*want) // no uniform distribution reaches so far
	}
	zero := func(x []float32) {
		t.Helper()
		require.Equal(t, make([]float32, len(x)), x)
	}
	a, b, tableA, tableB := values(InitDefault)
	uniformWithin(a, facts["default"].Bound)
	zero(b)
	zero(tableA)
	normalWith(tableB, 1)
	a, b, _, _ = values(InitGaussian)
	normalWith(a, facts["gaussian"].Std)
	zero(b)
	a, b, tableA, tableB = values(InitRandom)
	uniformWithin(a, 1/math.Sqrt(float64(in)))
	uniformWithin(b, 1/math.Sqrt(float64(r)))
	normalWith(tableA, 1)
	normalWith(tableB, 1)
}

// What is merged is s·B·A in the orientation of the weight, whatever the sizes.
func TestWeightDelta(t *testing.T) {
	for _, c := range []site.Module{
		{Path: "a", Kind: site.Linear, In: 5, Out: 7},
		{Path: "a", Kind: site.Linear, In: 6, Out: 3, Transposed: true},
		{Path: "a", Kind: site.Embedding, In: 11, Out: 4},
		{Path: "a", Kind: site.Linear, In: 1, Out: 1},
	} {
		for _, r := range []int{1, 3, 4, 9} {
			base := &basetest.Shape{}
			base.Add(c)
			a, err := attach(LoraConfig{R: r, LoraAlpha: 3, TargetModules: peft.Modules("a")}, base)
			require.NoError(t, err)
			values := map[string][]float32{}
			random := rand.New(rand.NewPCG(1, 2))
			for _, p := range a.Params() {
				values[p.Name] = make([]float32, p.Size())
				for i := range values[p.Name] {
					values[p.Name][i] = float32(random.NormFloat64())
				}
			}
			A, B := values[a.params[0].Name], values[a.params[1].Name]
			got := a.weightDelta(a.layers[c.Path], func(name string) []float32 { return values[name] })
			require.Len(t, got, c.In*c.Out)
			for o := range c.Out {
				for i := range c.In {
					var want float64
					for k := range r {
						want += 3 / float64(r) * float64(B[o*r+k]) * float64(A[k*c.In+i])
					}
					at := o*c.In + i
					if c.Transposed || c.Kind == site.Embedding {
						at = i*c.Out + o
					}
					require.InDelta(t, want, got[at], 1e-5, "%+v r=%d [%d, %d]", c, r, o, i)
				}
			}
		}
	}
}

// A 4096 x 4096 weight takes a fraction of a second.
func BenchmarkWeightDelta(b *testing.B) {
	x, y := make([]float32, 4096*16), make([]float32, 16*4096)
	for i := range x {
		x[i], y[i] = float32(i%7), float32(i%5)
	}
	for b.Loop() {
		product(x, y, 4096, 16, 4096, 2)
	}
	b.ReportMetric(2*4096*4096*16*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
}

func TestConfigFile(t *testing.T) {
	decodeText := func(text string) (LoraConfig, error) {
		c, err := peft.DecodeConfig([]byte(text))
		if err != nil {
			return LoraConfig{}, err
		}
		return c.(LoraConfig), nil
	}
	// The least that a file must hold; what is missing has peft's defaults.
	c, err := decodeText(`{"peft_type": "LORA"}`)
	require.NoError(t, err)
	require.Equal(t, 8, c.R)
	require.Equal(t, 8.0, c.LoraAlpha)
	require.True(t, c.TargetModules.IsZero())
	require.NoError(t, c.Validate())

	c, err = decodeText(`{"peft_type": "LORA", "r": 2, "layers_to_transform": 0, "layers_pattern": "h", "target_modules": "All-Linear",
		"rank_pattern": {"z": 1, "a": 2, "z": 3}, "alpha_pattern": null, "init_lora_weights": null, "exclude_modules": null}`)
	require.NoError(t, err)
	require.Equal(t, peft.Layers{0}, c.LayersToTransform)
	require.Equal(t, peft.Strings{"h"}, c.LayersPattern)
	require.True(t, c.TargetModules.IsAllLinear())
	require.Equal(t, peft.Patterns{{Pattern: "z", Value: 3}, {Pattern: "a", Value: 2}}, c.RankPattern)
	require.Nil(t, c.AlphaPattern)
	require.ErrorContains(t, c.Validate(), `layers_to_transform cannot be used with target_modules "all-linear"`)

	for text, want := range map[string]string{
		`{"peft_type": "LORA", "r": 2.5}`:                     "cannot unmarshal number 2.5",
		`{"peft_type": "LORA", "target_modules": 3}`:          "want a list of module names, a regular expression or null, got 3",
		`{"peft_type": "LORA", "target_modules": ["a", 3]}`:   `got ["a",3]`,
		`{"peft_type": "LORA", "rank_pattern": ["a"]}`:        "want an object of numbers",
		`{"peft_type": "LORA", "rank_pattern": {"a": "b"}}`:   `pattern "a": want a number, got b`,
		`{"peft_type": "LORA", "init_lora_weights": 1}`:       "want true, false or a name",
		`{"peft_type": "LORA", "layers_to_transform": "all"}`: "cannot unmarshal string",
		`{"peft_type": "LORA", "lora_alpha": 0}`:              "lora_alpha is 0",
		`{"peft_type": 7}`:                                    "peft_type",
		`{"peft_type": "LORA", "lora_dropout": 1e999}`:        "cannot unmarshal number 1e999",
		`{"peft_type": "LORA"} {}`:                            "more text after the object",
		`{"peft_type": "lora"}`:                               `unsupported peft_type "lora"`,
		`{"r": 8}`:                                            `missing required key "peft_type"`,
	} {
		_, err := decodeText(text)
		require.ErrorContains(t, err, want, text)
	}

	// Every option of peft without a field here is refused where it changes what is
	// computed, and kept where it does not.
	for key, values := range loraFixed {
		if slices.Contains(values, "*") {
			continue
		}
		c, err := decodeText(`{"peft_type": "LORA", "` + key + `": {"some": "value"}}`)
		require.NoError(t, err)
		require.ErrorContains(t, c.Validate(), `lora: option "`+key+`" = {"some":"value"} is not supported`)
		for _, value := range append(values, "null") {
			c, err = decodeText(`{"peft_type": "LORA", "` + key + `": ` + value + `}`)
			require.NoError(t, err)
			require.NoError(t, c.Validate())
		}
	}
	for _, bad := range []float64{math.NaN(), math.Inf(1), 1, -0.1} {
		require.ErrorContains(t, LoraConfig{R: 1, LoraDropout: bad}.Validate(), "lora_dropout is")
	}
	require.ErrorContains(t, LoraConfig{R: 1 << 40}.Validate(), "r is 1099511627776")
	_, err = peft.GetPeftModel(basetest.Llama(512, 1, 1, 1, 512, 8, 8), LoraConfig{R: math.MaxInt32})
	require.ErrorContains(t, err, "has shape [2147483647 512]")
	require.ErrorContains(t, LoraConfig{R: 1, LoraAlpha: math.NaN()}.Validate(), "lora_alpha is NaN")
	require.ErrorContains(t, LoraConfig{R: 1, AlphaPattern: peft.Patterns{{Pattern: "a"}}}.Validate(), `alpha_pattern: "a" is 0`)
}

// A pattern that would take exponential time is an error, not a hang.
func TestPathologicalPattern(t *testing.T) {
	base := basetest.Llama(8, 4, 2, 2, 4, 16, 32)
	base.Add(site.Module{Path: "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!", Kind: site.Linear, In: 1, Out: 1})
	start := time.Now()
	_, err := peft.GetPeftModel(base, LoraConfig{R: 1, TargetModules: peft.Regex(`((a+)+)+b|.*q_proj`)})
	require.ErrorContains(t, err, "takes longer than 2s")
	require.Less(t, time.Since(start), 20*time.Second)
	_, err = peft.GetPeftModel(base, LoraConfig{R: 1, TargetModules: peft.Regex(string(make([]byte, 1<<17)))})
	require.ErrorContains(t, err, "regular expression of 131072 bytes, want at most 65536")
}
