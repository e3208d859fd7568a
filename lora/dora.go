package lora

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// DoRA (Liu et al. 2024, arXiv:2402.09353) divides a weight into the lengths of its rows
// and their directions. LoRA changes the directions, and the lengths m are trained:
//
//	W' = m/n · (W + s·B A),   n = ‖W + s·B A‖ for each row, a constant to the gradient.
//
// m starts at n, so that nothing changes. As an addend to the base's output, with x' the
// input after dropout:
//
//	(m/n - 1)·W x' + m/n · s·B A x'
//
// where W x' is the base's output without its bias if there is no dropout.
//
// The product B·A is never made. With w a row of W and b one of B,
//
//	‖w + s·b A‖² = ‖w‖² + 2 s·b·(A w) + s²·b (A Aᵀ) bᵀ
//
// needs ‖w‖², which is a constant of the base, W·Aᵀ with r columns, and A·Aᵀ [r, r].
// (On a GPU XLA rounds the operands of A·Aᵀ, the smallest term, to 10 bits.)
// Nothing large is subtracted here: as long as the row does not shrink to a small part of
// itself, n is as exact as the terms.

const (
	magnitude   = "lora_magnitude_vector" // m: [out], of a convolution [1, out, 1...]
	weightNorms = "lora_weight_norm"      // ‖w‖²: [out], a constant
)

// doraParams are m, and the constant ‖w‖² of every row.
func (a *adapter) doraParams(base site.Base, l layer) []peft.Param {
	shape, group := []int{l.Out}, peft.GroupB
	if l.Conv != nil {
		shape, group = []int{1, l.Out}, peft.GroupOther // peft goes by the number of axes
		for range l.Conv.Kernel {
			shape = append(shape, 1)
		}
	}
	name := l.Path + "." + magnitude
	// ‖w‖ of every row, read once for both.
	lengths := sync.OnceValues(func() ([]float32, error) {
		W, err := weightOf(base, l.Module)
		if err != nil {
			return nil, err
		}
		norms := make([]float32, l.Out)
		l.rowNorms(W, nil, norms)
		return norms, nil
	})
	return []peft.Param{
		{
			Name: name, OldKeys: []string{name + ".weight"}, Shape: shape, Group: group,
			Derive: func(value func(string) []float32, values []float32) error {
				delta := a.initialDelta(l, value)
				if delta == nil {
					norms, err := lengths()
					copy(values, norms)
					return err
				}
				W, err := weightOf(base, l.Module)
				if err == nil {
					l.rowNorms(W, delta, values)
				}
				return err
			},
		},
		{
			Name: l.Path + "." + weightNorms, Shape: []int{l.Out}, Frozen: true, Unsaved: true,
			Init: func(_ *rand.Rand, values []float32) error {
				norms, err := lengths()
				for i, n := range norms {
					values[i] = n * n
				}
				return err
			},
		},
	}
}

// initialDelta is s·B·A as stored, nil where it is zero, as it mostly is at the start.
func (a *adapter) initialDelta(l layer, value func(string) []float32) []float32 {
	A, B, r := l.hostFactors(value)
	isZero := func(v float32) bool { return v == 0 }
	if !slices.ContainsFunc(A, func(v float32) bool { return !isZero(v) }) || !slices.ContainsFunc(B, func(v float32) bool { return !isZero(v) }) {
		return nil
	}
	if l.residual && slices.Equal(A[:len(A)/2], A[len(A)/2:]) && r > 0 {
		return nil // A' = [A; A], B' = [B | -B]
	}
	return a.weightDelta(l, value)
}

// rowNorms sets norms to the length of each row of W + delta, both as stored.
func (l layer) rowNorms(W, delta, norms []float32) {
	squares := make([]float64, l.Out)
	l.eachRow(len(W), func(i, row int) {
		v := float64(W[i])
		if delta != nil {
			v += float64(delta[i])
		}
		squares[row] += v * v
	})
	for row, s := range squares {
		norms[row] = float32(math.Sqrt(s))
	}
}

// eachRow calls f for each of n values of the weight as stored, with its output feature.
func (l layer) eachRow(n int, f func(i, row int)) {
	last := l.Kind == site.Embedding || l.Transposed // the features are the last axis
	perRow := n / l.Out
	for i := range n {
		if last {
			f(i, i%l.Out)
		} else {
			f(i, i/perRow)
		}
	}
}

// rescaled turns s·B A x' into the addend of DoRA.
func (a *adapter) rescaled(u *peft.Use, x, update *graph.Node) *graph.Node {
	l := a.layers[u.Site.Path]
	factor := graph.Div(graph.Reshape(u.Value(magnitude), l.Out), a.norm(u))
	f := l.perChannel(update, factor)
	wide := func(y *graph.Node) *graph.Node { return graph.ConvertDType(y, dtypes.Float32) }
	sum := graph.Add(graph.Mul(graph.AddScalar(f, -1), wide(l.withoutBias(u, x))), graph.Mul(f, wide(update)))
	return graph.ConvertDType(sum, update.DType())
}

// withoutBias is W x. W is the base's own, as in the norm and in a merge, whatever stands
// in for it.
func (l layer) withoutBias(u *peft.Use, x *graph.Node) *graph.Node {
	if x == u.X && !l.Bias && !u.Replaced() {
		return u.Base()
	}
	// On x as it is this is the product that the base has too: backends compute it once.
	return u.Site.With(x, u.Site.FrozenWeight())
}

// norm is n, [out] in float32.
func (a *adapter) norm(u *peft.Use) *graph.Node {
	l := a.layers[u.Site.Path]
	A, B := l.factors(u)
	A, B = graph.StopGradient(A), graph.StopGradient(B)
	r := A.Shape().Dim(0)
	A, B = graph.Reshape(A, r, -1), graph.Reshape(B, l.Out, r)

	cross := graph.ReduceSum(graph.Mul(B, l.weightTimes(u.Site.FrozenWeight(), A)), -1)
	gram := graphx.MatMulT(A, A)
	quadratic := graph.ReduceSum(graph.Mul(B, graphx.MatMul(B, gram)), -1)
	square := graph.Add(u.Value(weightNorms), graph.Add(graph.MulScalar(cross, 2*l.scaling), graph.MulScalar(quadratic, l.scaling*l.scaling)))
	// A row of zeros has length 0 and m = 0: any other n keeps it at zero, where peft has NaN.
	return graph.StopGradient(graph.Sqrt(graph.MaxScalar(square, 1e-30)))
}

// weightTimes is W·Aᵀ [out, r] in float32, A being [r, values of a row].
func (l layer) weightTimes(W, A *graph.Node) *graph.Node {
	axis := 1
	switch {
	case l.Conv != nil:
		W = graph.Reshape(l.Unstored(W), l.Out, -1)
	case l.Kind == site.Embedding || l.Transposed:
		axis = 0
	}
	return exactProduct(W, axis, A)
}

// exactProduct contracts an axis of the matrix W with the last of A [r, in] to [.., r] in
// float32. For a bfloat16 W neither W is widened, which would copy it, nor A rounded, which
// would leave 8 bits of it: A is the sum of three bfloat16 matrices, whose products with W
// are exact and summed in float32.
func exactProduct(W *graph.Node, axis int, A *graph.Node) *graph.Node {
	if W.DType() != dtypes.BFloat16 {
		return graphx.Dot(graph.ConvertDType(W, dtypes.Float32), []int{axis}, nil, A, []int{1}, nil)
	}
	r := A.Shape().Dim(0)
	var parts []*graph.Node
	for range 3 {
		part := graph.ConvertDType(A, dtypes.BFloat16)
		parts = append(parts, part)
		A = graph.Sub(A, graph.ConvertDType(part, dtypes.Float32))
	}
	products := graph.Dot(W, graph.Concatenate(parts, 0)).
		WithAccumulatorDType(dtypes.Float32).WithOutputDType(dtypes.Float32).
		General([]int{axis}, nil, []int{1}, nil)
	return graph.ReduceSum(graph.Reshape(products, products.Shape().Dim(0), 3, r), 1)
}

// mergeRescaled adds (m/n - 1)·W + m/n·s·B A to values. As in a graph W is the base's own
// value, whatever other adapters did to it before.
func (l layer) mergeRescaled(values, W, delta []float32, value func(name string) []float32) {
	factor := make([]float32, l.Out)
	l.rowNorms(W, delta, factor)
	m := value(l.Path + "." + magnitude)
	for row, n := range factor {
		if factor[row] = 1; n > 0 {
			factor[row] = m[row] / n
		}
	}
	l.eachRow(len(values), func(i, row int) {
		values[i] += (factor[row]-1)*W[i] + factor[row]*delta[i]
	})
}
