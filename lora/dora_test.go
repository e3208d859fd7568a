package lora

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/dtypes/bfloat16"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
)

// A product with a bfloat16 weight is as exact as float32 arithmetic on the same numbers.
func TestExactProduct(t *testing.T) {
	const out, in, r = 24, 512, 6
	random := rand.New(rand.NewPCG(1, 2))
	W, A := make([]float32, out*in), make([]float32, r*in)
	for i := range W {
		W[i] = bfloat16.FromFloat32(float32(random.NormFloat64())).Float32()
	}
	for i := range A {
		A[i] = float32(random.NormFloat64() * math.Exp(4*random.NormFloat64())) // of very different sizes
	}
	for _, dtype := range []dtypes.DType{dtypes.Float32, dtypes.BFloat16} {
		for _, axis := range []int{0, 1} {
			exec := graph.MustNewExec(backendtest.Open(t), func(w, a *graph.Node) *graph.Node {
				w = graph.ConvertDType(w, dtype)
				if axis == 0 {
					w = graph.Transpose(w, 0, 1)
				}
				return exactProduct(w, axis, a)
			})
			result, err := exec.Call(tensors.FromFlatDataAndDimensions(W, out, in), tensors.FromFlatDataAndDimensions(A, r, in))
			require.NoError(t, err)
			require.Equal(t, dtypes.Float32, result[0].DType())
			got, err := tensors.CopyFlatData[float32](result[0])
			require.NoError(t, err)
			for o := range out {
				for k := range r {
					var want, size float64
					for i := range in {
						term := float64(W[o*in+i]) * float64(A[k*in+i])
						want += term
						size += math.Abs(term)
					}
					// 512 roundings of 2^-24, relative to the terms; A rounded to bfloat16 would be off by up to 2^-9.
					require.InDelta(t, want, got[o*r+k], 1e-6*size, "%s [%d, %d]", dtype, o, k)
				}
			}
			exec.Finalize()
		}
	}
}
