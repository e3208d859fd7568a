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
// what the adapters change, in float32, rounded once to the dtype that W is
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
	// changes are those of each parameter, by its name, in the order they are made.
	changes map[string][]change
	readers []*valueReader
	report  MergeReport
}

type change struct {
	Merger
	value func(name string) []float32
}

func (pm *PeftModel) newMerger() (*merger, error) {
	if len(pm.active) == 0 {
		return nil, errors.New("no adapter is active")
	}
	if pm.set.ranges != nil {
		return nil, fmt.Errorf("layer_replication %v: layers that share their weights cannot be merged with adapters of their own", pm.set.ranges)
	}
	exporter, ok := pm.set.base.(site.Exporter)
	if !ok {
		return nil, fmt.Errorf("the base (%T) cannot be written as a checkpoint", pm.set.base)
	}
	m := &merger{exporter: exporter, changes: map[string][]change{}}
	for _, name := range pm.active {
		na, err := pm.get(name)
		if err != nil {
			return nil, err
		}
		m.readers = append(m.readers, &valueReader{namedAdapter: *na})
	}
	shared := sharedWeights(pm.set.base)
	// As in a graph, parameters are replaced before anything is added to them.
	for _, replacing := range []bool{true, false} {
		for i, reader := range m.readers {
			for _, part := range reader.parts {
				merge, ok := part.(Merger)
				if !ok {
					return nil, fmt.Errorf("adapter %q: method %s cannot be merged", pm.active[i], reader.config.PeftType())
				}
				p, ok := part.(ParameterAdapter)
				for _, name := range merge.Merges() {
					replaces := ok && p.Replaces(name)
					if replaces != replacing {
						continue
					}
					if with, ok := shared[name]; ok && !replaces {
						return nil, fmt.Errorf("adapter %q: %q shares its values with %q, which the adapter must not change: untie them before merging", pm.active[i], name, with)
					}
					m.changes[name] = append(m.changes[name], change{merge, reader.value})
				}
			}
		}
	}
	return m, nil
}

// sharedWeights maps a module's own weight to a module that uses the same values.
func sharedWeights(base site.Base) map[string]string {
	shared := map[string]string{}
	for _, m := range base.Modules() {
		if m.TiedTo != "" {
			shared[OwnWeight(m)] = m.TiedTo
			shared[m.Weight()] = m.Path
		}
	}
	return shared
}

// edit changes one tensor, see [site.Exporter].
func (m *merger) edit(p site.Parameter, values []float32) (bool, error) {
	changes := m.changes[p.Name]
	if len(changes) == 0 {
		return false, nil
	}
	delete(m.changes, p.Name)
	frozen := slices.Clone(values)
	for _, c := range changes {
		if err := c.Merge(p.Name, values, frozen, c.value); err != nil {
			return false, fmt.Errorf("parameter %q: %w", p.Name, err)
		}
	}
	for _, reader := range m.readers {
		if reader.err != nil {
			return false, reader.err
		}
	}
	if err := checkFinite(p.Name, values); err != nil {
		return false, fmt.Errorf("merged %w", err)
	}
	largest := maxDifference(frozen, values)
	m.report.Tensors = append(m.report.Tensors, MergedTensor{p.Name, largest})
	m.report.MaxChange = max(m.report.MaxChange, largest)
	return true, nil
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
	for name := range m.changes {
		return fmt.Errorf("the base wrote no parameter %q, which the adapter changes", name)
	}
	return nil
}

// valueReader reads an adapter's tensors one at a time.
type valueReader struct {
	namedAdapter
	flat, flatConstants []float32

	err error
}

// value returns a tensor by name. An error is kept in r.err.
func (r *valueReader) value(name string) []float32 {
	l, arguments, flat := r.layout, r.arguments, &r.flat
	i, ok := l.index[name]
	if !ok && r.constantLayout != nil {
		l, arguments, flat = r.constantLayout, r.constants, &r.flatConstants
		i, ok = l.index[name]
	}
	if !ok {
		r.err = fmt.Errorf("the adapter has no tensor %q", name)
		return nil
	}
	size := l.params[i].Size()
	o := l.offset[i]
	if o < 0 {
		values := make([]float32, size)
		r.read(arguments[-o], values)
		return values
	}
	if *flat == nil {
		*flat = make([]float32, l.FlatSize())
		r.read(arguments[0], *flat)
	}
	return (*flat)[o : o+size]
}

func (r *valueReader) read(t *tensors.Tensor, values []float32) {
	if err := copyFloats(t, values); err != nil && r.err == nil {
		r.err = fmt.Errorf("reading adapter values: %w", err)
	}
}
