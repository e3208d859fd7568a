package parity

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	_ "github.com/gopeft/gopeft/adapters"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/internal/safetensors"
	_ "github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	_ "github.com/gopeft/gopeft/prefixtuning"
	"github.com/gopeft/gopeft/train"
)

const fixtures = "../golden/testdata"

// ownCases are adapters beside those of the fixtures: other initialisations, a
// dropout, and bases stored in other dtypes or several files.
var ownCases = []struct{ name, family, options string }{
	{"gaussian", "llama_bias", `{"r": 4, "lora_alpha": 8, "init_lora_weights": "gaussian", "target_modules": "all-linear"}`},
	{"dropout", "llama3_rope", `{"r": 2, "lora_dropout": 0.1, "use_rslora": true, "target_modules": ["down_proj", "v_proj"]}`},
	{"sharded", "llama_sharded", `{"r": 4, "lora_alpha": 16, "target_modules": "all-linear"}`},
	{"bfloat16", "smollm2", `{"r": 4, "lora_alpha": 16, "target_modules": "all-linear"}`},
	{"float16", "llama_f16", `{"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "gate_proj"]}`},
	{"dora", "llama", `{"r": 4, "use_dora": true, "lora_dropout": 0.1, "target_modules": "all-linear"}`},
	{"dora_embedding", "llama", `{"r": 4, "use_dora": true, "use_rslora": true, "target_modules": ["embed_tokens", "q_proj"]}`},
	{"dora_transposed", "gpt2", `{"r": 4, "use_dora": true, "target_modules": ["c_attn", "c_proj"]}`},
	{"bias_all", "qwen2", `{"r": 4, "bias": "all", "target_modules": ["q_proj", "up_proj"]}`},
	{"bias_lora_only", "llama_bias", `{"r": 4, "bias": "lora_only", "target_modules": ["q_proj", "up_proj"]}`},
	{"lora_bias", "llama_bias", `{"r": 4, "lora_bias": true, "target_modules": ["q_proj", "down_proj"]}`},
	{"pissa", "llama", `{"r": 4, "init_lora_weights": "pissa", "lora_dropout": 0.1, "target_modules": "all-linear", "rank_pattern": {"up_proj": 2}}`},
	{"pissa_dora", "llama", `{"r": 2, "init_lora_weights": "pissa_niter_4", "use_dora": true, "target_modules": ["q_proj", "up_proj"]}`},
	{"pissa_embedding", "llama", `{"r": 2, "init_lora_weights": "pissa", "use_rslora": true, "target_modules": ["embed_tokens", "o_proj"]}`},
	{"olora", "gpt2", `{"r": 2, "init_lora_weights": "olora", "use_rslora": true, "target_modules": ["c_fc"]}`},
	{"loftq", "llama", `{"r": 2, "init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 2}, "target_modules": ["q_proj"]}`},
	{"orthogonal", "llama", `{"r": 2, "init_lora_weights": "orthogonal", "target_modules": ["q_proj"]}`},
	{"float64", "llama_f64", `{"r": 4, "lora_alpha": 16, "target_modules": ["k_proj", "up_proj"]}`},
}

// methods are adapters of other methods: options are those of the method's configuration in
// Python, its peft_type included.
var methods = []struct{ name, family, options string }{
	{"miss", "llama", `{"peft_type": "MISS", "r": 6, "miss_dropout": 0.1, "target_modules": "all-linear"}`},
	{"miss_bat", "llama_bias", `{"peft_type": "MISS", "r": 8, "init_weights": "bat", "target_modules": ["q_proj", "down_proj"]}`},
	{"miss_biases", "llama_bias", `{"peft_type": "MISS", "r": 4, "bias": "MiSS_only", "target_modules": ["q_proj", "down_proj"]}`},
	{"miss_mini", "llama", `{"peft_type": "MISS", "r": 4, "mini_r": 8, "init_weights": "mini", "target_modules": ["q_proj", "v_proj"]}`},
	{"adalora", "llama", `{"peft_type": "ADALORA", "init_r": 4, "target_r": 1, "total_step": 8, "tinit": 1, "tfinal": 2, "target_modules": "all-linear"}`},
	{"adalora_unpruned", "llama_bias", `{"peft_type": "ADALORA", "init_r": 4, "total_step": 90, "tinit": 30, "target_r": 2, "lora_dropout": 0.1, "target_modules": ["q_proj", "down_proj"]}`},
	{"loha", "llama", `{"peft_type": "LOHA", "r": 3, "alpha": 4, "rank_dropout": 0.1, "target_modules": "all-linear", "rank_pattern": {"down_proj": 5}}`},
	{"lokr", "llama_bias", `{"peft_type": "LOKR", "r": 2, "module_dropout": 0.1, "target_modules": ["q_proj", "up_proj"]}`},
	{"lokr_both", "llama", `{"peft_type": "LOKR", "r": 1, "decompose_both": true, "decompose_factor": 4, "init_weights": "lycoris", "target_modules": "all-linear"}`},
	{"ia3", "llama", `{"peft_type": "IA3"}`},
	{"ia3_biases", "qwen2", `{"peft_type": "IA3", "target_modules": ["q_proj", "v_proj", "up_proj"], "feedforward_modules": ["up_proj"]}`},
	{"ia3_transposed", "gpt2", `{"peft_type": "IA3"}`},
	{"ia3_all_linear", "llama_bias", `{"peft_type": "IA3", "target_modules": "all-linear", "feedforward_modules": ["o_proj"]}`},
	{"ia3_part", "llama", `{"peft_type": "IA3", "target_modules": ["q_proj"]}`},
	{"ia3_saved", "llama_tied", `{"peft_type": "IA3", "target_modules": ".*(k|down)_proj", "modules_to_save": ["norm"]}`},
	{"ln_tuning", "gemma2", `{"peft_type": "LN_TUNING"}`},
	{"ln_tuning_saved", "llama", `{"peft_type": "LN_TUNING", "target_modules": ["norm"], "modules_to_save": ["lm_head"]}`},
	{"tokens", "llama_tied", `{"peft_type": "TRAINABLE_TOKENS", "token_indices": [40, 5, 9, 17, 30, 33, 62, 3]}`},
	{"tokens_both", "llama", `{"peft_type": "TRAINABLE_TOKENS", "token_indices": [40, 5, 9, 17], "target_modules": ["embed_tokens", "lm_head"]}`},
	{"lora_tokens", "llama_tied", `{"r": 2, "target_modules": ["q_proj"], "trainable_token_indices": [40, 5, 9, 17]}`},
	{"lora_tokens_names", "llama", `{"r": 2, "target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [7, 5], "embed_tokens": [40, 5, 9]}}`},
	{"oft", "llama", `{"peft_type": "OFT", "oft_block_size": 8, "target_modules": "all-linear"}`},
	{"oft_exact", "llama_bias", `{"peft_type": "OFT", "oft_block_size": 0, "r": 2, "use_cayley_neumann": false, "bias": "oft_only", "block_share": true}`},
	{"oft_constrained", "llama", `{"peft_type": "OFT", "oft_block_size": 16, "coft": true, "eps": 0.05, "module_dropout": 0.1}`},
	{"boft", "llama", `{"peft_type": "BOFT", "boft_dropout": 0.1, "target_modules": "all-linear"}`},
	{"boft_number", "llama_bias", `{"peft_type": "BOFT", "boft_block_size": 0, "boft_block_num": 2, "bias": "all", "target_modules": ["q_proj", "down_proj"]}`},
	{"prefix", "qwen2", `{"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4}`},
	{"prefix_projection", "llama", `{"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4, "prefix_projection": true, "encoder_hidden_size": 24}`},
	{"prefix_saved", "gpt2", `{"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4, "init_weights": "zero", "modules_to_save": ["ln_f"]}`},
	{"prompt", "gemma2", `{"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4, "prompt_tuning_init": "SAMPLE_VOCAB"}`},
	{"p_tuning", "llama", `{"peft_type": "P_TUNING", "num_virtual_tokens": 4, "encoder_hidden_size": 16}`},
	{"p_tuning_lstm", "qwen3", `{"peft_type": "P_TUNING", "num_virtual_tokens": 4, "encoder_reparameterization_type": "LSTM", "encoder_num_layers": 2, "encoder_dropout": 0.1}`},
	{"multitask", "llama_bias", `{"peft_type": "MULTITASK_PROMPT_TUNING", "num_virtual_tokens": 4, "num_ranks": 2}`},
	{"vera", "llama_tied", `{"peft_type": "VERA", "r": 16, "vera_dropout": 0.1, "projection_prng_key": 7, "target_modules": "all-linear"}`},
}

// TestGoAdapters: what is trained, saved and merged here means the same in Python.
// Every configuration of the fixtures is attached anew and trained for some steps.
func TestGoAdapters(t *testing.T) {
	python := need(t, envPython)
	var q questions
	// Not t.TempDir() of a subtest: Python reads the files after the subtests.
	out := t.TempDir()
	infos, err := filepath.Glob(filepath.Join(fixtures, "lora", "*", "info.json"))
	require.NoError(t, err)
	require.Greater(t, len(infos), 20)
	for _, path := range infos {
		var info struct {
			Model   string
			Options json.RawMessage
		}
		readJSON(t, path, &info)
		name := filepath.Base(filepath.Dir(path))
		t.Run(name, func(t *testing.T) { makeAdapter(t, &q, filepath.Join(out, name), info.Model, info.Options) })
	}
	for _, c := range append(ownCases, methods...) {
		t.Run(c.name, func(t *testing.T) { makeAdapter(t, &q, filepath.Join(out, c.name), c.family, []byte(c.options)) })
	}
	if !t.Failed() {
		q.answer(t, python)
	}
}

// makeAdapter trains, saves and merges an adapter of a tiny model and asks Python about
// it. options are those of Python's LoraConfig.
func makeAdapter(t *testing.T, q *questions, out, family string, options []byte) {
	folder, err := filepath.Abs(filepath.Join(fixtures, "families", family))
	require.NoError(t, err)
	adapter, merged := filepath.Join(out, "adapter"), filepath.Join(out, "merged")
	answer, mergedAnswer := filepath.Join(out, "answer.safetensors"), filepath.Join(out, "merged.safetensors")
	require.NoError(t, os.MkdirAll(out, 0o777))
	base := basetest.Load(t, folder)
	pm, err := peft.GetPeftModel(base, pythonConfig(t, options))
	require.NoError(t, err)
	ids := goldenIDs(t, folder)
	trainFew(t, pm, ids)
	logits := forward(t, pm, ids)
	require.NoError(t, pm.SavePretrained(adapter))
	writeAnswer(t, answer, ids, logits)
	q.ask(t, "check_adapter", folder, adapter, answer)

	if pm.VirtualTokens() > 0 { // which are nothing that could be merged
		return
	}
	_, err = pm.MergeAndUnload(t.Context(), merged)
	require.NoError(t, err)
	// Merged weights that are stored in half precision are rounded, so they do not give the
	// adapter's own logits but those that the merged folder has here.
	if stored := storedDType(t, base); stored == "bfloat16" || stored == "float16" {
		logits = forward(t, basetest.Load(t, merged), ids)
	}
	writeAnswer(t, mergedAnswer, ids, logits)
	q.ask(t, "check_merged", merged, mergedAnswer, "--base", folder)
}

func storedDType(t *testing.T, base *models.Model) string {
	var config struct {
		DType string
	}
	require.NoError(t, json.Unmarshal(base.Config().JSON, &config))
	return config.DType
}

// pythonConfig reads the options of Python's LoraConfig, or of the peft_type that they name.
func pythonConfig(t *testing.T, options []byte) peft.Config {
	t.Helper()
	fields := map[string]json.RawMessage{}
	require.NoError(t, json.Unmarshal(options, &fields))
	if fields["peft_type"] == nil {
		fields["peft_type"] = []byte(`"LORA"`)
	}
	fields["task_type"] = []byte(`"CAUSAL_LM"`)
	data, err := json.Marshal(fields)
	require.NoError(t, err)
	config, err := peft.DecodeConfig(data)
	require.NoError(t, err)
	return config
}

// goldenIDs are the rows that a fixture's own logits are of.
func goldenIDs(t *testing.T, family string) [][]int32 {
	t.Helper()
	file, err := safetensors.Open(filepath.Join(family, "golden.safetensors"))
	require.NoError(t, err)
	defer file.Close()
	return rowsOf(t, file, "input_ids")
}

// trainFew makes some steps on the rows, so that B is not zero and A has moved.
func trainFew(t *testing.T, pm *peft.PeftModel, rows [][]int32) {
	t.Helper()
	var examples []train.Example
	for _, row := range rows {
		examples = append(examples, train.Example{IDs: row, Labels: row})
	}
	data, err := train.NewDataset(examples)
	require.NoError(t, err)
	var losses []float64
	trainer, err := train.NewTrainer(pm, data, train.Arguments{
		OutputDir: t.TempDir(), MaxSteps: 8, PerDeviceTrainBatchSize: len(rows), LearningRate: 1e-2,
		LrSchedulerType: train.SchedulerConstant, SaveStrategy: train.SaveNo, Quiet: true,
		Callback: func(e train.Event) error {
			if e.Kind == train.EventStep {
				losses = append(losses, e.Loss)
			}
			return nil
		},
	})
	require.NoError(t, err)
	defer trainer.Close()
	_, err = trainer.Train(t.Context())
	require.NoError(t, err)
	require.Less(t, losses[len(losses)-1], losses[0], "the training learned nothing")
}

// TestPythonAdapters: what Python's peft has written just now gives its logits, loss
// and gradients here. (The tests of package lora do it on the committed fixtures.)
func TestPythonAdapters(t *testing.T) {
	golden := need(t, envGolden)
	infos, err := filepath.Glob(filepath.Join(golden, "lora", "*", "info.json"))
	require.NoError(t, err)
	require.Greater(t, len(infos), 20)
	for _, path := range infos {
		g := basetest.Golden{Dir: filepath.Dir(path)}
		readJSON(t, path, &g)
		t.Run(filepath.Base(g.Dir), func(t *testing.T) {
			g.File, err = safetensors.Open(filepath.Join(g.Dir, "golden.safetensors"))
			require.NoError(t, err)
			defer g.File.Close()
			pm, err := peft.LoadAdapter(basetest.Load(t, filepath.Join(golden, "families", g.Model)), g.Dir)
			require.NoError(t, err)
			require.Equal(t, g.Printed, pm.TrainableParameters().String())
			got := basetest.Evaluate(t, pm, g.Tensor(t, "input_ids"), g.Tensor(t, "labels"))
			basetest.RequireClose(t, basetest.Flat(t, g.Tensor(t, "logits")), got.Logits, 1e-4, "logits")
			require.InDelta(t, basetest.Flat(t, g.Tensor(t, "loss"))[0], got.Loss, 1e-4)
			compared := 0
			for _, name := range g.File.Names() {
				if short, ok := strings.CutPrefix(name, "grad.base_model.model."); ok {
					basetest.RequireClose(t, basetest.Flat(t, g.Tensor(t, name)), got.Gradients[short], 1e-4, name)
					compared++
				}
			}
			require.NotZero(t, compared)
			require.Equal(t, compared, len(got.Gradients))
		})
	}
}

// TestPythonPrompts: the same of prefixes and prompts, with what peft does not save lying beside.
func TestPythonPrompts(t *testing.T) {
	golden := need(t, envGolden)
	infos, err := filepath.Glob(filepath.Join(golden, "prefixtuning", "*", "info.json"))
	require.NoError(t, err)
	compared := 0
	for _, path := range infos {
		g := struct {
			basetest.Golden
			Sequence bool
		}{Golden: basetest.Golden{Dir: filepath.Dir(path)}}
		readJSON(t, path, &g)
		name := filepath.Base(g.Dir)
		if g.Sequence || strings.HasSuffix(name, "-multitask") { // which the tests of package prefixtuning run
			continue
		}
		t.Run(name, func(t *testing.T) {
			g.File, err = safetensors.Open(filepath.Join(g.Dir, "golden.safetensors"))
			require.NoError(t, err)
			defer g.File.Close()
			pm, err := peft.LoadAdapter(basetest.Load(t, filepath.Join(golden, g.Model)), g.Dir)
			require.NoError(t, err)
			require.Equal(t, g.Printed, pm.TrainableParameters().String())
			ids := g.Tensor(t, "plain_ids")
			got := basetest.Evaluate(t, pm, ids, ids)
			basetest.RequireClose(t, basetest.Flat(t, g.Tensor(t, "plain_logits")), got.Logits, 1e-4, "logits")
			compared++
		})
	}
	require.Greater(t, compared, 15)
}
