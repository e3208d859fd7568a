package lora

import (
	"gonum.org/v1/gonum/mat"

	"github.com/gopeft/gopeft/internal/linalg"
)

// oloraStart is that of OLoRA (Büyükakyüz 2024, arXiv:2406.01775): with the QR
// decomposition W = Q·R, Q having orthonormal columns,
//
//	B = the first r columns of Q, A = the first r rows of R = Bᵀ W.
//
// The first columns of Q depend on the first columns of W only.
func (l layer) oloraStart(W *mat.Dense) start {
	B, _ := linalg.ThinQR(linalg.Columns(W, 0, l.r))
	var A mat.Dense
	A.Mul(B.T(), W)
	return start{a: floats(&A), b: floats(B)}
}
