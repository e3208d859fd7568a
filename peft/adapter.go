package peft

import (
	"math/rand/v2"

	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/site"
)

// Adapter is a method planned on one base: its targets and trainable tensors. What
// it does in a graph it says by implementing one or more of [ParameterAdapter],
// [InputAdapter], [DeltaAdapter] and [OutputAdapter]; several adapters active on
// one site compose in that order, with all deltas computed on the untransformed
// input and summed. [WeightDelta] makes it mergeable.
type Adapter interface {
	// Params lists the trainable tensors in a fixed order.
	Params() []Param
	// Targets lists the modules that the adapter changes, in the base's order.
	Targets() []site.Module
}

// Param is one trainable tensor of an adapter.
type Param struct {
	// Name is the tensor's key in the adapter file without its prefix:
	// "model.layers.0.self_attn.q_proj.lora_A.weight".
	Name string
	// Shape is row-major as in the file.
	Shape []int
	// Init fills the initial values; r depends only on the seed and Name. nil: zeros.
	Init func(r *rand.Rand, values []float32) error
	// NoDecay exempts the tensor from weight decay, as transformers' Trainer does
	// biases and the weights of norms.
	NoDecay bool
}

// Size returns the number of elements.
func (p Param) Size() int { return site.Parameter{Shape: p.Shape}.Size() }

// ParameterAdapter replaces parameters of the base.
type ParameterAdapter interface {
	// Replaces reports whether the named base parameter is replaced.
	Replaces(name string) bool
	// Parameter returns the value that stands in for a parameter that Replaces reports.
	Parameter(v *Values, p *site.Pass, name string, base func() *graph.Node) *graph.Node
}

// InputAdapter changes the input of its targets.
type InputAdapter interface {
	Input(u *Use, x *graph.Node) *graph.Node
}

// DeltaAdapter adds to the output of its targets.
type DeltaAdapter interface {
	// Delta returns the addend in the shape and dtype of the site's output.
	Delta(u *Use) *graph.Node
}

// OutputAdapter changes the output of its targets.
type OutputAdapter interface {
	Output(u *Use, y *graph.Node) *graph.Node
}

// WeightDelta is an adapter that can be merged into the base's weights.
type WeightDelta interface {
	// WeightDelta returns what to add to the weight of a target, row-major float32
	// in the weight's stored orientation, computed in float32. value returns a
	// trainable tensor by its full name.
	WeightDelta(m site.Module, value func(name string) []float32) []float32
}

// ParameterMerger is a [ParameterAdapter] that can be merged into the base's parameters.
type ParameterMerger interface {
	// MergeParameter overwrites the values of a parameter that Replaces reports,
	// row-major float32 as stored. value returns a trainable tensor by its full name.
	MergeParameter(name string, values []float32, value func(name string) []float32)
}

// Configured is an adapter that completed its configuration on the base: the
// default targets, say. What it returns replaces the one it was made from.
type Configured interface {
	Config() Config
}

// Describer is an adapter that can say how it changes a target, for [DryRun].
type Describer interface {
	// Describe returns the settings of one target, in a fixed order.
	Describe(m site.Module) []Setting
	// Patterns says what each entry of the configuration decided.
	Patterns() []PatternCount
}

// Setting is one named value of a plan: the rank 8.
type Setting struct {
	Name, Value string
}

// Use is one use of a targeted module by one adapter while a graph is built.
type Use struct {
	Pass *site.Pass
	Site *site.Site
	// X is the site's untransformed input.
	X      *graph.Node
	values *Values
	base   func() *graph.Node
}

// Value returns the adapter's tensor "<site path>.<suffix>" as float32.
func (u *Use) Value(suffix string) *graph.Node {
	return u.values.Get(u.Site.Path + "." + suffix)
}

// Cast returns [Use.Value] in the pass's compute dtype.
func (u *Use) Cast(suffix string) *graph.Node {
	return graph.ConvertDType(u.Value(suffix), u.Pass.DType)
}

// Base returns the output of the base module on the untransformed input, built once.
func (u *Use) Base() *graph.Node { return u.base() }
