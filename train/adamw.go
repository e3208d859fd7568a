package train

import (
	"fmt"
	"math"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"

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

// scalars are the numbers of a step that change from step to step, computed in
// float64: step size lr/(1-beta1^t), 1/sqrt(1-beta2^t), and the factor 1-lr·decay.
// step counts from 1.
func (a AdamW) scalars(step int, lr float64) []float32 {
	t := float64(step)
	return []float32{
		float32(lr / (1 - math.Pow(a.Beta1, t))),
		float32(1 / math.Sqrt(1-math.Pow(a.Beta2, t))),
		float32(1 - lr*a.WeightDecay),
	}
}

// update builds one AdamW step on a tensor of any shape; scalars is the node of
// [AdamW.scalars], spans says which of its elements decay.
func (a AdamW) update(value, m, v, gradient, scalars *graph.Node, spans []peft.DecaySpan) (newValue, newM, newV *graph.Node) {
	at := func(i int) *graph.Node { return graph.Reshape(graph.Slice(scalars, graph.AxisElem(i))) }
	gradient = graph.ConvertDType(gradient, dtypes.Float32)
	newM = graph.Add(graph.MulScalar(m, a.Beta1), graph.MulScalar(gradient, 1-a.Beta1))
	newV = graph.Add(graph.MulScalar(v, a.Beta2), graph.MulScalar(graph.Square(gradient), 1-a.Beta2))
	denominator := graph.AddScalar(graph.Mul(graph.Sqrt(newV), at(1)), a.Epsilon)
	newValue = graph.Sub(decayed(value, at(2), spans), graph.Div(graph.Mul(newM, at(0)), denominator))
	return newValue, newM, newV
}

// decayed multiplies those elements of value by factor that decay.
func decayed(value, factor *graph.Node, spans []peft.DecaySpan) *graph.Node {
	if len(spans) == 1 {
		if spans[0].NoDecay {
			return value
		}
		return graph.Mul(value, factor)
	}
	var factors []*graph.Node
	for _, span := range spans {
		f := graph.OnesLike(factor)
		if !span.NoDecay {
			f = factor
		}
		factors = append(factors, graph.BroadcastToDims(f, span.Size))
	}
	return graph.Mul(value, graph.Concatenate(factors, 0))
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
