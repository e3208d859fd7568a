package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func gopeft(args ...string) (string, error) {
	var out bytes.Buffer
	err := run(context.Background(), args, &out)
	return out.String(), err
}

// The sums are those of the model's published shapes: 6,476,005,376 quantised weights in
// half a byte and one byte for 64 of them, 262,410,240 others in two bytes.
func TestPlan(t *testing.T) {
	printed, err := gopeft("plan", "--config", "llama-2-7b", "--r", "16", "--targets", "all-linear", "--quant", "nf4",
		"--double-quant", "--batch", "4", "--seq", "2048", "--checkpoint")
	require.NoError(t, err)
	for _, line := range []string{
		"trainable params: 39,976,960 || all params: 6,778,392,576 || trainable%: 0.5898",
		"memory of a step on 4 x 2048 tokens, GiB      planned",
		"  weights                                        3.50", // (6,476,005,376/2 + 2·262,410,240)/2³⁰
		"  quantisation statistics                        0.10", // 6,476,005,376/64·(1+4/256)/2³⁰
		"  trained values                                 0.15",
		"  moments                                        0.30",
		"inputs                                           4.05",
	} {
		require.Contains(t, printed, line+"\n")
	}
	again, err := gopeft("plan", "--config=llama-2-7b", "--r=16", "--targets=q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
		"--quant=nf4", "--double-quant", "--batch=4", "--seq=2048", "--checkpoint")
	require.NoError(t, err)
	require.Equal(t, printed, again)
	modules, err := gopeft("plan", "--config", "llama-3-70b", "--modules")
	require.NoError(t, err)
	require.Equal(t, 80, strings.Count(modules, ".q_proj "))
	require.Contains(t, modules, "  weights                                      131.42\n") // 2·70,553,706,496/2³⁰
}

// A folder's own config.json says how bitsandbytes has quantised it.
func TestPlanFolder(t *testing.T) {
	family := func(name string) string {
		return filepath.Join("..", "..", "internal", "golden", "testdata", "families", name)
	}
	printed, err := gopeft("plan", "--config", family("llama_nf4"), "--seq", "16", "--dtype", "f32")
	require.NoError(t, err)
	require.Contains(t, printed, "quantisation statistics")
	_, err = gopeft("plan", "--config", family("llama_nf4"), "--seq", "16", "--quant", "nf4")
	require.ErrorContains(t, err, "already quantised")
	printed, err = gopeft("plan", "--config", filepath.Join(family("llama"), "config.json"), "--seq", "16", "--full")
	require.NoError(t, err)
	require.Contains(t, printed, "trainable%: 100.0000")
}

func TestPlanErrors(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "config.json")
	require.NoError(t, os.WriteFile(broken, []byte(`{"model_type": "llama", "vocab_size": "many"}`), 0o666))
	for _, c := range []struct{ args, want string }{
		{"plan", "missing flags: --config=STRING"},
		{"plan --config llama-2-7c", `did you mean "llama-2-7b"?`},
		{"plan --config " + broken, "vocab_size"},
		{"plan --config llama-2-7b --targets q_porj", `target module "q_porj" matches nothing; did you mean "q_proj"?`},
		{"plan --config llama-2-7b --r 0", "r"},
		{"plan --config llama-2-7b --quant nf5", `format "nf5": want nf4, fp4 or int8`},
		{"plan --config llama-2-7b --double-quant", "double quantisation: want the format nf4 or fp4"},
		{"plan --config llama-2-7b --quant nf4 --full", "can't be used together"},
		{"plan --config llama-2-7b --full --targets q_proj", "can't be used together"},
		{"plan --config llama-2-7b --full --r 16", "can't be used together"},
		{"plan --config llama-2-7b --seq 5000", "the model was made for 4096 positions"},
		{"plan --config llama-2-7b --batch 0", "want at least 1 row"},
		{"plan --config llama-2-7b --dtype f64", "must be one of"},
		{"plna", "unexpected argument plna"},
	} {
		_, err := gopeft(strings.Fields(c.args)...)
		require.ErrorContains(t, err, c.want, c.args)
	}
	help, err := gopeft("plan", "--help")
	require.NoError(t, err)
	require.Contains(t, help, "llama-3-70b")
}
