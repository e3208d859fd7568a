package adapters_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/adapters"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/train"
)

// Training changes the named rows and vectors only: after steps with weight decay every
// other value of the merged model is the base's to the bit (peft.md 8, item 30).
func TestOnlyWhatIsNamedMoves(t *testing.T) {
	rows := []int{40, 5, 9, 62}
	for name, c := range map[string]struct {
		config peft.Config
		// moves reports whether element i of a parameter may move.
		moves func(name string, i int) bool
	}{
		"trainable tokens": {adapters.TrainableTokensConfig{TokenIndices: rows}, func(name string, i int) bool {
			return name == "model.embed_tokens.weight" && slices.Contains(rows, i/32)
		}},
		"ln tuning": {adapters.LNTuningConfig{TargetModules: peft.Modules("post_attention_layernorm")}, func(name string, _ int) bool {
			return strings.HasSuffix(name, ".post_attention_layernorm.weight")
		}},
		"ia3": {adapters.IA3Config{TargetModules: peft.Modules("k_proj", "down_proj")}, func(name string, _ int) bool {
			return strings.HasSuffix(name, ".k_proj.weight") || strings.HasSuffix(name, ".down_proj.weight")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			base := family(t, "llama_tied")
			pm, err := peft.GetPeftModel(base, c.config)
			require.NoError(t, err)
			data, err := train.NewDataset([]train.Example{
				{IDs: []int32{5, 9, 17, 33, 5, 40, 9, 12}, Labels: []int32{5, 9, 17, 33, 5, 40, 9, 12}},
				{IDs: []int32{7, 5, 60, 61, 9, 17, 3, 4}, Labels: []int32{7, 5, 60, 61, 9, 17, 3, 4}},
			})
			require.NoError(t, err)
			trainer, err := train.NewTrainer(pm, data, train.Arguments{
				OutputDir: t.TempDir(), MaxSteps: 4, PerDeviceTrainBatchSize: 2, LearningRate: 1e-2, WeightDecay: 0.1, SaveStrategy: train.SaveNo, Quiet: true,
			})
			require.NoError(t, err)
			defer trainer.Close()
			_, err = trainer.Train(t.Context())
			require.NoError(t, err)
			dir := t.TempDir()
			_, err = pm.Merge(t.Context(), dir)
			require.NoError(t, err)
			merged := basetest.Load(t, dir)
			moved := 0
			for _, p := range base.Parameters() {
				was, is := parameter(t, base, p.Name), parameter(t, merged, p.Name)
				for i := range was {
					if was[i] != is[i] {
						require.True(t, c.moves(p.Name, i), "%s[%d] moved", p.Name, i)
						moved++
					}
				}
			}
			require.Greater(t, moved, 30)
		})
	}
}
