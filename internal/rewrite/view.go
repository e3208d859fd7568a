package rewrite

import (
	"slices"

	"github.com/gomlx/gomlx/core/graph"
)

// view says how the axes of a node lie in the memory of the parameter that it shows in
// another layout: each axis is a list of factors, outermost first.
type view [][]factor

// factor is a number of steps of one length, in elements of the parameter.
type factor struct{ dim, stride int }

// viewOf is the view of the parameter itself.
func viewOf(dims []int) view {
	v := make(view, len(dims))
	stride := 1
	for i := len(dims) - 1; i >= 0; i-- {
		if dims[i] != 1 {
			v[i] = []factor{{dims[i], stride}}
		}
		stride *= dims[i]
	}
	return v
}

func (v view) transpose(permutation []int) view {
	out := make(view, len(v))
	for i, from := range permutation {
		out[i] = v[from]
	}
	return out
}

// reshape regroups the factors; false where an axis would cut a factor unevenly.
func (v view) reshape(dims []int) (view, bool) {
	rest := slices.Concat(v...)
	out := make(view, len(dims))
	for i, want := range dims {
		for want > 1 {
			if len(rest) == 0 {
				return nil, false
			}
			f := rest[0]
			switch {
			case want%f.dim == 0:
				out[i] = append(out[i], f)
				want /= f.dim
				rest = rest[1:]
			case f.dim%want == 0:
				inner := f.dim / want
				out[i] = append(out[i], factor{want, f.stride * inner})
				rest = slices.Concat([]factor{{inner, f.stride}}, rest[1:])
				want = 1
			default:
				return nil, false
			}
		}
	}
	return out, len(rest) == 0
}

// join returns the axes as one run of dim steps of one stride, and whether they are one.
func (v view) join(axes []int) (factor, bool) {
	joined := factor{1, 1}
	for _, axis := range axes {
		for _, f := range v[axis] {
			switch {
			case joined.dim == 1:
				joined = f
			case joined.stride == f.dim*f.stride:
				joined = factor{joined.dim * f.dim, f.stride}
			default:
				return factor{}, false
			}
		}
	}
	return joined, true
}

// inOrder reports whether the view shows the parameter's elements in their own order.
func (v view) inOrder() bool {
	axes := make([]int, len(v))
	for i := range axes {
		axes[i] = i
	}
	f, ok := v.join(axes)
	return ok && (f.dim == 1 || f.stride == 1)
}

// trace follows a node through operations that change layout and dtype alone to the
// parameter that it shows, if it shows one as a whole.
func (s *search) trace(n *graph.Node) (parameter *graph.Node, v view, ok bool) {
	if _, ok := s.parameters[n]; ok {
		return n, viewOf(n.Shape().Dimensions), true
	}
	switch n.Type() {
	case graph.NodeTypeReshape:
		if parameter, v, ok = s.trace(n.Inputs()[0]); ok {
			v, ok = v.reshape(n.Shape().Dimensions)
		}
	case graph.NodeTypeTranspose:
		if parameter, v, ok = s.trace(n.Inputs()[0]); ok {
			v = v.transpose(intsAttribute(n, "permutation"))
		}
	case graph.NodeTypeConvertDType, graph.NodeTypeIdentity, graph.NodeTypeOptimizationBarrier, graph.NodeTypeSchedulingBarrier:
		if n.NumOutputs() == 1 && n.DType().IsFloat() {
			parameter, v, ok = s.trace(n.Inputs()[0])
		}
	}
	return parameter, v, ok
}
