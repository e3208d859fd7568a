package peft

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/gopeft/gopeft/internal/suggest"
	"github.com/gopeft/gopeft/site"
)

// TokenIndices say which tokens' embeddings are trained: peft's trainable_token_indices.
// In JSON they are null, a list, or an object of lists.
type TokenIndices struct {
	// Input are rows of the base's input embedding, see [InputEmbedding].
	Input []int
	// Modules gives rows of embeddings by name: a path or the end of one. It is used if
	// Input is empty.
	Modules map[string][]int
}

// IsZero reports whether there are none.
func (t TokenIndices) IsZero() bool { return len(t.Input) == 0 && len(t.Modules) == 0 }

// MarshalJSON writes null, a list or an object.
func (t TokenIndices) MarshalJSON() ([]byte, error) {
	switch {
	case len(t.Input) > 0:
		return json.Marshal(t.Input)
	case len(t.Modules) > 0:
		return json.Marshal(t.Modules)
	}
	return []byte("null"), nil
}

// UnmarshalJSON reads null, a list of integers or an object of such lists.
func (t *TokenIndices) UnmarshalJSON(data []byte) error {
	var read TokenIndices
	if json.Unmarshal(data, &read.Input) != nil && json.Unmarshal(data, &read.Modules) != nil {
		return fmt.Errorf("want a list of token indices, an object of such lists or null, got %s", data)
	}
	*t = read
	return nil
}

// Check reports indices that make no sense on any base.
func (t TokenIndices) Check() error {
	if len(t.Input) > 0 && len(t.Modules) > 0 {
		return errors.New("token indices of the input embedding and of named modules: want one of both")
	}
	errs := []error{checkRows(t.Input)}
	for _, name := range slices.Sorted(maps.Keys(t.Modules)) {
		rows := t.Modules[name]
		err := checkRows(rows)
		if len(rows) == 0 {
			err = errors.New("no token indices")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%q: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func checkRows(rows []int) error {
	sorted := slices.Sorted(slices.Values(rows))
	for i, row := range sorted {
		if row < 0 {
			return fmt.Errorf("token index %d is negative", row)
		}
		if i > 0 && sorted[i-1] == row {
			return fmt.Errorf("token index %d is named twice", row)
		}
	}
	return nil
}

// InputEmbedding returns the base's embedding of token ids: its first embedding.
func InputEmbedding(base site.Base) (site.Module, error) {
	for _, m := range base.Modules() {
		if m.Kind == site.Embedding {
			return m, nil
		}
	}
	return site.Module{}, errors.New("the base has no embedding")
}

// Rows finds the modules that the indices name.
//
// A head that shares its weight with a named embedding follows it. If it is named too, with
// the same indices, it is left out; with others, both have rows of their own, unless ensureTying
// (peft's ensure_weight_tying) forbids that.
func (t TokenIndices) Rows(base site.Base, ensureTying bool) ([]TokenRows, error) {
	if err := t.Check(); err != nil {
		return nil, err
	}
	if len(t.Input) > 0 {
		m, err := InputEmbedding(base)
		return []TokenRows{{Module: m, Rows: t.Input}}, err
	}
	modules := base.Modules()
	var all []TokenRows
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(t.Modules)) {
		found := false
		for _, m := range modules {
			if m.Path != name && !strings.HasSuffix(m.Path, "."+name) {
				continue
			}
			found = true
			if i := slices.IndexFunc(all, func(r TokenRows) bool { return r.Module.Path == m.Path }); i >= 0 {
				errs = append(errs, fmt.Errorf("%q is named twice", m.Path))
				continue
			}
			all = append(all, TokenRows{Module: m, Rows: t.Modules[name]})
		}
		if !found {
			errs = append(errs, unknownModule(name, modules))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return tie(all, ensureTying)
}

func unknownModule(name string, modules []site.Module) error {
	paths := make([]string, len(modules))
	for i, m := range modules {
		paths[i] = m.Path
	}
	return fmt.Errorf("module %q is not in the base%s", name, suggest.DidYouMean(name, suffixes(paths, name)))
}

// tie settles what becomes of modules that share a weight.
func tie(all []TokenRows, ensure bool) ([]TokenRows, error) {
	var out []TokenRows
	for i, r := range all {
		follows := false
		for j, other := range all {
			if i == j || r.Module.Weight() != other.Module.Weight() {
				continue
			}
			switch {
			case slices.Equal(r.Rows, other.Rows):
				follows = follows || r.Module.TiedTo != ""
			case ensure:
				return nil, fmt.Errorf("tied layers must have the same token indices: %q has %v, %q has %v (ensure_weight_tying)", r.Module.Path, r.Rows, other.Module.Path, other.Rows)
			default:
				r.Alone = true
			}
		}
		if !follows {
			out = append(out, r)
		}
	}
	return out, nil
}
