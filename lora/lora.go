package lora

import (
	"errors"
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
	// residual is true where the initial product is taken out of the weight, see residual.go.
	residual bool
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
	shapeA, shapeB := l.shapes()
	a := peft.Param{Name: nameA, Shape: shapeA}
	b := peft.Param{Name: nameB, Shape: shapeB, Group: peft.GroupB}
	switch {
	case l.Kind == site.Embedding:
		a.Group, b.Group = peft.GroupEmbedding, peft.GroupEmbedding
		b.Init = normal(1)
		if init == InitRandom {
			a.Init = normal(1)
		}
	case init == InitGaussian:
		a.Init = normal(1 / float64(l.r))
	case init == InitRandom:
		a.Init, b.Init = uniform(fanIn(shapeA)), uniform(fanIn(shapeB))
	default:
		a.Init = uniform(fanIn(shapeA))
	}
	return []peft.Param{a, b}
}

// shapes returns those of A and B as peft stores them. For a convolution see conv.go.
func (l layer) shapes() (a, b []int) {
	if l.Kind == site.Convolution {
		return l.convolutionShapes()
	}
	return []int{l.r, l.In}, []int{l.Out, l.r}
}

// fanIn is the number of values that an output of a layer with this weight is a sum of.
func fanIn(weight []int) int { return site.Parameter{Shape: weight[1:]}.Size() }

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

// Delta implements [peft.DeltaAdapter]: s·B(A(dropout(x))) and what options add to it.
func (a *adapter) Delta(u *peft.Use) *graph.Node {
	l := a.layers[u.Site.Path]
	x := u.X
	if l.Kind != site.Embedding { // peft applies no dropout to an embedding's adapter
		x = u.Pass.Dropout(u.Site.Path, u.X, a.config.LoraDropout)
	}
	A, B := l.factors(u)
	delta := a.product(u, x, A, B)
	if a.config.LoraBias {
		delta = l.addBias(delta, a.scaledBias(u))
	}
	if a.config.UseDora {
		delta = a.rescaled(u, x, delta)
	}
	if l.residual && x != u.X {
		delta = graph.Add(delta, a.undropped(u, x))
	}
	return delta
}

// product is s·B(A(x)).
func (a *adapter) product(u *peft.Use, x, A, B *graph.Node) *graph.Node {
	A, B = graph.ConvertDType(A, u.Pass.DType), graph.ConvertDType(B, u.Pass.DType)
	var low *graph.Node
	switch l := a.layers[u.Site.Path]; l.Kind {
	case site.Convolution:
		return l.pointwise(a.scale(u, l.convolve(u, x, A)), B)
	case site.Embedding: // the columns of A that x counts
		low = graph.Gather(graph.Transpose(A, 0, 1), graph.InsertAxes(x, -1))
	default:
		low = graphx.MatMulT(x, A)
	}
	// Scaled here, where there are only r values a token.
	return graphx.MatMulT(a.scale(u, low), B)
}

// Merges implements [peft.Merger].
func (a *adapter) Merges() []string {
	var names []string
	for _, m := range a.targets {
		names = append(names, peft.OwnWeight(m))
		if a.config.LoraBias {
			names = append(names, m.BiasName())
		}
	}
	return names
}

// Merge implements [peft.Merger].
func (a *adapter) Merge(name string, values, frozen []float32, value func(name string) []float32) error {
	if l, ok := a.byBias[name]; ok {
		return l.mergeBias(values, value)
	}
	l := a.byWeight[name]
	if err := a.mergeable(l); err != nil {
		return err
	}
	delta := a.weightDelta(l, value)
	if len(delta) != len(values) {
		return fmt.Errorf("it has %d values, but the adapter changes %d", len(values), len(delta))
	}
	if a.config.UseDora {
		l.mergeRescaled(values, frozen, delta, value)
		return nil
	}
	for i, v := range delta {
		values[i] += v
	}
	return nil
}

// mergeable reports what a merged weight cannot express.
func (a *adapter) mergeable(l layer) error {
	switch {
	case l.Conv != nil && l.Conv.Groups > 1:
		return fmt.Errorf("a convolution with %d groups cannot be merged: its A sees the channels of all groups", l.Conv.Groups)
	case a.config.LoraBias && !l.Bias:
		return errors.New("lora_bias cannot be merged into a layer that has no bias")
	}
	return nil
}

// weightDelta is s·B·A in the orientation of the weight, which for an embedding is
// [rows, features] = s·(B·A)ᵀ.
func (a *adapter) weightDelta(l layer, value func(name string) []float32) []float32 {
	A, B, r := l.hostFactors(value)
	in := len(A) / r
	switch {
	case l.Conv != nil && l.Transposed:
		return l.storedKernel(product(B, A, l.Out, r, in, l.scaling))
	case l.Kind == site.Embedding || l.Transposed:
		return product(graphx.Transposed(A, r, in), graphx.Transposed(B, l.Out, r), in, r, l.Out, l.scaling)
	}
	return product(B, A, l.Out, r, in, l.scaling)
}
