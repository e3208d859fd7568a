package train_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend"
	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/internal/geometry"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/prefixtuning"
	"github.com/gopeft/gopeft/quant"
	"github.com/gopeft/gopeft/train"
)

const gib = 1 << 30

func blueprint(t testing.TB, config string, scheme quant.Scheme) *models.Blueprint {
	t.Helper()
	data, err := geometry.Read(context.Background(), config)
	require.NoError(t, err)
	b, err := models.NewBlueprint(data, models.Options{Quantization: scheme})
	require.NoError(t, err)
	return b
}

var (
	queryValue = lora.LoraConfig{R: 8, TargetModules: peft.Modules("q_proj", "v_proj")}
	allLinear  = lora.LoraConfig{R: 16, TargetModules: peft.AllLinear}
)

// measured are figures of compiled programs on one H200, inputs and temporaries together,
// of examples/benchmark: docs/benchmarks.md.
var measured = []struct {
	config     string
	quant      quant.Scheme
	method     peft.Config
	length     int
	checkpoint bool
	gib        float64
}{
	{"llama-2-7b", nil, queryValue, 512, false, 18.42},
	{"llama-2-7b", nil, allLinear, 512, false, 18.85},
	{"llama-2-7b", nil, allLinear, 2048, true, 16.3},
	{"llama-2-7b", quant.NF4{DoubleQuant: true}, queryValue, 512, false, 9.53},
	{"llama-2-7b", quant.NF4{DoubleQuant: true}, lora.LoraConfig{R: 8, LoraDropout: 0.1, TargetModules: peft.Modules("q_proj", "v_proj")}, 512, false, 9.55},
	{"llama-2-7b", quant.NF4{DoubleQuant: true}, queryValue, 512, true, 4.76},
	{"llama-2-7b", quant.NF4{DoubleQuant: true}, allLinear, 512, false, 9.89},
	{"llama-2-7b", quant.NF4{DoubleQuant: true}, allLinear, 2048, true, 7.64},
}

// The plan is within a tenth of what was measured.
func TestMemoryPlanMeasured(t *testing.T) {
	for _, c := range measured {
		rows := 4
		name := fmt.Sprintf("%s %T %s 4x%d checkpoint=%v", c.config, c.quant, c.method.PeftType(), c.length, c.checkpoint)
		p, err := train.PlanMemory(blueprint(t, c.config, c.quant), c.method, train.MemoryOptions{
			Batch: rows, Length: c.length, GradientCheckpointing: c.checkpoint,
		})
		require.NoError(t, err, name)
		planned := float64(p.Program()) / gib
		t.Logf("%s: planned %.2f + %.2f = %.2f GiB, measured %.2f: %+.1f %%", name,
			float64(p.Inputs())/gib, float64(p.Temporaries())/gib, planned, c.gib, 100*(planned/c.gib-1))
		require.InEpsilon(t, c.gib, planned, 0.1, name)
	}
}

// What the plan calls inputs are the compiled program's, to the byte but for the batch.
func TestMemoryPlanInputs(t *testing.T) {
	b := backendtest.Open(t)
	if !backend.IsXLA(b) {
		t.Skip("only XLA analyses its programs: set GOPEFT_TEST_BACKEND")
	}
	config := `{"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2,
		"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu",
		"rope_theta": 10000.0, "tie_word_embeddings": false}`
	saved := queryValue
	saved.ModulesToSave = []string{"lm_head"}
	for name, c := range map[string]struct {
		scheme quant.Scheme
		method peft.Config
		below  peft.Config // frozen
	}{
		"LoRA":                {nil, queryValue, nil},
		"LoRA, lm_head saved": {nil, saved, nil},
		"QLoRA":               {quant.NF4{DoubleQuant: true}, allLinear, nil},
		"LoRA on a prefix":    {nil, queryValue, prefixtuning.PrefixTuningConfig{NumVirtualTokens: 3}},
		"LoRA on LoRA":        {quant.NF4{}, queryValue, allLinear},
		"full":                {nil, peft.Full{}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			model, err := models.New(context.Background(), []byte(config), 1, models.Options{On: b, Quantization: c.scheme, DType: dtypes.Float32})
			require.NoError(t, err)
			defer model.Close()
			pm, err := peft.GetPeftModel(model, c.method)
			require.NoError(t, err)
			if c.below != nil {
				require.NoError(t, pm.AddAdapter(c.below, peft.Options{Name: "below"}))
				pm, err = pm.With("below", peft.DefaultAdapter)
				require.NoError(t, err)
				pm, err = pm.Training(peft.DefaultAdapter)
				require.NoError(t, err)
			}
			ids := []int32{1, 2, 3, 4, 5, 6, 7, 8}
			data, err := train.NewDataset([]train.Example{{IDs: ids, Labels: ids}, {IDs: ids, Labels: ids}})
			require.NoError(t, err)
			dir := t.TempDir()
			var shown strings.Builder
			trainer, err := train.NewTrainer(pm, data, train.Arguments{
				OutputDir: dir, MaxSteps: 1, PerDeviceTrainBatchSize: 2, SaveStrategy: train.SaveNo, Progress: &shown,
			})
			require.NoError(t, err)
			defer trainer.Close()
			_, err = trainer.ProgramMemory()
			require.ErrorContains(t, err, "nothing is compiled yet")
			_, err = trainer.Train(context.Background())
			require.NoError(t, err)
			compiled, err := trainer.ProgramMemory()
			require.NoError(t, err)
			plan, err := trainer.MemoryPlan()
			require.NoError(t, err)
			const tokens, scalars = 2 * 2 * 8 * 4, 2 * 4 * 4 // ids and targets; AdamW's and dropout's numbers
			require.Equal(t, c.below != nil, plan.Frozen > 0)
			require.Equal(t, plan.Inputs()+tokens+scalars, compiled.Inputs)
			require.InDelta(t, plan.Results, compiled.Results, 256, "results") // and the loss; XLA adds a table of pointers
			require.Contains(t, shown.String(), "device memory of a step on 2 x 8 tokens: planned ")
			records, err := train.ReadLog(filepath.Join(dir, "log.jsonl"))
			require.NoError(t, err)
			require.Equal(t, plan.Total()-plan.Idle, records[0].PlannedMemoryBytes)
			require.Equal(t, compiled.Total(), records[0].DeviceMemoryBytes)
		})
	}
}

func TestMemoryPlanErrors(t *testing.T) {
	base := blueprint(t, "smollm2-135m", nil)
	_, err := train.PlanMemory(base, queryValue, train.MemoryOptions{Length: 8})
	require.EqualError(t, err, "train: memory plan: batch 0 x 8: want at least 1 row of 1 token")
	_, err = train.PlanMemory(base, lora.LoraConfig{R: 8, TargetModules: peft.Modules("q_porj")}, train.MemoryOptions{Batch: 1, Length: 8})
	require.ErrorContains(t, err, `did you mean "q_proj"?`)
	_, err = train.PlanMemory(basetest.Llama(8, 1, 2, 2, 4, 16, 32), queryValue, train.MemoryOptions{Batch: 1, Length: 8})
	require.EqualError(t, err, "train: memory plan: the base is no language model")
	config, err := os.ReadFile(filepath.Join(basetest.Fixtures, "encoders", "bert_masked", "config.json"))
	require.NoError(t, err)
	masked, err := models.NewBlueprint(config)
	require.NoError(t, err)
	_, err = train.PlanMemory(masked, lora.LoraConfig{R: 2}, train.MemoryOptions{Batch: 1, Length: 8})
	require.EqualError(t, err, "train: memory plan: bert is no causal language model, and only the causal loss can be planned")
}

// Every family's blocks are taken apart: each has norms, projections of attention and a
// feed-forward part, so that no activation is forgotten.
func TestMemoryPlanFamilies(t *testing.T) {
	dirs, err := filepath.Glob(filepath.Join(basetest.Fixtures, "families", "*", "config.json"))
	require.NoError(t, err)
	require.Greater(t, len(dirs), 20)
	for _, path := range dirs {
		config, err := os.ReadFile(path)
		require.NoError(t, err)
		b, err := models.NewBlueprint(config)
		require.NoError(t, err, path)
		o := train.MemoryOptions{Batch: 2, Length: 32}
		p, err := train.PlanMemory(b, allLinear, o)
		require.NoError(t, err, path)
		// The smallest block: two norms, queries, keys, values and their mean, one product.
		cache, hidden := b.CacheShape(), b.Config().HiddenSize
		least := 2 * 2 * 32 * cache.Layers * (2*hidden + 2*cache.KVHeads*cache.HeadDim + 2*hidden)
		require.Greater(t, p.Activations, int64(least), path)
		o.GradientCheckpointing = true
		recomputed, err := train.PlanMemory(b, allLinear, o)
		require.NoError(t, err)
		require.Less(t, recomputed.Activations, p.Activations, path)
		require.Greater(t, recomputed.Backward, p.Backward, path)
	}
}

func ExamplePlanMemory() {
	config, err := geometry.Read(context.Background(), "llama-2-7b") // config.json of any model
	if err != nil {
		panic(err)
	}
	base, err := models.NewBlueprint(config, models.Options{Quantization: quant.NF4{DoubleQuant: true}})
	if err != nil {
		panic(err)
	}
	plan, err := train.PlanMemory(base, lora.LoraConfig{R: 16, TargetModules: peft.AllLinear}, train.MemoryOptions{
		Batch: 4, Length: 2048, GradientCheckpointing: true,
	})
	if err != nil {
		panic(err)
	}
	fmt.Print(plan)
	// Output:
	// memory of a step on 4 x 2048 tokens, GiB      planned
	//   weights                                        3.50
	//   quantisation statistics                        0.10
	//   trained values                                 0.15
	//   moments                                        0.30
	// inputs                                           4.05
	//   activations kept                               2.12
	//   gradients                                      0.15
	//   a block's backward pass                        1.41
	//   dequantised weights                            0.17
	//   (logits of a chunk, at another time)           0.12
	// temporaries                                      3.85
	// program                                          7.89
	//   results of the step                            0.45
	// device                                           8.34
}
