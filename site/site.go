package site

import (
	"strings"

	"github.com/gomlx/gomlx/core/graph"
)

// Kind says what a module computes, and so which adapters fit it.
type Kind int

const (
	// Linear is y = x·Wᵀ + b with W of shape [out, in] (or [in, out], see Module.Transposed).
	Linear Kind = iota
	// Embedding is a row lookup in W of shape [rows, features]; its input holds int32 ids.
	Embedding
	// Norm is a normalisation with a scale and perhaps an offset of shape [features].
	Norm
)

// String returns the kind's name in lower case.
func (k Kind) String() string {
	switch k {
	case Linear:
		return "linear"
	case Embedding:
		return "embedding"
	case Norm:
		return "norm"
	}
	return "unknown"
}

// Module describes one named module of a base, known before any graph is built.
type Module struct {
	// Path is the dotted path, "model.layers.0.self_attn.q_proj".
	Path string
	Kind Kind
	// In and Out are the input and output features; for an embedding In is the
	// number of rows, for a norm both are the normalised features.
	In, Out int
	// Transposed is true when the weight is stored [in, out] (HF Conv1D, "fan in, fan out").
	Transposed bool
	// Bias is true when the module has a parameter Path+".bias".
	Bias bool
	// Head is true for the projection onto the vocabulary (or classes). It is not
	// part of "all-linear".
	Head bool
	// TiedTo is the path of the module whose weight this one shares, or "".
	TiedTo string
}

// Weight returns the name of the module's weight parameter in the checkpoint.
func (m Module) Weight() string {
	if m.TiedTo != "" {
		return m.TiedTo + ".weight"
	}
	return m.Path + ".weight"
}

// Parameter describes one parameter of a base as its checkpoint names it.
type Parameter struct {
	// Name is the tensor's name, "model.layers.0.self_attn.q_proj.weight".
	Name string
	// Shape is the checkpoint's shape, row-major.
	Shape []int
}

// Size returns the number of elements.
func (p Parameter) Size() int {
	n := 1
	for _, d := range p.Shape {
		n *= d
	}
	return n
}

// Site is one use of a base module while a graph is built.
type Site struct {
	Module
	// X is the input node: [..., In] for linear and norm, int32 ids [...] for embedding.
	X *graph.Node
	// Base builds the base module on any input of X's kind, with the frozen
	// weight. It may be called several times, or never.
	Base func(x *graph.Node) *graph.Node
	// FrozenWeight returns the base's weight in the pass's compute dtype, as
	// stored ([out, in], or [in, out] when Transposed), cut off from gradients.
	FrozenWeight func() *graph.Node
}

// Hook is what a pass asks for the outputs of its modules. It is called while a
// graph is being built and, like all graph building code, panics on errors;
// whoever compiles the graph turns the panic into an error.
type Hook interface {
	// Apply returns the output of one use of a module: s.Base(s.X) where no adapter applies.
	Apply(p *Pass, s *Site) *graph.Node
	// Parameter returns the value to use for a parameter of the base, weights of
	// linears and embeddings included, in any float dtype. base returns the frozen
	// value; it creates the parameter node only when called, so that a replaced
	// parameter is no input of the program.
	Parameter(p *Pass, name string, base func() *graph.Node) *graph.Node
	// Adapts reports whether the hook changes the module at path or any parameter
	// of it: a loss may take shortcuts through a module that is frozen.
	Adapts(path string) bool
}

// VariablePath returns the path of the GoMLX variable that holds the named
// parameter: "/" for ".", below the root scope.
func VariablePath(name string) string {
	return "/" + strings.ReplaceAll(name, ".", "/")
}

// ParameterName is the inverse of [VariablePath].
func ParameterName(variablePath string) string {
	return strings.ReplaceAll(strings.TrimPrefix(variablePath, "/"), "/", ".")
}
