package lora

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// Each method's default targets are peft's.
func TestRelativesDefaultTargets(t *testing.T) {
	data, err := os.ReadFile(filepath.FromSlash("../internal/golden/testdata/relatives/default_targets.json"))
	require.NoError(t, err)
	var table map[string]map[string]peft.Targets
	require.NoError(t, json.Unmarshal(data, &table))
	for method, ours := range map[string]func(string) (peft.Targets, bool){
		AdaLoraType: adaLoraTargets, VeraType: veraTargets, LohaType: DefaultTargets, LokrType: DefaultTargets, MissType: DefaultTargets,
	} {
		require.NotEmpty(t, table[method])
		for model, want := range table[method] {
			got, ok := ours(model)
			require.True(t, ok, "%s %s", method, model)
			require.Equal(t, want.String(), got.String(), "%s %s", method, model)
		}
	}
	require.Len(t, adaLoraDefaults, len(table[AdaLoraType]))
}

// keep runs keepPerOutput on ones [rows, 400] and returns the first row, after checking that
// all are alike.
func keep(t *testing.T, step uint32, rows int, rowOffset uint32, rate float64, whole, rescale, training bool) []float32 {
	t.Helper()
	out, err := graph.CallOnce(backendtest.Open(t), func(y *graph.Node) *graph.Node {
		number := func(v uint32) *graph.Node { return graph.Const(y.Graph(), v) }
		pass := &site.Pass{Graph: y.Graph(), DType: dtypes.Float32}
		if training {
			pass.Random = &site.Random{Seed: number(7), Step: number(step), MicroStep: number(0), RowOffset: number(rowOffset)}
		}
		s := &site.Site{Module: site.Module{Path: "layers.0.q_proj", Kind: site.Linear, In: 3, Out: 400}}
		return keepPerOutput(&peft.Use{Pass: pass, Site: s}, y, rate, whole, rescale)
	}, ones(rows, 400))
	require.NoError(t, err)
	flat := basetest.Flat(t, out)
	for i, v := range flat {
		require.Equal(t, flat[i%400], v)
	}
	return flat[:400]
}

func ones(rows, columns int) [][]float32 {
	x := make([][]float32, rows)
	for i := range x {
		x[i] = make([]float32, columns)
		for j := range x[i] {
			x[i][j] = 1
		}
	}
	return x
}

func sum(x []float32) (total float64) {
	for _, v := range x {
		total += float64(v)
	}
	return total
}

// rank_dropout draws once for each output and step, module_dropout once for each step;
// neither depends on how the rows of a step are split into batches.
func TestDropoutOfOutputs(t *testing.T) {
	first := keep(t, 1, 3, 0, 0.3, false, false, true)
	for _, v := range first {
		require.Contains(t, []float32{0, 1}, v)
	}
	require.InDelta(t, 0.7*400, sum(first), 5*9.2) // five standard deviations of the binomial
	require.Equal(t, first, keep(t, 1, 1, 2, 0.3, false, false, true))
	require.NotEqual(t, first, keep(t, 2, 3, 0, 0.3, false, false, true))
	require.InDelta(t, 400, sum(keep(t, 1, 3, 0, 0.3, false, true, true)), 1e-2) // scaled by what is really kept
	require.Equal(t, ones(1, 400)[0], keep(t, 1, 3, 0, 0.3, false, true, false))

	dropped := 0
	for step := range uint32(60) {
		row := keep(t, step, 2, 0, 0.5, true, false, true)
		require.Contains(t, []float64{0, 400}, sum(row))
		if row[0] == 0 {
			dropped++
		}
	}
	require.InDelta(t, 30, dropped, 5*3.9)
}

// What is read from a file is a configuration that fits a base, or an error.
func FuzzRelatives(f *testing.F) {
	for _, seed := range []string{
		`{"peft_type": "ADALORA", "total_step": 9, "init_r": 3, "target_r": 1, "rank_pattern": {"model.layers.0.self_attn.q_proj.lora_E": [true, false, true]}}`,
		`{"peft_type": "VERA", "r": 3, "save_projection": false, "projection_prng_key": -1}`,
		`{"peft_type": "LOHA", "r": 2, "rank_pattern": {"q_proj": 3}, "alpha_pattern": {"v_proj": 0.5}}`,
		`{"peft_type": "LOKR", "decompose_both": true, "decompose_factor": 7, "init_weights": "lycoris"}`,
		`{"peft_type": "MISS", "r": 4, "mini_r": 2, "init_weights": "mini", "target_modules": "all-linear"}`,
	} {
		f.Add([]byte(seed))
	}
	base := basetest.Llama(32, 2, 4, 2, 8, 48, 64)
	f.Fuzz(func(t *testing.T, data []byte) {
		config, err := peft.DecodeConfig(data)
		if err != nil {
			return
		}
		if plan, err := peft.DryRun(base, config); err == nil {
			require.NotZero(t, plan.Count.Trainable)
			_, err := peft.EncodeConfig(plan.Config)
			require.NoError(t, err)
		}
	})
}
