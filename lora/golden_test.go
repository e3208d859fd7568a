package lora_test

import (
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	_ "github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
)

// Adapters made by Python's peft give its logits, loss and gradients.
func TestGolden(t *testing.T) {
	for _, g := range basetest.GoldenCases(t) {
		t.Run(filepath.Base(g.Dir), func(t *testing.T) {
			backendtest.Sample(t, 5)
			base := basetest.Load(t, filepath.Join(basetest.Fixtures, "families", g.Model))
			pm, err := peft.LoadAdapter(base, g.Dir)
			require.NoError(t, err)
			require.Equal(t, g.Printed, pm.TrainableParameters().String())

			plan, err := pm.Plan(peft.DefaultAdapter)
			require.NoError(t, err)
			require.Len(t, plan.Targets, len(g.Scaling))
			require.Equal(t, g.Trainable, plan.Count.Trainable)
			for _, target := range plan.Targets {
				scaling, err := strconv.ParseFloat(target.Settings[2].Value, 64)
				require.NoError(t, err)
				require.InEpsilon(t, g.Scaling[target.Module.Path], scaling, 1e-5, target.Module.Path)
			}

			got := basetest.Evaluate(t, pm, g.Tensor(t, "input_ids"), g.Tensor(t, "labels"))
			basetest.RequireClose(t, basetest.Flat(t, g.Tensor(t, "logits")), got.Logits, 1e-4, "logits")
			require.InDelta(t, basetest.Flat(t, g.Tensor(t, "loss"))[0], got.Loss, 1e-4)
			compared := 0
			for _, name := range g.File.Names() {
				if short, ok := strings.CutPrefix(name, "grad.base_model.model."); ok {
					basetest.RequireClose(t, basetest.Flat(t, g.Tensor(t, name)), got.Gradients[short], 1e-4, name)
					compared++
				}
			}
			require.Equal(t, compared, len(got.Gradients))
			require.NotZero(t, compared)
		})
	}
}

// Merging into a checkpoint gives the logits that peft's merge gives.
func TestGoldenMerged(t *testing.T) {
	for _, g := range basetest.GoldenCases(t) {
		t.Run(filepath.Base(g.Dir), func(t *testing.T) {
			backendtest.Sample(t, 5)
			dir := filepath.Join(t.TempDir(), "merged")
			base := basetest.Load(t, filepath.Join(basetest.Fixtures, "families", g.Model))
			pm, err := peft.LoadAdapter(base, g.Dir)
			require.NoError(t, err)
			report, err := pm.MergeAndUnload(t.Context(), dir)
			require.NoError(t, err)
			require.Len(t, report.Tensors, len(g.Scaling))
			require.Greater(t, report.MaxChange, float32(0))

			full, err := peft.GetPeftModel(basetest.Load(t, dir), peft.Full{})
			require.NoError(t, err)
			merged, err := full.With()
			require.NoError(t, err)
			got := basetest.Evaluate(t, merged, g.Tensor(t, "input_ids"), g.Tensor(t, "labels"))
			basetest.RequireClose(t, basetest.Flat(t, g.Tensor(t, "merged_logits")), got.Logits, 1e-4, "merged logits")
		})
	}
}
