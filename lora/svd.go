package lora

import (
	"hash/fnv"
	"math"
	"math/rand/v2"

	"gonum.org/v1/gonum/lapack/lapack64"
	"gonum.org/v1/gonum/mat"
)

// exact in place of a number of iterations asks for the exact decomposition.
const exact = -1

// topSingular returns the n largest singular values S of M, and their vectors U and V:
// M ≈ U·diag(S)·Vᵀ. With niter = exact the decomposition is that of LAPACK, else
// [randomised].
func topSingular(M mat.Matrix, n, niter int, r *rand.Rand) (U *mat.Dense, S []float64, V *mat.Dense, err error) {
	if niter != exact {
		return randomised(M, n, niter, r)
	}
	var svd mat.SVD
	if !svd.Factorize(M, mat.SVDThin) {
		return nil, nil, nil, errNoDecomposition
	}
	S = svd.Values(nil)
	if !finiteAll(S) {
		return nil, nil, nil, errNoDecomposition
	}
	var u, v mat.Dense
	svd.UTo(&u)
	svd.VTo(&v)
	n = min(n, len(S))
	return columnsOf(&u, 0, n), S[:n], columnsOf(&v, 0, n), nil
}

// randomised is torch.svd_lowrank: algorithms 4.4 and 5.1 of Halko, Martinsson and Tropp
// 2009 (arXiv:0909.4061). n columns of noise are multiplied by M and Mᵀ in turn niter
// times, orthogonalised in between, and M is decomposed on the space that they span.
func randomised(M mat.Matrix, n, niter int, r *rand.Rand) (U *mat.Dense, S []float64, V *mat.Dense, err error) {
	rows, columns := M.Dims()
	n = min(n, rows, columns)
	var y mat.Dense
	y.Mul(M, normals(r, columns, n))
	Q := orthonormal(&y)
	for range niter {
		var z, y mat.Dense
		z.Mul(M.T(), Q)
		y.Mul(M, orthonormal(&z))
		Q = orthonormal(&y)
	}
	var small mat.Dense
	small.Mul(Q.T(), M)
	u, S, V, err := topSingular(&small, n, exact, nil)
	if err != nil {
		return nil, nil, nil, err
	}
	U = new(mat.Dense)
	U.Mul(Q, u)
	return U, S, V, nil
}

// orthonormal returns the first factor of the QR decomposition of M [rows, n], n <= rows,
// with n columns.
func orthonormal(M *mat.Dense) *mat.Dense {
	Q := mat.DenseCopyOf(M)
	_, n := Q.Dims()
	raw, tau := Q.RawMatrix(), make([]float64, n)
	var size [1]float64
	lapack64.Geqrf(raw, tau, size[:], -1)
	work := make([]float64, int(size[0]))
	lapack64.Geqrf(raw, tau, work, len(work))
	lapack64.Orgqr(raw, tau, size[:], -1)
	work = make([]float64, int(size[0]))
	lapack64.Orgqr(raw, tau, work, len(work))
	return Q
}

func fnv1a(text string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(text))
	return h.Sum64()
}

func sqrt(v float64) float64 { return math.Sqrt(max(0, v)) }
