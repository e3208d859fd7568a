package lora

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"

	"gonum.org/v1/gonum/mat"

	"github.com/gopeft/gopeft/internal/linalg"
	"github.com/gopeft/gopeft/peft"
)

// orthogonalParams are A and B of the orthogonal initialisation
// (https://datta0.github.io/posts/rethink-lora-init/#orthogonal-initialisation): with an
// orthogonal Q [r, r] and normal X1 [in, r/2], X2 [r/2, out],
//
//	A = (X1 · odd rows of Q)ᵀ / 10, B = X2ᵀ · even rows of Q / 10.
//
// Neither is zero, B·A is. A is drawn so. B needs the same Q, of which only the space of
// its even rows matters, the one orthogonal to the columns of A: a rotation within it
// leaves the distribution of B as it is.
func (l layer) orthogonalParams() ([]peft.Param, error) {
	r := l.r
	if r%2 != 0 {
		return nil, fmt.Errorf("init_lora_weights \"orthogonal\" needs an even rank, but that of %q is %d", l.Path, r)
	}
	all := l.params(InitDefault)
	nameA, _ := l.names()
	all[0].Init = func(random *rand.Rand, values []float32) error {
		Q, _ := linalg.ThinQR(normals(random, r, r))
		var A mat.Dense
		A.Mul(Q.Slice(0, r, 0, r/2), normals(random, r/2, l.In))
		fillScaled(values, &A, 0.1)
		return nil
	}
	all[1].Derive = func(value func(string) []float32, values []float32) error {
		a := value(nameA)
		random := rand.New(rand.NewPCG(hashOf(a), 0))
		wide := make([]float64, len(a))
		for i, v := range a {
			wide[i] = float64(v)
		}
		var span, B, joined mat.Dense
		span.Mul(mat.NewDense(r, l.In, wide), normals(random, l.In, r/2))
		joined.Augment(&span, normals(random, r, r/2))
		Q, _ := linalg.ThinQR(&joined) // its first half spans the columns of A
		B.Mul(normals(random, l.Out, r/2), Q.Slice(0, r, r/2, r).T())
		fillScaled(values, &B, 0.1)
		return nil
	}
	return all, nil
}

func fillScaled(values []float32, m mat.Matrix, scale float64) {
	_, columns := m.Dims()
	for i := range values {
		values[i] = float32(scale * m.At(i/columns, i%columns))
	}
}

// hashOf makes a seed of values.
func hashOf(values []float32) uint64 {
	h := fnv.New64a()
	var word [4]byte
	for _, v := range values {
		binary.LittleEndian.PutUint32(word[:], math.Float32bits(v))
		h.Write(word[:])
	}
	return h.Sum64()
}
