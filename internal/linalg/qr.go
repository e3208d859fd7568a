package linalg

import (
	"fmt"

	"gonum.org/v1/gonum/lapack/lapack64"
	"gonum.org/v1/gonum/mat"
)

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
