package lora

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// The results of peft's function.
func TestFactorization(t *testing.T) {
	for _, c := range []struct{ n, factor, m, k int }{
		{256, -1, 16, 16}, {128, -1, 8, 16}, {127, -1, 1, 127}, {128, 4, 4, 32}, {1, -1, 1, 1},
		{4096, -1, 64, 64}, {11008, -1, 86, 128}, {11008, 4, 4, 2752}, {48, 5, 4, 12}, {48, 1, 1, 48}, {6, 100, 2, 3}, {6, 6, 6, 1},
	} {
		m, k := factorization(c.n, c.factor)
		require.Equal(t, [2]int{c.m, c.k}, [2]int{m, k}, "%+v", c)
	}
}
