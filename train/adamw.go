package train

import (
	"fmt"
	"math"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/peft"
)

// AdamW holds the constants of Adam with decoupled weight decay (Loshchilov and
// Hutter, "Decoupled Weight Decay Regularization", 2019), computed as
// torch.optim.AdamW does. The zero value is Beta1 0.9, Beta2 0.999, Epsilon 1e-8
// and no decay.
type AdamW struct {
	Beta1, Beta2, Epsilon, WeightDecay float64
}

func (a AdamW) withDefaults() AdamW {
	if a.Beta1 == 0 {
		a.Beta1 = 0.9
	}
	if a.Beta2 == 0 {
		a.Beta2 = 0.999
	}
	if a.Epsilon == 0 {
		a.Epsilon = 1e-8
	}
	return a
}

// Validate reports a constant outside its range.
func (a AdamW) Validate() error {
	a = a.withDefaults()
	switch {
	case !(a.Beta1 >= 0 && a.Beta1 < 1 && a.Beta2 >= 0 && a.Beta2 < 1):
		return fmt.Errorf("train: adamw: betas must be in [0, 1), got %g and %g", a.Beta1, a.Beta2)
	case !(float32(a.Epsilon) > 0 && a.Epsilon <= math.MaxFloat32): // as float32: 0/0 is what an element without a gradient would get
		return fmt.Errorf("train: adamw: epsilon must be positive and finite in float32, got %g", a.Epsilon)
	case !(a.WeightDecay >= 0 && a.WeightDecay <= math.MaxFloat32):
		return fmt.Errorf("train: adamw: weight decay must be 0 or more and finite, got %g", a.WeightDecay)
	}
	return nil
}

// scalarStep is the index of the step's number in [AdamW.scalars].
const scalarStep = 3

// scalars are the numbers of a step that change from step to step, computed in
// float64: step size lr/(1-beta1^t), 1/sqrt(1-beta2^t), lr·decay, and the step, which counts from 1.
func (a AdamW) scalars(step int, lr float64) []float32 {
	t := float64(step)
	return []float32{
		float32(lr / (1 - math.Pow(a.Beta1, t))),
		float32(1 / math.Sqrt(1-math.Pow(a.Beta2, t))),
		float32(lr * a.WeightDecay),
		float32(step),
	}
}

// update builds one AdamW step on a tensor of any shape; scalars is the node of
// [AdamW.scalars], spans says how its elements are treated, rates is what the learning
// rate of a group is multiplied by.
func (a AdamW) update(value, m, v, gradient, scalars *graph.Node, spans []peft.Span, rates groupRates) (newValue, newM, newV *graph.Node) {
	at := func(i int) *graph.Node { return graph.Reshape(graph.Slice(scalars, graph.AxisElem(i))) }
	gradient = graph.ConvertDType(gradient, dtypes.Float32)
	newM = graph.Add(graph.MulScalar(m, a.Beta1), graph.MulScalar(gradient, 1-a.Beta1))
	newV = graph.Add(graph.MulScalar(v, a.Beta2), graph.MulScalar(graph.Square(gradient), 1-a.Beta2))
	denominator := graph.AddScalar(graph.Mul(graph.Sqrt(newV), at(1)), a.Epsilon)
	rate := spread(spans, func(s peft.Span) float64 { return rates[s.Group] })
	change := graph.Div(rate.times(graph.Mul(newM, at(0))), denominator)
	if a.WeightDecay > 0 {
		decay := spread(spans, func(s peft.Span) float64 {
			if s.NoDecay {
				return 0
			}
			return rates[s.Group]
		})
		value = graph.Mul(value, graph.OneMinus(decay.times(graph.BroadcastToShape(at(2), value.Shape()))))
	}
	return graph.Sub(value, change), newM, newV
}

// groupRates are what the learning rate is multiplied by, for each [peft.Group].
type groupRates [peft.GroupEmbedding + 1]float64

// factors are one constant for each span of an argument's elements.
type factors []struct {
	size  int
	value float64
}

// spread joins neighbouring spans with one factor.
func spread(spans []peft.Span, factor func(peft.Span) float64) factors {
	var out factors
	for _, s := range spans {
		f := factor(s)
		if n := len(out); n > 0 && out[n-1].value == f {
			out[n-1].size += s.Size
		} else {
			out = append(out, struct {
				size  int
				value float64
			}{s.Size, f})
		}
	}
	return out
}

// times multiplies each element of x by its factor.
func (f factors) times(x *graph.Node) *graph.Node {
	if len(f) == 1 {
		return graphx.Scale(x, f[0].value)
	}
	var parts []*graph.Node
	for _, part := range f {
		parts = append(parts, graph.BroadcastToDims(graph.Scalar(x.Graph(), x.DType(), part.value), part.size))
	}
	return graph.Mul(x, graph.Concatenate(parts, 0))
}

// clip scales gradients so that their global norm is at most maxNorm (0: no
// clipping), as torch.nn.utils.clip_grad_norm_ does, and returns the norm before.
func clip(gradients []*graph.Node, maxNorm float64) (clipped []*graph.Node, norm *graph.Node) {
	var squares *graph.Node
	for _, g := range gradients {
		squares = plus(squares, graph.ReduceAllSum(graph.Square(g)))
	}
	norm = graph.Sqrt(squares)
	if maxNorm <= 0 {
		return gradients, norm
	}
	factor := graph.MinScalar(graph.Div(graph.Scalar(norm.Graph(), dtypes.Float32, maxNorm), graph.AddScalar(norm, 1e-6)), 1.0)
	for _, g := range gradients {
		clipped = append(clipped, graph.Mul(g, factor))
	}
	return clipped, norm
}
