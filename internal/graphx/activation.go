package graphx

import (
	"maps"
	"math"
	"slices"

	"github.com/gomlx/gomlx/core/graph"
)

// Activation returns the elementwise function that transformers' ACT2FN has under a name,
// and whether there is one. Those with parameters of their own (prelu, xielu) are left out.
func Activation(name string) (f func(x *graph.Node) *graph.Node, ok bool) {
	f, ok = activations[name]
	return f, ok
}

// ActivationNames lists the names that [Activation] knows, sorted.
func ActivationNames() []string { return slices.Sorted(maps.Keys(activations)) }

var activations = map[string]func(x *graph.Node) *graph.Node{
	"gelu":              Gelu,
	"gelu_10":           func(x *graph.Node) *graph.Node { return graph.ClipScalar(Gelu(x), -10, 10) },
	"gelu_accurate":     geluTanh,
	"gelu_fast":         geluTanh,
	"gelu_new":          geluTanh,
	"gelu_python":       Gelu,
	"gelu_pytorch_tanh": geluTanh,
	"laplace":           laplace,
	"leaky_relu":        leakyRelu,
	"linear":            func(x *graph.Node) *graph.Node { return x },
	"mish":              mish,
	"quick_gelu":        func(x *graph.Node) *graph.Node { return graph.Mul(x, graph.Sigmoid(graph.MulScalar(x, 1.702))) },
	"relu":              Relu,
	"relu2":             func(x *graph.Node) *graph.Node { return graph.Square(Relu(x)) },
	"relu6":             func(x *graph.Node) *graph.Node { return graph.ClipScalar(x, 0, 6) },
	"sigmoid":           graph.Sigmoid,
	"silu":              silu,
	"swish":             silu,
	"tanh":              graph.Tanh,
}

func silu(x *graph.Node) *graph.Node { return graph.Mul(x, graph.Sigmoid(x)) }

// Relu is max(x, 0).
func Relu(x *graph.Node) *graph.Node { return graph.Max(x, graph.ZerosLike(x)) }

// leakyRelu has PyTorch's slope of 0.01.
func leakyRelu(x *graph.Node) *graph.Node {
	return graph.Where(graph.GreaterThan(x, graph.ZerosLike(x)), x, graph.MulScalar(x, 0.01))
}

// Gelu is x·Φ(x) with the exact normal distribution function
// (Hendrycks and Gimpel 2016, arXiv:1606.08415).
func Gelu(x *graph.Node) *graph.Node {
	return graph.Mul(graph.MulScalar(x, 0.5), graph.AddScalar(graph.Erf(graph.MulScalar(x, math.Sqrt2/2)), 1))
}

// geluTanh is the same with Φ approximated by a tanh.
func geluTanh(x *graph.Node) *graph.Node {
	inner := graph.Mul(x, graph.AddScalar(graph.MulScalar(graph.Square(x), 0.044715), 1))
	return graph.Mul(graph.MulScalar(x, 0.5), graph.AddScalar(graph.Tanh(graph.MulScalar(inner, math.Sqrt(2/math.Pi))), 1))
}

// mish is x·tanh(softplus(x)) (Misra 2019, arXiv:1908.08681).
func mish(x *graph.Node) *graph.Node {
	softplus := graph.Add(Relu(x), graph.Log1P(graph.Exp(graph.Neg(graph.Abs(x)))))
	return graph.Mul(x, graph.Tanh(softplus))
}

// laplace is the distribution function of N(0.707107, 0.282095²), which MEGA takes for its
// attention (Ma et al. 2022, arXiv:2209.10655).
func laplace(x *graph.Node) *graph.Node {
	z := graph.MulScalar(graph.AddScalar(x, -0.707107), 1/(0.282095*math.Sqrt2))
	return graph.MulScalar(graph.AddScalar(graph.Erf(z), 1), 0.5)
}
