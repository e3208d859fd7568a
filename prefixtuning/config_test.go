package prefixtuning_test

import (
	"math"
	"strings"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/prefixtuning"
)

const tinyLlama = `{"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
	"num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 128, "rms_norm_eps": 1e-5}`

func blueprint(t testing.TB) *models.Blueprint {
	b, err := models.NewBlueprint([]byte(tinyLlama), models.Options{DType: dtypes.Float32})
	require.NoError(t, err)
	return b
}

func TestErrors(t *testing.T) {
	base := blueprint(t)
	type (
		prefix    = prefixtuning.PrefixTuningConfig
		prompt    = prefixtuning.PromptTuningConfig
		encoder   = prefixtuning.PromptEncoderConfig
		multitask = prefixtuning.MultitaskPromptTuningConfig
	)
	for _, c := range []struct {
		config peft.Config
		want   string
	}{
		{prefix{}, "prefix_tuning: num_virtual_tokens is 0, want 1 or more"},
		{prompt{NumVirtualTokens: -3}, "prompt_tuning: num_virtual_tokens is -3"},
		{encoder{}, "p_tuning: num_virtual_tokens is 0"},
		{multitask{}, "multitask_prompt_tuning: num_virtual_tokens is 0"},
		{prefix{NumVirtualTokens: 128}, "prefix_tuning: 128 virtual tokens leave no room in the 128 positions of the base"},
		{prompt{NumVirtualTokens: 400}, "prompt_tuning: 400 virtual tokens leave no room"},
		{prefix{NumVirtualTokens: 2, TokenDim: 10, NumAttentionHeads: 4}, "token_dim 10 is no multiple of num_attention_heads 4"},
		{prefix{NumVirtualTokens: 2, TokenDim: 8}, "token_dim is 8, but the base has 16"},
		{prefix{NumVirtualTokens: 2, NumAttentionHeads: 8}, "num_attention_heads is 8, but the base has 2"},
		{prefix{NumVirtualTokens: 2, NumLayers: 1}, "num_layers is 1, but the base has 2"},
		{prompt{NumVirtualTokens: 2, TokenDim: 16}, "token_dim is 16, but the base has 32"},
		{prompt{NumVirtualTokens: 2, NumLayers: -1}, "num_layers is -1"},
		{prefix{NumVirtualTokens: 2, NumTransformerSubmodules: 2}, "num_transformer_submodules is 2, want 1: models of an encoder and a decoder are not supported"},
		{prefix{NumVirtualTokens: 2, InitWeights: "zeros"}, `init_weights is "zeros", want null or "zero"; did you mean "zero"?`},
		{prompt{NumVirtualTokens: 2, PromptTuningInit: "text"}, `prompt_tuning_init is "text", want one of [RANDOM SAMPLE_VOCAB TEXT]; did you mean "TEXT"?`},
		{prompt{NumVirtualTokens: 2, PromptTuningInit: prefixtuning.InitText}, "prompt_tuning_init is TEXT without prompt_tuning_init_text"},
		{prompt{NumVirtualTokens: 2, PromptTuningInit: prefixtuning.InitText, PromptTuningInitText: "a"}, "prompt text without tokenizer: set tokenizer_name_or_path"},
		{prompt{NumVirtualTokens: 2, PromptTuningInit: prefixtuning.InitText, PromptTuningInitText: "a", TokenizerNameOrPath: "no/where"},
			`prompt text without tokenizer: tokenizer_name_or_path "no/where" is no folder with tokenizer.json`},
		{encoder{NumVirtualTokens: 2, EncoderReparameterizationType: "LSTN"}, `encoder_reparameterization_type is "LSTN", want MLP or LSTM; did you mean "LSTM"?`},
		{encoder{NumVirtualTokens: 2, EncoderDropout: 1}, "encoder_dropout is 1, want 0 or more and less than 1"},
		{encoder{NumVirtualTokens: 2, EncoderDropout: math.NaN()}, "encoder_dropout is NaN"},
		{encoder{NumVirtualTokens: 2, EncoderNumLayers: -1}, "encoder_num_layers is -1"},
		{encoder{NumVirtualTokens: 2, EncoderHiddenSize: -1}, "encoder_hidden_size is -1"},
		{multitask{NumVirtualTokens: 2, NumTasks: -1}, "num_tasks is -1"},
		{multitask{NumVirtualTokens: 2, NumRanks: -1}, "num_ranks is -1"},
		{multitask{NumVirtualTokens: 2, PromptTuningInit: prefixtuning.InitExactSourceTask}, "prompt_tuning_init is EXACT_SOURCE_TASK without prompt_tuning_init_state_dict_path"},
		{multitask{NumVirtualTokens: 2, NumTasks: 3, PromptTuningInit: prefixtuning.InitAverageSourceTasks, PromptTuningInitStateDictPath: "x.safetensors"},
			"prompt_tuning_init AVERAGE_SOURCE_TASKS makes one task, but num_tasks is 3"},
		{multitask{NumVirtualTokens: 2, PromptTuningInit: prefixtuning.InitOnlySourceShared, PromptTuningInitStateDictPath: "x.bin"}, "want a .safetensors file"},
		{multitask{NumVirtualTokens: 2, PromptTuningInit: prefixtuning.InitOnlySourceShared, PromptTuningInitStateDictPath: "no.safetensors"}, "no.safetensors"},
		{prefix{NumVirtualTokens: 2, ModulesToSave: peft.Strings{"q_porj"}}, `modules_to_save: "q_porj" matches nothing`},
	} {
		_, err := peft.DryRun(base, c.config)
		require.ErrorContains(t, err, c.want, "%#v", c.config)
	}
}

// A base without known layers has no place for virtual tokens.
func TestOtherBases(t *testing.T) {
	for name, c := range methods(2) {
		_, err := peft.DryRun(basetest.Llama(32, 2, 4, 2, 8, 48, 64), c)
		require.ErrorContains(t, err, "is no transformer of known layers: it has no place for virtual tokens", name)
	}
}

// What the base decides is written; sizes of all heads of queries mean those of keys.
func TestCompletion(t *testing.T) {
	base := blueprint(t)
	for _, c := range []struct {
		config peft.Config
		want   peft.Config
	}{
		{prefixtuning.PrefixTuningConfig{NumVirtualTokens: 2},
			prefixtuning.PrefixTuningConfig{NumVirtualTokens: 2, TokenDim: 16, NumAttentionHeads: 2, NumLayers: 2, NumTransformerSubmodules: 1, EncoderHiddenSize: 16}},
		{prefixtuning.PrefixTuningConfig{NumVirtualTokens: 2, TokenDim: 32, NumAttentionHeads: 4, EncoderHiddenSize: 5},
			prefixtuning.PrefixTuningConfig{NumVirtualTokens: 2, TokenDim: 16, NumAttentionHeads: 2, NumLayers: 2, NumTransformerSubmodules: 1, EncoderHiddenSize: 5}},
		{prefixtuning.PrefixTuningConfig{NumVirtualTokens: 2, TokenDim: 32},
			prefixtuning.PrefixTuningConfig{NumVirtualTokens: 2, TokenDim: 16, NumAttentionHeads: 2, NumLayers: 2, NumTransformerSubmodules: 1, EncoderHiddenSize: 16}},
		{prefixtuning.PromptTuningConfig{NumVirtualTokens: 2},
			prefixtuning.PromptTuningConfig{NumVirtualTokens: 2, PromptTuningInit: prefixtuning.InitRandom, TokenDim: 32, NumAttentionHeads: 4, NumLayers: 2, NumTransformerSubmodules: 1}},
		{prefixtuning.PromptEncoderConfig{NumVirtualTokens: 2},
			prefixtuning.PromptEncoderConfig{NumVirtualTokens: 2, EncoderReparameterizationType: prefixtuning.MLP, EncoderHiddenSize: 32, EncoderNumLayers: 2,
				TokenDim: 32, NumAttentionHeads: 4, NumLayers: 2, NumTransformerSubmodules: 1}},
		{prefixtuning.MultitaskPromptTuningConfig{NumVirtualTokens: 2},
			prefixtuning.MultitaskPromptTuningConfig{NumVirtualTokens: 2, NumTasks: 1, NumRanks: 1, PromptTuningInit: prefixtuning.InitRandom,
				TokenDim: 32, NumAttentionHeads: 4, NumLayers: 2, NumTransformerSubmodules: 1}},
	} {
		plan, err := peft.DryRun(base, c.config)
		require.NoError(t, err)
		require.Equal(t, c.want, plan.Config.WithCommon(peft.PeftConfig{}))
	}
}

// Counts of trainable parameters, by hand.
func TestCounts(t *testing.T) {
	base := blueprint(t)
	for _, c := range []struct {
		config peft.Config
		want   int64
	}{
		{prefixtuning.PrefixTuningConfig{NumVirtualTokens: 20}, 20 * 2 * 2 * 16},
		{prefixtuning.PrefixTuningConfig{NumVirtualTokens: 20, PrefixProjection: true, EncoderHiddenSize: 7}, 20*16 + (16+1)*7 + (7+1)*2*2*16},
		{prefixtuning.PromptTuningConfig{NumVirtualTokens: 20}, 20 * 32},
		{prefixtuning.PromptEncoderConfig{NumVirtualTokens: 20, EncoderHiddenSize: 7}, 20*32 + (32+1)*7 + (7+1)*7 + (7+1)*32},
		{prefixtuning.PromptEncoderConfig{NumVirtualTokens: 20, EncoderReparameterizationType: prefixtuning.LSTM, EncoderNumLayers: 1, EncoderHiddenSize: 7},
			20*32 + 2*(4*7*(32+7)+2*4*7) + (14+1)*14 + (14+1)*32},
		{prefixtuning.MultitaskPromptTuningConfig{NumVirtualTokens: 20, NumTasks: 3, NumRanks: 2}, 20*32 + 3*2*(20+32)},
	} {
		plan, err := peft.DryRun(base, c.config)
		require.NoError(t, err)
		require.Equal(t, c.want, plan.Count.Trainable)
	}
}

func fuzzConfig(f *testing.F, peftType string, seeds ...string) {
	for _, seed := range append(seeds, `"num_virtual_tokens": 20`, `"num_virtual_tokens": 3, "token_dim": 32, "num_layers": 2, "num_attention_heads": 4, "num_transformer_submodules": null`) {
		f.Add([]byte(`{"peft_type": "` + peftType + `", ` + seed + `}`))
	}
	base := blueprint(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		// Paths of files are no matter of the parser.
		if s := string(data); strings.Contains(s, "path") || !strings.Contains(s, peftType) {
			return
		}
		config, err := peft.DecodeConfig(data)
		if err != nil {
			return
		}
		plan, err := peft.DryRun(base, config)
		if err != nil {
			return
		}
		require.Positive(t, plan.Count.Trainable)
		text, err := peft.EncodeConfig(plan.Config)
		require.NoError(t, err)
		again, err := peft.DecodeConfig(text)
		require.NoError(t, err)
		second, err := peft.EncodeConfig(again)
		require.NoError(t, err)
		require.Equal(t, string(text), string(second))
		planned, err := peft.DryRun(base, again)
		require.NoError(t, err)
		require.Equal(t, plan.Count, planned.Count)
	})
}

func FuzzPrefixTuning(f *testing.F) {
	fuzzConfig(f, "PREFIX_TUNING", `"num_virtual_tokens": 5, "prefix_projection": true, "encoder_hidden_size": 8`, `"num_virtual_tokens": 5, "init_weights": "zero", "modules_to_save": ["lm_head"]`)
}

func FuzzPromptTuning(f *testing.F) {
	fuzzConfig(f, "PROMPT_TUNING", `"num_virtual_tokens": 5, "prompt_tuning_init": "SAMPLE_VOCAB"`, `"num_virtual_tokens": 5, "prompt_tuning_init": "RANDOM", "tokenizer_kwargs": {"a": 1}`)
}

func FuzzPromptEncoder(f *testing.F) {
	fuzzConfig(f, "P_TUNING", `"num_virtual_tokens": 5, "encoder_reparameterization_type": "LSTM", "encoder_num_layers": 3, "encoder_dropout": 0.25`, `"num_virtual_tokens": 5, "encoder_hidden_size": 4`)
}

func FuzzMultitaskPromptTuning(f *testing.F) {
	fuzzConfig(f, "MULTITASK_PROMPT_TUNING", `"num_virtual_tokens": 5, "num_tasks": 4, "num_ranks": 3`, `"num_virtual_tokens": 5, "prompt_tuning_init_task": 2, "num_ranks": null`)
}
