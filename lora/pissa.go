package lora

import "gonum.org/v1/gonum/mat"

// pissaStart is that of PiSSA (Meng et al. 2024, arXiv:2404.02948): the r largest singular
// values S of W with their vectors, so that s·B·A is the best approximation of W of rank r:
//
//	A = √(S/s)·Vᵀ, B = U·√(S/s).
//
// niter is [exact], or the iterations of a randomised decomposition, whose noise depends
// on the module's path alone.
func (l layer) pissaStart(W *mat.Dense, niter int) (start, error) {
	svd, err := topSingular(W, l.r, niter, seeded(l.Path))
	if err != nil {
		return start{}, err
	}
	return balanced(svd, l.scaling), nil
}
