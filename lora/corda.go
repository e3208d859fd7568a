package lora

import (
	"context"
	"encoding/json"
	"fmt"
	"math"

	"github.com/gomlx/gomlx/core/graph"
	"gonum.org/v1/gonum/mat"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/internal/linalg"
	"github.com/gopeft/gopeft/site"
)

// CordaMethod says which part of a weight [CalibrateCorDA] trains.
type CordaMethod string

const (
	// CordaIPM, the instruction-previewed mode, trains the part that matters most for the
	// data: data of the task. It is the default.
	CordaIPM CordaMethod = ""
	// CordaKPM, the knowledge-preserved mode, trains the part that matters least for the
	// data: data of what must not be forgotten.
	CordaKPM CordaMethod = "kpm"
)

// CalibrateCorDA prepares the initialisation of CorDA, context-oriented decomposition
// adaptation (Yang et al. 2024, arXiv:2406.05223), and returns the configuration to make
// the adapter with.
//
// It runs the base on the batches once and collects the covariance C of each target's
// inputs. With U·S·Vᵀ = W·C, A and B start at r singular values of it,
//
//	A = √(S/s)·Vᵀ·C⁻¹, B = U·√(S/s)
//
// and s·B·A is taken out of the weight, see [Init]. Each row of a batch is divided by its
// largest activation and counts as one sample; a hundred of them of full length are enough.
// C gets 1 % of its mean diagonal more on the diagonal, and twice as much until it can be
// inverted. Time and memory go with the square and the cube of the width.
func CalibrateCorDA(ctx context.Context, base site.Base, config LoraConfig, data []Batch, method CordaMethod) (LoraConfig, error) {
	c, err := calibrateCorDA(ctx, base, config, data, method)
	if err != nil {
		return LoraConfig{}, fmt.Errorf("lora: CorDA: %w", err)
	}
	return c, nil
}

func calibrateCorDA(ctx context.Context, base site.Base, config LoraConfig, data []Batch, method CordaMethod) (LoraConfig, error) {
	if method != CordaIPM && method != CordaKPM && method != "ipm" {
		return LoraConfig{}, fmt.Errorf(`method is %q, want "ipm" or "kpm"`, string(method))
	}
	_, layers, err := config.linears(base, data)
	if err != nil {
		return LoraConfig{}, err
	}
	c := config
	c.InitLoraWeights = InitCorda
	c.calibration = &calibration{starts: map[string]start{}}
	for _, chunk := range chunks(layers, func(l layer) int { return l.In * l.In }, maxObserved) {
		covariances, err := covariances(ctx, base, chunk, data)
		if err != nil {
			return LoraConfig{}, err
		}
		s := &starts{base: base, layers: chunk, of: c.calibration.starts, find: func(W *mat.Dense, l layer) (start, error) {
			return l.cordaStart(W, covariances[l.Path], method == CordaKPM)
		}}
		if s.compute(); s.err != nil {
			return LoraConfig{}, s.err
		}
	}
	name := "ipm"
	if method == CordaKPM {
		name = "kpm"
	}
	settings, err := json.Marshal(map[string]any{
		"cache_file": nil, "covariance_file": nil, "corda_method": name, "verbose": false,
		"use_float16_for_covariance": false, "prune_temporary_fields": true,
	})
	return c.withUnknown("corda_config", settings), err
}

// covariances returns the mean over all rows of the data of Xᵀ·X, X being the inputs of a
// module divided by their largest.
func covariances(ctx context.Context, base site.Base, layers []layer, data []Batch) (map[string]*mat.SymDense, error) {
	o, err := observe(base, layers, func(x, mask *graph.Node) *graph.Node {
		mask = graph.InsertAxes(mask, -1)
		outside := graph.MulScalar(graph.OneMinus(mask), -math.MaxFloat32)
		largest := graph.Abs(graph.ReduceAndKeep(graph.Add(graph.Mul(x, mask), outside), graph.ReduceMax, 1, 2))
		x = graph.Mul(graph.Div(x, graph.Where(graph.IsZero(largest), graph.OnesLike(largest), largest)), mask)
		x = graph.Reshape(x, -1, x.Shape().Dim(2))
		return graphx.Dot(x, []int{0}, nil, x, []int{0}, nil)
	})
	if err != nil {
		return nil, err
	}
	defer o.close()
	var sums [][]float64
	rows := 0
	for _, b := range data {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		results, err := o.run(b)
		if err != nil {
			return nil, err
		}
		if sums == nil {
			sums = make([][]float64, len(results))
		}
		for k, values := range results {
			if sums[k] == nil {
				sums[k] = make([]float64, len(values))
			}
			for i, v := range values {
				sums[k][i] += float64(v)
			}
		}
		rows += len(b.IDs)
	}
	out := map[string]*mat.SymDense{}
	for _, l := range layers {
		values := sums[o.results[l.Path]]
		C := mat.NewSymDense(l.In, nil)
		for i := range l.In {
			for j := i; j < l.In; j++ {
				C.SetSym(i, j, values[i*l.In+j]/float64(rows))
			}
		}
		out[l.Path] = C
	}
	return out, nil
}

// cordaStart decomposes W weighted by the covariance C of its inputs.
func (l layer) cordaStart(W *mat.Dense, C *mat.SymDense, smallest bool) (start, error) {
	damped, inverse, err := invert(C)
	if err != nil {
		return start{}, err
	}
	var weighted mat.Dense
	weighted.Mul(W, damped)
	var svd linalg.SVD
	if smallest {
		if svd, err = linalg.Whole(&weighted); err == nil {
			svd = svd.Part(len(svd.S)-l.r, l.r)
		}
	} else {
		svd, err = linalg.Truncated(&weighted, l.r)
	}
	if err != nil {
		return start{}, err
	}
	var right mat.Dense
	right.Mul(inverse, svd.V)
	svd.V = &right
	return balanced(svd, l.scaling), nil
}

// invert returns C with enough more on its diagonal, and the inverse of that.
func invert(C *mat.SymDense) (damped *mat.Dense, inverse *mat.Dense, err error) {
	n := C.SymmetricDim()
	mean := mat.Trace(C) / float64(n)
	if !(mean > 0) || math.IsInf(mean, 0) {
		return nil, nil, fmt.Errorf("the inputs are all zero or not finite")
	}
	for damp := 0.01; ; damp *= 2 {
		damped = mat.DenseCopyOf(C)
		for i := range n {
			damped.Set(i, i, damped.At(i, i)+mean*damp)
		}
		inverse = new(mat.Dense)
		_ = inverse.Inverse(damped) // a bad condition shows below
		var product mat.Dense
		product.Mul(damped, inverse)
		for i := range n {
			product.Set(i, i, product.At(i, i)-1)
		}
		if mat.Norm(&product, 2) < 0.05 {
			return damped, inverse, nil
		}
	}
}

// corda returns a module's start.
func (c *calibration) corda(l layer) (start, error) {
	st, ok := c.starts[l.Path]
	if !ok || len(st.a) != l.r*l.In {
		return start{}, fmt.Errorf("it was not calibrated for rank %d: the configuration must stay as CalibrateCorDA returned it", l.r)
	}
	return st, nil
}
