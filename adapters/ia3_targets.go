package adapters

import "github.com/gopeft/gopeft/peft"

// DefaultIA3Targets returns what peft 0.21.2 scales by default in models of a model_type,
// and whether it has a default for it
// (TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING in peft/utils/constants.py).
func DefaultIA3Targets(modelType string) (peft.Targets, bool) {
	d, ok := defaultIA3[modelType]
	return d.targets, ok
}

// DefaultIA3Feedforward returns which of the targets peft 0.21.2 takes for feed-forward
// modules by default, and whether it has a default for the model_type
// (TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING).
func DefaultIA3Feedforward(modelType string) (peft.Targets, bool) {
	d, ok := defaultIA3[modelType]
	return d.feedforward, ok
}

type ia3Defaults struct{ targets, feedforward peft.Targets }

// lastForward are defaults of which the last is feed-forward.
func lastForward(names ...string) ia3Defaults {
	return ia3Defaults{peft.Modules(names...), peft.Modules(names[len(names)-1])}
}

var defaultIA3 = map[string]ia3Defaults{
	"RefinedWeb":      lastForward("query_key_value", "dense_4h_to_h"),
	"RefinedWebModel": lastForward("query_key_value", "dense_4h_to_h"),
	"bart":            lastForward("q_proj", "v_proj", "fc2"),
	"bert":            lastForward("key", "value", "output.dense"),
	"bloom":           lastForward("query_key_value", "mlp.dense_4h_to_h"),
	"deberta":         lastForward("in_proj", "output.dense"),
	"deberta-v2":      lastForward("key_proj", "value_proj", "output.dense"),
	"falcon":          lastForward("query_key_value", "dense_4h_to_h"),
	"gemma":           lastForward("q_proj", "v_proj", "down_proj"),
	"gemma2":          lastForward("q_proj", "v_proj", "down_proj"),
	"gemma3_text":     lastForward("q_proj", "v_proj", "down_proj"),
	"gpt2":            lastForward("c_attn", "mlp.c_proj"),
	"gpt_bigcode":     lastForward("c_attn", "mlp.c_proj"),
	"gpt_neo":         lastForward("q_proj", "v_proj", "c_proj"),
	"gpt_neox":        lastForward("query_key_value", "dense_4h_to_h"),
	"gptj":            lastForward("q_proj", "v_proj", "fc_out"),
	"llama":           lastForward("k_proj", "v_proj", "down_proj"),
	"llama4":          lastForward("q_proj", "v_proj", "down_proj"),
	"mistral":         lastForward("k_proj", "v_proj", "down_proj"),
	"mixtral":         lastForward("k_proj", "v_proj", "w2"),
	"mt5":             {peft.Modules("k", "v", "wi_1"), peft.Modules()},
	"opt":             lastForward("q_proj", "k_proj", "fc2"),
	"phi":             lastForward("q_proj", "v_proj", "fc2"),
	"qwen2":           lastForward("q_proj", "v_proj", "down_proj"),
	"qwen3":           lastForward("q_proj", "v_proj", "down_proj"),
	"roberta":         lastForward("key", "value", "output.dense"),
	"t5":              lastForward("k", "v", "wo"),
}
