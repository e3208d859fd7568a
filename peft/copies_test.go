package peft_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/adapters"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
)

// A module that is trained as a whole is never adapted, nor is anything inside it; a
// name that finds nothing is an error (peft.md 8.10, 8.44).
func TestModulesToSave(t *testing.T) {
	base := family(t, "llama")
	pm, err := peft.GetPeftModel(base, lora.LoraConfig{R: 2, TargetModules: peft.AllLinear, ModulesToSave: peft.Strings{"lm_head", "layers.1.mlp"}})
	require.NoError(t, err)
	layout, err := pm.Layout(peft.DefaultAdapter)
	require.NoError(t, err)
	names := map[string]bool{}
	for _, p := range layout.Params() {
		names[p.Name] = true
	}
	for _, name := range []string{"lm_head.weight", "model.layers.1.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.lora_A.weight"} {
		require.True(t, names[name], name)
	}
	for _, name := range []string{"lm_head.lora_A.weight", "model.layers.1.mlp.up_proj.lora_A.weight", "model.layers.0.mlp.up_proj.weight"} {
		require.False(t, names[name], name)
	}
	for _, c := range []struct {
		config lora.LoraConfig
		want   string
	}{
		{lora.LoraConfig{R: 2, ModulesToSave: peft.Strings{"lm_haed"}}, `modules_to_save: "lm_haed" matches nothing; did you mean "lm_head"?`},
		{lora.LoraConfig{R: 2, TargetModules: peft.Modules("down_proj"), ModulesToSave: peft.Strings{"mlp"}}, `"down_proj" matches 2 modules, but`},
		{lora.LoraConfig{R: 2, PeftConfig: peft.PeftConfig{TaskType: "SEQ_CLS"}}, "modules_to_save: the base has none of classifier, score"},
		{lora.LoraConfig{R: 2, PeftConfig: peft.PeftConfig{TaskType: "CAUSAL"}}, `invalid task_type "CAUSAL", want one of SEQ_CLS, SEQ_2_SEQ_LM, CAUSAL_LM`}, // 8.3
	} {
		_, err := peft.GetPeftModel(base, c.config)
		require.ErrorContains(t, err, c.want)
	}
}

// Of several adapters of a classifier one has the head; the others leave it alone.
func TestTogetherOnAClassifier(t *testing.T) {
	base, err := models.LoadClassifier(t.Context(), "../internal/golden/testdata/encoders/bert_sequence", models.ClassifierOptions{Options: models.Options{Backend: "go"}})
	require.NoError(t, err)
	defer base.Close()
	config := lora.LoraConfig{R: 2, TargetModules: peft.Modules("query")}
	pm, err := peft.GetPeftModel(base, config, peft.Options{Name: "task"})
	require.NoError(t, err)
	require.NoError(t, pm.AddAdapter(adapters.Pfeiffer(), peft.Options{Name: "too"}))
	_, err = pm.With("task", "too")
	require.ErrorContains(t, err, `adapters "task" and "too" both replace "classifier`)

	domain := adapters.Pfeiffer()
	domain.TaskType = "FEATURE_EXTRACTION"
	require.NoError(t, pm.AddAdapter(domain, peft.Options{Name: "domain"}))
	both, err := pm.With("domain", "task")
	require.NoError(t, err)
	require.Equal(t, []string{"domain", "task"}, both.Active())
}
