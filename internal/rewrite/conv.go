package rewrite

import (
	"slices"

	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/site"
)

// conv is a convolution, whose input and output a site sees as they are.
type conv struct {
	op      *graph.Node
	channel int // axis of the channels
}

// convUse recognises a convolution with a kernel [kernel..., in/groups, out] or [out,
// in/groups, kernel...] and channels last or first.
func (s *Search) convUse(n *graph.Node) *use {
	x, kernel := n.Inputs()[0], n.Inputs()[1]
	p, v, ok := s.trace(kernel)
	if !ok || !p.DType().IsFloat() || !v.inOrder() || intAttribute(n, "batchGroupCount") > 1 {
		return nil
	}
	spatial := kernel.Rank() - 2
	axes := func(name string) int { return intAttribute(n, "axes", name) }
	list := func(name string) []int { return intsAttribute(n, "axes", name) }
	in, out := axes("KernelInputChannels"), axes("KernelOutputChannels")
	c := &conv{n, axes("InputChannels")}
	u := &use{op: n, out: n, builder: c}
	switch {
	case in == spatial && out == spatial+1 && slices.Equal(list("KernelSpatial"), axesBetween(0, spatial)):
		u.Transposed = true
	case out == 0 && in == 1 && slices.Equal(list("KernelSpatial"), axesBetween(2, spatial+2)):
	default:
		return nil
	}
	last := c.channel == x.Rank()-1
	first := 2
	if last {
		first = 1
	}
	inOrder := axes("InputBatch") == 0 && axes("OutputBatch") == 0 && axes("OutputChannels") == c.channel &&
		slices.Equal(list("InputSpatial"), axesBetween(first, first+spatial)) && slices.Equal(list("OutputSpatial"), list("InputSpatial"))
	if spatial < 1 || spatial > 3 || !last && c.channel != 1 || !inOrder {
		return nil
	}
	u.Kind, u.Weight = site.Convolution, s.parameters[p]
	u.Conv = &site.Conv{Groups: max(1, intAttribute(n, "channelGroupCount")), ChannelsLast: last}
	for _, axis := range list("KernelSpatial") {
		u.Conv.Kernel = append(u.Conv.Kernel, kernel.Shape().Dim(axis))
	}
	u.In, u.Out = kernel.Shape().Dim(in)*u.Conv.Groups, kernel.Shape().Dim(out)
	return u
}

func (c *conv) arguments() (int, int) { return 0, 1 }

func (c *conv) input(r *rewriter) *graph.Node { return r.value(c.op.Inputs()[0]) }

func (c *conv) operand(x *graph.Node) *graph.Node { return x }

func (c *conv) output(y *graph.Node) *graph.Node { return y }

func (c *conv) restore(y, _ *graph.Node) *graph.Node { return y }

func (c *conv) with(_ site.Module, x, weight *graph.Node) *graph.Node {
	return convolve(c.op, convert(x, c.op.Inputs()[0].DType()), convert(weight, c.op.Inputs()[1].DType()))
}

// feature returns the axis of the output channels.
func (c *conv) feature(*graph.Node) (first, last int) { return c.channel, c.channel }
