package lora

import "github.com/gopeft/gopeft/peft"

// DefaultTargets returns what peft 0.21.2 adapts by default in models of a
// model_type, and whether it has a default for it.
func DefaultTargets(modelType string) (peft.Targets, bool) {
	t, ok := defaultTargets[modelType]
	return t, ok
}

var (
	qv            = peft.Modules("q_proj", "v_proj")
	queryValue    = peft.Modules("query", "value")
	queryKeyValue = peft.Modules("query_key_value")
)

var defaultTargets = map[string]peft.Targets{
	"RefinedWeb":      queryKeyValue,
	"RefinedWebModel": queryKeyValue,
	"bart":            qv,
	"bert":            queryValue,
	"blip-2":          peft.Modules("q", "v", "q_proj", "v_proj"),
	"bloom":           queryKeyValue,
	"btlm":            peft.Modules("c_proj", "c_attn"),
	"chatglm":         queryKeyValue,
	"codegen":         peft.Modules("qkv_proj"),
	"deberta":         peft.Modules("in_proj"),
	"deberta-v2":      peft.Modules("query_proj", "value_proj"),
	"electra":         queryValue,
	"falcon":          queryKeyValue,
	"gemma":           qv,
	"gemma2":          qv,
	"gemma3_text":     qv,
	"gemma4":          peft.Regex(`.*language_model\..*\.(q_proj|v_proj)`),
	"gpt2":            peft.Modules("c_attn"),
	"gpt_bigcode":     peft.Modules("c_attn"),
	"gpt_neo":         qv,
	"gpt_neox":        queryKeyValue,
	"gptj":            qv,
	"layoutlm":        queryValue,
	"llama":           qv,
	"llama4":          qv,
	"mistral":         qv,
	"mixtral":         qv,
	"mpt":             peft.Modules("Wqkv"),
	"mt5":             peft.Modules("q", "v"),
	"nemotron_h":      peft.Modules("q_proj", "k_proj", "v_proj", "o_proj"),
	"opt":             qv,
	"phi":             peft.Modules("q_proj", "v_proj", "fc1", "fc2"),
	"qwen2":           qv,
	"qwen3":           qv,
	"roberta":         queryValue,
	"rwkv":            peft.Modules("key", "value", "receptance", "output"),
	"rwkv7":           peft.Modules("r_proj", "k_proj", "v_proj", "o_proj", "key", "value"),
	"stablelm":        qv,
	"t5":              peft.Modules("q", "v"),
	"xlm-roberta":     queryValue,
}
