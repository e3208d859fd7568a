package peft

import (
	"crypto/sha256"
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"

	"github.com/gopeft/gopeft/site"
)

// RowAdapter is a [DeltaAdapter] that can compute a batch in which every row has values
// of its own, for [PeftModel.Mixed]. Other adapters take part in a mixed batch too, but
// each is then computed for all rows.
type RowAdapter interface {
	DeltaAdapter
	// RowWise reports whether RowDelta is all that this adapter does.
	RowWise() bool
	// RowDelta is Delta with values of the shape [rows, ...]. It is not used in training.
	RowDelta(u *Use) *graph.Node
}

// MixedView is a model seen through one adapter, or none, for each row of a batch. It is
// a [site.RowView]; see [PeftModel.Mixed].
type MixedView struct {
	set    *adapterSet
	rows   []string
	groups []mixedGroup
}

var _ site.RowView = (*MixedView)(nil)

// mixedGroup are adapters of one structure.
type mixedGroup struct {
	structure string
	// rowWise is true for adapters whose values are stacked.
	rowWise bool
	names   []string
	held    []*namedAdapter
	// slots is how many adapters the programs have room for.
	slots int
	// index is each row's position in held, or -1.
	index []int32
}

// Mixed returns a view for batches whose i-th row runs with the adapter rows[i], or with
// the base alone for [BaseModel]. Which adapters are active in pm does not matter. Each row
// gives what it gives in a batch of its own.
//
// The view is for evaluation: models.Generate, or a program of one's own whose batches have
// len(rows) rows. Adapters of one structure (equal configurations, or equal targets and
// [Options].MaxRank) share a program, whichever they are and whatever row has which: LoRA's
// values are stacked, and each row computes with its own. An adapter of another kind is
// computed for all rows, of which it gets its own; also those that replace parameters of
// modules, as modules_to_save does. A parameter that the base uses outside of any module
// cannot differ by row, and is an error when the program is built.
func (pm *PeftModel) Mixed(rows ...string) (*MixedView, error) {
	if len(rows) == 0 {
		return nil, fmt.Errorf("peft: mixed batch: no row is given")
	}
	m := &MixedView{set: pm.set, rows: slices.Clone(rows)}
	pm.set.mu.RLock()
	defer pm.set.mu.RUnlock()
	var unknown []string
	for _, name := range rows {
		_, err := pm.live(name)
		if name != BaseModel && err != nil && !slices.Contains(unknown, fmt.Sprintf("%q", name)) {
			unknown = append(unknown, fmt.Sprintf("%q", name))
		}
	}
	if len(unknown) > 0 {
		return nil, fmt.Errorf("peft: mixed batch: %w %s (the model has %s, and %q for the base)",
			ErrUnknownAdapter, strings.Join(unknown, ", "), strings.Join(pm.set.order, ", "), BaseModel)
	}
	groups := map[string]*mixedGroup{}
	for _, name := range rows {
		if name == BaseModel {
			continue
		}
		na, _ := pm.live(name)
		if slots, tokens := na.virtualTokens(); slots+tokens > 0 {
			return nil, fmt.Errorf("peft: mixed batch: adapter %q puts %d virtual tokens before those of a row: rows cannot differ in that", name, slots+tokens)
		}
		g, ok := groups[na.structure]
		if !ok {
			g = &mixedGroup{structure: na.structure, rowWise: na.rowWise()}
			groups[na.structure] = g
		}
		if !slices.Contains(g.held, na) {
			g.held = append(g.held, na)
		}
	}
	for _, g := range groups {
		pm.arrange(g, rows)
		m.groups = append(m.groups, *g)
	}
	slices.SortFunc(m.groups, func(a, b mixedGroup) int { return strings.Compare(a.structure, b.structure) })
	return m, nil
}

// arrange settles the order of a group's adapters and where each row finds its own. Values
// are stacked of all adapters of the structure that the model has, if they are not more
// than the rows: then the stack, and the program, is the same for every assignment. The
// set's lock is held.
func (pm *PeftModel) arrange(g *mixedGroup, rows []string) {
	g.slots = len(g.held)
	place := map[*namedAdapter]int{} // in the model; what is no longer there comes last
	all := slices.Clone(g.held)
	for _, na := range all {
		place[na] = len(pm.set.order)
	}
	for i, name := range pm.set.order {
		na := pm.set.adapters[name]
		place[na] = i
		if na.structure == g.structure && !slices.Contains(all, na) {
			all = append(all, na)
		}
	}
	if g.rowWise {
		g.slots = 1 << bits.Len(uint(min(len(all), len(rows))-1))
		if len(all) <= len(rows) {
			g.held = all
		}
	}
	slices.SortStableFunc(g.held, func(a, b *namedAdapter) int { return place[a] - place[b] })
	g.names = make([]string, len(g.held))
	for i, na := range g.held {
		if place[na] < len(pm.set.order) {
			g.names[i] = pm.set.order[place[na]]
		}
	}
	for _, name := range rows {
		slot := -1
		if name != BaseModel {
			na, _ := pm.live(name)
			if slot = slices.Index(g.held, na); slot >= 0 {
				g.names[slot] = name
			}
		}
		g.index = append(g.index, int32(slot))
	}
}

// rowWise reports whether the adapter's values can be stacked.
func (na *namedAdapter) rowWise() bool {
	if len(na.parts) != 1 {
		return false
	}
	r, ok := na.parts[0].(RowAdapter)
	return ok && r.RowWise()
}

// LanguageModel implements [site.View]; it is nil when the base is no language model.
func (m *MixedView) LanguageModel() site.LanguageModel {
	lm, _ := m.set.base.(site.LanguageModel)
	return lm
}

// Rows implements [site.RowView].
func (m *MixedView) Rows() int { return len(m.rows) }

// Pad implements [site.RowView].
func (m *MixedView) Pad(rows int) site.RowView {
	if rows <= len(m.rows) {
		return m
	}
	padded := &MixedView{set: m.set, rows: slices.Clone(m.rows), groups: slices.Clone(m.groups)}
	for len(padded.rows) < rows {
		padded.rows = append(padded.rows, m.rows[0])
	}
	for i := range padded.groups {
		g := &padded.groups[i]
		g.index = append(slices.Clone(g.index), slices.Repeat(g.index[:1], rows-len(m.rows))...)
	}
	return padded
}

// Structure implements [site.View].
func (m *MixedView) Structure() string {
	if len(m.groups) == 0 {
		return "" // the base
	}
	h := sha256.New()
	fmt.Fprintf(h, "%d rows", len(m.rows))
	for _, g := range m.groups {
		fmt.Fprintf(h, "\x00%d %s", g.slots, g.structure)
	}
	return "mixed " + string(h.Sum(nil))
}

// Arguments implements [site.View]: for each group the rows' positions, int32 [rows], and
// then the values and constants of its adapters, stacked or one after the other.
func (m *MixedView) Arguments() ([]*tensors.Tensor, error) {
	var all []*tensors.Tensor
	for _, g := range m.groups {
		all = append(all, tensors.FromFlatDataAndDimensions(slices.Clone(g.index), len(g.index)))
		var lists [][]*tensors.Tensor
		m.set.mu.RLock()
		for _, na := range g.held {
			lists = append(lists, slices.Concat(na.arguments, na.constants))
		}
		m.set.mu.RUnlock()
		if !g.rowWise {
			all = append(all, slices.Concat(lists...)...)
			continue
		}
		stacked, err := m.set.stacks.get(m.set.base.Backend(), g.structure, g.slots, lists)
		if err != nil {
			return nil, fmt.Errorf("peft: mixed batch of %s: %w", strings.Join(g.names, ", "), err)
		}
		all = append(all, stacked...)
	}
	return all, nil
}
