package rewrite

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// No more zeros than are needed: none around a kernel that GoMLX has right gradients for.
func TestZeros(t *testing.T) {
	for _, c := range []struct {
		size, dilation int
		padding        [2]int
		start, end     int
	}{
		{size: 3, dilation: 1, padding: [2]int{1, 1}},
		{size: 3, dilation: 1, padding: [2]int{2, 2}},
		{size: 1, dilation: 3},
		{size: 2, dilation: 2, padding: [2]int{2, 2}}, // spans 3
		{size: 3, dilation: 1, padding: [2]int{-1, -2}},
		{size: 2, dilation: 1, end: 1},
		{size: 4, dilation: 3, padding: [2]int{9, 9}, end: 1},
		{size: 2, dilation: 1, padding: [2]int{2, 0}, end: 1},
		{size: 2, dilation: 1, padding: [2]int{0, 2}, start: 1},
		{size: 3, dilation: 2, padding: [2]int{7, 0}, end: 2},
		{size: 1, dilation: 1, padding: [2]int{1, 2}, start: 2, end: 2},
	} {
		start, end := zeros(c.size, c.dilation, c.padding)
		require.Equal(t, []int{c.start, c.end}, []int{start, end}, "%+v", c)
		require.Equal(t, 1, ((c.size+start+end-1)*c.dilation+1)%2)
	}
}
