package peft

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/gomlx/gomlx/core/tensors"

	"github.com/gopeft/gopeft/site"
)

// MergeReport says what [PeftModel.Merge] changed.
type MergeReport struct {
	// Tensors are those that changed, in the order written.
	Tensors []MergedTensor
	// MaxChange is the largest |W' - W| of all, before rounding to the stored dtype.
	MaxChange float32
}

// MergedTensor is one tensor that was changed.
type MergedTensor struct {
	Name      string
	MaxChange float32
}

// String is one line.
func (r MergeReport) String() string {
	return fmt.Sprintf("merged %d tensors, largest change %.4g", len(r.Tensors), r.MaxChange)
}

// Merge writes the base with the active adapters merged into its weights to the
// folder dir, as a checkpoint in the base's format that needs no adapter: W' = W +
// the sum of the adapters' deltas, in float32, rounded once to the dtype that W is
// stored in. Tensors are read, changed and written one at a time; the base in memory
// stays as it was. A model that dir holds is replaced as a whole, or untouched on
// error; the models of package models refuse a dir with anything else in it.
//
// It is an error if a result is NaN or infinite, and if an adapter changes one use
// only of a weight that several modules share (a tied head): a merged weight cannot
// express that.
func (pm *PeftModel) Merge(ctx context.Context, dir string) (MergeReport, error) {
	m, err := pm.newMerger()
	if err == nil {
		err = m.exporter.Export(ctx, dir, m.edit)
	}
	if err == nil {
		err = m.missed()
	}
	if err != nil {
		return MergeReport{}, fmt.Errorf("peft: merge into %q: %w", dir, err)
	}
	return m.report, nil
}

// MergeAndUnload is [PeftModel.Merge] under peft's name. There is nothing to unload:
// the base never changed.
func (pm *PeftModel) MergeAndUnload(ctx context.Context, dir string) (MergeReport, error) {
	return pm.Merge(ctx, dir)
}

// merger edits the tensors of a base on their way into a checkpoint.
type merger struct {
	exporter site.Exporter
	active   []*valueReader
	// deltas are the changes to each weight, by its name.
	deltas map[string][]moduleDelta
	report MergeReport
}

type moduleDelta struct {
	module site.Module
	delta  WeightDelta
	value  func(name string) []float32
}

func (pm *PeftModel) newMerger() (*merger, error) {
	if len(pm.active) == 0 {
		return nil, errors.New("no adapter is active")
	}
	exporter, ok := pm.set.base.(site.Exporter)
	if !ok {
		return nil, fmt.Errorf("the base (%T) cannot be written as a checkpoint", pm.set.base)
	}
	m := &merger{exporter: exporter, deltas: map[string][]moduleDelta{}}
	for _, name := range pm.active {
		na, err := pm.set.snapshot(name)
		if err != nil {
			return nil, err
		}
		reader := &valueReader{namedAdapter: na}
		m.active = append(m.active, reader)
		delta, isDelta := na.adapter.(WeightDelta)
		_, isParameter := na.adapter.(ParameterMerger)
		if !isDelta && !isParameter {
			return nil, fmt.Errorf("adapter %q: method %s cannot be merged", name, na.config.PeftType())
		}
		if !isDelta {
			continue
		}
		for _, target := range na.adapter.Targets() {
			if err := checkUnshared(pm.set.base, target); err != nil {
				return nil, fmt.Errorf("adapter %q: %w", name, err)
			}
			m.deltas[target.Weight()] = append(m.deltas[target.Weight()], moduleDelta{target, delta, reader.value})
		}
	}
	return m, nil
}

// checkUnshared refuses a target whose weight another module uses too.
func checkUnshared(base site.Base, target site.Module) error {
	for _, other := range base.Modules() {
		if other.Path != target.Path && other.Weight() == target.Weight() {
			return fmt.Errorf("target %q shares its weight with %q, which the adapter must not change: untie them before merging", target.Path, other.Path)
		}
	}
	return nil
}

// edit changes one tensor, see [site.Exporter].
func (m *merger) edit(p site.Parameter, values []float32) (bool, error) {
	deltas := m.deltas[p.Name]
	var before []float32
	for _, reader := range m.active {
		r, ok := reader.adapter.(ParameterAdapter)
		if !ok || !r.Replaces(p.Name) {
			continue
		}
		merge, ok := reader.adapter.(ParameterMerger)
		if !ok {
			return false, fmt.Errorf("parameter %q: method %s cannot be merged", p.Name, reader.config.PeftType())
		}
		if before == nil {
			before = slices.Clone(values)
		}
		merge.MergeParameter(p.Name, values, reader.value)
	}
	if before == nil && len(deltas) == 0 {
		return false, nil
	}
	change := maxDifference(before, values)
	sum, err := sumDeltas(deltas, len(values))
	if err != nil {
		return false, fmt.Errorf("parameter %q: %w", p.Name, err)
	}
	for i, v := range sum {
		values[i] += v
		change = max(change, v, -v)
	}
	delete(m.deltas, p.Name)
	for _, reader := range m.active {
		if reader.err != nil {
			return false, reader.err
		}
	}
	if err := checkFinite(p.Name, values); err != nil {
		return false, fmt.Errorf("merged %w", err)
	}
	m.report.Tensors = append(m.report.Tensors, MergedTensor{p.Name, change})
	m.report.MaxChange = max(m.report.MaxChange, change)
	return true, nil
}

// sumDeltas returns nil for no deltas.
func sumDeltas(deltas []moduleDelta, size int) ([]float32, error) {
	var sum []float32
	for _, d := range deltas {
		delta := d.delta.WeightDelta(d.module, d.value)
		if len(delta) != size {
			return nil, fmt.Errorf("it has %d values, but the adapter changes %d", size, len(delta))
		}
		if sum == nil {
			sum = delta
			continue
		}
		for i, v := range delta {
			sum[i] += v
		}
	}
	return sum, nil
}

// maxDifference is 0 when there was no change.
func maxDifference(before, after []float32) float32 {
	var change float32
	for i, b := range before {
		change = max(change, after[i]-b, b-after[i])
	}
	return change
}

// missed reports a weight that the exporter never offered.
func (m *merger) missed() error {
	for name := range m.deltas {
		return fmt.Errorf("the base wrote no parameter %q, which the adapter changes", name)
	}
	return nil
}

// valueReader reads an adapter's tensors one at a time.
type valueReader struct {
	namedAdapter
	flat []float32
	err  error
}

// value returns a tensor by name. An error is kept in r.err.
func (r *valueReader) value(name string) []float32 {
	l := r.layout
	i, ok := l.index[name]
	if !ok {
		r.err = fmt.Errorf("the adapter has no tensor %q", name)
		return nil
	}
	size := l.params[i].Size()
	o := l.offset[i]
	if o < 0 {
		values := make([]float32, size)
		r.read(r.arguments[-o], values)
		return values
	}
	if r.flat == nil {
		r.flat = make([]float32, l.FlatSize())
		r.read(r.arguments[0], r.flat)
	}
	return r.flat[o : o+size]
}

func (r *valueReader) read(t *tensors.Tensor, values []float32) {
	if err := copyFloats(t, values); err != nil && r.err == nil {
		r.err = fmt.Errorf("reading adapter values: %w", err)
	}
}
