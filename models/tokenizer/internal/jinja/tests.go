package jinja

import "unicode"

// testFunc is what follows "is".
type testFunc func(s *state, v any, a *args) bool

// tests is filled by init, because the test "test" refers to it.
var tests map[string]testFunc

func init() {
	comparison := func(op string) testFunc {
		return func(s *state, v any, a *args) bool { a.max(1); return s.comparison(op, v, a.need(0, "other")) }
	}
	tests = map[string]testFunc{
		"defined":   is(func(v any) bool { return !isUndefined(v) }),
		"undefined": is(isUndefined),
		"none":      is(func(v any) bool { return v == nil }),
		"boolean":   is(func(v any) bool { _, ok := v.(bool); return ok }),
		"true":      is(func(v any) bool { return v == true }),
		"false":     is(func(v any) bool { return v == false }),
		"integer":   is(func(v any) bool { _, ok := v.(int64); return ok }),
		"float":     is(func(v any) bool { _, ok := v.(float64); return ok }),
		"number":    is(func(v any) bool { _, _, _, ok := number(v); return ok }),
		"string":    is(isText),
		"mapping":   is(func(v any) bool { _, ok := v.(*Dict); return ok }),
		"iterable":  is(isIterable),
		"sequence":  is(isSequence),
		"callable":  is(isCallable),
		"odd":       is(func(v any) bool { return remainder(v, 2) != 0 }),
		"even":      is(func(v any) bool { return remainder(v, 2) == 0 }),
		"divisibleby": func(_ *state, v any, a *args) bool {
			a.max(1)
			return remainder(v, a.integer(0, "num", 0)) == 0
		},
		"lower": is(func(v any) bool { return everyCase(text(v), unicode.IsLower, unicode.IsUpper) }),
		"upper": is(func(v any) bool { return everyCase(text(v), unicode.IsUpper, unicode.IsLower) }),
		"in":    comparison("in"),
		"filter": func(_ *state, v any, a *args) bool {
			a.max(0)
			_, ok := filters[text(v)]
			return ok
		},
		"test": func(_ *state, v any, a *args) bool { a.max(0); _, ok := tests[text(v)]; return ok },
		"sameas": func(_ *state, v any, a *args) bool {
			a.max(1)
			other := a.need(0, "other")
			return typeName(v) == typeName(other) && v == other
		},
	}
	for op, names := range map[string][]string{
		"==": {"eq", "equalto", "=="}, "!=": {"ne", "!="}, "<": {"lt", "lessthan", "<"},
		"<=": {"le", "<="}, ">": {"gt", "greaterthan", ">"}, ">=": {"ge", ">="},
	} {
		for _, id := range names {
			tests[id] = comparison(op)
		}
	}
}

// is makes a test without arguments.
func is(f func(any) bool) testFunc {
	return func(_ *state, v any, a *args) bool { a.max(0); return f(v) }
}

func (s *state) runTest(id string, v any, a *args) bool {
	t, ok := tests[id]
	if !ok {
		fail("template: the test %q is not supported", id)
	}
	s.spendOn(v)
	return t(s, v, a)
}

func isUndefined(v any) bool { _, ok := v.(undefined); return ok }

func isIterable(v any) bool {
	switch v.(type) {
	case string, markup, *List, *Dict, undefined:
		return true
	}
	return false
}

// isSequence is: has a length and items. Jinja counts dictionaries in.
func isSequence(v any) bool {
	if l, ok := v.(*List); ok && l.view != "" {
		return false
	}
	return isIterable(v) && !isUndefined(v)
}

func isCallable(v any) bool {
	switch v.(type) {
	case *macro, *builtin, *function:
		return true
	}
	return false
}

func remainder(v any, n int64) int64 {
	i, _, isFloat, ok := number(v)
	if !ok || isFloat {
		fail("template: a %s has no remainder", typeName(v))
	}
	return intArithmetic("%", i, n).(int64)
}

func everyCase(t string, want, other func(rune) bool) bool {
	any := false
	for _, r := range t {
		if other(r) {
			return false
		}
		any = any || want(r)
	}
	return any
}
