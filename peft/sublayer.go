package peft

import (
	"fmt"

	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/site"
)

// SublayerAdapter changes what sublayers of blocks add to their input: its targets of kind
// [site.Attention] and [site.FeedForward]. Several on one sublayer are stacked: each gets
// the output that the one before left, and the last one joins it with the input.
type SublayerAdapter interface {
	Adapter
	// SublayerOutput returns what stands for the sublayer's output y.
	SublayerOutput(u *SublayerUse, y *graph.Node) *graph.Node
	// SublayerJoin returns the sum of that and the sublayer's input: u.Sublayer.Join(y) if
	// the method does not change it.
	SublayerJoin(u *SublayerUse, y *graph.Node) *graph.Node
}

// SublayerUse is one use of a targeted sublayer by one adapter while a graph is built.
type SublayerUse struct {
	Pass     *site.Pass
	Sublayer *site.Sublayer
	values   *Values
}

// Values are all tensors of the adapter.
func (u *SublayerUse) Values() *Values { return u.values }

// Value returns the adapter's tensor "<sublayer path>.<suffix>" as float32.
func (u *SublayerUse) Value(suffix string) *graph.Node {
	return u.values.Get(u.Sublayer.Path + "." + suffix)
}

// Cast returns [SublayerUse.Value] in the pass's compute dtype.
func (u *SublayerUse) Cast(suffix string) *graph.Node {
	return graph.ConvertDType(u.Value(suffix), u.Pass.DType)
}

// Sublayer implements [site.Hook].
func (b *Binding) Sublayer(p *site.Pass, s *site.Sublayer) *graph.Node {
	y, join := s.Output, s.Join
	for _, part := range b.bySite[s.Path] {
		a, ok := part.part.(SublayerAdapter)
		if !ok {
			continue
		}
		use := &SublayerUse{Pass: p, Sublayer: s, values: part.values}
		y = a.SublayerOutput(use, y)
		join = func(y *graph.Node) *graph.Node { return a.SublayerJoin(use, y) }
	}
	return join(y)
}

// PrefixAdapter puts virtual tokens before those of every row, see [site.Prefix].
type PrefixAdapter interface {
	Adapter
	// VirtualTokens is how many of them are keys and values, and how many embeddings. Of the
	// active adapters one may have either.
	VirtualTokens() (slots, rows int)
	// Prefix returns them.
	Prefix(v *Values, p *site.Pass, in site.Tokens) site.Prefix
}

// TaskAdapter is a part of an adapter that does something else for each task of rows, see
// [site.Tokens].Tasks.
type TaskAdapter interface {
	Adapter
	// NumTasks is the number of tasks that it knows, at least 1.
	NumTasks() int
}

// Prefix implements [site.Hook].
func (b *Binding) Prefix(p *site.Pass, in site.Tokens) site.Prefix {
	var all site.Prefix
	for _, a := range b.active {
		for _, part := range a.parts {
			if part, ok := part.(PrefixAdapter); ok {
				one := part.Prefix(a.values, p, in)
				if one.Keys != nil {
					all.Keys, all.Values = one.Keys, one.Values
				}
				if one.Embeddings != nil {
					all.Embeddings = one.Embeddings
				}
			}
		}
	}
	return all
}

// virtualTokens is what [PrefixAdapter] says of the adapter's parts.
func (na *namedAdapter) virtualTokens() (slots, rows int) {
	for _, part := range na.parts {
		if p, ok := part.(PrefixAdapter); ok {
			s, r := p.VirtualTokens()
			slots, rows = slots+s, rows+r
		}
	}
	return slots, rows
}

var _ site.Prefixed = (*PeftModel)(nil)

// VirtualTokens is the number of positions that the active adapters put before the tokens
// of every row; 0 but with prefix and prompt methods.
func (pm *PeftModel) VirtualTokens() int {
	n := 0
	for _, name := range pm.active {
		if na, err := pm.get(name); err == nil { // a view's adapters stay
			slots, rows := na.virtualTokens()
			n += slots + rows
		}
	}
	return n
}

var _ site.Multitask = (*PeftModel)(nil)

// NumTasks is the number of tasks that all active adapters with tasks know; 0 if there is no
// such adapter.
func (pm *PeftModel) NumTasks() int {
	tasks := 0
	for _, name := range pm.active {
		na, err := pm.get(name)
		if err != nil { // a view's adapters stay
			continue
		}
		for _, part := range na.parts {
			if t, ok := part.(TaskAdapter); ok && (tasks == 0 || t.NumTasks() < tasks) {
				tasks = t.NumTasks()
			}
		}
	}
	return tasks
}

// virtualConflict reports two active adapters that want the same place before the tokens,
// and virtual tokens that leave no position for others.
func (pm *PeftModel) virtualConflict() error {
	var prefix, prompt string
	total := 0
	for i, na := range pm.held {
		slots, rows := na.virtualTokens()
		total += slots + rows
		for _, place := range []struct {
			taken *string
			n     int
			what  string
		}{{&prefix, slots, "prefixes of keys and values"}, {&prompt, rows, "prompts of embeddings"}} {
			if place.n == 0 {
				continue
			}
			if *place.taken != "" {
				return fmt.Errorf("peft: adapters %q and %q are both %s: only one can be active", *place.taken, pm.active[i], place.what)
			}
			*place.taken = pm.active[i]
		}
	}
	if t, ok := pm.set.base.(site.Transformer); ok && total > 0 && t.MaxPositions() > 0 && total >= t.MaxPositions() {
		return fmt.Errorf("peft: the active adapters have %d virtual tokens, but %s has %d positions", total, t.ModelType(), t.MaxPositions())
	}
	return nil
}
