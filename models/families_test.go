package models

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/site"
)

const fixtures = "../internal/golden/testdata/families"

// testBackend is the backend of the tests' programs, one for all tests.
func testBackend(t testing.TB) compute.Backend {
	t.Helper()
	b, _, err := openBackend(Options{Backend: os.Getenv("GOMLX_BACKEND")})
	require.NoError(t, err)
	return b
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

// tokenInputs names the optional inputs of a pass, by position after the ids.
type tokenInputs struct{ positions, segments *tensors.Tensor }

// logits runs a plain forward pass.
func logits(t testing.TB, m *Model, ids *tensors.Tensor, in tokenInputs) *tensors.Tensor {
	t.Helper()
	args := []any{ids}
	for _, x := range []*tensors.Tensor{in.positions, in.segments} {
		if x != nil {
			args = append(args, x)
		}
	}
	e, err := model.NewExec(m.Backend(), m.Store(), func(_ *model.Scope, nodes []*graph.Node) *graph.Node {
		p := &site.Pass{Graph: nodes[0].Graph(), DType: m.DType()}
		tokens := site.Tokens{IDs: nodes[0]}
		rest := nodes[1:]
		if in.positions != nil {
			tokens.Positions, rest = rest[0], rest[1:]
		}
		if in.segments != nil {
			tokens.Segments = rest[0]
		}
		return graph.ConvertDType(m.Logits(p, m.Hidden(p, tokens)), dtypes.Float32)
	})
	require.NoError(t, err)
	defer e.Finalize()
	out, err := e.Exec(args...)
	require.NoError(t, err)
	return out[0]
}

// requireClose compares the rows of logits whose mask is not 0.
func requireClose(t testing.TB, want, got, mask *tensors.Tensor, tolerance float64) {
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
			require.False(t, g[i] != g[i], "NaN in padding row %d", i/vocab)
			continue
		}
		require.InDelta(t, w[i], g[i], tolerance, "token %d, logit %d", i/vocab, i%vocab)
	}
}

func TestFamilies(t *testing.T) {
	b := testBackend(t)
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
			m, err := Load(context.Background(), dir, Options{On: b})
			require.NoError(t, err)
			defer m.Close()
			f, err := safetensors.Open(filepath.Join(dir, "golden.safetensors"))
			require.NoError(t, err)
			defer f.Close()
			get := func(name string) *tensors.Tensor { return golden(t, f, name) }

			requireClose(t, get("logits"), logits(t, m, get("input_ids"), tokenInputs{}), nil, 1e-4)
			if _, ok := f.Info("long_ids"); ok {
				requireClose(t, get("long_logits"), logits(t, m, get("long_ids"), tokenInputs{}), nil, 1e-4)
			}
			for _, side := range []string{"left", "right"} {
				got := logits(t, m, get(side+"_ids"), tokenInputs{positions: get(side + "_positions"), segments: get(side + "_mask")})
				requireClose(t, get(side+"_logits"), got, get(side+"_mask"), 1e-4)
			}
			// On the right, padding needs neither segments nor positions.
			requireClose(t, get("right_logits"), logits(t, m, get("right_ids"), tokenInputs{}), get("right_mask"), 1e-4)
			requireClose(t, get("pos_logits"), logits(t, m, get("pos_ids"), tokenInputs{positions: get("pos_positions")}), nil, 1e-4)
			requireClose(t, get("packed_logits"), logits(t, m, get("packed_ids"),
				tokenInputs{positions: get("packed_positions"), segments: get("packed_segments")}), nil, 1e-4)
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
