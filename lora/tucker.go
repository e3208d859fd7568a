package lora

import (
	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/site"
)

// kernelSize is the number of elements of a convolution's kernel, 1 for a linear layer.
func kernelSize(m site.Module) int {
	n := 1
	if m.Kind == site.Convolution {
		for _, k := range m.Conv.Kernel {
			n *= k
		}
	}
	return n
}

// coreKernel is the kernel's part of a core's shape: always two axes, as in peft.
func coreKernel(m site.Module) []int {
	if len(m.Conv.Kernel) == 1 {
		return []int{m.Conv.Kernel[0], 1}
	}
	return m.Conv.Kernel
}

// tucker is Tucker's form of a convolution's weight (proposition 3 of FedPara):
// W[o, i, k] = Σ t[p, q, k] a[p, o] b[q, i], from t [r, r, k1, k2], a [r, out] and b [r, in].
func tucker(t, a, b *graph.Node) *graph.Node {
	w := graphx.Dot(a, []int{0}, nil, t, []int{0}, nil) // [out, r, k1, k2]
	w = graphx.Dot(w, []int{1}, nil, b, []int{0}, nil)  // [out, k1, k2, in]
	return graph.TransposeAllAxes(w, 0, 3, 1, 2)
}

// tuckerHost is s times tucker on the host, kernel elements in one axis.
func tuckerHost(t, a, b []float32, r, out, in, kernel int, s float64) []float32 {
	w := make([]float32, out*in*kernel)
	half := product(graphx.Transposed(a, r, out), t, out, r, r*kernel, s) // [out, r, kernel]
	for o := range out {
		rows := product(graphx.Transposed(b, r, in), half[o*r*kernel:][:r*kernel], in, r, kernel, 1)
		copy(w[o*in*kernel:], rows)
	}
	return w
}
