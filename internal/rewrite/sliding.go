package rewrite

import (
	"slices"

	"github.com/gomlx/compute"
	"github.com/gomlx/gomlx/core/graph"
)

// GoMLX 0.28.3 pads the start of a convolution's reverse by 2⌊(k-1)/2⌋ less the padding
// (convVJPWrtX), where k-1 less the padding is right, k being the positions that the kernel
// spans: for an even k the gradient of the input is shifted by one position. Where the
// padding is wider than k-1 there is no gradient at all, not even the kernel's. Zeros
// around the kernel cure both.

// convolve re-creates a convolution in a form that has the right gradients. Through dilated
// inputs GoMLX refuses any.
func convolve(n, x, kernel *graph.Node) *graph.Node {
	if attribute(n, "inputDilations").Len() > 0 {
		return n.CloneWithInputs(x, kernel)
	}
	spatial := intsAttribute(n, "axes", "KernelSpatial")
	paddings := pairsAttribute(n, "paddings", len(spatial))
	dilations := intsAttribute(n, "kernelDilations")
	whole := kernel
	for i, axis := range spatial {
		dilation := 1
		if len(dilations) > 0 {
			dilation = dilations[i]
		}
		start, end := zeros(kernel.Shape().Dim(axis), dilation, paddings[i])
		whole = surround(whole, axis, start, end)
		paddings[i][0] += start * dilation
		paddings[i][1] += end * dilation
	}
	if whole == kernel {
		return n.CloneWithInputs(x, kernel)
	}
	axis := func(name string) int { return intAttribute(n, "axes", name) }
	axes := compute.ConvolveAxesConfig{
		InputBatch: axis("InputBatch"), InputChannels: axis("InputChannels"), InputSpatial: intsAttribute(n, "axes", "InputSpatial"),
		KernelInputChannels: axis("KernelInputChannels"), KernelOutputChannels: axis("KernelOutputChannels"), KernelSpatial: spatial,
		OutputBatch: axis("OutputBatch"), OutputChannels: axis("OutputChannels"), OutputSpatial: intsAttribute(n, "axes", "OutputSpatial"),
	}
	return graph.ConvGeneral(x, whole, axes, intsAttribute(n, "strides"), paddings, nil, dilations,
		intAttribute(n, "channelGroupCount"), intAttribute(n, "batchGroupCount"))
}

// zeros returns how many a kernel of the given size needs before and behind it, so that it
// spans an odd number of positions and more than the padding of either side.
func zeros(size, dilation int, padding [2]int) (start, end int) {
	short := func(padding int) int { // of positions, in steps of the dilation
		return max(0, (padding-(size-1)*dilation+dilation-1)/dilation)
	}
	start, end = short(padding[1]), short(padding[0])
	if (size+start+end-1)*dilation%2 == 1 {
		end++
	}
	return start, end
}

// sumWindows re-creates a sum over windows with its padding written out: on the Go backend
// of GoMLX 0.28.3 the gradient of one that pads fails while it runs, since Pad cannot cut
// off what is padded.
func sumWindows(n, x *graph.Node) *graph.Node {
	paddings := pairsAttribute(n, "paddings", x.Rank())
	plain := !slices.ContainsFunc(paddings, func(p [2]int) bool { return p != [2]int{} })
	negative := slices.ContainsFunc(paddings, func(p [2]int) bool { return min(p[0], p[1]) < 0 })
	dilated := attribute(n, "inputDilations").Len() > 0 || attribute(n, "windowDilations").Len() > 0
	if plain || negative || dilated || compute.ReduceOpType(intAttribute(n, "reductionType")) != compute.ReduceOpSum {
		return n.CloneWithInputs(x)
	}
	for axis, p := range paddings {
		x = surround(x, axis, p[0], p[1])
	}
	return graph.BackendReduceWindow(x, compute.ReduceOpSum, intsAttribute(n, "windowDimensions"), intsAttribute(n, "strides"), nil, nil, nil)
}

// surround puts zeros before and behind x on an axis. (graph.Pad has no gradient.)
func surround(x *graph.Node, axis, start, end int) *graph.Node {
	parts := []*graph.Node{x}
	fill := func(count int) *graph.Node {
		shape := x.Shape().Clone()
		shape.Dimensions[axis] = count
		return graph.Zeros(x.Graph(), shape)
	}
	if start > 0 {
		parts = slices.Insert(parts, 0, fill(start))
	}
	if end > 0 {
		parts = append(parts, fill(end))
	}
	if len(parts) == 1 {
		return x
	}
	return graph.Concatenate(parts, axis)
}
