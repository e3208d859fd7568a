package lora

import (
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// Names of an adapted module's tensors, behind its path.
const (
	matrixA    = "lora_A.weight"    // [r, in]
	matrixB    = "lora_B.weight"    // [out, r]
	embeddingA = "lora_embedding_A" // [r, rows]
	embeddingB = "lora_embedding_B" // [features, r]
)

// Scaling is the factor s of B·A.
func Scaling(alpha float64, r int, rankStabilised bool) float64 {
	if rankStabilised {
		return alpha / math.Sqrt(float64(r))
	}
	return alpha / float64(r)
}

// layer is one adapted module.
type layer struct {
	site.Module
	r       int // of A and B in memory
	rank    int // of A and B in the file
	alpha   float64
	scaling float64
	index   int // in the constant scalings of a padded adapter
}

// names returns the names of A and B.
func (l layer) names() (a, b string) {
	if l.Kind == site.Embedding {
		return l.Path + "." + embeddingA, l.Path + "." + embeddingB
	}
	return l.Path + "." + matrixA, l.Path + "." + matrixB
}

// params returns A and B with their initial values: the product starts at zero,
// except with InitRandom. For a linear layer A is drawn and B is zero; for an
// embedding A is zero and B is N(0, 1).
func (l layer) params(init Init) []peft.Param {
	nameA, nameB := l.names()
	a := peft.Param{Name: nameA, Shape: []int{l.r, l.In}}
	b := peft.Param{Name: nameB, Shape: []int{l.Out, l.r}}
	switch {
	case l.Kind == site.Embedding:
		b.Init = normal(1)
		if init == InitRandom {
			a.Init = normal(1)
		}
	case init == InitGaussian:
		a.Init = normal(1 / float64(l.r))
	case init == InitRandom:
		a.Init, b.Init = uniform(l.In), uniform(l.r)
	default:
		a.Init = uniform(l.In)
	}
	return []peft.Param{a, b}
}

// uniform draws from U(-1/sqrt(fanIn), 1/sqrt(fanIn)): PyTorch's
// kaiming_uniform_(a=sqrt(5)), the default of its linear layers.
func uniform(fanIn int) func(*rand.Rand, []float32) error {
	bound := 1 / math.Sqrt(float64(fanIn))
	return func(r *rand.Rand, values []float32) error {
		for i := range values {
			values[i] = float32(bound * (2*r.Float64() - 1))
		}
		return nil
	}
}

// normal draws from N(0, std²).
func normal(std float64) func(*rand.Rand, []float32) error {
	return func(r *rand.Rand, values []float32) error {
		for i := range values {
			values[i] = float32(std * r.NormFloat64())
		}
		return nil
	}
}

// Delta implements [peft.DeltaAdapter]: s·B(A(dropout(x))).
func (a *adapter) Delta(u *peft.Use) *graph.Node {
	l := a.layers[u.Site.Path]
	if l.Kind == site.Embedding {
		return a.embeddingDelta(u)
	}
	x := u.Pass.Dropout(u.Site.Path, u.X, a.config.LoraDropout)
	low := graphx.MatMulT(x, u.Cast(matrixA))
	// Scaled here, where there are only r values a token.
	return graphx.MatMulT(a.scale(u, low), u.Cast(matrixB))
}

// embeddingDelta is s·B·(column id of A) for each id. peft applies no dropout here.
func (a *adapter) embeddingDelta(u *peft.Use) *graph.Node {
	columns := graph.Gather(graph.Transpose(u.Cast(embeddingA), 0, 1), graph.InsertAxes(u.X, -1))
	return graphx.MatMulT(a.scale(u, columns), u.Cast(embeddingB))
}

// Merges implements [peft.Merger].
func (a *adapter) Merges() []string {
	names := make([]string, len(a.targets))
	for i, m := range a.targets {
		names[i] = peft.OwnWeight(m)
	}
	return names
}

// Merge implements [peft.Merger].
func (a *adapter) Merge(name string, values, _ []float32, value func(name string) []float32) error {
	delta := a.weightDelta(a.byWeight[name], value)
	if len(delta) != len(values) {
		return fmt.Errorf("it has %d values, but the adapter changes %d", len(values), len(delta))
	}
	for i, v := range delta {
		values[i] += v
	}
	return nil
}

// weightDelta is s·B·A in the orientation of the weight, which for an embedding is
// [rows, features] = s·(B·A)ᵀ.
func (a *adapter) weightDelta(l layer, value func(name string) []float32) []float32 {
	nameA, nameB := l.names()
	if l.Kind == site.Embedding || l.Transposed {
		return product(transpose(value(nameA), l.r, l.In), transpose(value(nameB), l.Out, l.r), l.In, l.r, l.Out, l.scaling)
	}
	return product(value(nameB), value(nameA), l.Out, l.r, l.In, l.scaling)
}
