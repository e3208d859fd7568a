package pefttest

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
)

func (s Suite) identity(t *testing.T) {
	base := s.base(t)
	pm := s.fresh(t, base, 1)
	fresh, plain := logits(t, pm), baseLogits(t, pm.Base())
	if s.NotIdentity {
		require.Greater(t, distance(plain, fresh), 1e-3, "it was said to change the model")
	} else {
		basetest.RequireClose(t, plain, fresh, 1e-5, "logits of a fresh adapter")
	}
	require.Greater(t, distance(plain, logits(t, s.moved(t, base))), 1e-3, "an adapter that has moved changes nothing")
}

// distance is the largest difference.
func distance(a, b []float32) float64 {
	worst := 0.0
	for i := range a {
		worst = math.Max(worst, math.Abs(float64(a[i]-b[i])))
	}
	return worst
}

func (s Suite) seeds(t *testing.T) {
	base := s.base(t)
	one, again := tensorsOf(t, s.fresh(t, base, 1), peft.DefaultAdapter), tensorsOf(t, s.fresh(t, base, 1), peft.DefaultAdapter)
	require.Equal(t, one, again)
	// Another adapter on the same base changes no value.
	pm := s.fresh(t, base, 5)
	require.NoError(t, pm.AddAdapter(s.Config, peft.Options{Name: "second", Seed: 1}))
	require.Equal(t, one, tensorsOf(t, pm, "second"))
}

func (s Suite) gradients(t *testing.T) {
	pm := s.moved(t, s.base(t))
	ids, labels := batch(pm.Base())
	got := basetest.Evaluate(t, pm, ids, labels)
	layout, err := pm.Layout(peft.DefaultAdapter)
	require.NoError(t, err)
	for _, p := range layout.Params() {
		gradient := got.Gradients[p.Name]
		require.Len(t, gradient, p.Size(), p.Name)
		require.False(t, slices.ContainsFunc(gradient, func(v float32) bool { return math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) }), "%s: gradient is not finite", p.Name)
		idle := slices.ContainsFunc(s.Idle, func(part string) bool { return strings.Contains(p.Name, part) })
		moves := slices.ContainsFunc(gradient, func(v float32) bool { return v != 0 })
		require.True(t, moves || idle, "%s: the gradient is zero", p.Name)
	}
}

func (s Suite) deterministic(t *testing.T) {
	pm := s.moved(t, s.base(t))
	require.Equal(t, logits(t, pm), logits(t, pm))
}

func (s Suite) halfPrecision(t *testing.T) {
	base := s.load(t, s.folder(t), models.Options{DType: dtypes.BFloat16})
	pm, err := peft.GetPeftModel(base, s.Config, peft.Options{Seed: 1})
	require.NoError(t, err)
	arguments, err := pm.Arguments()
	require.NoError(t, err)
	for _, a := range arguments {
		require.Equal(t, dtypes.Float32, a.DType())
	}
}

func (s Suite) several(t *testing.T) {
	base := s.base(t)
	pm := s.moved(t, base)
	require.NoError(t, pm.AddAdapter(s.Config, peft.Options{Name: "second", Seed: 2}))
	s.move(t, pm, "second", 2)
	one, two := logits(t, with(t, pm, peft.DefaultAdapter)), logits(t, with(t, pm, "second"))
	require.Greater(t, distance(one, two), 1e-3)
	if s.Alone {
		_, err := pm.With(peft.DefaultAdapter, "second")
		require.Error(t, err)
		return
	}
	both, reversed := logits(t, with(t, pm, peft.DefaultAdapter, "second")), logits(t, with(t, pm, "second", peft.DefaultAdapter))
	require.Greater(t, distance(one, both), 1e-3)
	require.Greater(t, distance(two, both), 1e-3)
	if !s.OrderMatters {
		basetest.RequireClose(t, both, reversed, 1e-5, "in the other order")
	}
	// A second adapter leaves the first one as it was.
	require.Equal(t, one, logits(t, with(t, pm, peft.DefaultAdapter)))
}

func (s Suite) disabled(t *testing.T) {
	base := s.base(t)
	pm := s.moved(t, base)
	before := logits(t, pm)
	require.Equal(t, baseLogits(t, pm.Base()), logits(t, with(t, pm))) // pm.Base: layers may be repeated
	require.Equal(t, before, logits(t, with(t, pm, peft.DefaultAdapter)))
}

func (s Suite) merge(t *testing.T) {
	base := s.base(t)
	pm := s.moved(t, base)
	prints := fingerprint(t, base)
	dir := t.TempDir()
	report, err := pm.Merge(t.Context(), dir)
	if s.NotMergeable {
		require.ErrorContains(t, err, "cannot be merged")
		return
	}
	require.NoError(t, err)
	require.NotEmpty(t, report.Tensors)
	require.Greater(t, report.MaxChange, float32(0))
	require.Equal(t, prints, fingerprint(t, base))
	basetest.RequireClose(t, logits(t, pm), baseLogits(t, s.load(t, dir, models.Options{})), s.Tolerance, "merged logits")
	// Merging twice gives the same again.
	again, err := pm.Merge(t.Context(), dir)
	require.NoError(t, err)
	require.Equal(t, report, again)
}

func (s Suite) count(t *testing.T) {
	pm := s.fresh(t, s.base(t), 1)
	layout, err := pm.Layout(peft.DefaultAdapter)
	require.NoError(t, err)
	n := 0
	for _, p := range layout.Params() {
		n += p.Size()
	}
	require.EqualValues(t, n, pm.TrainableParameters().Trainable)
	require.Zero(t, with(t, pm).TrainableParameters().Trainable)
}

func (s Suite) structure(t *testing.T) {
	pm := s.fresh(t, s.base(t), 1)
	require.NoError(t, pm.AddAdapter(s.Config, peft.Options{Name: "second", Seed: 2}))
	require.Equal(t, pm.Structure(), with(t, pm, "second").Structure())
	require.NotEqual(t, pm.Structure(), with(t, pm).Structure())
}

func (s Suite) failedAddition(t *testing.T) {
	pm := s.moved(t, s.base(t))
	before, names := logits(t, pm), pm.Adapters()
	require.ErrorContains(t, pm.AddAdapter(s.Config), `adapter "default" already exists`)
	require.Error(t, pm.LoadAdapter(t.TempDir(), peft.Options{Name: "empty"}))
	require.Equal(t, names, pm.Adapters())
	require.Equal(t, before, logits(t, pm))
}
