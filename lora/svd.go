package lora

import (
	"hash/fnv"
	"math"
	"math/rand/v2"

	"gonum.org/v1/gonum/mat"

	"github.com/gopeft/gopeft/internal/linalg"
)

// exact in place of a number of iterations asks for an exact decomposition.
const exact = -1

// topSingular returns the n largest singular values of M, or as many as there are, with their
// vectors. With niter = exact they are as exact as float64 makes them, else those of
// [randomised].
func topSingular(M mat.Matrix, n, niter int, r *rand.Rand) (linalg.SVD, error) {
	rows, columns := M.Dims()
	n = min(n, rows, columns)
	if niter != exact {
		return randomised(M, n, niter, r)
	}
	return linalg.Truncated(M, n)
}

// randomised is torch.svd_lowrank: algorithms 4.4 and 5.1 of Halko, Martinsson and Tropp
// 2009 (arXiv:0909.4061). n columns of noise are multiplied by M and Mᵀ in turn niter
// times, orthogonalised in between, and M is decomposed on the space that they span.
func randomised(M mat.Matrix, n, niter int, r *rand.Rand) (linalg.SVD, error) {
	_, columns := M.Dims()
	var y, small, U mat.Dense
	y.Mul(M, normals(r, columns, n))
	Q, _ := linalg.ThinQR(&y)
	for range niter {
		var z, y mat.Dense
		z.Mul(M.T(), Q)
		back, _ := linalg.ThinQR(&z)
		y.Mul(M, back)
		Q, _ = linalg.ThinQR(&y)
	}
	small.Mul(Q.T(), M)
	svd, err := linalg.Whole(&small)
	if err != nil {
		return linalg.SVD{}, err
	}
	U.Mul(Q, svd.U)
	svd.U = &U
	return svd, nil
}

func fnv1a(text string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(text))
	return h.Sum64()
}

func sqrt(v float64) float64 { return math.Sqrt(max(0, v)) }
