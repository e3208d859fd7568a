package peft_test

import (
	"testing"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	. "github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/ml/layers"
	"github.com/gomlx/gomlx/ml/layers/attention"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/peft"
)

// attentive is a layer of attention that cuDNN computes in one operation. lengths gives
// the rows' lengths, nil for causal attention.
func attentive(lengths func(x, hidden *Node) *Node) peft.ModelFunc {
	return func(scope *model.Scope, in []*Node) []*Node {
		x := layers.Dense(scope.In("first"), in[0], true, 32)
		project := func(name string) *Node {
			y := layers.Dense(scope.In("%s", name), x, false, 2, 64)
			return ConvertDType(y, dtypes.BFloat16)
		}
		options := attention.CoreOptions{UseCausalMask: lengths == nil}
		if lengths != nil {
			n := lengths(in[0], x)
			options.QuerySeqLen, options.KVSeqLen = n, n
		}
		out, _ := attention.Core(project("query"), project("key"), project("value"), attention.LayoutBSHD, options)
		out = Reshape(ConvertDType(out, dtypes.Float32), x.Shape().Dim(0), x.Shape().Dim(1), 128)
		return []*Node{layers.Dense(scope.In("readout"), out, true, 4)}
	}
}

// Fused attention is built again as such, with its own gradient; lengths that would have
// to change are refused.
func TestWrappedFlashAttention(t *testing.T) {
	if !backendtest.Open(t).Capabilities().Operations[compute.OpTypeFusedScaledDotProductAttention] {
		t.Skip("the backend has no fused attention")
	}
	withFusion(t, true)
	input := foreign{input: float32s(2, 64, 16)}
	half := func(x *Node) *Node {
		return ConvertDType(AddScalar(MulScalar(ReduceMax(x, 1, 2), 0), 32), dtypes.Int32)
	}
	for name, fn := range map[string]peft.ModelFunc{
		"causal":  attentive(nil),
		"lengths": attentive(func(x, _ *Node) *Node { return half(x) }),
	} {
		t.Run(name, func(t *testing.T) {
			base := wrap(t, fn, input.input)
			pm := attachRandom(t, base, peft.AllLinear)
			fused := 0
			call := func(arguments []*Node, in *Node) []*Node {
				first := len(in.Graph().Nodes())
				out := rewritten(base, pm)(arguments, in)
				for _, n := range in.Graph().Nodes()[first:] {
					if n.Type() == NodeTypeFusedScaledDotProductAttention {
						fused++
					}
				}
				return out
			}
			want, wantGradient := outputsAndGradient(t, base, pm, example(input, 1), mergedInGraph(base, fn, pm))
			got, gotGradient := outputsAndGradient(t, base, pm, example(input, 1), call)
			require.Equal(t, 2, fused, "the model's own and the rewritten one")
			// Attention computes in bfloat16: the deltas, added in another order, round otherwise.
			require.Less(t, distance(t, want, got), 5e-2)
			require.Less(t, distance(t, wantGradient, gotGradient), 5e-2)
		})
	}

	base := wrap(t, attentive(func(_, hidden *Node) *Node { return half(hidden) }), input.input)
	_, err := base.Run(attachRandom(t, base, peft.Modules("query.dense")), example(input, 1))
	require.NoError(t, err, "the lengths do not depend on the adapter")
	_, err = base.Run(attachRandom(t, base, peft.Modules("first.dense")), example(input, 1))
	require.ErrorContains(t, err, "QuerySeqLen of a fused attention depends on what the adapter changes")
}
