package pefttest

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/quant"
	"github.com/gopeft/gopeft/site"
)

func (s Suite) nf4(t *testing.T)  { s.quantised(t, quant.NF4{DoubleQuant: true}) }
func (s Suite) int8(t *testing.T) { s.quantised(t, quant.INT8{}) }

// quantised holds the method on a base in few bits against the same method on the decoded
// base, which only differs in where the weights are built. (A family that is quantised
// already is taken as it is.)
func (s Suite) quantised(t *testing.T, scheme quant.Scheme) {
	load := func() site.Base { return s.load(t, s.folder(t), models.Options{Quantization: scheme}) }
	config, err := os.ReadFile(filepath.Join(s.folder(t), "config.json"))
	require.NoError(t, err)
	if bytes.Contains(config, []byte(`"quantization_config"`)) {
		scheme = nil
	}
	base := load()
	require.True(t, inFewBits(base), "nothing is quantised")
	prints := fingerprint(t, base)
	decodedDir := t.TempDir()
	require.NoError(t, base.(site.Exporter).Export(t.Context(), decodedDir, nil))
	decoded := s.moved(t, s.load(t, decodedDir, models.Options{}))
	pm := s.moved(t, base)
	s.sameAs(t, decoded, pm)

	before := logits(t, pm)
	if !s.NoFile {
		again, err := peft.LoadAdapter(load(), s.save(t, pm))
		require.NoError(t, err)
		basetest.RequireClose(t, before, logits(t, again), 1e-4, "logits after loading")
	}
	if !s.NotMergeable {
		merged := t.TempDir()
		_, err := pm.Merge(t.Context(), merged)
		require.NoError(t, err)
		basetest.RequireClose(t, before, baseLogits(t, s.load(t, merged, models.Options{})), s.Tolerance, "merged logits")
	}
	s.trainsAs(t, decoded, pm)
	require.Equal(t, prints, fingerprint(t, base), "the base")
}

// inFewBits reports whether any weight is held as codes.
func inFewBits(base site.Base) bool {
	for v := range base.Store().IterVariables() {
		if v.DType() == dtypes.Uint8 || v.DType() == dtypes.Int8 {
			return true
		}
	}
	return false
}

// sameAs compares logits, loss and gradients.
func (s Suite) sameAs(t *testing.T, want, got *peft.PeftModel) {
	t.Helper()
	ids, labels := batch(want.Base())
	wanted, is := basetest.Evaluate(t, want, ids, labels), basetest.Evaluate(t, got, ids, labels)
	basetest.RequireClose(t, wanted.Logits, is.Logits, s.Tolerance, "logits")
	require.InDelta(t, wanted.Loss, is.Loss, s.Tolerance)
	for name, gradient := range wanted.Gradients {
		basetest.RequireClose(t, gradient, is.Gradients[name], s.Tolerance, "gradient of "+name)
	}
}

// trainsAs trains the second model three times: as it is, checkpointed, and beside want.
func (s Suite) trainsAs(t *testing.T, want, pm *peft.PeftModel) {
	t.Helper()
	data := dataset(t, pm.Base(), 4)
	start, initial := loss(t, pm, data), tensorsOf(t, pm, peft.DefaultAdapter)
	wanted := fit(t, want, data, arguments(t, 3)).TrainingLoss
	layout, err := pm.Layout(peft.DefaultAdapter)
	require.NoError(t, err)
	for _, checkpointing := range []bool{false, true} {
		values, err := layout.FromHost(initial)
		require.NoError(t, err)
		require.NoError(t, pm.SetValues(peft.DefaultAdapter, values))
		args := arguments(t, 3)
		args.GradientCheckpointing = checkpointing
		require.InEpsilon(t, wanted, fit(t, pm, data, args).TrainingLoss, 10*s.Tolerance, "checkpointing: %v", checkpointing)
		require.Less(t, loss(t, pm, data), start)
		after := tensorsOf(t, pm, peft.DefaultAdapter)
		for _, p := range layout.Params() {
			require.NotEqual(t, initial[p.Name], after[p.Name], "%s did not move", p.Name)
		}
	}
}
