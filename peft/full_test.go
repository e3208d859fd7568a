package peft_test

import (
	"path/filepath"
	"testing"

	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
)

func family(t testing.TB, name string) *models.Model {
	return basetest.Load(t, filepath.Join(basetest.Fixtures, "families", name))
}

func batch() (ids, labels *tensors.Tensor) {
	ids = tensors.FromValue([][]int32{{3, 14, 15, 9, 26, 5}, {35, 8, 9, 7, 9, 3}})
	labels = tensors.FromValue([][]int32{{-100, 14, 15, 9, 26, 5}, {35, 8, -100, 7, 9, 3}})
	return ids, labels
}

// Full fine-tuning starts at the base, and its gradient G of a weight is that of
// which LoRA's is a projection: with B = 0 the gradient of B is s·G·Aᵀ.
func TestFullGradientAgreesWithLoRA(t *testing.T) {
	base := family(t, "llama_tied")
	ids, labels := batch()
	full, err := peft.GetPeftModel(base, peft.Full{})
	require.NoError(t, err)
	alone, err := full.With()
	require.NoError(t, err)
	basetest.RequireClose(t, basetest.Evaluate(t, alone, ids, labels).Logits, basetest.Evaluate(t, full, ids, labels).Logits, 1e-6, "untrained")
	count := full.TrainableParameters()
	require.Equal(t, count.All, count.Trainable)

	pm, err := peft.GetPeftModel(base, lora.LoraConfig{R: 3, LoraAlpha: 6, TargetModules: peft.AllLinear})
	require.NoError(t, err)
	values, err := pm.TensorValues(peft.DefaultAdapter)
	require.NoError(t, err)
	g, gLora := basetest.Evaluate(t, full, ids, labels).Gradients, basetest.Evaluate(t, pm, ids, labels).Gradients
	require.Len(t, g, len(base.Parameters()))
	for _, m := range base.Modules() {
		got, ok := gLora[m.Path+".lora_B.weight"]
		if !ok {
			continue
		}
		a, weight := values[m.Path+".lora_A.weight"], g[m.Weight()]
		want := make([]float32, m.Out*3)
		for o := range m.Out {
			for r := range 3 {
				for i := range m.In {
					want[o*3+r] += 2 * weight[o*m.In+i] * a[r*m.In+i]
				}
			}
		}
		basetest.RequireClose(t, want, got, 1e-5, m.Path)
	}
	for name, values := range g {
		require.False(t, allZero(values), "no gradient reaches %s", name)
	}
}

func allZero(values []float32) bool {
	for _, v := range values {
		if v != 0 {
			return false
		}
	}
	return true
}

func TestFullTargets(t *testing.T) {
	base := family(t, "llama")
	pm, err := peft.GetPeftModel(base, peft.Full{TargetModules: peft.Modules("lm_head", "model.norm"), ExcludeModules: peft.Modules("norm")})
	require.ErrorContains(t, err, `target module "model.norm" matches 1 modules, but exclude_modules`)
	require.Nil(t, pm)
	pm, err = peft.GetPeftModel(base, peft.Full{TargetModules: peft.Modules("lm_head", "norm")})
	require.NoError(t, err)
	layout, err := pm.Layout(peft.DefaultAdapter)
	require.NoError(t, err)
	require.Len(t, layout.Params(), 2)
	for _, p := range layout.Params() {
		require.Equal(t, len(p.Shape) == 1, p.NoDecay, "%s %v", p.Name, p.Shape)
	}
	require.ErrorContains(t, pm.SavePretrained(t.TempDir()), "use Merge to write a checkpoint")
	_, err = peft.GetPeftModel(base, peft.Full{TargetModules: peft.Modules("lm_haed")})
	require.EqualError(t, err, `peft: full fine-tuning: target module "lm_haed" matches nothing; did you mean "lm_head"?`)
	plan, err := peft.DryRun(base, peft.Full{})
	require.NoError(t, err)
	require.Equal(t, plan.Count.All, plan.Count.Trainable)
}
