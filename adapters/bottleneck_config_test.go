package adapters

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
)

// llamaShape is a model without weights: two layers of 32 features.
func llamaShape(t testing.TB) *models.Blueprint {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(basetest.Fixtures, "families", "llama", "config.json"))
	require.NoError(t, err)
	b, err := models.NewBlueprint(data)
	require.NoError(t, err)
	return b
}

func withFactor(c BottleneckConfig, factor float64) BottleneckConfig {
	c.ReductionFactor = ReductionFactor{Default: factor}
	return c
}

// The presets are what AdapterHub's configurations of these names are.
func TestBottleneckPresets(t *testing.T) {
	for name, want := range map[string]BottleneckConfig{
		"bert-houlsby": withFactor(Houlsby(), 4), "bert-pfeiffer": withFactor(Pfeiffer(), 4),
		"bert-parallel": withFactor(Parallel(), 4), "bert-scaled_parallel": withFactor(ScaledParallel(), 4),
	} {
		data, err := os.ReadFile(hubFixture(name, "adapter_config.json"))
		require.NoError(t, err)
		f, err := decodeHub(data)
		require.NoError(t, err)
		wanted, err := json.Marshal(want)
		require.NoError(t, err)
		f.config.PeftConfig = peft.PeftConfig{}
		got, err := json.Marshal(f.config)
		require.NoError(t, err)
		require.JSONEq(t, string(wanted), string(got), name)
	}
	for name, preset := range hubNames {
		f, err := decodeHub([]byte(`{"name": "a", "config": "` + name + `"}`))
		require.NoError(t, err)
		require.Equal(t, preset().ReductionFactor, f.config.ReductionFactor)
	}
}

// The zero value stands for the values it says, and they are written.
func TestBottleneckZeroValue(t *testing.T) {
	plan, err := peft.DryRun(llamaShape(t), BottleneckConfig{})
	require.NoError(t, err)
	require.Len(t, plan.Targets, 2)
	require.Equal(t, "model.layers.0.mlp", plan.Targets[0].Module.Path)
	require.Equal(t, []peft.Setting{{Name: "width", Value: "2"}, {Name: "non_linearity", Value: "relu"}}, plan.Targets[0].Settings)
	require.EqualValues(t, 2*(2*32*2+2+32), plan.Count.Trainable)
	text, err := peft.EncodeConfig(plan.Config)
	require.NoError(t, err)
	for _, part := range []string{
		`"mh_adapter": false`, `"output_adapter": true`, `"reduction_factor": 16`, `"non_linearity": "relu"`, `"scaling": 1.0`, `"init_weights": "bert"`,
		`"residual_before_ln": true`, `"original_ln_after": true`, `"leave_out": []`, `"dropout": 0.0`, `"init_weights_seed": null`, `"peft_type": "BOTTLENECK"`,
	} {
		require.Contains(t, string(text), part)
	}
}

// What a file leaves empty is not taken for a default.
func TestBottleneckEmptyNames(t *testing.T) {
	for _, text := range []string{`"scaling": ""`, `"scaling": null`, `"init_weights": ""`, `"init_weights": null`} {
		_, err := decodeBottleneck([]byte(`{` + text + `}`))
		_, value, _ := strings.Cut(text, ": ")
		require.ErrorContains(t, err, `", got `+value, text)
	}
}

// The width of a bottleneck is Python's int(features // factor), at least 1.
func TestBottleneckWidth(t *testing.T) {
	for _, c := range []struct {
		features int
		factor   float64
		want     int
	}{{768, 16, 48}, {16, 2.5, 6}, {16, 1.6, 9}, {64, 12.8, 4}, {96, 1.6, 59}, {16, 100, 1}, {16, 1, 16}, {16, 0.99, 16}} {
		got, err := ReductionFactor{Default: c.factor}.width(c.features, 0)
		require.NoError(t, err)
		require.Equal(t, c.want, got, "%d // %g", c.features, c.factor)
	}
	_, err := ReductionFactor{Default: 0.5}.width(16, 0)
	require.EqualError(t, err, "reduction_factor 0.5 gives a bottleneck of 32 features, wider than the layer's 16")
}

func TestBottleneckErrors(t *testing.T) {
	change := func(f func(c *BottleneckConfig)) BottleneckConfig {
		c := Houlsby()
		f(&c)
		return c
	}
	linears := func(f func(c *BottleneckConfig)) BottleneckConfig {
		c := BottleneckConfig{TargetModules: peft.Modules("o_proj")}
		f(&c)
		return c
	}
	unknown := func(key, value string) BottleneckConfig {
		return change(func(c *BottleneckConfig) { c.Unknown = map[string]json.RawMessage{key: json.RawMessage(value)} })
	}
	for _, c := range []struct {
		config BottleneckConfig
		want   string
	}{
		{withFactor(Houlsby(), -2), "reduction_factor is -2, want a number greater than 0"},
		{withFactor(Houlsby(), math.NaN()), "reduction_factor is NaN"},
		{withFactor(Houlsby(), 0.25), `"model.layers.0.self_attn": reduction_factor 0.25 gives a bottleneck of 128 features, wider than the layer's 32`},
		{change(func(c *BottleneckConfig) { c.ReductionFactor = ReductionFactor{Layers: map[int]float64{0: 4}} }), "reduction_factor has neither a value for layer 1 nor a default"},
		{change(func(c *BottleneckConfig) { c.ReductionFactor.Layers = map[int]float64{2: 4} }), "reduction_factor: there is no layer 2, the base has 2 from 0"},
		{change(func(c *BottleneckConfig) { c.ReductionFactor.Layers = map[int]float64{1: 0} }), "layer 1: reduction_factor is 0"},
		{change(func(c *BottleneckConfig) { c.LeaveOut = []int{0, 5} }), "leave_out: there is no layer 5, the base has 2 from 0"},
		{change(func(c *BottleneckConfig) { c.LeaveOut = []int{-1} }), "leave_out: layer -1 is negative"},
		{change(func(c *BottleneckConfig) { c.LeaveOut = []int{1, 0} }), "leave_out leaves out every layer"},
		{change(func(c *BottleneckConfig) { c.Dropout = 1 }), "dropout is 1, want a rate in [0, 1)"},
		{change(func(c *BottleneckConfig) { c.NonLinearity = "swihs" }), `non_linearity "swihs" is not supported; did you mean "swish"?`},
		{change(func(c *BottleneckConfig) { c.NonLinearity = "prelu" }), `non_linearity "prelu" is not supported`},
		{change(func(c *BottleneckConfig) { c.Scaling = Scaling{Learned: "yes"} }), `scaling is "yes", want a number, "learned" or "channel"`},
		{change(func(c *BottleneckConfig) { c.Scaling = Scaling{Factor: 2, Learned: ScalingChannel} }), `scaling is both 2 and "channel"`},
		{change(func(c *BottleneckConfig) { c.InitWeights = "zeros" }), `init_weights is "zeros"`},
		{change(func(c *BottleneckConfig) { c.ResidualBeforeLn = "maybe" }), `residual_before_ln is "maybe"`},
		{change(func(c *BottleneckConfig) { c.ResidualBeforeLn = ResidualPostAdd }), `residual_before_ln "post_add" needs original_ln_before`},
		{change(func(c *BottleneckConfig) { c.ExcludeModules = peft.Modules("mlp") }), "exclude_modules needs target_modules"},
		{change(func(c *BottleneckConfig) { c.ModulesToSave = peft.Strings{"lm_haed"} }), `modules_to_save: "lm_haed" matches nothing`},
		{change(func(c *BottleneckConfig) { c.TargetModules = peft.Modules("o_proj") }), "mh_adapter is about the sublayers of blocks and cannot be used with target_modules"},
		{linears(func(c *BottleneckConfig) { c.IsParallel = true }), "is_parallel is about the sublayers of blocks"},
		{linears(func(c *BottleneckConfig) { c.TargetModules = peft.Modules("norm") }), `target module "model.norm" is a norm, want a linear layer`},
		{linears(func(c *BottleneckConfig) { c.TargetModules = peft.Modules("o_porj") }), `target module "o_porj" matches nothing; did you mean "o_proj"?`},
		{unknown("phm_layer", "true"), `option "phm_layer" = true is refused: compacter's hypercomplex layers are not supported`},
		{unknown("use_gating", "true"), `option "use_gating" = true is refused`},
		{unknown("cross_adapter", "true"), `option "cross_adapter" = true is refused`},
		{unknown("stochastic_depth", "0.1"), `option "stochastic_depth" = 0.1 is refused`},
		{unknown("inv_adapter", `"nice"`), `option "inv_adapter" = "nice" is refused`},
	} {
		_, err := peft.DryRun(llamaShape(t), c.config)
		require.ErrorContains(t, err, "bottleneck: ")
		require.ErrorContains(t, err, c.want)
	}
	_, err := peft.DryRun(basetest.Llama(8, 1, 2, 2, 4, 16, 32), Houlsby())
	require.ErrorContains(t, err, "the base is no transformer whose sublayers are known: name linear layers in TargetModules")
}

// Initial values follow their names: see BottleneckInit.
func TestBottleneckInit(t *testing.T) {
	base := basetest.Load(t, filepath.Join(basetest.Fixtures, "families", "llama"))
	values := func(c BottleneckConfig) map[string][]float32 {
		pm, err := peft.GetPeftModel(base, withFactor(c, 1), peft.Options{Seed: 5, Name: "task"})
		require.NoError(t, err)
		return hostValues(t, pm)
	}
	const down, up, other = "model.layers.0.mlp.adapter_down.weight", "model.layers.0.mlp.adapter_up.weight", "model.layers.1.mlp.adapter_down.weight"
	for init, want := range map[BottleneckInit]struct{ down, up, largest float64 }{
		InitBert: {0.02, 0.02, 0.1}, InitHoulsby: {0.01 * 0.8796, 0.01 * 0.8796, 0.02}, // of N(0, 1) within two deviations
		InitMAM: {1 / math.Sqrt(3*32), 0, 1 / math.Sqrt(32)},
	} {
		v := values(BottleneckConfig{InitWeights: init, LnBefore: true, Scaling: Scaling{Learned: ScalingChannel}})
		require.InDelta(t, want.down, deviation(v[down]), 0.1*want.down+1e-9)
		require.InDelta(t, want.up, deviation(v[up]), 0.1*want.up+1e-9)
		for name, list := range v {
			switch {
			case strings.HasSuffix(name, ".bias"):
				require.Zero(t, deviation(list))
			case strings.HasSuffix(name, "norm_before.weight") || strings.HasSuffix(name, "scaling"):
				require.Equal(t, slices.Repeat([]float32{1}, 32), list)
			default:
				require.LessOrEqual(t, float64(slices.Max(list)), want.largest)
			}
		}
		require.NotEqual(t, v[down], v[other])
	}
	same := values(BottleneckConfig{InitWeightsSeed: 42})
	require.Equal(t, same[down], same[other])
	require.NotEqual(t, same[down], same[up])
	require.NotEqual(t, same[down], values(BottleneckConfig{InitWeightsSeed: 43})[down])
}

func deviation(values []float32) float64 {
	sum := 0.0
	for _, v := range values {
		sum += float64(v) * float64(v)
	}
	return math.Sqrt(sum / float64(len(values)))
}

// Merging is refused, and says why.
func TestBottleneckMerge(t *testing.T) {
	base := basetest.Load(t, filepath.Join(basetest.Fixtures, "families", "llama"))
	pm, err := peft.GetPeftModel(base, Pfeiffer())
	require.NoError(t, err)
	_, err = pm.Merge(t.Context(), t.TempDir())
	require.ErrorContains(t, err, "cannot be merged")
}
