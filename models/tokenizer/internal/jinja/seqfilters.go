package jinja

import (
	"slices"
	"strings"
)

// Filters on sequences: sum, min, max, sort, dictsort, unique, map, select.

func sum(s *state, v any, a *args) any {
	a.max(2, "attribute", "start")
	items := s.iterate(v)
	if path := a.get(0, "attribute", nil); path != nil {
		items = s.pick(items, path)
	}
	total := a.get(1, "start", int64(0))
	for _, item := range items {
		s.spend(1)
		total = s.arithmetic("+", total, item)
	}
	return total
}

// key is what items are compared by: their attribute, without case unless asked for.
func (s *state) key(item, path any, caseSensitive bool) any {
	if path != nil {
		item = s.path(item, path)
	}
	if t, ok := item.(string); ok && !caseSensitive {
		return lower(t)
	}
	return item
}

// extreme is min and max.
func extreme(s *state, v any, a *args) any {
	a.max(2, "case_sensitive", "attribute")
	exact, path := truth(a.get(0, "case_sensitive", false)), a.get(1, "attribute", nil)
	items := s.iterate(v)
	if len(items) == 0 {
		return undefined{"the " + a.what + " of an empty sequence"}
	}
	best, bestKey := items[0], s.key(items[0], path, exact)
	for _, item := range items[1:] {
		key := s.key(item, path, exact)
		if a.what == "min" && s.less(key, bestKey, "<", 0) || a.what == "max" && s.less(bestKey, key, ">", 0) {
			best, bestKey = item, key
		}
	}
	return best
}

// order sorts items by their keys, stably.
func (s *state) order(items []any, reverse bool, key func(any) any) []any {
	type pair struct{ item, key any }
	pairs := make([]pair, 0, len(items))
	for _, item := range items {
		pairs = append(pairs, pair{item, key(item)})
	}
	slices.SortStableFunc(pairs, func(x, y pair) int {
		s.spend(1)
		if reverse {
			x, y = y, x
		}
		if s.less(x.key, y.key, "<", 0) {
			return -1
		}
		return int(asInt(s.less(y.key, x.key, "<", 0)))
	})
	out := make([]any, 0, len(items))
	for _, p := range pairs {
		out = append(out, p.item)
	}
	return out
}

func sortFilter(s *state, v any, a *args) any {
	a.max(3, "reverse", "case_sensitive", "attribute")
	exact, path := truth(a.get(1, "case_sensitive", false)), a.get(2, "attribute", nil)
	if t, ok := path.(string); ok && strings.Contains(t, ",") {
		fail("template: sort by several attributes is not supported")
	}
	return &List{Items: s.order(s.iterate(v), truth(a.get(0, "reverse", false)), func(item any) any {
		return s.key(item, path, exact)
	})}
}

func dictSort(s *state, v any, a *args) any {
	a.max(3, "case_sensitive", "by", "reverse")
	d, ok := v.(*Dict)
	if !ok {
		fail("template: dictsort wants a dictionary, not a %s", typeName(v))
	}
	exact, by := truth(a.get(0, "case_sensitive", false)), a.str(1, "by", "key")
	if by != "key" && by != "value" {
		fail("template: dictsort: by is %q, wanted key or value", by)
	}
	return &List{Items: s.order(s.column(d, 2).Items, truth(a.get(2, "reverse", false)), func(pair any) any {
		return s.key(pair.(*List).Items[asInt(by == "value")], nil, exact)
	})}
}

func unique(s *state, v any, a *args) any {
	a.max(2, "case_sensitive", "attribute")
	exact, path := truth(a.get(0, "case_sensitive", false)), a.get(1, "attribute", nil)
	seen, out := NewDict(), &List{view: generator}
	for _, item := range s.iterate(v) {
		key := s.key(item, path, exact)
		if _, ok := seen.get(key); !ok {
			seen.set(key, nil)
			out.Items = append(out.Items, item)
		}
	}
	return out
}

// mapFilter is map(attribute=...) or map("filter", arguments...).
func mapFilter(s *state, v any, a *args) any {
	out := &List{view: generator}
	if !truth(v) { // as in Jinja: None is no error here
		return out
	}
	items := s.iterate(v)
	if path, ok := a.kw["attribute"]; ok {
		a.max(0, "attribute", "default")
		missing, hasMissing := a.kw["default"]
		for _, picked := range s.pick(items, path) {
			if hasMissing && isUndefined(picked) {
				picked = missing
			}
			out.Items = append(out.Items, picked)
		}
		return out
	}
	id := text(a.need(0, "filter"))
	f, ok := filters[id]
	if !ok {
		fail("template: the filter %q is not supported", id)
	}
	rest := &args{what: id, pos: a.pos[1:], names: a.names, kw: a.kw}
	for _, item := range items {
		s.spend(1)
		out.Items = append(out.Items, f(s, item, rest))
	}
	return out
}

// selecting makes select, reject, selectattr and rejectattr.
func selecting(want, byAttribute bool) filterFunc {
	return func(s *state, v any, a *args) any {
		pos := a.pos
		var path any
		if byAttribute {
			path = a.need(0, "attribute")
			pos = pos[1:]
		}
		out := &List{view: generator}
		if !truth(v) {
			return out
		}
		for _, item := range s.iterate(v) {
			s.spend(1)
			x := item
			if byAttribute {
				x = s.path(item, path)
			}
			ok := truth(x)
			if len(pos) > 0 {
				ok = s.runTest(text(pos[0]), x, &args{what: text(pos[0]), pos: pos[1:], names: a.names, kw: a.kw})
			}
			if ok == want {
				out.Items = append(out.Items, item)
			}
		}
		return out
	}
}
