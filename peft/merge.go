package peft

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/gomlx/gomlx/core/tensors"

	"github.com/gopeft/gopeft/site"
)

// MergeReport says what [PeftModel.Merge] changed.
type MergeReport struct {
	// Tensors are those that changed, in the order written.
	Tensors []MergedTensor
	// MaxChange is the largest |W' - W| of all, before rounding to the stored dtype.
	MaxChange float32
	// Untied names the weights that modules shared in the base and now have of their own.
	Untied []string
}

// MergedTensor is one tensor that was changed.
type MergedTensor struct {
	Name      string
	MaxChange float32
}

// String is one line.
func (r MergeReport) String() string {
	line := fmt.Sprintf("merged %d tensors, largest change %.4g", len(r.Tensors), r.MaxChange)
	if len(r.Untied) > 0 {
		line += ", untied " + strings.Join(r.Untied, ", ")
	}
	return line
}

// Merge writes the base with the active adapters merged into its weights to the
// folder dir, as a checkpoint in the base's format that needs no adapter: W' = W +
// what the adapters change, in float32, rounded once to the dtype that W is
// stored in. Tensors are read, changed and written one at a time; the base in memory
// stays as it was, so that there is nothing to undo, and merging again gives the same. A
// model that dir holds is replaced as a whole, or untouched on error; the models of package
// models refuse a dir with anything else in it, and the folder that they were loaded from.
//
// Where an adapter changes the embedding or the head only of a model whose head shares the
// embedding's weight, the result has two weights, and its configuration says that the head
// is not tied ([MergeReport].Untied). Bases that cannot do that ([site.Untier]) refuse.
//
// It is an error if a result is NaN, infinite, or too large for its dtype.
func (pm *PeftModel) Merge(ctx context.Context, dir string) (MergeReport, error) {
	m, err := pm.newMerger()
	if err == nil {
		err = m.export(ctx, dir, m.edit)
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
	export func(ctx context.Context, dir string, edit func(site.Parameter, []float32) (bool, error)) error
	// changes are those of each parameter, by its name, in the order they are made.
	changes map[string][]change
	readers []*valueReader
	report  MergeReport
}

type change struct {
	Merger
	// name is the adapter's for the parameter.
	name  string
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
	m := &merger{export: exporter.Export, changes: map[string][]change{}}
	for _, name := range pm.active {
		na, err := pm.get(name)
		if err != nil {
			return nil, err
		}
		m.readers = append(m.readers, &valueReader{namedAdapter: *na})
	}
	// As in a graph, parameters are replaced first, wherever they are used, then modules; then
	// inputs are changed, all else is added, and outputs are changed.
	shared := sharedWeights(pm.set.base)
	var untying error
	for phase := range phases {
		for i := range m.readers {
			if phase == inputPhase {
				i = len(m.readers) - 1 - i // what the input meets last meets the weight first
			}
			reader := m.readers[i]
			for _, part := range reader.parts {
				merge, ok := part.(Merger)
				if !ok {
					return nil, fmt.Errorf("adapter %q: method %s cannot be merged", pm.active[i], reader.config.PeftType())
				}
				for _, name := range merge.Merges() {
					if phaseOf(part, name) != phase {
						continue
					}
					if with, ok := shared[name]; ok && phase > 0 && untying == nil {
						untying = fmt.Errorf("adapter %q: %q shares its values with %q, which the adapter must not change: the base (%T) cannot untie them", pm.active[i], name, with, exporter)
					}
					m.changes[name] = append(m.changes[name], change{merge, name, reader.value})
				}
			}
		}
		if phase == 0 {
			m.replaceShared(pm.set.base)
		}
	}
	if untying == nil {
		m.forgetShared(pm.set.base)
		return m, nil
	}
	return m, m.untie(pm.set.base, untying)
}

// untie has the base written with weights of their own for modules that share them. why is
// the error for a base that cannot do that.
func (m *merger) untie(base site.Base, why error) error {
	untier, ok := base.(site.Untier)
	if !ok {
		return why
	}
	m.export = untier.ExportUntied
	for _, module := range base.Modules() {
		if module.TiedTo != "" {
			m.report.Untied = append(m.report.Untied, OwnWeight(module))
		}
	}
	return nil
}

// phases is the number of phaseOf's values, inputPhase that of changed inputs.
const (
	phases     = 5
	inputPhase = 2
)

// phaseOf says when a part changes a parameter: with all uses of it (0), with its
// module (1), by changing the module's input (2), by adding to what there is (3), or by
// changing the output (4).
func phaseOf(part Adapter, name string) int {
	if p, ok := part.(ParameterAdapter); ok && p.Replaces(name) {
		return 0
	}
	if p, ok := part.(PartialModuleAdapter); ok && p.Everywhere(name) {
		return 0
	}
	if m, ok := part.(ModuleAdapter); ok && m.ReplacesModule(owner(name)) {
		return 1
	}
	if _, ok := part.(OutputAdapter); ok {
		return 4
	}
	if _, ok := part.(InputAdapter); ok {
		return inputPhase
	}
	return 3
}

// replaceShared has what replaces a shared weight also replace it where it would be a
// module's own.
func (m *merger) replaceShared(base site.Base) {
	for _, module := range base.Modules() {
		if changes := m.changes[module.Weight()]; module.TiedTo != "" && len(changes) > 0 {
			m.changes[OwnWeight(module)] = slices.Clone(changes)
		}
	}
}

// forgetShared drops what would change weights that modules do not have of their own.
func (m *merger) forgetShared(base site.Base) {
	for _, module := range base.Modules() {
		if module.TiedTo != "" {
			delete(m.changes, OwnWeight(module))
		}
	}
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
		if err := c.Merge(c.name, values, frozen, c.value); err != nil {
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
