package peft_test

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
)

// What a caller does to a configuration afterwards changes nothing in the model.
func TestConfigIsCopied(t *testing.T) {
	for name, pointer := range map[string]bool{"value": false, "pointer": true} {
		t.Run(name, func(t *testing.T) { testConfigIsCopied(t, pointer) })
	}
}

func testConfigIsCopied(t *testing.T, pointer bool) {
	config := lora.LoraConfig{
		R: 2, TargetModules: peft.Modules("q_proj", "v_proj"), ModulesToSave: peft.Strings{"lm_head"},
		TrainableTokenIndices: peft.TokenIndices{Modules: map[string][]int{"embed_tokens": {1, 2}}},
		RankPattern:           peft.Patterns{{Pattern: "q_proj", Value: 3}},
		PeftConfig:            peft.PeftConfig{Unknown: map[string]json.RawMessage{"note": []byte("1")}},
	}
	change := func(c lora.LoraConfig) {
		c.ModulesToSave[0] = "norm"
		c.TrainableTokenIndices.Modules["embed_tokens"][0] = 7
		c.TrainableTokenIndices.Modules["other"] = nil
		c.RankPattern[0].Value = 9
		c.Unknown["note"] = []byte("2")
	}
	var given peft.Config = config
	if pointer {
		given = &config
	}
	pm, err := peft.GetPeftModel(family(t, "llama"), given)
	require.NoError(t, err)
	text := func() string {
		c, err := pm.Config(peft.DefaultAdapter)
		require.NoError(t, err)
		data, err := json.Marshal(c)
		require.NoError(t, err)
		note := c.Common().Unknown["note"]
		change(c.(lora.LoraConfig)) // of the copy that was returned
		return string(data) + string(note)
	}
	before := text()
	change(config)
	require.Equal(t, before, text())
	require.Contains(t, before, `"lm_head"`)
}
