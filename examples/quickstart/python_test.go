package main

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/models/tokenizer"
	"github.com/gopeft/gopeft/train"
)

// inPython is what a user does with the adapter: the loss of held-out questions, in
// Python alone from text to number, and the answer to the first.
const inPython = `
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, adapter, questions = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(base)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
total = count = 0
for q in json.load(open(questions)):
    prompt = tokenizer(q["question"], return_tensors="pt").input_ids
    ids = tokenizer(q["question"] + q["answer"] + tokenizer.eos_token, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, prompt.shape[1] - 1:-1]
    target = ids[0, prompt.shape[1]:]
    total += torch.nn.functional.cross_entropy(logits, target, reduction="sum").item()
    count += len(target)
    if "text" not in locals():
        out = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=40, do_sample=False)
        text = tokenizer.decode(out[0, prompt.shape[1]:], skip_special_tokens=True)
print(json.dumps({"loss": total / count, "text": text}))
`

// TestPythonSaysTheSame: the saved adapter on the base in the repository gives in
// Python the loss and the sample that the program printed.
func TestPythonSaysTheSame(t *testing.T) {
	python := os.Getenv("GOPEFT_PYTHON")
	if python == "" {
		t.Skip("GOPEFT_PYTHON is not set: want a Python with torch, transformers and peft")
	}
	out := t.TempDir()
	printed, err := start(context.Background(), out, io.Discard, "-steps", "20")
	require.NoError(t, err)

	tok, err := tokenizer.FromFS(base, "base")
	require.NoError(t, err)
	data, err := train.LoadJSONL(filepath.Join(out, "task.jsonl"), tok, train.DataOptions{Fields: []string{"question", "answer"}})
	require.NoError(t, err)
	_, held, err := data.Split(0.1, 1)
	require.NoError(t, err)
	var questions []questionAnswer
	for i := range held.Len() {
		whole := tok.Decode(held.Example(i).IDs, tokenizer.DecodeOptions{SkipSpecialTokens: true})
		question, answer, _ := strings.Cut(whole, "\nAnswer:")
		questions = append(questions, questionAnswer{question + "\nAnswer:", answer})
	}
	file := filepath.Join(out, "held.json")
	content, err := json.Marshal(questions)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, content, 0o644))

	cmd := exec.Command(python, "-c", inPython, "base", filepath.Join(out, "adapter"), file)
	cmd.Env = append(os.Environ(), "HF_HUB_OFFLINE=1")
	answer, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); err != nil {
		require.ErrorAs(t, err, &exit)
		t.Fatalf("%v: %s", err, exit.Stderr)
	}
	var said struct {
		Loss float64
		Text string
	}
	require.NoError(t, json.Unmarshal(answer, &said))
	ours, err := strconv.ParseFloat(lastLines.FindStringSubmatch(printed)[2], 64)
	require.NoError(t, err)
	require.InDelta(t, ours, said.Loss, 2e-4)
	require.Contains(t, printed, "Answer: ["+strings.TrimPrefix(said.Text, " ")+"]")
}
