package peft

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/internal/rewrite"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/quant"
	"github.com/gopeft/gopeft/site"
)

// wrapQuantised is a variable of a wrapped model that is held in few bits.
type wrapQuantised struct {
	quant.Layout
	module site.Module
	// shape is the variable's own, whose dtype its values are decoded to.
	shape shapes.Shape
	// arrays are the paths of the variables that hold it.
	arrays map[string]string
}

// quantise moves the model to a store of its own, whose weights of linear modules are held
// in few bits. besides says what reads a weight besides linear modules.
//
// Programs have the variables of w.store as inputs. The model function, which asks for
// weights in their own shapes, gets another store, w.plain, that has no values of them: while
// it runs, the nodes of the variables with the same paths in w.store are the decoded weights.
func (w *WrappedModel) quantise(besides map[string]string) error {
	chosen, err := w.quantisable(besides)
	if err != nil {
		return err
	}
	held, plain := model.NewStore(), model.NewStore()
	for path, value := range w.store.IterParams() {
		held.SetParam(path, value)
		plain.SetParam(path, value)
	}
	w.quantised = map[string]wrapQuantised{}
	taken := map[string]bool{}
	for v := range w.store.IterVariables() {
		taken[v.Path()] = true
	}
	for v := range w.store.IterVariables() {
		m, ok := chosen[site.ParameterName(v.Path())]
		if !ok {
			if err := copyVariable(v, held, plain); err != nil {
				return err
			}
			continue
		}
		plain.VariableWithShape(v.Path(), v.Shape(), nil)
		if err := w.hold(v, m, held, taken); err != nil {
			return fmt.Errorf("variable %q: %w", v.Path(), err)
		}
	}
	w.store, w.plain = held, plain
	// Whatever cannot be rewritten is an error now, and not when the model is used.
	return w.sketch(func(g *graph.Graph, inputs []*graph.Node) error {
		w.Call(&site.Pass{Graph: g, DType: w.dtype}, inputs)
		return nil
	})
}

// quantisable chooses the weights, by their names.
func (w *WrappedModel) quantisable(besides map[string]string) (map[string]site.Module, error) {
	scheme, chosen, sharing := w.options.Quantization, map[string]site.Module{}, map[string][]string{}
	var linear []string
	for _, m := range w.modules.List() {
		sharing[m.Weight()] = append(sharing[m.Weight()], m.Path)
		if m.Kind == site.Linear {
			linear = append(linear, m.Path)
		}
	}
	if len(linear) == 0 {
		return nil, errors.New("quantization: the model has no linear layer")
	}
	if err := quant.Check(scheme, linear); err != nil {
		return nil, err
	}
	for _, m := range w.modules.List() {
		if m.Kind != site.Linear || m.Head || scheme.Skips(m.Path) {
			continue
		}
		refuse := func(why string) error {
			return fmt.Errorf("quantization: the weight of %q %s; name the module in Skip, or as the Head", m.Path, why)
		}
		if op := w.modules.Enclosed(m.Path); op != "" {
			return nil, refuse("is used inside a closure of " + op)
		}
		if with := sharing[m.Weight()]; len(with) > 1 {
			return nil, refuse("is shared by the modules " + strings.Join(with, ", "))
		}
		if by := besides[m.Weight()]; by != "" {
			return nil, refuse("is also read by " + by)
		}
		chosen[m.Weight()] = m
	}
	if len(chosen) == 0 {
		return nil, errors.New("quantization: every linear layer is the head, or skipped")
	}
	return chosen, nil
}

// copyVariable puts a copy of v into both stores.
func copyVariable(v *model.Variable, held, plain *model.Store) error {
	t, err := v.Value()
	if err != nil {
		return err
	}
	if t, err = t.Clone(); err != nil {
		return err
	}
	for _, s := range []*model.Store{held, plain} {
		c, err := s.CreateVariable(v.Path(), t)
		if err != nil {
			return err
		}
		c.Trainable = v.Trainable
	}
	return nil
}

// hold quantises the values of v into variables of store.
func (w *WrappedModel) hold(v *model.Variable, m site.Module, store *model.Store, taken map[string]bool) error {
	dtype, ok := fileDTypes[v.DType()]
	if !ok {
		return fmt.Errorf("its dtype %s cannot be quantised", v.DType())
	}
	values := make([]float32, v.Shape().Size())
	t, err := v.Value()
	if err == nil {
		err = copyFloats(t, values)
	}
	if err != nil {
		return err
	}
	if m.Transposed {
		values = transposedValues(values, m.In, m.Out)
	}
	if dtype == safetensors.F64 {
		dtype = safetensors.F32
	}
	stored, err := w.options.Quantization.Store(values, m.WeightShape(), dtype)
	if err != nil {
		return err
	}
	q := wrapQuantised{Layout: stored.Layout(), module: m, shape: v.Shape(), arrays: map[string]string{}}
	for _, a := range stored.Arrays() {
		path := v.Path()
		if a.Name != "" {
			if path += model.ScopeSeparator + a.Name; taken[path] {
				return fmt.Errorf("the store has a variable %q, where its statistics would be", path)
			}
		}
		t, err := tensors.FromRaw(w.backend, 0, shapes.Make(a.DType, a.Shape...), a.Data)
		if err != nil {
			return err
		}
		if _, err := store.CreateVariable(path, t); err != nil {
			return err
		}
		q.arrays[a.Name] = path
	}
	w.quantised[m.Weight()] = q
	return nil
}

// transposedValues returns the transpose of values [rows, columns].
func transposedValues(values []float32, rows, columns int) []float32 {
	out := make([]float32, len(values))
	for i := range rows {
		for j := range columns {
			out[j*rows+i] = values[i*columns+j]
		}
	}
	return out
}

// decode makes the nodes of quantised variables decoded weights until restore is called.
func (w *WrappedModel) decode(g *graph.Graph) (names map[*graph.Node]string, decoders map[*graph.Node]rewrite.Decode, restore func()) {
	names, decoders = map[*graph.Node]string{}, map[*graph.Node]rewrite.Decode{}
	var undo []func()
	for _, name := range sortedNames(w.quantised) {
		q := w.quantised[name]
		arrays := map[string]*graph.Node{}
		for array, path := range q.arrays {
			arrays[array] = w.store.GetVariable(path).NodeValue(g)
		}
		build := func(tie *graph.Node) *graph.Node {
			weight := q.Weight(func(array string) *graph.Node { return arrays[array] }, q.shape.DType, tie)
			if q.module.Transposed {
				weight = graph.Transpose(weight, 0, 1)
			}
			return graph.StopGradient(graph.Reshape(weight, q.shape.Dimensions...))
		}
		n, codes := build(nil), w.store.GetVariable(q.arrays[""])
		names[n], decoders[n] = name, build
		codes.SetNodeValue(n)
		undo = append(undo, func() { codes.SetNodeValue(arrays[""]) })
	}
	return names, decoders, func() {
		for _, f := range undo {
			f()
		}
	}
}

func sortedNames(m map[string]wrapQuantised) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// ReadParameter implements [site.Reader].
func (w *WrappedModel) ReadParameter(name string, values []float32) (dtypes.DType, bool, error) {
	q, ok := w.quantised[name]
	if !ok {
		return dtypes.InvalidDType, false, nil
	}
	read, err := w.decodedValues(q)
	if err == nil && len(read) != len(values) {
		err = fmt.Errorf("parameter %q has %d values, wanted %d", name, len(read), len(values))
	}
	copy(values, read)
	return q.shape.DType, true, err
}

// decodedValues fetches a weight and decodes it, in its variable's order.
func (w *WrappedModel) decodedValues(q wrapQuantised) (values []float32, err error) {
	err = graphx.Try(func() error {
		stored, err := q.Restore(func(array string) (data []byte, err error) {
			t, err := w.store.GetVariable(q.arrays[array]).Value()
			if err != nil {
				return nil, err
			}
			err = withBytes(t, func(b []byte) error {
				data = slices.Clone(b)
				return nil
			})
			return data, err
		})
		if err != nil {
			return err
		}
		values, err = stored.Dequantise()
		return err
	})
	if err == nil && q.module.Transposed {
		values = transposedValues(values, q.module.Out, q.module.In)
	}
	return values, err
}
