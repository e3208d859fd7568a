package models

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/site"
)

const fixtures = "../internal/golden/testdata/families"

// float32Options loads on the tests' backend and computes in float32, also on CUDA.
func float32Options(t testing.TB) Options {
	return Options{On: backendtest.Open(t), DType: dtypes.Float32}
}

// golden reads a fixture's tensor onto no device.
func golden(t testing.TB, f *safetensors.File, name string) *tensors.Tensor {
	t.Helper()
	info, ok := f.Info(name)
	require.True(t, ok, name)
	data, err := f.Bytes(name)
	require.NoError(t, err)
	dtype := dtypes.Float32
	if info.DType == safetensors.I32 {
		dtype = dtypes.Int32
	}
	out, err := tensors.FromRaw(nil, 0, shapes.Make(dtype, info.Shape...), data)
	require.NoError(t, err)
	return out
}

// call is one forward pass: ids and, where not nil, positions and segments.
type call struct{ ids, positions, segments *tensors.Tensor }

// logits runs forward passes, all in one program to compile but once.
func logits(t testing.TB, m *Model, calls ...call) []*tensors.Tensor {
	t.Helper()
	var args []any
	for _, c := range calls {
		for _, x := range []*tensors.Tensor{c.ids, c.positions, c.segments} {
			if x != nil {
				args = append(args, x)
			}
		}
	}
	e, err := model.NewExec(m.Backend(), m.Store(), func(_ *model.Scope, nodes []*graph.Node) []*graph.Node {
		take := func(wanted *tensors.Tensor) (x *graph.Node) {
			if wanted != nil {
				x, nodes = nodes[0], nodes[1:]
			}
			return x
		}
		p := &site.Pass{Graph: nodes[0].Graph(), DType: m.DType()}
		var out []*graph.Node
		for _, c := range calls {
			in := site.Tokens{IDs: take(c.ids), Positions: take(c.positions), Segments: take(c.segments)}
			out = append(out, graph.ConvertDType(m.Logits(p, m.Hidden(p, in)), dtypes.Float32))
		}
		return out
	})
	require.NoError(t, err)
	defer e.Finalize()
	out, err := e.Exec(args...)
	require.NoError(t, err)
	return out
}

// requireClose compares the rows of logits whose mask is not 0.
func requireClose(t testing.TB, what string, want, got, mask *tensors.Tensor, tolerance float64) {
	t.Helper()
	require.Equal(t, want.Shape().Dimensions, got.Shape().Dimensions)
	w, g := tensors.MustCopyFlatData[float32](want), tensors.MustCopyFlatData[float32](got)
	var keep []int32
	if mask != nil {
		keep = tensors.MustCopyFlatData[int32](mask)
	}
	vocab := want.Shape().Dimensions[2]
	for i := range w {
		if keep != nil && keep[i/vocab] == 0 {
			require.False(t, g[i] != g[i], "%s: NaN in padding row %d", what, i/vocab)
			continue
		}
		require.InDelta(t, w[i], g[i], tolerance, "%s: token %d, logit %d", what, i/vocab, i%vocab)
	}
}

func TestFamilies(t *testing.T) {
	folders, err := filepath.Glob(fixtures + "/*/config*.json")
	require.NoError(t, err)
	require.NotEmpty(t, folders)
	for _, config := range folders {
		dir := filepath.Dir(config)
		name := filepath.Base(dir)
		if filepath.Base(config) != configFile {
			name, dir = name+"_legacy", withConfig(t, dir, config)
		}
		t.Run(name, func(t *testing.T) {
			backendtest.Sample(t, 5)
			m, err := Load(context.Background(), dir, float32Options(t))
			require.NoError(t, err)
			defer m.Close()
			f, err := safetensors.Open(filepath.Join(dir, "golden.safetensors"))
			require.NoError(t, err)
			defer f.Close()
			get := func(name string) *tensors.Tensor { return golden(t, f, name) }

			type check struct {
				call
				want string
				mask *tensors.Tensor
			}
			checks := []check{{call{ids: get("input_ids")}, "logits", nil}}
			// Padding, positions and packing are the family's, not the option's.
			if slices.Contains([]string{"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "gpt2", "opt", "opt_post", "gpt_neox"}, name) {
				left, right := get("left_mask"), get("right_mask")
				checks = append(checks,
					check{call{get("left_ids"), get("left_positions"), left}, "left_logits", left},
					check{call{get("right_ids"), get("right_positions"), right}, "right_logits", right},
					// On the right, padding needs neither segments nor positions.
					check{call{ids: get("right_ids")}, "right_logits", right},
					check{call{ids: get("pos_ids"), positions: get("pos_positions")}, "pos_logits", nil},
					check{call{get("packed_ids"), get("packed_positions"), get("packed_segments")}, "packed_logits", nil})
			}
			if _, long := f.Info("long_ids"); long {
				checks = append(checks, check{call{ids: get("long_ids")}, "long_logits", nil})
			}
			var calls []call
			for _, c := range checks {
				calls = append(calls, c.call)
			}
			for i, got := range logits(t, m, calls...) {
				requireClose(t, checks[i].want, get(checks[i].want), got, checks[i].mask, 1e-4)
			}
		})
	}
}

// withConfig copies a fixture with another config.json.
func withConfig(t testing.TB, dir, config string) string {
	t.Helper()
	to := t.TempDir()
	require.NoError(t, os.CopyFS(to, os.DirFS(dir)))
	data, err := os.ReadFile(config)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(to, configFile), data, 0o644))
	return to
}
