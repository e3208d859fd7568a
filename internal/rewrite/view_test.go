package rewrite

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// elements lists the positions in the parameter of a view's elements, in the view's order.
func (v view) elements() []int {
	all := []int{0}
	for _, axis := range v {
		for _, f := range axis {
			var next []int
			for _, start := range all {
				for i := range f.dim {
					next = append(next, start+i*f.stride)
				}
			}
			all = next
		}
	}
	return all
}

// array is an array of positions, to do with plainly what views do with factors.
type array struct {
	dims   []int
	values []int
}

func (a array) transpose(permutation []int) array {
	out := array{dims: make([]int, len(a.dims)), values: make([]int, len(a.values))}
	for i, from := range permutation {
		out.dims[i] = a.dims[from]
	}
	for k := range out.values {
		index, rest := make([]int, len(out.dims)), k
		for i := len(out.dims) - 1; i >= 0; i-- {
			index[permutation[i]] = rest % out.dims[i]
			rest /= out.dims[i]
		}
		at := 0
		for i, d := range a.dims {
			at = at*d + index[i]
		}
		out.values[k] = a.values[at]
	}
	return out
}

// Views follow any reshapes and transposes, or say that they cannot.
func TestViewsFollowLayouts(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	followed := 0
	for range 2000 {
		dims := []int{1 + r.IntN(4), 1 + r.IntN(6), 1 + r.IntN(4)}
		a := array{dims: dims}
		for i := range dims[0] * dims[1] * dims[2] {
			a.values = append(a.values, i)
		}
		v, ok := viewOf(dims), true
		for range 3 {
			if r.IntN(2) == 0 {
				permutation := r.Perm(len(a.dims))
				a, v = a.transpose(permutation), v.transpose(permutation)
				continue
			}
			a.dims = factorise(r, len(a.values))
			if v, ok = v.reshape(a.dims); !ok {
				break
			}
		}
		if !ok {
			continue
		}
		followed++
		require.Len(t, v, len(a.dims))
		require.Equal(t, a.values, v.elements())
		require.Equal(t, slices.IsSorted(a.values), v.inOrder())
	}
	require.Greater(t, followed, 1000)
}

// factorise returns random dimensions of n elements.
func factorise(r *rand.Rand, n int) []int {
	var dims []int
	for n > 1 {
		d := 1 + r.IntN(n)
		if n%d == 0 {
			dims, n = append(dims, d), n/d
		}
	}
	return append(dims, 1)
}

func TestMatrices(t *testing.T) {
	for name, c := range map[string]struct {
		view       view
		in, out    []int
		ok         bool
		transposed bool
	}{
		"[in, out]":            {viewOf([]int{3, 5}), []int{0}, []int{1}, true, true},
		"[out, in]":            {viewOf([]int{5, 3}), []int{1}, []int{0}, true, false},
		"[out, in] transposed": {viewOf([]int{5, 3}).transpose([]int{1, 0}), []int{0}, []int{1}, true, false},
		"[in, heads, size]":    {viewOf([]int{3, 2, 4}), []int{0}, []int{1, 2}, true, true},
		"[in, size, heads]":    {viewOf([]int{3, 4, 2}), []int{0}, []int{2, 1}, false, false},
		"[heads, in, size]":    {viewOf([]int{2, 3, 4}), []int{1}, []int{0, 2}, false, false},
		"[heads, size, out]":   {viewOf([]int{2, 4, 5}), []int{0, 1}, []int{2}, true, true},
		"one output":           {viewOf([]int{3, 1}), []int{0}, []int{1}, true, false},
		"inner product":        {viewOf([]int{3}), []int{0}, nil, true, false},
	} {
		var u use
		require.Equal(t, c.ok, u.matrix(c.view, c.in, c.out), name)
		if c.ok {
			require.Equal(t, c.transposed, u.Transposed, name)
		}
	}
}
