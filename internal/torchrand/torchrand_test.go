package torchrand

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/safetensors"
)

// The numbers are those of PyTorch's generator, bit by bit (internal/golden/methods_relatives.py).
func TestUniform(t *testing.T) {
	file, err := safetensors.Open(filepath.FromSlash("../golden/testdata/torchrand/uniform.safetensors"))
	require.NoError(t, err)
	defer file.Close()
	seeds := []int64{0, 1, 1<<31 + 7, 1<<40 + 3, -2}
	require.Len(t, file.Names(), 2*len(seeds))
	for _, seed := range seeds {
		want := func(part string) []float32 {
			values := make([]float32, 9)
			require.NoError(t, file.Float32s(fmt.Sprintf("%d.%s", seed, part), values))
			return values
		}
		g := New(seed)
		got := make([]float32, 9)
		g.Uniform(got, -0.5, 0.7)
		require.Equal(t, want("first"), got, seed)
		g.Skip(1500)
		g.Uniform(got, -3, 1e-3)
		require.Equal(t, want("later"), got, seed)
	}
}
