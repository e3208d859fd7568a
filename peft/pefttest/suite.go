package pefttest

import (
	"hash/fnv"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend"
	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// Suite is a method to be checked, with what it does not promise.
type Suite struct {
	// Config is a configuration for a small Llama, with a base's default targets or the
	// names of Llama's modules.
	Config peft.Config
	// Family is the base: a folder of internal/golden/testdata/families, or a classifier of
	// sequences, "encoders/bert_sequence". "": "llama".
	Family string
	// Other is a family that files of the adapter do not fit. "": one whose heads have another
	// size.
	Other string
	// NotIdentity is set for a method whose fresh adapter changes the model.
	NotIdentity bool
	// NotMergeable is set for a method that cannot be merged: it must refuse.
	NotMergeable bool
	// OrderMatters is set where several adapters of the method do not simply add up.
	OrderMatters bool
	// Alone is set for a method of which only one adapter can be active at a time.
	Alone bool
	// NoFile is set for a method without a file format.
	NoFile bool
	// Tolerance is what merging may change in the logits, relative to the largest. 0: 1e-4.
	Tolerance float64
	// Noise moves an adapter's values away from the initial ones. 0: 0.1.
	Noise float64
	// Idle lists tensors, by a part of their names, that may have no gradient on the
	// small batches here: rows of tokens that do not occur, say.
	Idle []string
	// Beside is set for a method that keeps tensors in a second file.
	Beside bool
	// AnyModel is set for a method whose file fits every model with as many layers of a width.
	AnyModel bool
}

// Run checks a method against the behaviours that every method has, numbered as in the
// acceptance list of peft's test suite (section 8 of the project's peft notes). Each is
// a subtest.
func Run(t *testing.T, s Suite) {
	t.Helper()
	if s.Family == "" {
		s.Family = "llama"
	}
	if s.Tolerance == 0 {
		s.Tolerance = 1e-4
	}
	if s.Noise == 0 {
		s.Noise = 0.1
	}
	backendtest.Sample(t, 12)
	onGo := backend.IsGo(backendtest.Open(t))
	for _, check := range checks {
		t.Run(check.name, func(t *testing.T) {
			if testing.Short() && !check.parallel {
				t.Skip("short: nothing here runs side by side")
			}
			if !onGo && check.host {
				t.Skip("the Go backend's run has checked it")
			}
			check.run(s, t)
		})
	}
}

// checks are those of [Run]. host marks what depends on no backend, or what [Golden] holds
// on each; parallel what has programs running side by side.
var checks = []struct {
	name           string
	run            func(s Suite, t *testing.T)
	host, parallel bool
}{
	{"a configuration survives its file (1)", Suite.configRoundTrip, true, false},
	{"a fresh adapter is the identity (11)", Suite.identity, true, false},
	{"initial values follow from seed and name", Suite.seeds, true, false},
	{"training moves the adapter and nothing else (19)", Suite.training, false, true},
	{"every tensor has a gradient (19)", Suite.gradients, true, false},
	{"evaluation is deterministic (20)", Suite.deterministic, true, false},
	{"adapters are float32 on a half precision base (21)", Suite.halfPrecision, true, false},
	{"gradient checkpointing changes nothing (22)", Suite.checkpointing, false, false},
	{"several active adapters (23)", Suite.several, true, false},
	{"training resumes bit by bit", Suite.resume, true, false},
	{"save, load, same logits (35)", Suite.saveAndLoad, true, false},
	{"names of adapters mean nothing in files (37, 40)", Suite.names, true, false},
	{"files that do not fit are refused (41)", Suite.badFiles, true, false},
	{"a failed addition changes nothing (47)", Suite.failedAddition, true, false},
	{"without adapters the base is exactly itself (50, 61)", Suite.disabled, true, false},
	{"merged equals unmerged (52)", Suite.merge, true, false},
	{"on a base in NF4 (64, 65)", Suite.nf4, false, false},
	{"on a base in INT8 (64, 65)", Suite.int8, true, false},
	{"trainable parameters are counted (60)", Suite.count, true, false},
	{"adapters of one kind share programs", Suite.structure, true, false},
}

// folder is where the base lies.
func (s Suite) folder(t *testing.T) string {
	testdata := filepath.Join(basetest.Root(t), "internal", "golden", "testdata")
	if s.classifies() {
		return filepath.Join(testdata, filepath.FromSlash(s.Family))
	}
	return filepath.Join(testdata, "families", s.Family)
}

// classifies reports whether the base is a classifier.
func (s Suite) classifies() bool { return strings.HasPrefix(s.Family, "encoders/") }

func (s Suite) base(t *testing.T) site.Base { return s.load(t, s.folder(t), models.Options{}) }

// load reads a model of the suite's kind, in float32 unless o says otherwise.
func (s Suite) load(t *testing.T, dir string, o models.Options) site.Base {
	t.Helper()
	o.On = backendtest.Open(t)
	if o.DType == dtypes.InvalidDType {
		o.DType = dtypes.Float32
	}
	if s.classifies() {
		c, err := models.LoadClassifier(t.Context(), dir, models.ClassifierOptions{Options: o})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, c.Close()) })
		return c
	}
	m, err := models.Load(t.Context(), dir, o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return m
}

// fresh attaches the adapter as it starts.
func (s Suite) fresh(t *testing.T, base site.Base, seed uint64) *peft.PeftModel {
	t.Helper()
	pm, err := peft.GetPeftModel(base, s.Config, peft.Options{Seed: seed})
	require.NoError(t, err)
	return pm
}

// moved attaches the adapter with values that are not the initial ones.
func (s Suite) moved(t *testing.T, base site.Base) *peft.PeftModel {
	t.Helper()
	pm := s.fresh(t, base, 1)
	s.move(t, pm, peft.DefaultAdapter, 1)
	return pm
}

// move adds normal noise to every trainable value.
func (s Suite) move(t *testing.T, pm *peft.PeftModel, name string, seed uint64) {
	t.Helper()
	layout, err := pm.Layout(name)
	require.NoError(t, err)
	values := tensorsOf(t, pm, name)
	random := rand.New(rand.NewPCG(seed, 7))
	for _, p := range layout.Params() {
		for i := range values[p.Name] {
			values[p.Name][i] += float32(s.Noise * random.NormFloat64())
		}
	}
	arguments, err := layout.FromHost(values)
	require.NoError(t, err)
	require.NoError(t, pm.SetValues(name, arguments))
}

func tensorsOf(t *testing.T, pm *peft.PeftModel, name string) map[string][]float32 {
	t.Helper()
	values, err := pm.TensorValues(name)
	require.NoError(t, err)
	return values
}

func with(t *testing.T, pm *peft.PeftModel, names ...string) *peft.PeftModel {
	t.Helper()
	view, err := pm.With(names...)
	require.NoError(t, err)
	return view
}

// batch is two rows of tokens and their labels: of the next tokens, or of each row for a
// classifier.
func batch(base site.Base) (ids, labels *tensors.Tensor) {
	rows, targets := examples(2)
	if _, ok := base.(site.Classifier); ok {
		return tensors.FromValue(rows), tensors.FromValue([]int32{class(rows[0]), class(rows[1])})
	}
	return tensors.FromValue(rows), tensors.FromValue(targets)
}

// class is one of three.
func class(row []int32) int32 { return row[0] % 3 }

// examples are n rows of twelve tokens of the tiny models; some are not to be learned.
func examples(n int) (ids, labels [][]int32) {
	random := rand.New(rand.NewPCG(3, 4))
	for range n {
		row := make([]int32, 12)
		for i := range row {
			row[i] = 3 + random.Int32N(61)
		}
		target := append([]int32{-100, -100}, row[2:]...)
		ids, labels = append(ids, row), append(labels, target)
	}
	return ids, labels
}

func logits(t *testing.T, pm *peft.PeftModel) []float32 {
	t.Helper()
	ids, labels := batch(pm.Base())
	return basetest.Evaluate(t, pm, ids, labels).Logits
}

// baseLogits are the base's own.
func baseLogits(t *testing.T, base site.Base) []float32 {
	t.Helper()
	full, err := peft.GetPeftModel(base, peft.Full{})
	require.NoError(t, err)
	return logits(t, with(t, full))
}

// fingerprint hashes the bytes of every parameter of the base.
func fingerprint(t *testing.T, base site.Base) map[string]uint64 {
	t.Helper()
	sums := map[string]uint64{}
	for v := range base.Store().IterVariables() {
		value, err := v.Value()
		require.NoError(t, err)
		h := fnv.New64a()
		require.NoError(t, value.ConstBytes(func(data []byte) { h.Write(data) }))
		sums[v.Path()] = h.Sum64()
	}
	return sums
}
