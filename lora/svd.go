package lora

import (
	"hash/fnv"
	"math"
	"math/rand/v2"

	"gonum.org/v1/gonum/lapack/lapack64"
	"gonum.org/v1/gonum/mat"
)

// exact in place of a number of iterations asks for an exact decomposition.
const exact = -1

// topSingular returns the n largest singular values S of M, and their vectors U and V:
// M ≈ U·diag(S)·Vᵀ. With niter = exact they are as exact as float64 makes them, else
// those of [randomised].
func topSingular(M mat.Matrix, n, niter int, r *rand.Rand) (U *mat.Dense, S []float64, V *mat.Dense, err error) {
	if niter != exact {
		return randomised(M, n, niter, r)
	}
	if U, S, V, ok := truncated(M, n); ok {
		return U, S, V, nil
	}
	if U, S, V, err = decomposed(M); err != nil {
		return nil, nil, nil, err
	}
	n = min(n, len(S))
	return columnsOf(U, 0, n), S[:n], columnsOf(V, 0, n), nil
}

// decomposed is the whole singular value decomposition of M. A weight of 1024 x 1024 takes
// 15 seconds, one of 4096 x 4096 a quarter of an hour.
func decomposed(M mat.Matrix) (U *mat.Dense, S []float64, V *mat.Dense, err error) {
	var svd mat.SVD
	if !svd.Factorize(M, mat.SVDThin) {
		return nil, nil, nil, errNoDecomposition
	}
	if S = svd.Values(nil); !finiteAll(S) {
		return nil, nil, nil, errNoDecomposition
	}
	U, V = new(mat.Dense), new(mat.Dense)
	svd.UTo(U)
	svd.VTo(V)
	return U, S, V, nil
}

// Of a Krylov space with so many blocks truncated keeps the best vectors, so many times,
// until the residuals are this small, relative to the largest singular value.
const (
	krylovBlocks   = 8
	krylovRestarts = 60
	krylovResidual = 1e-10
)

// truncated finds the n largest singular values by a restarted block Krylov method (Golub,
// Luk and Overton 1981, "A block Lanczos method for computing the singular values and
// corresponding singular vectors of a matrix"). It reports whether they were found: it
// leaves alone matrices that are small, and those whose singular values lie too close.
func truncated(M mat.Matrix, n int) (U *mat.Dense, S []float64, V *mat.Dense, ok bool) {
	_, columns := M.Dims()
	width := n + 8 // some more, which need not converge: they keep their distance from the others
	if rows, columns := M.Dims(); 2*krylovBlocks*width > min(rows, columns) {
		return nil, nil, nil, false
	}
	V = orthonormal(normals(seeded("krylov"), columns, width))
	for range krylovRestarts {
		basis, images := krylov(M, V)
		u, s, w, err := decomposed(images) // M·basis
		if err != nil {
			return nil, nil, nil, false
		}
		U, S, V = columnsOf(u, 0, width), s[:width], new(mat.Dense)
		V.Mul(basis, columnsOf(w, 0, width))
		var residual mat.Dense
		residual.Mul(M.T(), columnsOf(U, 0, n))
		for j := range n {
			for i := range columns {
				residual.Set(i, j, residual.At(i, j)-S[j]*V.At(i, j))
			}
		}
		if mat.Norm(&residual, 2) <= krylovResidual*S[0] {
			return columnsOf(U, 0, n), S[:n], columnsOf(V, 0, n), true
		}
	}
	return nil, nil, nil, false
}

// krylov returns an orthonormal basis of the blocks V, MᵀM·V, (MᵀM)²·V ..., and M times it.
func krylov(M mat.Matrix, V *mat.Dense) (basis, images *mat.Dense) {
	block := V
	basis = V
	for k := range krylovBlocks {
		var image mat.Dense
		image.Mul(M, block)
		if k == 0 {
			images = &image
		} else {
			var joined mat.Dense
			joined.Augment(images, &image)
			images = &joined
		}
		if k == krylovBlocks-1 {
			break
		}
		next := new(mat.Dense)
		next.Mul(M.T(), &image)
		next = orthonormal(next)
		for range 2 { // once is not enough in float64
			var along, part mat.Dense
			along.Mul(basis.T(), next)
			part.Mul(basis, &along)
			next.Sub(next, &part)
			next = orthonormal(next)
		}
		var joined mat.Dense
		joined.Augment(basis, next)
		basis, block = &joined, next
	}
	return basis, images
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
	u, S, V, err := decomposed(&small)
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
