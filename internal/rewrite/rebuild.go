package rewrite

import (
	"fmt"
	"slices"

	"github.com/gomlx/gomlx/core/graph"
)

// rebuild re-creates a node on other inputs.
func (r *rewriter) rebuild(n *graph.Node, ins []*graph.Node) *graph.Node {
	var by *graph.Node
	switch t := twin(n); {
	case t != nil && n.Type() == graph.NodeTypeSplitNode:
		// One of several outputs of a fused node: the decomposed form alone is differentiable.
		by = r.region(t, n.Inputs()[0].Inputs(), nil)
	case t != nil && n.Type() == graph.NodeTypeFusedScaledDotProductAttention:
		by = r.region(t, n.Inputs(), ins) // GoMLX's clone returns the query
	case t != nil:
		ins = r.cutOff(n, ins)
		decomposed := r.region(t, n.Inputs(), ins)
		by, _ = graph.InternalFusedOpCaller(
			func() *graph.Node { return n.CloneWithInputs(ins...) },
			func() *graph.Node { return decomposed }, true)
	default:
		by = r.clone(n, ins)
	}
	if slices.Contains(ins, by) {
		panic(fmt.Errorf("rewrite: GoMLX cannot re-create %s", n))
	}
	if n.IsLogged() {
		by.SetLogged(n.LogMessage())
	}
	return by
}

// region re-creates the decomposed form of a fused node, down to its inputs from, for
// which ins stand. ins nil: what stands in their places.
func (r *rewriter) region(n *graph.Node, from, ins []*graph.Node) *graph.Node {
	done := map[*graph.Node]*graph.Node{}
	for i := range ins {
		done[from[i]] = ins[i]
	}
	var visit func(n *graph.Node) *graph.Node
	visit = func(n *graph.Node) *graph.Node {
		if by, ok := done[n]; ok {
			return by
		}
		by := r.value(n)
		if by == n && r.search.own(n) {
			next := make([]*graph.Node, len(n.Inputs()))
			changed := false
			for i, in := range n.Inputs() {
				next[i] = visit(in)
				changed = changed || next[i] != in
			}
			if changed {
				by = r.rebuild(n, next)
			}
		}
		done[n] = by
		return by
	}
	return visit(n)
}

// clone re-creates a node that is not fused.
func (r *rewriter) clone(n *graph.Node, ins []*graph.Node) *graph.Node {
	switch n.Type() {
	case graph.NodeTypeOptimizationBarrier:
		if len(ins) == 1 { // GoMLX's clone returns the operand
			switch barrierKind(n) {
			case startCheckpoint:
				return ins[0].Checkpoint()
			case stopCheckpoint:
				return ins[0].StopCheckpoint()
			}
			return graph.OptimizationBarrier(ins[0])
		}
	case graph.NodeTypeConvGeneral:
		return convolve(n, ins[0], ins[1])
	case graph.NodeTypeReduceWindow:
		return sumWindows(n, ins[0])
	case graph.NodeTypeBatchNormForInference:
		return batchNorm(n, ins)
	case graph.NodeTypeFusedScaledDotProductAttention:
		r.checkAttention(n)
	case graph.NodeTypeAllReduce:
		panic(fmt.Errorf("rewrite: the model communicates between devices (%s): it cannot be rewritten", n))
	}
	return n.CloneWithInputs(ins...)
}

// batchNorm is batch normalisation with stored averages, for which GoMLX's own
// operation has no gradient: (x - mean)·scale/√(variance + ε) + offset.
func batchNorm(n *graph.Node, ins []*graph.Node) *graph.Node {
	x := ins[0]
	dims := slices.Repeat([]int{1}, x.Rank())
	axis := intAttribute(n, "featureAxis")
	dims[axis] = x.Shape().Dim(axis)
	epsilon := attribute(n, "epsilon").Float()
	wide := func(v *graph.Node) *graph.Node { return graph.Reshape(convert(v, x.DType()), dims...) }
	scale := graph.Div(ins[1], graph.Sqrt(graph.AddScalar(convert(ins[4], ins[1].DType()), epsilon)))
	return graph.Add(graph.Mul(graph.Sub(x, wide(ins[3])), wide(scale)), wide(ins[2]))
}

// checkAttention refuses fused attention whose mask, bias or lengths would have to
// change: GoMLX keeps them out of the node's inputs.
func (r *rewriter) checkAttention(n *graph.Node) {
	for _, option := range []string{"Mask", "Bias", "QuerySeqLen", "KeyValueSeqLen"} {
		value := attribute(n, "options", option)
		if value.IsNil() {
			continue
		}
		if of := nodeOf(n, value); of == nil || r.dependsOnChange(of, map[*graph.Node]bool{}) {
			panic(fmt.Errorf("rewrite: %s of a fused attention depends on what the adapter changes, and cannot be rewritten: build the model with DisableFusion, or set %s=0", option, graph.FusionEnv))
		}
	}
}

// cutOff returns the inputs of a fused node. GoMLX's gradient goes through it into
// everything that it depends on, frozen or not, and fails where an operation has no
// gradient: there, what is frozen is cut off.
func (r *rewriter) cutOff(n *graph.Node, ins []*graph.Node) []*graph.Node {
	ins = slices.Clone(ins)
	for i, in := range n.Inputs() {
		if ins[i] == in {
			ins[i] = r.frozenInput(in)
		}
	}
	return ins
}

func (r *rewriter) frozenInput(n *graph.Node) *graph.Node {
	if !r.search.own(n) || n.NumOutputs() != 1 || !n.DType().IsFloat() {
		return n
	}
	if a := r.ancestry(n); !a.noGradient || a.live {
		return n
	}
	by, ok := r.cut[n]
	if !ok {
		by = graph.StopGradient(n)
		r.cut[n] = by
	}
	return by
}

// ancestry is what a node depends on.
type ancestry struct {
	// noGradient: an operation that has no gradient.
	noGradient bool
	// live: an input of the model that was computed, perhaps from something trained.
	live bool
}

func (r *rewriter) ancestry(n *graph.Node) ancestry {
	if a, ok := r.known[n]; ok {
		return a
	}
	var a ancestry
	switch _, registered := graph.VJPRegistration[n.Type()]; {
	case !r.search.own(n):
		a.live = n.Type() != graph.NodeTypeParameter && n.Type() != graph.NodeTypeConstant
	case n.StopGradient():
	default:
		a.noGradient = !registered && len(n.Inputs()) > 0 && n.CustomGradient() == nil && n.Type() != graph.NodeTypeSplitNode && twin(n) == nil
		for _, in := range n.Inputs() {
			of := r.ancestry(in)
			a.noGradient = a.noGradient || of.noGradient
			a.live = a.live || of.live
		}
	}
	r.known[n] = a
	return a
}
