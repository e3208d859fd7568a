// Package linalg holds the matrix decompositions that adapters are made with. Matrices are
// row-major float64.
package linalg

import (
	"errors"
	"fmt"

	"gonum.org/v1/gonum/mat"
)

// exactSize is the smaller side up to which all singular values are computed unless few of
// them are wanted: the time grows with its cube.
const exactSize = 512

// SVD is M ≈ U·diag(S)·Vᵀ with the largest singular values, in falling order.
type SVD struct {
	U *mat.Dense // [rows, k]
	S []float64  // [k]
	V *mat.Dense // [columns, k]
}

// Whole returns all singular values. A matrix of 1024 x 1024 takes 15 seconds, one of
// 4096 x 4096 a quarter of an hour.
func Whole(m mat.Matrix) (SVD, error) {
	var svd mat.SVD
	if !svd.Factorize(m, mat.SVDThin) {
		return SVD{}, errNoDecomposition
	}
	s := svd.Values(nil)
	for _, v := range s {
		if v-v != 0 { // NaN or infinite
			return SVD{}, errNoDecomposition
		}
	}
	var u, v mat.Dense
	svd.UTo(&u)
	svd.VTo(&v)
	return SVD{&u, s, &v}, nil
}

var errNoDecomposition = errors.New("linalg: the singular values do not converge: the matrix may hold NaN or infinity")

// Truncated returns the k largest singular values of a matrix and their vectors, by a Krylov
// method where that is faster, see [krylov].
func Truncated(m mat.Matrix, k int) (SVD, error) {
	rows, columns := m.Dims()
	small := min(rows, columns)
	if k < 1 || k > small {
		return SVD{}, fmt.Errorf("linalg: %d singular values of a %d x %d matrix", k, rows, columns)
	}
	if blocks := krylovSize(small, k); blocks > 0 {
		if svd, ok := krylov(m, k, blocks); ok {
			return svd, nil
		}
	}
	svd, err := Whole(m)
	if err != nil {
		return SVD{}, err
	}
	return svd.First(k), nil
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
	svd, err := Whole(&core)
	if err != nil {
		return SVD{}, err
	}
	svd = svd.First(min(k, r))
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

// First returns the k largest of the singular values that there are.
func (s SVD) First(k int) SVD { return s.Part(0, k) }

// Part returns k of the singular values from the first.
func (s SVD) Part(first, k int) SVD {
	return SVD{Columns(s.U, first, k), s.S[first : first+k], Columns(s.V, first, k)}
}

// Columns is the part of m that begins with the column first, k columns wide.
func Columns(m *mat.Dense, first, k int) *mat.Dense {
	rows, _ := m.Dims()
	return m.Slice(0, rows, first, first+k).(*mat.Dense)
}
