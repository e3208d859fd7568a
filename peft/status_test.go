package peft_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
)

// The status of layers and of the model follows what is there and what the view selects
// (peft.md 8.56, 8.60).
func TestStatus(t *testing.T) {
	base := family(t, "llama")
	pm := attach(t, base, lora.LoraConfig{R: 2, LoraAlpha: 4, TargetModules: peft.Modules("layers.0.self_attn.q_proj", "lm_head")})
	require.NoError(t, pm.AddAdapter(lora.LoraConfig{R: 3, TargetModules: peft.Modules("layers.0.self_attn.q_proj"), ModulesToSave: peft.Strings{"model.norm"}}, peft.Options{Name: "b", MaxRank: 4}))
	require.NoError(t, pm.AddAdapter(peft.Full{TargetModules: peft.Modules("lm_head")}, peft.Options{Name: "head"}))
	view, err := selected(t, pm, "default", "b").Training("b")
	require.NoError(t, err)
	require.Equal(t, `module                           kind    adapter  method  state    settings
model.layers.0.self_attn.q_proj  linear  default  LORA    active   r 2, alpha 4, scaling 2
model.layers.0.self_attn.q_proj  linear  b        LORA    trained  r 3, alpha 8, scaling 2.66667
model.norm                       norm    b        LORA    trained
lm_head                          linear  default  LORA    active   r 2, alpha 4, scaling 2
lm_head                          linear  head     FULL    idle`, view.LayerStatus().String())
	s := view.ModelStatus()
	require.Equal(t, []string{"default", "b"}, s.Active)
	require.Equal(t, []string{"b"}, s.Trained)
	require.Equal(t, 3, s.Layers)
	require.Equal(t, view.TrainableParameters(), s.Count)
	require.EqualValues(t, 224, s.Count.Trainable)
	require.Equal(t, []peft.AdapterStatus{
		{Name: "default", Method: "LORA", Layers: 2, Parameters: 2*64 + 2*96, Active: true},
		{Name: "b", Method: "LORA", Layers: 2, Parameters: 3*64 + 32, MaxRank: 4, Active: true, Trained: true},
		{Name: "head", Method: "FULL", Layers: 1, Parameters: 64 * 32},
	}, s.Adapters)
	s.BaseModelNameOrPath = "tiny"
	require.Equal(t, `base llama from tiny, 3 adapted modules
adapter  method  state    modules  parameters
default  LORA    active   2        320
b        LORA    trained  2        224
head     FULL    idle     1        2,048
`+s.Count.String(), s.String())

	// Names are the view's, also for what was renamed or deleted.
	none := selected(t, pm)
	require.NoError(t, none.RenameAdapter("default", "first"))
	require.NoError(t, none.DeleteAdapter("b"))
	require.Equal(t, "default", view.ModelStatus().Adapters[0].Name)
	require.Equal(t, "b", view.ModelStatus().Adapters[2].Name)
	require.Equal(t, "first", none.ModelStatus().Adapters[0].Name)
	require.Len(t, none.ModelStatus().Adapters, 2)
	for _, l := range none.LayerStatus() {
		for _, a := range l.Adapters {
			require.False(t, a.Active || a.Trained)
		}
	}
	require.NoError(t, none.DeleteAdapter("first"))
	require.NoError(t, none.DeleteAdapter("head"))
	require.Empty(t, none.LayerStatus())
	require.Zero(t, none.ModelStatus().Layers)
}
