package lora

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"
	"gonum.org/v1/gonum/mat"

	"github.com/gopeft/gopeft/internal/linalg"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// start is where an initialisation puts A [r, in] and B [out, r].
type start struct{ a, b []float32 }

// starts computes the starts of all linear targets from their weights, when the first
// is asked for, on all cores.
type starts struct {
	base   site.Base
	layers []layer
	// find decomposes a weight W [out, in]. known, if not nil, is asked in its place.
	find  func(W *mat.Dense, l layer) (start, error)
	known func(l layer) (start, error)

	once sync.Once
	mu   sync.Mutex
	of   map[string]start
	err  error
}

func (c LoraConfig) newStarts(base site.Base) *starts {
	s := &starts{base: base, of: map[string]start{}}
	niter, randomised := c.InitLoraWeights.niter()
	switch {
	case randomised:
		s.find = func(W *mat.Dense, l layer) (start, error) { return l.pissaStart(W, niter) }
	case c.InitLoraWeights == InitPissa:
		s.find = func(W *mat.Dense, l layer) (start, error) { return l.pissaStart(W, exact) }
	case c.InitLoraWeights == InitOlora:
		s.find = func(W *mat.Dense, l layer) (start, error) { return l.oloraStart(W), nil }
	case c.InitLoraWeights == InitLoftq:
		s.find = func(W *mat.Dense, l layer) (start, error) { return l.loftqStart(W, c.LoftqConfig) }
	case c.InitLoraWeights == InitCorda:
		s.known = c.calibration.corda
	}
	return s
}

// init is a [peft.Param.Init] that takes A or B of a module's start.
func (s *starts) init(path string, pick func(start) []float32) func(*rand.Rand, []float32) error {
	return func(_ *rand.Rand, values []float32) error {
		s.once.Do(s.compute)
		if s.err != nil {
			return s.err
		}
		copy(values, pick(s.of[path]))
		return nil
	}
}

func (s *starts) compute() {
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0)) // each holds a weight in float64, and its factors
	for _, l := range s.layers {
		group.Go(func() error {
			st, err := s.start(l)
			if err != nil {
				return fmt.Errorf("module %q: %w", l.Path, err)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			s.of[l.Path] = st
			return nil
		})
	}
	s.err = group.Wait()
}

func (s *starts) start(l layer) (start, error) {
	switch {
	case l.r > min(l.In, l.Out):
		return start{}, fmt.Errorf("the rank %d is larger than the weight [%d, %d] has", l.r, l.Out, l.In)
	case !(l.scaling > 0):
		return start{}, fmt.Errorf("lora_alpha is %g, want more than 0", l.alpha)
	}
	if s.known != nil {
		return s.known(l)
	}
	W, err := matrixOf(s.base, l.Module)
	if err != nil {
		return start{}, err
	}
	return s.find(W, l)
}

// weightOf returns a module's weight as stored.
func weightOf(base site.Base, m site.Module) ([]float32, error) {
	return peft.BaseValues(base, site.Parameter{Name: m.Weight(), Shape: m.StoredShape()})
}

// matrixOf returns a linear layer's weight as [out, in].
func matrixOf(base site.Base, m site.Module) (*mat.Dense, error) {
	values, err := weightOf(base, m)
	if err != nil {
		return nil, err
	}
	wide := make([]float64, len(values))
	for i, v := range values {
		wide[i] = float64(v)
	}
	if m.Transposed {
		return mat.DenseCopyOf(mat.NewDense(m.In, m.Out, wide).T()), nil
	}
	return mat.NewDense(m.Out, m.In, wide), nil
}

// floats returns a matrix row-major.
func floats(m mat.Matrix) []float32 {
	rows, columns := m.Dims()
	out := make([]float32, 0, rows*columns)
	for i := range rows {
		for j := range columns {
			out = append(out, float32(m.At(i, j)))
		}
	}
	return out
}

// balanced is the start whose product is U·S·Vᵀ / scaling, divided evenly between A and B:
// A = √(S/s)·Vᵀ, B = U·√(S/s).
func balanced(svd linalg.SVD, scaling float64) start {
	root := make([]float64, len(svd.S))
	for i, v := range svd.S {
		root[i] = sqrt(v / scaling)
	}
	D := mat.NewDiagDense(len(root), root)
	var a, b mat.Dense
	a.Mul(D, svd.V.T())
	b.Mul(svd.U, D)
	return start{a: floats(&a), b: floats(&b)}
}

// seeded is a generator that depends on nothing but a text: what is drawn with it can be
// drawn again.
func seeded(text string) *rand.Rand {
	h := fnv1a(text)
	return rand.New(rand.NewPCG(h, h^0x9E3779B97F4A7C15))
}

// normals is a matrix of N(0, 1).
func normals(r *rand.Rand, rows, columns int) *mat.Dense {
	values := make([]float64, rows*columns)
	for i := range values {
		values[i] = r.NormFloat64()
	}
	return mat.NewDense(rows, columns, values)
}
