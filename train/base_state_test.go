package train

import (
	"path/filepath"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/models"
)

// One model has one fingerprint, in whatever precision it is held.
func TestDescribeBase(t *testing.T) {
	load := func(family string, dtype dtypes.DType) baseState {
		m, err := models.Load(t.Context(), filepath.Join(basetest.Fixtures, "families", family), models.Options{On: testBackend(t), DType: dtype})
		require.NoError(t, err)
		defer func() { require.NoError(t, m.Close()) }()
		state, err := describeBase(m)
		require.NoError(t, err)
		return state
	}
	llama := load("llama", dtypes.Float32)
	require.Equal(t, "llama", llama.ModelType)
	require.Len(t, llama.Fingerprint, 64)
	require.Equal(t, llama, load("llama", dtypes.Float32))
	require.Equal(t, llama, load("llama", dtypes.BFloat16))
	require.NotEqual(t, llama.Fingerprint, load("llama_tied", dtypes.Float32).Fingerprint)
	require.NotEqual(t, llama.Fingerprint, load("qwen3", dtypes.Float32).Fingerprint)

	// A value at either end of a parameter of a kind counts, on the device too.
	seen := map[string]bool{}
	for _, m := range []*toy{newToy(t, false), changedToy(t, "layers.1.mix.weight"), changedToy(t, "embed_tokens.weight"), changedToy(t, "lm_head.weight")} {
		state, err := describeBase(m)
		require.NoError(t, err)
		require.False(t, seen[state.Fingerprint])
		seen[state.Fingerprint] = true
	}
	broken := newToy(t, false)
	broken.tied, broken.store = false, newToy(t, true).store
	_, err := describeBase(broken)
	require.ErrorContains(t, err, `fingerprint of the base: parameter "lm_head.weight": the base has no such variable`)
}
