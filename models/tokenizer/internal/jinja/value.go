package jinja

import (
	"fmt"
	"math"
	"unicode/utf8"
)

// Values are nil (None), bool, int64, float64, string, *List, *Dict, *namespace,
// *loop, *function, markup and undefined.

// List is a list, a tuple or something else with items: see view.
type List struct {
	Items []any
	tuple bool
	// view is dict_keys, dict_values or dict_items for what the methods of a
	// dictionary return, generator for what map and select return. A generator
	// is true, and empty once it has been looked through.
	view string
}

const generator = "generator"

// Dict keeps the order in which keys were added.
type Dict struct {
	keys   []any
	values map[any]any // by dictKey
}

// markup is the result of escape and safe: text that is joined to escaped text.
type markup string

// undefined is what a missing name, key or attribute gives.
type undefined struct{ what string }

// namespace is the one kind of value that a template can change.
type namespace struct{ vars *Dict }

// function is anything that can be called; name is for errors.
type function struct {
	name string
	call Function
}

// NewDict returns an empty dictionary.
func NewDict() *Dict { return &Dict{values: map[any]any{}} }

// Set adds or replaces a key.
func (d *Dict) Set(key string, value any) { d.set(key, value) }

func (d *Dict) set(key, value any) {
	k := dictKey(key)
	if _, there := d.values[k]; !there {
		d.keys = append(d.keys, key)
	}
	d.values[k] = value
}

func (d *Dict) get(key any) (any, bool) {
	v, ok := d.values[dictKey(key)]
	return v, ok
}

// dictKey makes equal keys identical: in Python 1, 1.0 and True are one key.
func dictKey(key any) any {
	switch k := key.(type) {
	case bool:
		return asInt(k)
	case float64:
		if k == math.Trunc(k) && math.Abs(k) < 1<<53 {
			return int64(k)
		}
		return k
	case nil, int64, string:
		return k
	case undefined:
		fail("template: %s is undefined", k.what)
	}
	fail("template: a %s cannot be a key of a dictionary", typeName(key))
	return nil
}

func asInt(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// typeName is Python's name of the type.
func typeName(v any) string {
	switch v := v.(type) {
	case nil:
		return "NoneType"
	case bool:
		return "bool"
	case int64:
		return "int"
	case float64:
		return "float"
	case string:
		return "str"
	case *List:
		switch {
		case v.view != "":
			return v.view
		case v.tuple:
			return "tuple"
		}
		return "list"
	case *Dict:
		return "dict"
	case undefined:
		return "Undefined"
	case markup:
		return "Markup"
	case *namespace:
		return "Namespace"
	case *function:
		return "function"
	}
	return fmt.Sprintf("%T", v)
}

// truth is Python's bool().
func truth(v any) bool {
	switch v := v.(type) {
	case nil, undefined:
		return false
	case bool:
		return v
	case int64:
		return v != 0
	case float64:
		return v != 0
	case string:
		return v != ""
	case markup:
		return v != ""
	case *List:
		return len(v.Items) > 0 || v.view == generator
	case *Dict:
		return len(v.keys) > 0
	}
	return true
}

// number converts bool, int and float; isFloat says which of the two to use.
func number(v any) (i int64, f float64, isFloat, ok bool) {
	switch v := v.(type) {
	case bool:
		return asInt(v), float64(asInt(v)), false, true
	case int64:
		return v, float64(v), false, true
	case float64:
		return 0, v, true, true
	}
	return 0, 0, false, false
}

// plain makes a text of markup.
func plain(v any) any {
	if m, ok := v.(markup); ok {
		return string(m)
	}
	return v
}

// equal is Python's ==.
func (s *state) equal(a, b any, depth int) bool {
	if depth > maxDepth {
		fail("%w: values are nested more than %d deep", ErrTooExpensive, maxDepth)
	}
	s.spendOn(a)
	a, b = plain(a), plain(b)
	ai, af, aFloat, aNumber := number(a)
	bi, bf, bFloat, bNumber := number(b)
	if aNumber && bNumber {
		if aFloat || bFloat {
			return af == bf
		}
		return ai == bi
	}
	switch x := a.(type) {
	case undefined:
		_, ok := b.(undefined)
		return ok
	case *List:
		y, ok := b.(*List)
		if !ok || x.tuple != y.tuple || len(x.Items) != len(y.Items) {
			return false
		}
		for i := range x.Items {
			if !s.equal(x.Items[i], y.Items[i], depth+1) {
				return false
			}
		}
		return true
	case *Dict:
		y, ok := b.(*Dict)
		if !ok || len(x.keys) != len(y.keys) {
			return false
		}
		for _, key := range x.keys {
			other, there := y.get(key)
			mine, _ := x.get(key)
			if !there || !s.equal(mine, other, depth+1) {
				return false
			}
		}
		return true
	}
	return a == b
}

// less is Python's <, with the operator that was written for the error.
func (s *state) less(a, b any, op string, depth int) bool {
	if depth > maxDepth {
		fail("%w: values are nested more than %d deep", ErrTooExpensive, maxDepth)
	}
	s.spendOn(a)
	a, b = plain(a), plain(b)
	ai, af, aFloat, aNumber := number(a)
	bi, bf, bFloat, bNumber := number(b)
	if aNumber && bNumber {
		if aFloat || bFloat {
			return af < bf
		}
		return ai < bi
	}
	if x, ok := a.(string); ok {
		if y, ok := b.(string); ok {
			return x < y // UTF-8 keeps the order of characters
		}
	}
	x, okX := a.(*List)
	y, okY := b.(*List)
	if !okX || !okY || x.tuple != y.tuple {
		fail("template: %q is not supported between %s and %s", op, typeName(a), typeName(b))
	}
	for i := range min(len(x.Items), len(y.Items)) {
		if !s.equal(x.Items[i], y.Items[i], depth+1) {
			return s.less(x.Items[i], y.Items[i], op, depth+1)
		}
	}
	return len(x.Items) < len(y.Items)
}

// length is Python's len().
func length(v any) int {
	switch v := v.(type) {
	case string:
		return utf8.RuneCountInString(v)
	case markup:
		return utf8.RuneCountInString(string(v))
	case *List:
		if v.view == generator {
			fail("template: a generator has no length")
		}
		return len(v.Items)
	case *Dict:
		return len(v.keys)
	case undefined:
		return 0
	}
	fail("template: a %s has no length", typeName(v))
	return 0
}

// iterate returns what a loop over v sees: characters, items, keys.
func (s *state) iterate(v any) []any {
	switch v := v.(type) {
	case *List:
		s.spend(len(v.Items) / 16)
		items := v.Items
		if v.view == generator {
			v.Items = nil
		}
		return items
	case *Dict:
		s.spend(len(v.keys) / 16)
		return v.keys
	case string:
		s.spend(len(v))
		items := make([]any, 0, len(v))
		for _, r := range v {
			items = append(items, string(r))
		}
		return items
	case undefined:
		return nil
	}
	fail("template: a %s is not iterable", typeName(v))
	return nil
}
