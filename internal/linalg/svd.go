// Package linalg holds the matrix decompositions that adapters are made with. Matrices are
// row-major float64.
package linalg

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"

	"gonum.org/v1/gonum/lapack/lapack64"
	"gonum.org/v1/gonum/mat"
)

// exactSize is the smaller side up to which all singular values are computed: the time
// grows with its cube, and only the largest are wanted.
const exactSize = 512

// SVD is M ≈ U·diag(S)·Vᵀ with the largest singular values, in falling order.
type SVD struct {
	U *mat.Dense // [rows, k]
	S []float64  // [k]
	V *mat.Dense // [columns, k]
}

// Truncated returns the k largest singular values of a matrix and their vectors. From
// exactSize on it iterates on a subspace (Halko, Martinsson and Tropp 2011, algorithm 4.4)
// until they are settled.
func Truncated(m mat.Matrix, k int) (SVD, error) {
	rows, columns := m.Dims()
	small := min(rows, columns)
	if k < 1 || k > small {
		return SVD{}, fmt.Errorf("linalg: %d singular values of a %d x %d matrix", k, rows, columns)
	}
	if small <= exactSize || 4*k > small {
		return exact(m, k)
	}
	return iterated(m, k)
}

func exact(m mat.Matrix, k int) (SVD, error) {
	var svd mat.SVD
	if !svd.Factorize(m, mat.SVDThin) {
		return SVD{}, errors.New("linalg: the singular value decomposition does not converge: are there NaNs?")
	}
	var u, v mat.Dense
	svd.UTo(&u)
	svd.VTo(&v)
	return SVD{cut(&u, k), svd.Values(nil)[:k], cut(&v, k)}, nil
}

// cut returns the first k columns.
func cut(m *mat.Dense, k int) *mat.Dense {
	rows, _ := m.Dims()
	return m.Slice(0, rows, 0, k).(*mat.Dense)
}

// The columns beyond k, the most iterations, and when singular values are settled.
const (
	oversampling   = 16
	mostIterations = 60
	settled        = 1e-8
)

func iterated(m mat.Matrix, k int) (SVD, error) {
	rows, columns := m.Dims()
	width := min(k+max(oversampling, k/2), rows, columns)
	random := rand.New(rand.NewPCG(1, 2)) // any directions do
	start := make([]float64, columns*width)
	for i := range start {
		start[i] = random.NormFloat64()
	}
	basis := mat.NewDense(columns, width, start)
	var before []float64
	for range mostIterations {
		var image, back mat.Dense
		image.Mul(m, basis)
		q, _ := ThinQR(&image)
		back.Mul(m.T(), q) // [columns, width]: its singular values are those of qᵀ·m
		svd, err := exact(&back, width)
		if err != nil {
			return SVD{}, err
		}
		if changed(before, svd.S[:k]) <= settled*svd.S[0] {
			var u mat.Dense
			u.Mul(q, svd.V)
			return SVD{cut(&u, k), svd.S[:k], cut(svd.U, k)}, nil
		}
		before, basis = append([]float64{}, svd.S[:k]...), svd.U
	}
	return SVD{}, fmt.Errorf("linalg: %d singular values of a %d x %d matrix are not settled after %d iterations", k, rows, columns, mostIterations)
}

func changed(before, after []float64) float64 {
	if before == nil {
		return math.Inf(1)
	}
	var most float64
	for i := range after {
		most = max(most, math.Abs(after[i]-before[i]))
	}
	return most
}

// OfProduct is [Truncated] of b·a, b [rows, r] and a [r, columns], without forming the
// product where r is small.
func OfProduct(b, a *mat.Dense, k int) (SVD, error) {
	rows, r := b.Dims()
	_, columns := a.Dims()
	if r > min(rows, columns) {
		var m mat.Dense
		m.Mul(b, a)
		return Truncated(&m, k)
	}
	qb, rb := ThinQR(b)
	var at mat.Dense
	at.CloneFrom(a.T())
	qa, ra := ThinQR(&at)
	var core mat.Dense
	core.Mul(rb, ra.T())
	svd, err := exact(&core, min(k, r))
	if err != nil {
		return SVD{}, err
	}
	var u, v mat.Dense
	u.Mul(qb, svd.U)
	v.Mul(qa, svd.V)
	out := SVD{&u, svd.S, &v}
	if k <= r {
		return out, nil
	}
	// The product has rank r at most: the rest is zero.
	grown := SVD{mat.NewDense(rows, k, nil), append(append([]float64{}, svd.S...), make([]float64, k-r)...), mat.NewDense(columns, k, nil)}
	grown.U.Slice(0, rows, 0, r).(*mat.Dense).Copy(out.U)
	grown.V.Slice(0, columns, 0, r).(*mat.Dense).Copy(out.V)
	return grown, nil
}

// ThinQR returns m = Q·R of a tall matrix, with Q [rows, columns] orthonormal and R
// [columns, columns] upper triangular. Signs are LAPACK's, and so PyTorch's.
func ThinQR(m mat.Matrix) (q, r *mat.Dense) {
	rows, columns := m.Dims()
	if rows < columns {
		panic(fmt.Errorf("linalg: thin QR of a %d x %d matrix", rows, columns))
	}
	q = mat.DenseCopyOf(m)
	tau := make([]float64, columns)
	call := func(f func(work []float64, n int)) {
		work := []float64{0}
		f(work, -1) // asks for the size
		work = make([]float64, int(work[0]))
		f(work, len(work))
	}
	call(func(work []float64, n int) { lapack64.Geqrf(q.RawMatrix(), tau, work, n) })
	r = mat.NewDense(columns, columns, nil)
	for i := range columns {
		for j := i; j < columns; j++ {
			r.Set(i, j, q.At(i, j))
		}
	}
	call(func(work []float64, n int) { lapack64.Orgqr(q.RawMatrix(), tau, work, n) })
	return q, r
}

// First returns the k largest of the singular values that there are.
func (s SVD) First(k int) SVD { return SVD{cut(s.U, k), s.S[:k], cut(s.V, k)} }
