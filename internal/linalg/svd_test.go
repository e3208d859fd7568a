package linalg

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"gonum.org/v1/gonum/mat"
)

func random(rows, columns int) *mat.Dense {
	r := rand.New(rand.NewPCG(uint64(rows), uint64(columns)))
	m := mat.NewDense(rows, columns, nil)
	for i := range rows {
		for j := range columns {
			m.Set(i, j, r.NormFloat64())
		}
	}
	return m
}

// requireSVD checks orthonormal vectors, falling values, and that what is left of m is
// below the smallest value kept.
func requireSVD(t *testing.T, m mat.Matrix, svd SVD, k int) {
	t.Helper()
	require.Len(t, svd.S, k)
	for i := 1; i < k; i++ {
		require.LessOrEqual(t, svd.S[i], svd.S[i-1]*(1+1e-12))
	}
	var us, left, image mat.Dense
	us.Mul(svd.U, mat.NewDiagDense(k, svd.S))
	image.Mul(m, svd.V) // M·V = U·S
	image.Sub(&image, &us)
	require.LessOrEqual(t, mat.Norm(&image, 2), 1e-4*svd.S[0])
	left.Mul(&us, svd.V.T())
	left.Sub(m, &left)
	all, kept := mat.Norm(m, 2), 0.0
	for _, s := range svd.S {
		kept += s * s
	}
	require.InEpsilon(t, all*all+1, kept+math.Pow(mat.Norm(&left, 2), 2)+1, 1e-6) // Pythagoras
}

func TestTruncated(t *testing.T) {
	for _, c := range []struct{ rows, columns, k int }{{1, 1, 1}, {5, 3, 3}, {3, 5, 2}, {40, 30, 7}} {
		m := random(c.rows, c.columns)
		svd, err := Truncated(m, c.k)
		require.NoError(t, err)
		requireSVD(t, m, svd, c.k)
	}
	_, err := Truncated(random(3, 4), 0)
	require.Error(t, err)
	_, err = Truncated(random(3, 4), 4)
	require.Error(t, err)
	nan := random(20, 20)
	nan.Set(3, 3, math.NaN())
	_, err = Truncated(nan, 2)
	require.ErrorContains(t, err, "NaN or infinity")
}

// The Krylov method finds what the whole decomposition finds: values that fall like those of
// weights and of updates, fewer values than are wanted, none at all, and all the same.
func TestKrylov(t *testing.T) {
	var low, noisy mat.Dense
	low.Mul(random(700, 40), random(40, 600))
	noisy.Add(&low, random(700, 600))
	for name, c := range map[string]struct {
		m         *mat.Dense
		k, blocks int
	}{
		"noisy": {&noisy, 12, 8}, "low": {&low, 12, 8}, "exhausted": {&low, 60, 4}, "wide": {mat.DenseCopyOf(low.T()), 50, 5},
		"zero": {mat.NewDense(300, 260, nil), 5, 8}, "equal": {orthogonal(300), 5, 8},
	} {
		rows, columns := c.m.Dims()
		require.Equal(t, c.blocks, krylovSize(min(rows, columns), c.k), name)
		svd, ok := krylov(c.m, c.k, c.blocks)
		require.True(t, ok, name)
		requireSVD(t, c.m, svd, c.k)
		want, err := Whole(c.m)
		require.NoError(t, err)
		require.InDeltaSlice(t, want.S[:c.k], svd.S, 1e-12*want.S[0], name)
	}
	require.Zero(t, krylovSize(40, 5)) // the whole decomposition is faster
	require.Zero(t, krylovSize(512, 30))
}

func orthogonal(n int) *mat.Dense {
	q, _ := ThinQR(random(n, n))
	return q
}

func TestOfProduct(t *testing.T) {
	for _, c := range []struct{ rows, r, columns, k int }{{20, 3, 30, 3}, {20, 3, 30, 2}, {20, 3, 30, 7}, {6, 9, 8, 4}, {1, 1, 1, 1}} {
		b, a := random(c.rows, c.r), random(c.r, c.columns)
		var m mat.Dense
		m.Mul(b, a)
		svd, err := OfProduct(b, a, c.k)
		require.NoError(t, err)
		requireSVD(t, &m, svd, c.k)
		want, err := Truncated(&m, c.k)
		require.NoError(t, err)
		require.InDeltaSlice(t, want.S, svd.S, 1e-10*want.S[0])
	}
}

func TestThinQR(t *testing.T) {
	m := random(9, 4)
	q, r := ThinQR(m)
	var back, eye mat.Dense
	back.Mul(q, r)
	require.True(t, mat.EqualApprox(m, &back, 1e-12))
	eye.Mul(q.T(), q)
	require.True(t, mat.EqualApprox(mat.NewDiagDense(4, []float64{1, 1, 1, 1}), &eye, 1e-12))
	require.Zero(t, r.At(3, 1))
	require.Panics(t, func() { ThinQR(random(3, 4)) })
}

func BenchmarkTruncated(b *testing.B) {
	var low mat.Dense
	low.Mul(random(2048, 64), random(64, 2048))
	for name, m := range map[string]mat.Matrix{"low": &low, "full": random(1024, 1024)} {
		for _, k := range []int{16, 64} {
			b.Run(fmt.Sprint(name, k), func(b *testing.B) {
				for b.Loop() {
					_, err := Truncated(m, k)
					require.NoError(b, err)
				}
			})
		}
	}
}
