package lora

import (
	"fmt"

	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// In a convolution A is a convolution of the same kernel, strides and padding down to r
// channels, and B one of kernel 1 with the base's groups:
//
//	A [r, in, kernel...], B [out, r/groups, 1...]
//
// A has no groups, as in peft. So with groups the update is not the change of a weight,
// and cannot be merged. (peft leaves out the dilation of the base, and then fails on it.)

// convolutionShapes returns those of A and B.
func (l layer) convolutionShapes() (a, b []int) {
	a = append([]int{l.r, l.In}, l.Conv.Kernel...)
	b = []int{l.Out, l.r / l.Conv.Groups}
	for range l.Conv.Kernel {
		b = append(b, 1)
	}
	return a, b
}

// checkConvolution reports what cannot be done to a convolution.
func (c LoraConfig) checkConvolution(m site.Module, r int) error {
	switch {
	case m.Kind != site.Convolution:
		return nil
	case m.Conv == nil || m.Conv.Groups < 1:
		return fmt.Errorf("target module %q is a convolution of unknown shape", m.Path)
	case r%m.Conv.Groups != 0:
		return fmt.Errorf("target module %q has %d groups: want a rank that they divide, got %d", m.Path, m.Conv.Groups, r)
	case c.UseDora && m.Conv.Groups > 1:
		return fmt.Errorf("use_dora is not supported for target module %q, a convolution with %d groups: its update has no rows to measure", m.Path, m.Conv.Groups)
	}
	return nil
}

// convolve is the convolution with A [r, in, kernel...].
func (l layer) convolve(u *peft.Use, x, A *graph.Node) *graph.Node {
	groups := l.Conv.Groups
	if groups == 1 {
		return u.Site.With(x, l.Stored(A))
	}
	// With has the base's groups: each gives the r channels of its own inputs, and their sum
	// is what one group of all inputs gives.
	inputs := l.In / groups
	var parts []*graph.Node
	for g := range groups {
		parts = append(parts, graph.Slice(A, graph.AxisRange(), graph.AxisRange(g*inputs, (g+1)*inputs)))
	}
	y := u.Site.With(x, l.Stored(graph.Concatenate(parts, 0)))
	channel := 1
	if l.Conv.ChannelsLast {
		channel = y.Rank() - 1
	}
	dims := y.Shape().Clone().Dimensions
	split := append(append(append([]int{}, dims[:channel]...), groups, l.r), dims[channel+1:]...)
	return graph.ReduceSum(graph.Reshape(y, split...), channel)
}

// pointwise is the convolution of kernel 1 with B [out, r/groups, 1...]: x has r channels.
func (l layer) pointwise(x, B *graph.Node) *graph.Node {
	groups := l.Conv.Groups
	last := x.Rank() - 1
	if !l.Conv.ChannelsLast {
		x = graph.TransposeAllAxes(x, rotated(x.Rank(), 1, last)...)
	}
	spatial := x.Shape().Clone().Dimensions[:last]
	x = graph.Reshape(x, -1, groups, l.r/groups)
	B = graph.Reshape(B, groups, l.Out/groups, -1)
	y := graphx.Dot(x, []int{2}, []int{1}, B, []int{2}, []int{0}) // [groups, positions, out/groups]
	y = graph.Reshape(graph.Transpose(y, 0, 1), append(append([]int{}, spatial...), l.Out)...)
	if !l.Conv.ChannelsLast {
		y = graph.TransposeAllAxes(y, rotated(y.Rank(), last, 1)...)
	}
	return y
}

// rotated is the permutation that moves an axis to another place.
func rotated(rank, from, to int) []int {
	var axes []int
	for i := range rank {
		if i != from {
			axes = append(axes, i)
		}
	}
	return append(axes[:to:to], append([]int{from}, axes[to:]...)...)
}

// storedKernel turns values [out, in, kernel...] into [kernel..., in, out].
func (l layer) storedKernel(values []float32) []float32 {
	positions := 1
	for _, k := range l.Conv.Kernel {
		positions *= k
	}
	in := len(values) / l.Out / positions
	stored := make([]float32, len(values))
	for o := range l.Out {
		for i := range in {
			for k := range positions {
				stored[(k*in+i)*l.Out+o] = values[(o*in+i)*positions+k]
			}
		}
	}
	return stored
}
