package adapters_test

import (
	"path/filepath"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/adapters"
	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// In a pass in bfloat16 the adapters compute in bfloat16 what they do in float32, and their
// gradients come back in float32.
func TestBottleneckHalfPrecision(t *testing.T) {
	rich := small(adapters.Houlsby())
	rich.LnBefore, rich.LnAfter, rich.Scaling = true, true, adapters.Scaling{Learned: adapters.ScalingChannel}
	parallel := small(adapters.Parallel())
	parallel.Scaling.Factor = 0.9 // rounded to bfloat16 it would be something else
	for name, config := range map[string]adapters.BottleneckConfig{"norms": rich, "pfeiffer": small(adapters.Pfeiffer()), "parallel": parallel} {
		t.Run(name, func(t *testing.T) {
			base, err := models.Load(t.Context(), filepath.Join(basetest.Fixtures, "families", "smollm2"), models.Options{On: backendtest.Open(t), DType: dtypes.BFloat16})
			require.NoError(t, err)
			defer base.Close()
			pm, err := peft.GetPeftModel(base, config)
			require.NoError(t, err)
			shift(t, pm, peft.DefaultAdapter, 0.02)
			arguments, err := pm.Arguments()
			require.NoError(t, err)
			run := func(dtype dtypes.DType) (hidden, gradient []float32) {
				exec, err := model.NewExec(base.Backend(), base.Store(), func(_ *model.Scope, in []*graph.Node) []*graph.Node {
					binding, err := pm.Bind(in[1:])
					require.NoError(t, err)
					pass := &site.Pass{Graph: in[0].Graph(), DType: dtype, Hook: binding}
					h := base.Hidden(pass, site.Tokens{IDs: in[0]})
					require.Equal(t, dtype, h.DType())
					h = graph.ConvertDType(h, dtypes.Float32)
					gradients := graph.Gradient(graph.ReduceAllMean(graph.Square(h)), binding.Views()...)
					for _, g := range gradients {
						require.Equal(t, dtypes.Float32, g.DType())
					}
					return []*graph.Node{h, binding.Join(gradients)[0]}
				})
				require.NoError(t, err)
				defer exec.Finalize()
				in := []any{tensors.FromValue([][]int32{{5, 9, 17, 33, 5, 40, 9, 12}, {7, 5, 60, 61, 9, 17, 3, 4}})}
				for _, a := range arguments {
					in = append(in, a)
				}
				out, err := exec.Exec(in...)
				require.NoError(t, err)
				return basetest.Flat(t, out[0]), basetest.Flat(t, out[1])
			}
			want, wantGradient := run(dtypes.Float32)
			got, gotGradient := run(dtypes.BFloat16)
			// 2^-8 is bfloat16's rounding; the layers add some of them up.
			basetest.RequireClose(t, want, got, 3e-2, "hidden states")
			require.NotEqual(t, want, got)
			basetest.RequireClose(t, wantGradient, gotGradient, 3e-2, "gradients")
		})
	}
}
