package peft_test

import (
	"testing"

	"github.com/gomlx/compute/shapes"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/adapters"
	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// Methods that change inputs and outputs, or rows of embeddings, do on wrapped models what
// they do to weights: the merged model computes the same. Shared embeddings stay shared.
func TestWrappedRotationsAndRows(t *testing.T) {
	for _, m := range foreignModels {
		t.Run(m.name, func(t *testing.T) {
			backendtest.Sample(t, 5)
			base := wrap(t, m.fn, m.input)
			var linear, embeddings []string
			for _, module := range base.Modules() {
				switch {
				case module.Kind == site.Linear && module.TiedTo == "":
					linear = append(linear, module.Path)
				case module.Kind == site.Embedding:
					embeddings = append(embeddings, module.Path)
				}
			}
			configs := []peft.Config{
				lora.OftConfig{R: 1, TargetModules: peft.Modules(linear...), UseCayleyNeumann: lora.Off},
				lora.BoftConfig{BoftBlockNum: 1, TargetModules: peft.Modules(linear...)},
			}
			if len(embeddings) > 0 {
				configs = append(configs, adapters.TrainableTokensConfig{TokenIndices: []int{3, 0, 7, 1}, TargetModules: peft.Modules(embeddings[0])})
			}
			input := example(m, 11)
			before := run(t, base, nil, input)
			for _, config := range configs {
				pm, err := peft.GetPeftModel(base, config)
				require.NoError(t, err)
				require.Less(t, distance(t, before, run(t, base, pm, input)), 1e-6, "%s: a fresh adapter", config.PeftType())
				perturb(t, pm)
				got := run(t, base, pm, input)
				require.Greater(t, distance(t, before, got), 1e-3, config.PeftType())
				store, _, err := base.Merged(pm)
				require.NoError(t, err)
				merged, err := peft.WrapModel(base.Backend(), store, m.fn, []shapes.Shape{m.input})
				require.NoError(t, err)
				require.Less(t, distance(t, run(t, merged, nil, input), got), 1e-5, config.PeftType())
				merged.Close()
			}
		})
	}
}
