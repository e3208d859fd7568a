package peft_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// runner runs views of one structure in one compiled program, and counts how often a
// graph was built for it.
type runner struct {
	base   *models.Model
	exec   *model.Exec
	view   site.View
	builds int
}

func newRunner(t testing.TB, base *models.Model) *runner {
	r := &runner{base: base}
	var err error
	r.exec, err = model.NewExec(base.Backend(), base.Store(), func(_ *model.Scope, in []*graph.Node) []*graph.Node {
		r.builds++
		pass := &site.Pass{Graph: in[0].Graph(), DType: base.DType(), Hook: r.view.Hook(in[1:])}
		return []*graph.Node{graph.ConvertDType(base.Logits(pass, base.Hidden(pass, site.Tokens{IDs: in[0]})), dtypes.Float32)}
	})
	require.NoError(t, err)
	t.Cleanup(r.exec.Finalize)
	return r
}

// run returns the logits of a batch.
func (r *runner) run(view site.View, ids [][]int32) (out []float32, err error) {
	r.view = view
	arguments, err := view.Arguments()
	if err != nil {
		return nil, err
	}
	in := []any{tensors.FromValue(ids)}
	for _, a := range arguments {
		in = append(in, a)
	}
	results, err := r.exec.Exec(in...)
	if err != nil {
		return nil, err
	}
	return tensors.CopyFlatData[float32](results[0])
}

// logitsOf runs a view in a program of its own.
func logitsOf(t testing.TB, base *models.Model, view site.View, ids [][]int32) []float32 {
	t.Helper()
	out, err := newRunner(t, base).run(view, ids)
	require.NoError(t, err)
	return out
}

var fourRows = [][]int32{{3, 14, 15, 9, 26, 5}, {35, 8, 9, 7, 9, 3}, {31, 41, 59, 26, 53, 58}, {27, 18, 28, 18, 28, 45}}

func attach(t testing.TB, base site.Base, config peft.Config, options ...peft.Options) *peft.PeftModel {
	t.Helper()
	pm, err := peft.GetPeftModel(base, config, options...)
	require.NoError(t, err)
	return pm
}

func selected(t testing.TB, pm *peft.PeftModel, names ...string) *peft.PeftModel {
	t.Helper()
	view, err := pm.With(names...)
	require.NoError(t, err)
	return view
}

// Deleting an inactive, an active, the last and an unknown adapter (peft.md 8.49; where
// peft activates another adapter in the place of an active one, a view refuses).
func TestDeleteAdapter(t *testing.T) {
	base := family(t, "llama")
	random := lora.LoraConfig{R: 2, InitLoraWeights: lora.InitRandom}
	pm := attach(t, base, random)
	require.NoError(t, pm.AddAdapter(random, peft.Options{Name: "b", Seed: 2}))
	b := selected(t, pm, "b")
	both := selected(t, pm, "default", "b")
	before, withBoth := logitsOf(t, base, b, fourRows), logitsOf(t, base, both, fourRows)
	counted := pm.TrainableParameters()

	require.ErrorContains(t, pm.DeleteAdapter("default"), `delete adapter "default": it is active in this view`)
	require.ErrorIs(t, pm.DeleteAdapter("c"), peft.ErrUnknownAdapter)
	require.Equal(t, []string{"default", "b"}, pm.Adapters())

	require.NoError(t, pm.DeleteAdapter("b"))
	require.Equal(t, []string{"default"}, pm.Adapters())
	require.Less(t, pm.TrainableParameters().All, counted.All)
	_, err := pm.With("b")
	require.ErrorIs(t, err, peft.ErrUnknownAdapter)
	require.ErrorIs(t, pm.DeleteAdapter("b"), peft.ErrUnknownAdapter)

	// Views that hold it are what they were, even if the name now means another adapter.
	require.NoError(t, pm.AddAdapter(lora.LoraConfig{R: 5, InitLoraWeights: lora.InitRandom}, peft.Options{Name: "b", Seed: 3}))
	require.Equal(t, before, logitsOf(t, base, b, fourRows))
	require.Equal(t, withBoth, logitsOf(t, base, both, fourRows))
	config, err := b.Config("b")
	require.NoError(t, err)
	require.Equal(t, 2, config.(lora.LoraConfig).R)
	require.NotEqual(t, before, logitsOf(t, base, selected(t, pm, "b"), fourRows))
	dir := filepath.Join(t.TempDir(), "out")
	require.NoError(t, b.SavePretrained(dir))
	again, err := peft.LoadAdapter(base, filepath.Join(dir, "b"))
	require.NoError(t, err)
	require.Equal(t, before, logitsOf(t, base, again, fourRows))

	none := selected(t, pm)
	require.NoError(t, none.DeleteAdapter("b"))
	require.NoError(t, none.DeleteAdapter("default"))
	require.Empty(t, none.Adapters())
	require.NoError(t, none.AddAdapter(random)) // the name is free
}

func TestRenameAdapter(t *testing.T) {
	base := family(t, "llama")
	random := lora.LoraConfig{R: 2, InitLoraWeights: lora.InitRandom}
	pm := attach(t, base, random)
	require.NoError(t, pm.AddAdapter(random, peft.Options{Name: "b", Seed: 2}))
	before := logitsOf(t, base, pm, fourRows)
	require.ErrorContains(t, pm.RenameAdapter("default", "b"), `adapter "b" already exists`)
	require.ErrorContains(t, pm.RenameAdapter("default", "a/b"), "not usable as a folder name")
	require.ErrorContains(t, pm.RenameAdapter("default", peft.BaseModel), "stands for the base")
	require.ErrorIs(t, pm.RenameAdapter("c", "d"), peft.ErrUnknownAdapter)
	require.Equal(t, []string{"default", "b"}, pm.Adapters())
	require.NoError(t, pm.RenameAdapter("default", "first"))
	require.Equal(t, []string{"first", "b"}, pm.Adapters())
	require.Equal(t, before, logitsOf(t, base, selected(t, pm, "first"), fourRows))
	require.Equal(t, before, logitsOf(t, base, pm, fourRows))
	_, err := pm.With("default")
	require.ErrorIs(t, err, peft.ErrUnknownAdapter)
}

// A duplicate name, a configuration that fits nothing and a file that does not fit change
// nothing (peft.md 8.47).
func TestFailedAdditionChangesNothing(t *testing.T) {
	base := family(t, "llama")
	pm := attach(t, base, lora.LoraConfig{R: 2, InitLoraWeights: lora.InitRandom})
	before, counted := logitsOf(t, base, pm, fourRows), pm.TrainableParameters()
	dir := filepath.Join(basetest.Fixtures, "lora", "llama-qv")
	require.ErrorContains(t, pm.AddAdapter(lora.LoraConfig{R: 3}), `adapter "default" already exists`)
	require.ErrorContains(t, pm.LoadAdapter(dir), `adapter "default" already exists`)
	require.Error(t, pm.AddAdapter(lora.LoraConfig{R: 3, TargetModules: peft.Modules("nothing")}, peft.Options{Name: "b"}))
	require.Error(t, pm.LoadAdapter(filepath.Join(basetest.Fixtures, "lora", "qwen3-seven"), peft.Options{Name: "b"}))
	require.ErrorIs(t, pm.LoadAdapter(filepath.Join(t.TempDir(), "no"), peft.Options{Name: "b"}), os.ErrNotExist)
	require.Equal(t, []string{"default"}, pm.Adapters())
	require.Equal(t, counted, pm.TrainableParameters())
	require.Equal(t, before, logitsOf(t, base, pm, fourRows))
}

// One checkpoint under two names gives the same outputs, and says what it loaded
// (peft.md 8.40; issue: load report).
func TestSameCheckpointTwice(t *testing.T) {
	base := family(t, "llama")
	dir := filepath.Join(basetest.Fixtures, "lora", "llama-qv")
	pm, err := peft.LoadAdapter(base, dir, peft.Options{Name: "one"})
	require.NoError(t, err)
	require.NoError(t, pm.LoadAdapter(dir, peft.Options{Name: "v_proj"}))
	require.Equal(t, []string{"one"}, pm.Active())
	require.Equal(t, logitsOf(t, base, pm, fourRows), logitsOf(t, base, selected(t, pm, "v_proj"), fourRows))
	report, err := pm.LoadReport("v_proj")
	require.NoError(t, err)
	require.Len(t, report.Loaded, 8)
	require.Empty(t, report.Missing)
	require.Empty(t, report.Unexpected)
	require.Empty(t, report.Mismatched)
	require.NoError(t, pm.AddAdapter(lora.LoraConfig{R: 2}, peft.Options{Name: "new"}))
	report, err = pm.LoadReport("new")
	require.NoError(t, err)
	require.Equal(t, peft.LoadReport{}, report)
	_, err = pm.LoadReport("other")
	require.ErrorIs(t, err, peft.ErrUnknownAdapter)
}

// Adapters of different methods live side by side and are active together; two that
// replace the same parameter or module cannot be (peft.md 8.47, 8.51).
func TestDifferentMethodsTogether(t *testing.T) {
	base := family(t, "llama")
	pm := attach(t, base, lora.LoraConfig{R: 2, InitLoraWeights: lora.InitRandom})
	full := func(name string, targets ...string) {
		t.Helper()
		require.NoError(t, pm.AddAdapter(peft.Full{TargetModules: peft.Modules(targets...)}, peft.Options{Name: name}))
	}
	full("norms", "norm", "input_layernorm")
	full("last", "norm", "lm_head")
	full("head", "lm_head")
	require.NoError(t, pm.AddAdapter(lora.LoraConfig{R: 2, ModulesToSave: peft.Strings{"lm_head"}}, peft.Options{Name: "saved"}))
	selected(t, pm, "default", "norms", "head")
	for names, what := range map[[2]string]string{{"norms", "last"}: "model.norm.weight", {"last", "head"}: "lm_head.weight", {"head", "saved"}: "lm_head.weight"} {
		_, err := pm.With("default", names[0], names[1])
		require.ErrorContains(t, err, `adapters "`+names[0]+`" and "`+names[1]+`" both replace "`+what+`": they cannot be active together`)
	}
	_, err := pm.Training("norms")
	require.ErrorIs(t, err, peft.ErrUnknownAdapter) // not active
}

// An unknown name is an error; which adapters are active is the view's alone, also where
// their targets differ (peft.md 8.48).
func TestActiveAdapters(t *testing.T) {
	base := family(t, "llama")
	pm := attach(t, base, lora.LoraConfig{R: 2, InitLoraWeights: lora.InitRandom, TargetModules: peft.Modules("q_proj")})
	require.NoError(t, pm.AddAdapter(lora.LoraConfig{R: 2, InitLoraWeights: lora.InitRandom, TargetModules: peft.Modules("down_proj")}, peft.Options{Name: "b"}))
	_, err := pm.With("default", "x")
	require.ErrorIs(t, err, peft.ErrUnknownAdapter)
	require.Equal(t, []string{"default"}, pm.Active())
	both, b := selected(t, pm, "default", "b"), selected(t, pm, "b")
	require.Equal(t, []string{"default", "b"}, both.Active())
	require.Equal(t, []string{"b"}, b.Active())
	require.Equal(t, []string{"default"}, pm.Active())
	// A later addition changes no view (peft.md 8.45).
	before := logitsOf(t, base, pm, fourRows)
	require.NoError(t, pm.AddAdapter(lora.LoraConfig{R: 2, InitLoraWeights: lora.InitRandom}, peft.Options{Name: "c"}))
	require.Equal(t, before, logitsOf(t, base, pm, fourRows))
	require.Equal(t, []string{"default"}, pm.Trained())
}

// Without adapters a view is the base, bit for bit, and with them again what it was,
// however often and in whatever order (peft.md 8.50, 8.61).
func TestDisabledIsTheBase(t *testing.T) {
	base, pm := zoo(t, "qwen2")
	bare := newRunner(t, base)
	run := func(r *runner, view site.View) []float32 {
		t.Helper()
		out, err := r.run(view, fourRows)
		require.NoError(t, err)
		return out
	}
	plain := run(bare, base)
	for _, name := range []string{"a", "embedding", "saved", "biases"} {
		adapted := newRunner(t, base)
		with := run(adapted, selected(t, pm, name))
		require.NotEqual(t, plain, with, name)
		none := selected(t, selected(t, pm, name))
		require.Empty(t, none.Structure())
		require.Equal(t, plain, run(bare, none), name)
		require.Equal(t, plain, run(bare, selected(t, none)), name)
		require.Equal(t, with, run(adapted, selected(t, none, name)), name)
	}
	require.Equal(t, 1, bare.builds)
}

// The base's parameters keep the names and the values of its checkpoint, whatever adapters
// there are (peft.md 8.59). There is no setter: the base never changes.
func TestBaseParametersKeepNamesAndValues(t *testing.T) {
	base, pm := zoo(t, "llama")
	folder, err := safetensors.OpenIndexed(filepath.Join(basetest.Fixtures, "families", "llama"))
	require.NoError(t, err)
	defer folder.Close()
	var names []string
	for _, p := range pm.Base().Parameters() {
		names = append(names, p.Name)
		want := make([]float32, p.Size())
		data, err := folder.Bytes(p.Name)
		require.NoError(t, err)
		require.NoError(t, safetensors.DecodeFloat32s(want, data, safetensors.F32))
		got, err := peft.BaseValues(base, p)
		require.NoError(t, err)
		require.Equal(t, want, got, p.Name)
	}
	require.ElementsMatch(t, folder.Names(), names)
}

// What was loaded prints as a line, and what does not fit with one wanted and one found name.
func TestLoadReportPrints(t *testing.T) {
	base := family(t, "llama")
	pm, err := peft.LoadAdapter(base, filepath.Join(basetest.Fixtures, "lora", "llama-qv"))
	require.NoError(t, err)
	report, err := pm.LoadReport(peft.DefaultAdapter)
	require.NoError(t, err)
	require.Equal(t, "8 tensors loaded", report.String())
	require.Equal(t, "no tensor loaded", peft.LoadReport{}.String())
	require.Equal(t, `no tensor of the file fits the base: want names like "a", the file has names like "b"`,
		peft.LoadReport{Missing: []string{"a"}, Unexpected: []string{"b"}}.String())
	require.Equal(t, `1 tensors missing, first "a"; 2 tensors unexpected, first "b"; 1 tensors do not fit, first "d": want shape [1], got F32 [2]`,
		peft.LoadReport{Loaded: []string{"x"}, Missing: []string{"a"}, Unexpected: []string{"b", "c"}, Mismatched: []peft.Mismatch{{Name: "d", Want: []int{1}, Got: []int{2}, DType: "F32"}}}.String())
}
