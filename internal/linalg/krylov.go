package linalg

import (
	"math/rand/v2"

	"gonum.org/v1/gonum/mat"
)

// Of a Krylov space with at most so many blocks krylov keeps the best vectors, again and again,
// until the residuals are this small, relative to the largest singular value.
const (
	krylovBlocks   = 8
	krylovResidual = 1e-10
)

// krylovWidth is some more than the k vectors that are wanted. The others need not converge:
// they keep the wanted ones at a distance from the rest.
func krylovWidth(k int) int { return k + 8 }

// krylovSize is the number of blocks that pay for k singular values of a matrix whose
// smaller side is small; 0: none.
func krylovSize(small, k int) int {
	blocks := min(krylovBlocks, small/(2*krylovWidth(k)))
	if blocks == krylovBlocks || small > exactSize && blocks > 1 {
		return blocks
	}
	return 0
}

// krylov finds the k largest singular values by a restarted block Krylov method (Golub, Luk
// and Overton 1981, "A block Lanczos method for computing the singular values and
// corresponding singular vectors of a matrix"). It reports whether they were found: it gives
// up where singular values lie too close.
func krylov(m mat.Matrix, k, blocks int) (_ SVD, ok bool) {
	_, columns := m.Dims()
	width := krylovWidth(k)
	random := rand.New(rand.NewPCG(0x67e87a8d33decd20, 0xf9df03344c94b135)) // any directions do
	values := make([]float64, columns*width)
	for i := range values {
		values[i] = random.NormFloat64()
	}
	start, _ := ThinQR(mat.NewDense(columns, width, values))
	for range blocks * blocks { // with few blocks a whole decomposition soon costs less
		basis, images := krylovSpace(m, start, blocks)
		svd, err := Whole(images) // of m·basis
		if err != nil {
			return SVD{}, false
		}
		svd = svd.First(width)
		var v, residual mat.Dense
		v.Mul(basis, svd.V)
		svd.V = &v
		residual.Mul(m.T(), Columns(svd.U, 0, k))
		for j := range k {
			for i := range columns {
				residual.Set(i, j, residual.At(i, j)-svd.S[j]*v.At(i, j))
			}
		}
		if mat.Norm(&residual, 2) <= krylovResidual*svd.S[0] {
			return svd.First(k), true
		}
		start = &v
	}
	return SVD{}, false
}

// krylovSpace returns an orthonormal basis of the blocks v, mᵀm·v, (mᵀm)²·v ..., and m times it.
func krylovSpace(m mat.Matrix, v *mat.Dense, blocks int) (basis, images *mat.Dense) {
	block := v
	basis = v
	for k := range blocks {
		var image mat.Dense
		image.Mul(m, block)
		if k == 0 {
			images = &image
		} else {
			var joined mat.Dense
			joined.Augment(images, &image)
			images = &joined
		}
		if k == blocks-1 {
			break
		}
		var next mat.Dense
		next.Mul(m.T(), &image)
		block, _ = ThinQR(&next)
		for range 3 { // where little is new, rounding hides it from fewer
			var along, part mat.Dense
			along.Mul(basis.T(), block)
			part.Mul(basis, &along)
			block.Sub(block, &part)
			block, _ = ThinQR(block)
		}
		var joined mat.Dense
		joined.Augment(basis, block)
		basis = &joined
	}
	return basis, images
}
