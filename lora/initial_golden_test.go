package lora

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"
	"gonum.org/v1/gonum/mat"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// initialFile opens a fixture of internal/golden/initial_golden.py.
func initialFile(t *testing.T, name string) basetest.Golden {
	t.Helper()
	dir := filepath.Join(basetest.Fixtures, "initial")
	file, err := safetensors.Open(filepath.Join(dir, name))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, file.Close()) })
	return basetest.Golden{Dir: dir, File: file}
}

// multiplied returns s·B·A [out, in].
func multiplied(l layer, s start, scaling float64) []float32 {
	return product(s.b, s.a, l.Out, l.r, l.In, scaling)
}

// The quantised weight is bitsandbytes', and s·B·A is peft's B·A, whatever s.
func TestLoftqGolden(t *testing.T) {
	g := initialFile(t, "loftq.safetensors")
	weight := basetest.Flat(t, g.Tensor(t, "weight"))
	W := mat.NewDense(12, 128, nil)
	for i, v := range weight {
		W.Set(i/128, i%128, float64(v))
	}
	for _, scaling := range []float64{1, 5} {
		l := layer{Module: site.Module{In: 128, Out: 12}, r: 3, scaling: scaling}
		for _, bits := range []int{4, 8} {
			plain := fakeQuantised(W.RawMatrix().Data, 128, bits)
			for _, iterations := range []int{1, 3} {
				name := map[int]string{4: "4_", 8: "8_"}[bits] + map[int]string{1: "1", 3: "3"}[iterations]
				quantised := basetest.Flat(t, g.Tensor(t, "quantised_"+name))
				if iterations == 1 {
					for i, v := range quantised {
						require.InDelta(t, v, plain[i], 1e-6, "element %d", i)
					}
				}
				s, err := l.loftqStart(W, LoftqConfig{Bits: bits, Iterations: iterations})
				require.NoError(t, err)
				got := multiplied(l, s, scaling)
				basetest.RequireClose(t, basetest.Flat(t, g.Tensor(t, "product_"+name)), got, 1e-5, name)
				// What is left is less than what plain quantisation leaves (8.18: by more than 3 %).
				var before, after float64
				for i := range quantised {
					before += square(weight[i] - float32(plain[i]))
					after += square(weight[i] - quantised[i] - got[i])
				}
				require.Less(t, after, before/(1.03*1.03), name)
			}
		}
	}
}

func square(v float32) float64 { return float64(v) * float64(v) }

func llamaBase(t *testing.T) basetest.Model {
	return basetest.Load(t, filepath.Join(basetest.Fixtures, "families", "llama"))
}

// EVA gives the ranks and scales of peft, and the same components.
func TestEvaGolden(t *testing.T) {
	base := llamaBase(t)
	g := initialFile(t, "eva/batches.safetensors")
	x := g.Tensor(t, "input_ids")
	ids, labels := basetest.Ints(t, x), basetest.Ints(t, g.Tensor(t, "labels"))
	var data []Batch
	rows, length := x.Shape().Dim(1), x.Shape().Dim(2)
	for i := range x.Shape().Dim(0) {
		var b Batch
		for j := range rows {
			from := (i*rows + j) * length
			use := make([]bool, length)
			for k := range use {
				use[k] = labels[from+k] != -100
			}
			b.IDs, b.Use = append(b.IDs, ids[from:from+length]), append(b.Use, use)
		}
		data = append(data, b)
	}
	config := LoraConfig{R: 2, LoraAlpha: 6, TargetModules: peft.Modules("q_proj", "o_proj", "down_proj"), AlphaPattern: peft.Patterns{{Pattern: "o_proj", Value: 3}}}
	calibrated, err := CalibrateEVA(t.Context(), base, config, data, EvaConfig{Rho: 2, Tau: 0.9})
	require.NoError(t, err)
	ours, err := peft.GetPeftModel(base, calibrated)
	require.NoError(t, err)
	dir := filepath.Join(basetest.Fixtures, "initial", "eva")
	theirs, err := peft.LoadAdapter(base, dir)
	require.NoError(t, err)
	plans := func(pm *peft.PeftModel) []string {
		plan, err := pm.Plan(peft.DefaultAdapter)
		require.NoError(t, err)
		var lines []string
		for _, target := range plan.Targets {
			line := target.Module.Path
			for _, s := range target.Settings {
				line += " " + s.Name + "=" + s.Value
			}
			lines = append(lines, line)
		}
		return lines
	}
	require.Equal(t, plans(theirs), plans(ours))
	require.Contains(t, strings.Join(plans(ours), "\n"), "r=3")
	want, err := theirs.TensorValues(peft.DefaultAdapter)
	require.NoError(t, err)
	got, err := ours.TensorValues(peft.DefaultAdapter)
	require.NoError(t, err)
	require.Len(t, got, len(want))
	for name, values := range want {
		basetest.RequireClose(t, values, got[name], 2e-3, name)
	}
	// What is saved says how it was made, and reads back.
	out := filepath.Join(t.TempDir(), "eva")
	require.NoError(t, ours.SavePretrained(out))
	again, err := peft.LoadAdapter(base, out)
	require.NoError(t, err)
	require.Equal(t, plans(ours), plans(again))
	saved, err := again.Config(peft.DefaultAdapter)
	require.NoError(t, err)
	require.JSONEq(t, `{"adjust_scaling_factors": true, "label_mask_value": -100, "rho": 2.0, "tau": 0.9, "use_label_mask": true, "whiten": false}`,
		string(saved.Common().Unknown["eva_config"]))
}

// CorDA takes the same part out of each weight as peft.
func TestCordaGolden(t *testing.T) {
	base := llamaBase(t)
	g := initialFile(t, "corda.safetensors")
	x := g.Tensor(t, "input_ids")
	ids := basetest.Ints(t, x)
	length := x.Shape().Dim(1)
	var data []Batch // of two rows and a padded one: each row is a sample
	for from := 0; from < len(ids); from += 2 * length {
		padded := func(row []int32) []int32 { return append(append([]int32{}, row...), 5, 5) }
		use := make([]bool, length+2)
		for i := range length {
			use[i] = true
		}
		data = append(data, Batch{IDs: [][]int32{padded(ids[from : from+length]), padded(ids[from+length : from+2*length])}, Use: [][]bool{use, use}})
	}
	config := LoraConfig{R: 2, LoraAlpha: 6, TargetModules: peft.Modules("q_proj", "down_proj"), RankPattern: peft.Patterns{{Pattern: "down_proj", Value: 3}}}
	for mode, method := range map[string]CordaMethod{"ipm": CordaIPM, "kpm": CordaKPM} {
		calibrated, err := CalibrateCorDA(t.Context(), base, config, data, method)
		require.NoError(t, err)
		pm, err := peft.GetPeftModel(base, calibrated)
		require.NoError(t, err)
		values, err := pm.TensorValues(peft.DefaultAdapter)
		require.NoError(t, err)
		checked := 0
		for _, m := range base.Modules() {
			key := mode + "/" + m.Path
			if _, ok := g.File.Info(key); !ok {
				continue
			}
			checked++
			a, b := values[m.Path+".lora_A.weight"], values[m.Path+".lora_B.weight"]
			// In float32, as peft computes the inverse of a covariance with a condition of 1e4.
			basetest.RequireClose(t, basetest.Flat(t, g.Tensor(t, key)), product(b, a, m.Out, len(a)/m.In, m.In, 1), 5e-3, key)
		}
		require.Equal(t, 4, checked)
		// The file is a plain LoRA, which leaves the base as it is.
		dir := filepath.Join(t.TempDir(), mode)
		require.NoError(t, pm.SavePretrained(dir))
		again, err := peft.LoadAdapter(base, dir)
		require.NoError(t, err)
		saved, err := again.Config(peft.DefaultAdapter)
		require.NoError(t, err)
		require.Equal(t, InitDefault, saved.(LoraConfig).InitLoraWeights)
		require.Equal(t, 4, saved.(LoraConfig).R)
		alone, err := pm.With()
		require.NoError(t, err)
		input := tensors.FromValue([][]int32{{5, 6, 7, 8, 9, 10}})
		want := basetest.Evaluate(t, alone, input, input).Logits
		basetest.RequireClose(t, want, basetest.Evaluate(t, pm, input, input).Logits, 1e-4, "fresh")
		basetest.RequireClose(t, want, basetest.Evaluate(t, again, input, input).Logits, 1e-4, "read again")
	}
}

// Bad data is refused.
func TestCalibrationErrors(t *testing.T) {
	base := llamaBase(t)
	good := []Batch{{IDs: [][]int32{{5, 6, 7}}}}
	config := LoraConfig{R: 2}
	for _, c := range []struct {
		config  LoraConfig
		data    []Batch
		options EvaConfig
		want    string
	}{
		{config, nil, EvaConfig{}, "lora: EVA: there is no data"},
		{config, []Batch{{}}, EvaConfig{}, "lora: EVA: batch 0: the batch is empty"},
		{config, []Batch{{IDs: [][]int32{{5, 6}, {5}}}}, EvaConfig{}, "lora: EVA: batch 0: row 1: want 2 tokens as in the first, got 1"},
		{config, []Batch{{IDs: [][]int32{{5}}, Use: [][]bool{{true}, {true}}}}, EvaConfig{}, "lora: EVA: batch 0: IDs has 1 rows, Use 2"},
		{config, good, EvaConfig{Rho: 0.5}, "lora: EVA: rho is 0.5, want at least 1"},
		{config, good, EvaConfig{Tau: 2}, "lora: EVA: tau is 2, want 0 to 1"},
		{config, good, EvaConfig{MaxPasses: 2}, `lora: EVA: no batch has the 4 tokens in use that module "model.layers.0.self_attn.q_proj" needs for its components`},
		{LoraConfig{}, good, EvaConfig{}, "lora: EVA: r is 0"},
		{LoraConfig{R: 2, TargetModules: peft.Modules("embed_tokens")}, good, EvaConfig{}, "lora: EVA: no target is a linear layer"},
	} {
		_, err := CalibrateEVA(t.Context(), base, c.config, c.data, c.options)
		require.ErrorContains(t, err, c.want)
	}
	_, err := CalibrateCorDA(t.Context(), base, config, good, "both")
	require.EqualError(t, err, `lora: CorDA: method is "both", want "ipm" or "kpm"`)
	calibrated, err := CalibrateCorDA(t.Context(), base, config, good, CordaIPM)
	require.NoError(t, err)
	calibrated.R = 3
	_, err = peft.GetPeftModel(base, calibrated)
	require.ErrorContains(t, err, "it was not calibrated for rank 3: the configuration must stay as CalibrateCorDA returned it")
}
