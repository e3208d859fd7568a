package models

import (
	"math"
	"slices"

	. "github.com/gomlx/gomlx/core/graph"
)

// activation is an elementwise function named by hidden_act.
type activation func(x *Node) *Node

// activations has the names of transformers' ACT2FN.
var activations = map[string]activation{
	"silu":              silu,
	"swish":             silu,
	"gelu":              gelu,
	"gelu_python":       gelu,
	"gelu_new":          geluTanh,
	"gelu_fast":         geluTanh,
	"gelu_pytorch_tanh": geluTanh,
	"quick_gelu":        func(x *Node) *Node { return Mul(x, Sigmoid(MulScalar(x, 1.702))) },
	"relu":              relu,
	"relu2":             func(x *Node) *Node { return Square(relu(x)) },
	"sigmoid":           Sigmoid,
	"tanh":              Tanh,
}

func silu(x *Node) *Node { return Mul(x, Sigmoid(x)) }

func relu(x *Node) *Node { return Max(x, ZerosLike(x)) }

// gelu is x·Φ(x) with the exact normal distribution function
// (Hendrycks and Gimpel 2016, arXiv:1606.08415).
func gelu(x *Node) *Node {
	return Mul(MulScalar(x, 0.5), AddScalar(Erf(MulScalar(x, math.Sqrt2/2)), 1))
}

// geluTanh is the same with Φ approximated by a tanh.
func geluTanh(x *Node) *Node {
	inner := Mul(x, AddScalar(MulScalar(Square(x), 0.044715), 1))
	return Mul(MulScalar(x, 0.5), AddScalar(Tanh(MulScalar(inner, math.Sqrt(2/math.Pi))), 1))
}

// act reads the activation named by a field.
func (f *fields) act(name, otherwise string) activation {
	return f.actNamed(name, f.textOr(name, otherwise))
}

// actNamed returns the activation called kind, which the field name asks for.
func (f *fields) actNamed(name, kind string) activation {
	act, ok := activations[kind]
	if !ok {
		names := make([]string, 0, len(activations))
		for n := range activations {
			names = append(names, n)
		}
		slices.Sort(names)
		f.fail("%s %q is not supported; supported are %v", name, kind, names)
	}
	return act
}
