package train_test

import (
	"context"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend"
	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/quant"
	"github.com/gopeft/gopeft/train"
)

// With dropout each adapted linear has an input of its own. On CUDA it is made again, with
// the norm or activation function before it; what attention gives is not.
func TestMemoryPlanDropout(t *testing.T) {
	with := func(rate float64, targets ...string) peft.Config {
		return lora.LoraConfig{R: 8, TargetModules: peft.Modules(targets...), LoraDropout: rate}
	}
	for _, c := range []struct {
		scheme quant.Scheme
		method peft.Config
		drop   peft.Config
		gib    float64
	}{
		{nil, with(0, "q_proj", "v_proj"), with(0.05, "q_proj", "v_proj"), 0},
		{nil, with(0, "o_proj", "v_proj"), with(0.05, "o_proj", "v_proj"), 0.5},
		{quant.NF4{DoubleQuant: true}, with(0, "o_proj", "down_proj"), with(0.05, "o_proj", "down_proj"), 0.5},
		{nil, lora.AdaLoraConfig{InitR: 8, TargetR: 4, TotalStep: 9, TargetModules: peft.Modules("o_proj")}, lora.AdaLoraConfig{InitR: 8, TargetR: 4, TotalStep: 9, LoraDropout: 0.05, TargetModules: peft.Modules("o_proj")}, 0.5},
		{nil, lora.MissConfig{R: 8, TargetModules: peft.Modules("o_proj")}, lora.MissConfig{R: 8, TargetModules: peft.Modules("o_proj"), MissDropout: 0.05}, 0},
	} {
		base := blueprint(t, "llama-2-7b", c.scheme)
		o := train.MemoryOptions{Batch: 4, Length: 512}
		without, err := train.PlanMemory(base, c.method, o)
		require.NoError(t, err)
		with, err := train.PlanMemory(base, c.drop, o)
		require.NoError(t, err)
		require.InDelta(t, c.gib, float64(with.Program()-without.Program())/gib, 1e-6)
	}
}

// What dropout adds to a compiled program on XLA:CPU is about what the plan says.
func TestMemoryPlanDropoutCompiled(t *testing.T) {
	b := backendtest.Open(t)
	if !backend.IsXLA(b) {
		t.Skip("only XLA analyses its programs: set GOPEFT_TEST_BACKEND")
	}
	const config = `{"model_type": "llama", "vocab_size": 64, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
		"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "hidden_act": "silu",
		"rope_theta": 10000.0, "tie_word_embeddings": false}`
	ids := make([]int32, 128)
	for i := range ids {
		ids[i] = int32(i % 60)
	}
	example := train.Example{IDs: ids, Labels: ids}
	data, err := train.NewDataset([]train.Example{example, example, example, example})
	require.NoError(t, err)
	for name, scheme := range map[string]quant.Scheme{"full": nil, "nf4": quant.NF4{DoubleQuant: true}} {
		t.Run(name, func(t *testing.T) {
			model, err := models.New(context.Background(), []byte(config), 1, models.Options{On: b, Quantization: scheme, DType: dtypes.Float32})
			require.NoError(t, err)
			defer model.Close()
			var compiled, planned [2]float64
			for i, rate := range []float64{0, 0.05} {
				pm, err := peft.GetPeftModel(model, lora.LoraConfig{R: 8, TargetModules: peft.AllLinear, LoraDropout: rate})
				require.NoError(t, err)
				trainer, err := train.NewTrainer(pm, data, train.Arguments{
					OutputDir: t.TempDir(), MaxSteps: 1, PerDeviceTrainBatchSize: 4, SaveStrategy: train.SaveNo, Quiet: true,
				})
				require.NoError(t, err)
				defer trainer.Close()
				_, err = trainer.Train(context.Background())
				require.NoError(t, err)
				memory, err := trainer.ProgramMemory()
				require.NoError(t, err)
				plan, err := trainer.MemoryPlan()
				require.NoError(t, err)
				compiled[i], planned[i] = float64(memory.Temporaries)/(1<<20), float64(plan.Temporaries())/(1<<20)
			}
			t.Logf("temporaries, MiB: planned %.1f and %.1f with dropout, compiled %.1f and %.1f", planned[0], planned[1], compiled[0], compiled[1])
			require.InEpsilon(t, planned[1]-planned[0], compiled[1]-compiled[0], 0.4)
		})
	}
}
