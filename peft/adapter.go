package peft

import (
	"math/rand/v2"

	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/site"
)

// Adapter is a method planned on one base: its targets and its tensors. What it does
// in a graph it says by implementing one or more of [ParameterAdapter], [ModuleAdapter],
// [InputAdapter], [DeltaAdapter] and [OutputAdapter]; several adapters active on one
// site compose in that order, with all deltas computed on the untransformed input and
// summed. [Merger] makes it mergeable, [LossAdapter] and [StepAdapter] take part in
// training, [ScheduledAdapter] says how long it is, [FileForm] changes what is saved. [Compose] joins several into one.
type Adapter interface {
	// Params lists the tensors in a fixed order.
	Params() []Param
	// Targets lists the modules that the adapter changes, in the base's order.
	Targets() []site.Module
}

// Param is one tensor of an adapter.
type Param struct {
	// Name is the tensor's key in the adapter file without its prefix:
	// "model.layers.0.self_attn.q_proj.lora_A.weight".
	Name string
	// Key is the whole key in the file where it is not "base_model.model." and Name.
	Key string
	// OldKeys are names that older files have in place of Name.
	OldKeys []string
	// Twins are names like Name under which the file has the tensor once more, since Python
	// shares it between modules. All must be the same.
	Twins []string
	// Shape is row-major as in the file. A tensor without elements (AdaLoRA's at rank 0) is
	// part of the file and of no program.
	Shape []int
	// FileShape is the shape in the file if that is smaller: the file holds what is less
	// along every axis, and all else is zero. Init and Derive then fill values of this
	// shape. nil: Shape.
	FileShape []int
	// Init fills the initial values; r depends only on the seed and Name. nil: zeros.
	Init func(r *rand.Rand, values []float32) error
	// Derive, if not nil, fills the initial values in place of Init, from those of tensors
	// of the same adapter that have no Derive, or stand before this one. value must not be
	// called for others. A tensor that is read from a file is not derived.
	Derive func(value func(name string) []float32, values []float32) error
	// Frozen tensors are constants: an argument of programs that is not trained.
	Frozen bool
	// Unsaved tensors are not part of the file: Init or Derive make them again from the
	// configuration and the base, with seed 0.
	Unsaved bool
	// Beside tensors lie in a second file of the folder, prompt_encoder.safetensors, that
	// Python's peft does not read, each under its Key: what training needs to go on, but the
	// use of the adapter does not. See [PeftConfig.Besides].
	Beside bool
	// Computed tensors are part of the file and of no program: the adapter's [FileForm] makes
	// them of the others. A file whose values are not those is refused: its second file is not
	// of this adapter.
	Computed bool
	// InBase marks a tensor that Python's peft trains in the base itself, such as a bias: it
	// is no parameter more.
	InBase bool
	// NoDecay exempts the tensor from weight decay, as transformers' Trainer does
	// biases and the weights of norms.
	NoDecay bool
	// Group is the tensor's group in LoRA+.
	Group Group
}

// Group divides trainable tensors for learning rates of their own, see
// train.Arguments.LoraPlusLRRatio.
type Group int

const (
	// GroupOther has the learning rate as it is.
	GroupOther Group = iota
	// GroupB are matrices B of LoRA and vectors.
	GroupB
	// GroupEmbedding are adapters of embeddings.
	GroupEmbedding
)

// Size returns the number of elements.
func (p Param) Size() int { return site.Parameter{Shape: p.Shape}.Size() }

// fileShape is the shape in the file.
func (p Param) fileShape() []int {
	if p.FileShape != nil {
		return p.FileShape
	}
	return p.Shape
}

// fileSize is the number of elements in the file, those that training changes.
func (p Param) fileSize() int { return site.Parameter{Shape: p.fileShape()}.Size() }

// spread copies values of the shape in the file to their places in values of Shape.
func (p Param) spread(file, values []float32) {
	p.eachRow(func(at, from, n int) { copy(values[at:at+n], file[from:from+n]) })
}

// crop is the inverse of spread.
func (p Param) crop(values []float32) []float32 {
	if p.FileShape == nil {
		return values
	}
	file := make([]float32, p.fileSize())
	p.eachRow(func(at, from, n int) { copy(file[from:from+n], values[at:at+n]) })
	return file
}

// eachRow visits the rows along the last axis: n elements from "from" on in the file are
// those from "at" on in memory.
func (p Param) eachRow(visit func(at, from, n int)) {
	file := p.fileShape()
	if p.fileSize() == 0 {
		return
	}
	last := len(file) - 1
	index := make([]int, last)
	for from := 0; ; from += file[last] {
		at := 0
		for axis, i := range index {
			at = (at + i) * p.Shape[axis+1]
		}
		visit(at, from, file[last])
		axis := last - 1
		for ; axis >= 0; axis-- {
			if index[axis]++; index[axis] < file[axis] {
				break
			}
			index[axis] = 0
		}
		if axis < 0 {
			return
		}
	}
}

// fileKey is the tensor's key in the file.
func (p Param) fileKey() string {
	if p.Key != "" {
		return p.Key
	}
	return keyPrefix + p.Name
}

// ParameterAdapter replaces parameters of the base, wherever they are used.
type ParameterAdapter interface {
	// Replaces reports whether the named base parameter is replaced.
	Replaces(name string) bool
	// Parameter returns the value that stands in for a parameter that Replaces reports.
	Parameter(v *Values, p *site.Pass, name string, base func() *graph.Node) *graph.Node
}

// PartialParameterAdapter is a [ParameterAdapter] that changes the value that it is given,
// where others replace it as a whole: several can be active on one parameter.
type PartialParameterAdapter interface {
	ParameterAdapter
	// PartialParameters does nothing; it tells the kind.
	PartialParameters()
}

// ModuleAdapter takes the place of a base module of which it is a variant: one with
// another weight, where the weight is shared with a module that stays.
type ModuleAdapter interface {
	// ReplacesModule reports whether the target at path is replaced.
	ReplacesModule(path string) bool
	// Module returns the output on any input x of a module that ReplacesModule reports.
	Module(u *Use, x *graph.Node) *graph.Node
}

// PartialModuleAdapter is a [ModuleAdapter] that replaces rows of a weight and leaves the
// rest to what stands there without it, see [Use.Module]: several can be active on one module.
type PartialModuleAdapter interface {
	Adapter
	ModuleAdapter
	// RowsOf returns the rows of the weight of a target that are replaced. No other active
	// adapter may replace them too.
	RowsOf(path string) []int
	// Everywhere reports whether merging the named parameter changes it for all modules
	// that share it.
	Everywhere(parameter string) bool
}

// InputAdapter changes the input of its targets.
type InputAdapter interface {
	Input(u *Use, x *graph.Node) *graph.Node
}

// DeltaAdapter adds to the output of its targets.
type DeltaAdapter interface {
	// Delta returns the addend in the shape and dtype of the site's output, or nil for a
	// target that it leaves alone.
	Delta(u *Use) *graph.Node
}

// OutputAdapter changes the output of its targets.
type OutputAdapter interface {
	Output(u *Use, y *graph.Node) *graph.Node
}

// Merger is an adapter that can be merged into the base's parameters.
type Merger interface {
	// Merges lists the parameters that merging changes: for a target's weight,
	// [OwnWeight].
	Merges() []string
	// Merge changes the values of one of them in place: row-major float32 as stored, with
	// the changes of adapters before this one. frozen is the base's own value, computed in
	// float32 like all of it. value returns a tensor of the adapter by its full name.
	Merge(name string, values, frozen []float32, value func(name string) []float32) error
}

// OwnWeight is the name of a module's weight as if it shared none: the name it gets
// when merging has to give it one of its own.
func OwnWeight(m site.Module) string {
	if m.TiedTo != "" {
		m.TiedTo, m.WeightParameter = "", ""
	}
	return m.Weight()
}

// LossAdapter adds a term to the loss that is minimised.
type LossAdapter interface {
	// ExtraLoss is added to the mean loss of an optimizer step: a float32 scalar that
	// depends on the adapter's values alone.
	ExtraLoss(v *Values) *graph.Node
}

// StepAdapter takes part in optimizer steps.
type StepAdapter interface {
	// AfterStep returns new values for some of the adapter's tensors, by name. step is
	// the number of optimizer steps made, this one included (int32 scalar), v has the values
	// after it, and gradient returns the gradient of a trainable tensor, clipped, that it
	// was made with. Constants (Param.Frozen) can be changed here and nowhere else.
	AfterStep(step *graph.Node, v *Values, gradient func(name string) *graph.Node) map[string]*graph.Node
}

// ScheduledAdapter is an adapter whose training takes a certain number of optimizer steps.
type ScheduledAdapter interface {
	// TotalSteps is that number, 0 for any.
	TotalSteps() int
}

// FileForm is an adapter whose file holds something else than its tensors as they are.
type FileForm interface {
	// FileForm returns the configuration and the tensors to write, those of the adapter
	// being values: nil for the configuration and the tensors as they are. It must give a
	// file that [LoadAdapter] reads.
	FileForm(value func(name string) []float32) (Config, []FileTensor, error)
}

// FileTensor is one tensor of an adapter's file; see [Param] for names and keys.
type FileTensor struct {
	Name, Key string
	Shape     []int
	Values    []float32
	// Beside, see [Param].
	Beside bool
}

// composite is an adapter made of others.
type composite []Adapter

// Compose joins adapters into one, whose tensors and effects are those of all parts.
// nil parts are left out. The first part speaks for all as [Configured] and [Describer],
// and its [FileForm] says what configuration is saved; each part saves its own tensors.
func Compose(parts ...Adapter) Adapter {
	var c composite
	for _, part := range parts {
		if part != nil {
			c = append(c, partsOf(part)...)
		}
	}
	if len(c) == 1 {
		return c[0]
	}
	return c
}

func partsOf(a Adapter) []Adapter {
	if c, ok := a.(composite); ok {
		return c
	}
	return []Adapter{a}
}

// Params implements [Adapter].
func (c composite) Params() []Param {
	var all []Param
	for _, part := range c {
		all = append(all, part.Params()...)
	}
	return all
}

// Targets implements [Adapter].
func (c composite) Targets() []site.Module {
	var all []site.Module
	seen := map[string]bool{}
	for _, part := range c {
		for _, m := range part.Targets() {
			if !seen[m.Path] {
				seen[m.Path] = true
				all = append(all, m)
			}
		}
	}
	return all
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
	module func(x *graph.Node) *graph.Node
	// replaced is true if an active adapter replaces the module or its weight.
	replaced bool
}

// Values are all tensors of the adapter.
func (u *Use) Values() *Values { return u.values }

// Value returns the adapter's tensor "<site path>.<suffix>" as float32.
func (u *Use) Value(suffix string) *graph.Node {
	return u.values.Get(u.Site.Path + "." + suffix)
}

// Cast returns [Use.Value] in the pass's compute dtype.
func (u *Use) Cast(suffix string) *graph.Node {
	return graph.ConvertDType(u.Value(suffix), u.Pass.DType)
}

// Module returns, for a [PartialModuleAdapter], the output on any input of what it takes the
// place of: the base module, or what another adapter made of it.
func (u *Use) Module(x *graph.Node) *graph.Node { return u.module(x) }

// Base returns the output of the base module on the untransformed input, built once: with
// the values that stand in for its own, see [Use.Replaced].
func (u *Use) Base() *graph.Node { return u.base() }

// Replaced reports whether an active adapter replaces the base module or its weight, so that
// [Use.Base] is not the product with the frozen weight.
func (u *Use) Replaced() bool { return u.replaced }
