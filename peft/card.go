package peft

import (
	"fmt"
	"strings"

	"github.com/gopeft/gopeft/internal/pyjson"
)

// modelCard is the README.md of a saved adapter: what the Hugging Face hub reads
// in its head, and how to load it.
func modelCard(c Config) string {
	common := c.Common()
	var b strings.Builder
	b.WriteString("---\n")
	if common.BaseModelNameOrPath != "" {
		fmt.Fprintf(&b, "base_model: %s\n", quoteYAML(common.BaseModelNameOrPath))
	}
	b.WriteString("library_name: peft\n")
	if common.TaskType == "CAUSAL_LM" {
		b.WriteString("pipeline_tag: text-generation\n")
	}
	b.WriteString("tags:\n")
	if common.BaseModelNameOrPath != "" {
		fmt.Fprintf(&b, "- %s\n", quoteYAML("base_model:adapter:"+common.BaseModelNameOrPath))
	}
	fmt.Fprintf(&b, "- %s\n---\n\n", strings.ToLower(c.PeftType()))
	fmt.Fprintf(&b, "# %s adapter\n\n", c.PeftType())
	name := common.BaseModelNameOrPath
	if name == "" {
		name = "BASE"
	} else {
		fmt.Fprintf(&b, "An adapter of the model %s, in the format of Hugging Face's peft %s.\n\n", name, FormatVersion)
	}
	fmt.Fprintf(&b, `In Python:

    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(%s), "this folder")

In Go, with github.com/gopeft/gopeft:

    base, err := models.Load(ctx, %[1]s)
    model, err := peft.LoadAdapter(base, "this folder")
`, quoteYAML(name))
	return b.String()
}

// quoteYAML writes a string that YAML, Python and Go all read the same: JSON's.
func quoteYAML(s string) string {
	text, err := pyjson.Marshal(map[string]any{"s": s})
	if err != nil {
		return `""`
	}
	return strings.TrimSuffix(strings.TrimPrefix(string(text), "{\n  \"s\": "), "\n}")
}
