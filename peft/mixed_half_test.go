package peft_test

import (
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
)

// In half precision, too, rows and padded ranks give what adapters alone and with their own
// ranks give.
func TestMixedHalfPrecision(t *testing.T) {
	base, err := models.Load(t.Context(), basetest.Fixtures+"/families/smollm2", models.Options{On: backendtest.Open(t), DType: dtypes.BFloat16})
	require.NoError(t, err)
	defer base.Close()
	config := lora.LoraConfig{R: 3, LoraAlpha: 5, InitLoraWeights: lora.InitRandom, TargetModules: peft.Modules("q_proj", "up_proj", "embed_tokens")}
	pm := attach(t, base, config, peft.Options{Name: "a", MaxRank: 8})
	require.NoError(t, pm.AddAdapter(config, peft.Options{Name: "own", Seed: 1}))
	require.NoError(t, pm.AddAdapter(config, peft.Options{Name: "b", Seed: 1, MaxRank: 8}))
	want := map[string][]float32{}
	for _, name := range pm.Adapters() {
		want[name] = logitsOf(t, base, selected(t, pm, name), fourRows)
	}
	want[peft.BaseModel] = logitsOf(t, base, base, fourRows)
	basetest.RequireClose(t, want["own"], want["b"], 2e-2, "padded")
	require.NotEqual(t, want["a"], want["b"])
	rows := []string{"b", peft.BaseModel, "a", "own"}
	view, err := pm.Mixed(rows...)
	require.NoError(t, err)
	got := logitsOf(t, base, view, fourRows)
	each := len(got) / len(rows)
	for i, name := range rows {
		// 2^-8 is bfloat16's rounding; the layers add some of them up.
		basetest.RequireClose(t, want[name][i*each:(i+1)*each], got[i*each:(i+1)*each], 2e-2, name)
	}
}
