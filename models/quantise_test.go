package models

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/pyjson"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/quant"
	"github.com/gopeft/gopeft/site"
)

// A folder that was quantised is the model that is quantised when it is loaded.
func TestQuantise(t *testing.T) {
	for family, scheme := range map[string]quant.Scheme{
		"llama": quant.NF4{DoubleQuant: true, Skip: []string{"down_proj"}}, "smollm2": quant.NF4{}, "gpt2": quant.FP4{BlockSize: 32}, "phi3": quant.INT8{},
		"llama_f64": quant.NF4{}, "llama_sharded": quant.INT8{},
	} {
		t.Run(family, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "out")
			from := filepath.Join(fixtures, family)
			report, err := Quantise(t.Context(), from, dir, scheme)
			require.NoError(t, err)
			loading := loadQuantised(t, family, scheme)
			require.Len(t, report.Tensors, len(loading.quantised))
			requireReport(t, report, loadQuantised(t, family, nil), loading)
			got, err := Load(t.Context(), dir, float32Options(t))
			require.NoError(t, err)
			defer got.Close()
			require.Equal(t, someLogits(t, loading), someLogits(t, got))
			// Both write what was read.
			for _, m := range []*Model{loading, got} {
				again := filepath.Join(t.TempDir(), "again")
				report, err := m.ExportQuantised(t.Context(), again, nil)
				require.NoError(t, err)
				require.Empty(t, report.Tensors)
				require.Equal(t, contents(t, dir), contents(t, again))
				sameFile(t, filepath.Join(dir, configFile), filepath.Join(again, configFile))
			}
			before, after := contents(t, from), contents(t, dir)
			for _, p := range loading.Parameters() {
				if _, ok := loading.quantised[p.Name]; !ok {
					require.Equal(t, before[p.Name], after[p.Name], p.Name)
				}
			}
			entries, err := os.ReadDir(dir)
			require.NoError(t, err)
			for _, e := range entries {
				require.False(t, strings.HasPrefix(e.Name(), "."), "%s was left", e.Name())
			}
		})
	}
}

// requireReport computes a report's figures from two models' weights.
func requireReport(t *testing.T, r QuantiseReport, full, quantised *Model) {
	t.Helper()
	var sum, square float64
	var largest float32
	n := 0
	for _, tensor := range r.Tensors {
		p := site.Parameter{}
		for _, q := range full.Parameters() {
			if q.Name == tensor.Name {
				p = q
			}
		}
		got := make([]float32, p.Size())
		_, ok, err := quantised.ReadParameter(p.Name, got)
		require.NoError(t, err)
		require.True(t, ok)
		var own float64
		for i, w := range values(t, full, p.Name) {
			off := float64(got[i] - w)
			own += off * off
			square += float64(w) * float64(w)
			largest = max(largest, float32(math.Abs(off)))
		}
		require.InEpsilon(t, math.Sqrt(own/float64(p.Size())), tensor.RMSError, 1e-5, p.Name)
		sum += own
		n += p.Size()
	}
	require.InEpsilon(t, math.Sqrt(sum/float64(n)), r.RMSError, 1e-5)
	require.InEpsilon(t, math.Sqrt(square/float64(n)), r.RMS, 1e-5)
	require.InDelta(t, largest, r.MaxError, 1e-6)
	require.Less(t, r.BytesAfter, r.BytesBefore)
	require.Contains(t, r.String(), "quantised ")
}

func sameFile(t *testing.T, want, got string) {
	t.Helper()
	w, err := os.ReadFile(want)
	require.NoError(t, err)
	g, err := os.ReadFile(got)
	require.NoError(t, err)
	require.Equal(t, string(w), string(g))
}

// What bitsandbytes wrote is written again byte by byte, but for weights that are changed.
func TestExportQuantised(t *testing.T) {
	for _, family := range []string{"llama_nf4", "llama_fp4", "llama_int8"} {
		t.Run(family, func(t *testing.T) {
			m := loadQuantised(t, family, nil)
			from, to := filepath.Join(fixtures, family), filepath.Join(t.TempDir(), "out")
			_, err := m.ExportQuantised(t.Context(), to, nil)
			require.NoError(t, err)
			require.Equal(t, contents(t, from), contents(t, to))
			sameFile(t, filepath.Join(from, configFile), filepath.Join(to, configFile))

			const changed = "model.layers.1.mlp.up_proj.weight"
			seen := map[string]bool{}
			report, err := m.ExportQuantised(t.Context(), to, func(p site.Parameter, values []float32) (bool, error) {
				seen[p.Name] = true
				require.Len(t, values, p.Size())
				if p.Name == changed || p.Name == "model.norm.weight" {
					for i := range values {
						values[i] += 0.01 * float32(i%7)
					}
				}
				return p.Name == changed || p.Name == "model.norm.weight", nil
			})
			require.NoError(t, err)
			require.Len(t, seen, len(m.Parameters()))
			require.Len(t, report.Tensors, 1)
			require.Equal(t, changed, report.Tensors[0].Name)
			require.Greater(t, report.RMSError, 0.0)
			require.Less(t, report.RMSError, 0.2*report.RMS)
			before, after := contents(t, from), contents(t, to)
			require.Len(t, after, len(before))
			for name := range before {
				switch {
				case name == changed || name == "model.norm.weight":
					require.NotEqual(t, before[name], after[name], name)
				case !strings.HasPrefix(name, strings.TrimSuffix(changed, "weight")):
					require.Equal(t, before[name], after[name], name)
				}
			}
		})
	}
	_, err := loadQuantised(t, "llama", nil).ExportQuantised(t.Context(), t.TempDir(), nil)
	require.ErrorContains(t, err, "no quantised weights")
}

// config.json has what transformers writes itself.
func TestQuantiseConfig(t *testing.T) {
	for family, scheme := range map[string]quant.Scheme{"llama_nf4": quant.NF4{DoubleQuant: true}, "llama_fp4": quant.FP4{}, "llama_int8": quant.INT8{}} {
		plain, dir := filepath.Join(t.TempDir(), "plain"), filepath.Join(t.TempDir(), "out")
		m := loadQuantised(t, family, nil)
		require.NoError(t, m.Export(t.Context(), plain, nil))
		_, err := Quantise(t.Context(), plain, dir, scheme)
		require.NoError(t, err)
		sameFile(t, filepath.Join(fixtures, family, configFile), filepath.Join(dir, configFile))
	}
	config := func(family string, scheme quant.Scheme, o QuantiseOptions) string {
		dir := filepath.Join(t.TempDir(), "out")
		_, err := Quantise(t.Context(), filepath.Join(fixtures, family), dir, scheme, o)
		require.NoError(t, err)
		data, err := os.ReadFile(filepath.Join(dir, configFile))
		require.NoError(t, err)
		object, err := pyjson.Parse(data)
		require.NoError(t, err)
		return string(object[quantizationKey])
	}
	text := config("smollm2", quant.NF4{Skip: []string{"layers.0.mlp.up_proj"}}, QuantiseOptions{})
	require.Contains(t, text, `"bnb_4bit_compute_dtype": "bfloat16"`)
	require.Regexp(t, `"llm_int8_skip_modules": \[\s*"model.layers.0.mlp.up_proj",\s*"lm_head"\s*\]`, text)
	require.Contains(t, config("llama_f16", quant.FP4{}, QuantiseOptions{}), `"bnb_4bit_compute_dtype": "float16"`)
	require.Contains(t, config("llama_f16", quant.FP4{}, QuantiseOptions{Compute: dtypes.Float32}), `"bnb_4bit_compute_dtype": "float32"`)
}

func TestQuantiseClassifier(t *testing.T) {
	o := ClassifierOptions{Options: float32Options(t), Labels: []string{"a", "b"}, NewHead: true, Seed: 3}
	o.Quantization = quant.NF4{}
	c, err := LoadClassifier(t.Context(), filepath.Join(encoderFixtures, "bert_trunk"), o)
	require.NoError(t, err)
	defer c.Close()
	dir := filepath.Join(t.TempDir(), "out")
	_, err = c.ExportQuantised(t.Context(), dir, nil)
	require.NoError(t, err)
	data, err := os.ReadFile(filepath.Join(dir, configFile))
	require.NoError(t, err)
	require.Regexp(t, `"llm_int8_skip_modules": \[\s*"classifier"\s*\]`, string(data))
	again, err := LoadClassifier(t.Context(), dir, ClassifierOptions{Options: float32Options(t)})
	require.NoError(t, err)
	defer again.Close()
	require.Len(t, again.quantised, len(c.quantised))
	for _, p := range c.Parameters() {
		if _, ok := c.quantised[p.Name]; !ok {
			continue
		}
		want, got := make([]float32, p.Size()), make([]float32, p.Size())
		for view, to := range map[*Classifier][]float32{c: want, again: got} {
			_, ok, err := view.ReadParameter(p.Name, to)
			require.NoError(t, err)
			require.True(t, ok)
		}
		require.Equal(t, want, got, p.Name)
	}
}

func TestQuantiseErrors(t *testing.T) {
	tensor := func(edit func(*safetensors.Tensor)) string {
		dir := copyOf(t, "llama")
		editTensors(t, dir, func(list []safetensors.Tensor) []safetensors.Tensor {
			for i := range list {
				if list[i].Name == "model.layers.1.mlp.up_proj.weight" {
					edit(&list[i])
				}
			}
			return list
		})
		return dir
	}
	infinite := tensor(func(x *safetensors.Tensor) { copy(x.Bytes[8:], []byte{0, 0, 0x80, 0x7f}) })
	nan := tensor(func(x *safetensors.Tensor) { copy(x.Bytes[4:], []byte{1, 0, 0xc0, 0xff}) })
	integers := tensor(func(x *safetensors.Tensor) { x.DType = safetensors.I32 })
	for name, c := range map[string]struct {
		from   string
		scheme quant.Scheme
		want   string
	}{
		"infinite":          {infinite, quant.NF4{}, `parameter "model.layers.1.mlp.up_proj.weight": quant: element 2 is +Inf`},
		"NaN":               {nan, quant.FP4{DoubleQuant: true}, `parameter "model.layers.1.mlp.up_proj.weight": quant: element 1 is NaN`},
		"NaN in INT8":       {nan, quant.INT8{}, `parameter "model.layers.1.mlp.up_proj.weight": quant: int8: element 1 is NaN`},
		"integers":          {integers, quant.NF4{}, `"model.layers.1.mlp.up_proj.weight": wanted F64, F32, F16 or BF16 [`},
		"skips nothing":     {filepath.Join(fixtures, "llama"), quant.INT8{Skip: []string{"up_porj"}}, `module to skip "up_porj" is no linear layer; did you mean "up_proj"?`},
		"block size":        {filepath.Join(fixtures, "llama"), quant.NF4{BlockSize: 48}, "block size is 48, want a power of two"},
		"already quantised": {filepath.Join(fixtures, "llama_nf4"), quant.NF4{}, "already quantised"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "out")
			_, err := Quantise(t.Context(), c.from, dir, c.scheme)
			require.ErrorContains(t, err, c.want)
			require.NoDirExists(t, dir)
			o := float32Options(t)
			o.Quantization = c.scheme
			_, err = Load(t.Context(), c.from, o)
			require.ErrorContains(t, err, c.want)
		})
	}
	from := filepath.Join(fixtures, "llama")
	_, err := Quantise(t.Context(), from, t.TempDir(), nil)
	require.ErrorContains(t, err, "no scheme")
	_, err = Quantise(t.Context(), copyOf(t, "llama"), from, quant.NF4{})
	require.ErrorContains(t, err, "which is no part of a model")
	dir := filepath.Join(t.TempDir(), "out")
	_, err = Quantise(t.Context(), from, dir, quant.NF4{Skip: []string{"self_attn.q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}})
	require.ErrorContains(t, err, "every linear layer is skipped")
	_, err = Quantise(t.Context(), from, dir, quant.NF4{}, QuantiseOptions{Compute: dtypes.Float64})
	require.ErrorContains(t, err, "wanted Float32, BFloat16 or Float16, got")
	same := copyOf(t, "llama")
	_, err = Quantise(t.Context(), same, same, quant.NF4{})
	require.ErrorContains(t, err, "loaded from this folder")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Quantise(ctx, from, dir, quant.NF4{})
	require.ErrorIs(t, err, context.Canceled)
	require.NoDirExists(t, dir)
	broken := errors.New("broken")
	_, err = loadQuantised(t, "llama_nf4", nil).ExportQuantised(t.Context(), dir, func(site.Parameter, []float32) (bool, error) { return false, broken })
	require.ErrorIs(t, err, broken)
	require.NoDirExists(t, dir)
}
