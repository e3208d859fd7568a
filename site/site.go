package site

import (
	"slices"
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
	// Convolution slides a kernel over one, two or three spatial axes, see [Conv].
	Convolution
	// Attention is the attention sublayer of a block, see [Layer].
	Attention
	// FeedForward is the feed-forward sublayer of a block, see [Layer].
	FeedForward
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
	case Convolution:
		return "convolution"
	case Attention:
		return "attention"
	case FeedForward:
		return "feed-forward"
	}
	return "unknown"
}

// Module describes one named module of a base, known before any graph is built.
type Module struct {
	// Path is the dotted path, "model.layers.0.self_attn.q_proj".
	Path string
	Kind Kind
	// In and Out are the input and output features; for an embedding In is the
	// number of rows, for a norm both are the normalised features, for a convolution
	// the channels.
	In, Out int
	// Transposed is true when the weight is stored with its axes reversed: [in, out] for
	// a linear (HF Conv1D, "fan in, fan out"), [kernel..., in/groups, out] for a
	// convolution of GoMLX.
	Transposed bool
	// Conv describes a convolution, nil for other kinds.
	Conv *Conv
	// Bias is true when the module has a bias, see BiasName.
	Bias bool
	// WeightParameter and BiasParameter are the names of the parameters where they are
	// not Path+".weight" and Path+".bias", as in models that are not Hugging Face's.
	WeightParameter, BiasParameter string
	// Head is true for the projection onto the vocabulary (or classes). It is not
	// part of "all-linear".
	Head bool
	// TiedTo is the path of the module whose weight this one shares, or "".
	TiedTo string
	// Replica is true when the module is the one at TiedTo once more, in a repeated
	// layer: it shares the bias too. See [Replicator].
	Replica bool
}

// Weight returns the name of the module's weight parameter in the checkpoint.
func (m Module) Weight() string {
	if m.WeightParameter != "" {
		return m.WeightParameter
	}
	if m.TiedTo != "" {
		return m.TiedTo + ".weight"
	}
	return m.Path + ".weight"
}

// BiasName returns the name of the module's bias parameter in the checkpoint, which is
// there if Bias is true.
func (m Module) BiasName() string {
	if m.BiasParameter != "" {
		return m.BiasParameter
	}
	if m.Replica {
		return m.TiedTo + ".bias"
	}
	return m.Path + ".bias"
}

// Conv is what a convolution has besides its channels.
type Conv struct {
	// Kernel is the size of each spatial axis: one, two or three of them.
	Kernel []int
	// Groups divides the channels into independent convolutions, at least 1.
	Groups int
	// ChannelsLast is true when inputs and outputs are [batch, spatial..., channels],
	// not [batch, channels, spatial...].
	ChannelsLast bool
}

// WeightShape is the shape of the module's weight in PyTorch's orientation, whatever
// Transposed says: [out, in], [rows, features], [features], or [out, in/groups, kernel...].
func (m Module) WeightShape() []int {
	switch m.Kind {
	case Embedding:
		return []int{m.In, m.Out}
	case Norm:
		return []int{m.In}
	case Convolution:
		return append([]int{m.Out, m.In / m.Conv.Groups}, m.Conv.Kernel...)
	}
	return []int{m.Out, m.In}
}

// StoredShape is the shape of the weight as the base stores it, see Transposed.
func (m Module) StoredShape() []int {
	shape := m.WeightShape()
	if m.Transposed {
		shape = append(slices.Clone(shape[2:]), shape[1], shape[0])
	}
	return shape
}

// Stored turns a weight from PyTorch's orientation, of any number of output channels,
// into the one that the base stores; it is the inverse of [Module.Unstored].
func (m Module) Stored(w *graph.Node) *graph.Node {
	if !m.Transposed {
		return w
	}
	axes := make([]int, 0, w.Rank())
	for i := 2; i < w.Rank(); i++ {
		axes = append(axes, i)
	}
	return graph.TransposeAllAxes(w, append(axes, 1, 0)...)
}

// Unstored turns a weight from the orientation that the base stores into PyTorch's.
func (m Module) Unstored(w *graph.Node) *graph.Node {
	if !m.Transposed {
		return w
	}
	axes := []int{w.Rank() - 1, w.Rank() - 2}
	for i := range w.Rank() - 2 {
		axes = append(axes, i)
	}
	return graph.TransposeAllAxes(w, axes...)
}

// Expand reshapes a vector over the output features or channels so that it can be added
// to, or multiplied with, outputs of the given rank.
func (m Module) Expand(v *graph.Node, rank int) *graph.Node {
	dims := slices.Repeat([]int{1}, rank)
	axis := rank - 1
	if m.Kind == Convolution && !m.Conv.ChannelsLast {
		axis = 1
	}
	dims[axis] = v.Shape().Size()
	return graph.Reshape(v, dims...)
}

// Parameter describes one parameter of a base as its checkpoint names it.
type Parameter struct {
	// Name is the tensor's name, "model.layers.0.self_attn.q_proj.weight".
	Name string
	// Shape is the checkpoint's shape, row-major.
	Shape []int
	// Transposed is true for experts' weights of three axes that are stored
	// [experts, in, out], not [experts, out, in].
	Transposed bool
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
	// X is the input node: [..., In] for linear and norm, int32 ids [...] for an
	// embedding; for a convolution see [Conv].
	X *graph.Node
	// Base builds the base module on any input of X's kind, with the frozen
	// weight. It may be called several times, or never.
	Base func(x *graph.Node) *graph.Node
	// FrozenWeight returns the base's weight in the pass's compute dtype, as
	// stored ([out, in], or [in, out] when Transposed), cut off from gradients.
	FrozenWeight func() *graph.Node
	// BiasValue returns the module's bias, [out], as the hook leaves it, in the pass's dtype.
	// It must not be called if the module has none.
	BiasValue func() *graph.Node
	// With builds the module on any input with another weight and without its bias: x·Wᵀ,
	// the rows of W, or the convolution with the base's strides, padding, dilations and
	// groups. weight is as stored, in the pass's dtype; its outputs may be of another
	// number, a multiple of the groups. nil for a norm.
	With func(x, weight *graph.Node) *graph.Node
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
	// Sublayer returns the sum of a sublayer's output and its input: s.Join(s.Output) where
	// no adapter applies.
	Sublayer(p *Pass, s *Sublayer) *graph.Node
	// Prefix returns what precedes the tokens of every row; the zero Prefix for nothing. A
	// [Transformer] asks once in a pass, before it builds any block.
	Prefix(p *Pass, in Tokens) Prefix
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
