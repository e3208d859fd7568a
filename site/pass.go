package site

import (
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
)

// Pass is one pass of a base through a graph under construction. A base's
// forward function takes one and is otherwise a pure function of its inputs.
type Pass struct {
	Graph *graph.Graph
	// DType is the dtype of activations and of weights at their use: float32 on
	// the Go backend and XLA:CPU, bfloat16 on XLA:CUDA.
	DType dtypes.DType
	// Hook is asked for every module and bare parameter. nil: the base as it is.
	Hook Hook
	// Checkpoint asks the base to recompute each block in the backward pass
	// instead of keeping its activations.
	Checkpoint bool
	// Random feeds dropout. nil: evaluation, no dropout.
	Random *Random
}

// Random holds what dropout masks derive from, all uint32 scalars that are inputs
// of the program: equal values give equal masks on every backend.
type Random struct {
	Seed, Step *graph.Node
	// MicroStep tells apart the batches of a step whose RowOffset each starts at 0. It
	// is 0 where RowOffset counts through the step, as in package train.
	MicroStep *graph.Node
	// RowOffset is the index of the batch's first row within the step, so that splitting
	// a batch changes no mask.
	RowOffset *graph.Node
}

// Training reports whether the pass is part of a training step.
func (p *Pass) Training() bool { return p.Random != nil }

// Apply returns the output of one use of a module.
func (p *Pass) Apply(s *Site) *graph.Node {
	if p.Hook == nil {
		return s.Base(s.X)
	}
	return p.Hook.Apply(p, s)
}

// Parameter returns the value of a parameter. Bases read every parameter through it. See [Hook].
func (p *Pass) Parameter(name string, base func() *graph.Node) *graph.Node {
	if p.Hook == nil {
		return base()
	}
	return p.Hook.Parameter(p, name, base)
}

// Sublayer returns the sum of a sublayer's output and its input. See [Hook].
func (p *Pass) Sublayer(s *Sublayer) *graph.Node {
	if p.Hook == nil {
		return s.Join(s.Output)
	}
	return p.Hook.Sublayer(p, s)
}

// Prefix returns what precedes the tokens of every row. See [Hook].
func (p *Pass) Prefix(in Tokens) Prefix {
	if p.Hook == nil {
		return Prefix{}
	}
	return p.Hook.Prefix(p, in)
}

// Adapts reports whether the module at path is changed by an adapter in this pass.
func (p *Pass) Adapts(path string) bool { return p.Hook != nil && p.Hook.Adapts(path) }
