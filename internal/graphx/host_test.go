package graphx_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/graphx"
)

func TestTransposed(t *testing.T) {
	require.Equal(t, []float32{1, 4, 2, 5, 3, 6}, graphx.Transposed([]float32{1, 2, 3, 4, 5, 6}, 2, 3))
}
