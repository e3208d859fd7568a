package jinja

import (
	"strings"
	"unicode/utf8"
)

// state is one rendering.
type state struct {
	out     *strings.Builder
	globals map[string]any
	steps   int
	depth   int
	written int
}

// frame is a scope. Names are looked up outwards; assignments stay.
type frame struct {
	vars   map[string]any
	parent *frame
}

func (f *frame) child() *frame { return &frame{vars: map[string]any{}, parent: f} }

// spend counts work.
func (s *state) spend(n int) {
	if s.steps += n; s.steps > maxSteps {
		fail("%w: more than %d steps", ErrTooExpensive, maxSteps)
	}
}

// spendText counts a new text of n bytes, before it is made.
func (s *state) spendText(n int) {
	if n > maxText {
		fail("%w: a text of %d bytes, allowed are %d", ErrTooExpensive, n, maxText)
	}
	s.spend(1 + n/16)
}

// spendOn counts reading a value: a step, and more for a long text.
func (s *state) spendOn(v any) {
	n := 1
	if t, ok := v.(string); ok {
		n += len(t) / 64
	}
	s.spend(n)
}

// enter bounds the depth; the caller defers what it returns.
func (s *state) enter() func() {
	s.spend(1)
	if s.depth++; s.depth > 4*maxDepth {
		fail("%w: calls are nested too deep", ErrTooExpensive)
	}
	return func() { s.depth-- }
}

func (s *state) lookup(id string, f *frame) any {
	for ; f != nil; f = f.parent {
		if v, ok := f.vars[id]; ok {
			return v
		}
	}
	if v, ok := s.globals[id]; ok {
		return v
	}
	switch id {
	case "cycler", "joiner", "lipsum", "self":
		fail("template: %s is not supported", id)
	}
	return undefined{"'" + id + "'"}
}

func (s *state) eval(x expr, f *frame) any {
	defer s.enter()()
	switch x := x.(type) {
	case *literal:
		return x.value
	case *name:
		return s.lookup(x.id, f)
	case *sequence:
		l := &List{Items: make([]any, 0, len(x.items)), tuple: x.tuple}
		for _, item := range x.items {
			l.Items = append(l.Items, s.eval(item, f))
		}
		return l
	case *dictLit:
		d := NewDict()
		for i := range x.keys {
			key := s.eval(x.keys[i], f)
			d.set(key, s.eval(x.values[i], f))
		}
		return d
	case *attribute:
		return s.attribute(s.eval(x.x, f), x.name)
	case *item:
		return s.item(s.eval(x.x, f), s.eval(x.key, f))
	case *slice:
		return s.slice(x, f)
	case *call:
		return s.callExpr(x, f)
	case *filter:
		return s.applyFilter(x, s.eval(x.x, f), f)
	case *test:
		v := s.eval(x.x, f)
		return s.runTest(x.name, v, s.args(x.name, x.args, f)) != x.negate
	case *unary:
		return s.unary(x, f)
	case *binary:
		return s.binary(x, f)
	case *compare:
		a := s.eval(x.first, f)
		for i, op := range x.ops {
			b := s.eval(x.rest[i], f)
			if !s.comparison(op, a, b) {
				return false
			}
			a = b
		}
		return true
	case *cond:
		if truth(s.eval(x.test, f)) {
			return s.eval(x.a, f)
		}
		if x.b == nil {
			return undefined{"the inline if without else"}
		}
		return s.eval(x.b, f)
	}
	fail("template: internal error: expression %T", x)
	return nil
}

func (s *state) unary(x *unary, f *frame) any {
	v := s.eval(x.x, f)
	if x.op == "not" {
		return !truth(v)
	}
	if x.op == "-" {
		return s.arithmetic("-", int64(0), v)
	}
	return s.arithmetic("+", int64(0), v)
}

func (s *state) binary(x *binary, f *frame) any {
	a := s.eval(x.a, f)
	switch x.op {
	case "and":
		if !truth(a) {
			return a
		}
		return s.eval(x.b, f)
	case "or":
		if truth(a) {
			return a
		}
		return s.eval(x.b, f)
	}
	b := s.eval(x.b, f)
	if x.op == "~" {
		return s.concat(text(a), text(b))
	}
	return s.arithmetic(x.op, a, b)
}

// args evaluates the arguments of a call to what.
func (s *state) args(what string, a arguments, f *frame) *args {
	out := &args{what: what, kw: map[string]any{}}
	for _, x := range a.positional {
		out.pos = append(out.pos, s.eval(x, f))
	}
	for i, x := range a.keyword {
		if _, twice := out.kw[a.names[i]]; twice {
			fail("template: %s: argument %q is given twice", what, a.names[i])
		}
		out.names = append(out.names, a.names[i])
		out.kw[a.names[i]] = s.eval(x, f)
	}
	return out
}

func (s *state) callExpr(x *call, f *frame) any {
	if a, ok := x.x.(*attribute); ok {
		v := s.eval(a.x, f)
		if m := method(v, a.name); m != nil {
			what := typeName(v) + "." + a.name
			return m(s, v, s.args(what, x.args, f))
		}
		return s.invoke(s.attribute(v, a.name), x.args, f)
	}
	return s.invoke(s.eval(x.x, f), x.args, f)
}

func (s *state) invoke(v any, a arguments, f *frame) any {
	switch fn := v.(type) {
	case *macro:
		return s.callMacro(fn, s.args(fn.def.name, a, f), nil)
	case *builtin:
		return fn.call(s, s.args(fn.name, a, f))
	case *function:
		in := s.args(fn.name, a, f)
		in.max(len(in.pos))
		v, err := fn.call(in.pos)
		if err != nil {
			fail("template: %s: %w", fn.name, err)
		}
		return v
	case undefined:
		fail("template: %s is undefined", fn.what)
	}
	fail("template: a %s cannot be called", typeName(v))
	return nil
}

// attribute is x.name: an attribute, else the item of that key. As in Python, a
// dictionary's methods hide its keys here.
func (s *state) attribute(v any, id string) any {
	if u, ok := v.(undefined); ok {
		fail("template: %s is undefined, so it has no attribute %q", u.what, id)
	}
	if m := method(v, id); m != nil {
		return &builtin{id, func(s *state, a *args) any { return m(s, v, a) }}
	}
	switch x := v.(type) {
	case *namespace:
		if value, ok := x.vars.get(id); ok {
			return value
		}
	case *loop:
		return x.attribute(id)
	case *Dict:
		if value, ok := x.get(id); ok && !mutates(v, id) {
			return value
		}
	}
	return undefined{"'" + id + "' of a " + typeName(v)}
}

// item is x[key]: the item, else the attribute of that name.
func (s *state) item(v, key any) any {
	missing := undefined{"element " + shortText(key) + " of a " + typeName(v)}
	switch x := v.(type) {
	case undefined:
		fail("template: %s is undefined, so it has no element %s", x.what, shortText(key))
	case *Dict:
		s.spendOn(key)
		if value, ok := x.get(key); ok {
			return value
		}
	case *List:
		if i, _, isFloat, ok := number(key); ok && !isFloat && x.view == "" {
			if i < 0 {
				i += int64(len(x.Items))
			}
			if i >= 0 && i < int64(len(x.Items)) {
				return x.Items[i]
			}
			return missing
		}
	case string:
		if i, _, isFloat, ok := number(key); ok && !isFloat {
			n := int64(utf8.RuneCountInString(x))
			s.spend(len(x) / 16)
			if i < 0 {
				i += n
			}
			if i >= 0 && i < n {
				return string([]rune(x)[i])
			}
			return missing
		}
	}
	if id, ok := key.(string); ok {
		return s.attribute(v, id)
	}
	return missing
}

func shortText(v any) string {
	t := text(v)
	if len(t) > 40 {
		t = t[:40] + "..."
	}
	return t
}

// slice is x[start:stop:step] of a list or a text.
func (s *state) slice(x *slice, f *frame) any {
	v := s.eval(x.x, f)
	var n int
	var runes []rune
	switch v := v.(type) {
	case *List:
		n = len(v.Items)
	case string:
		runes = []rune(v)
		n = len(runes)
	case undefined:
		fail("template: %s is undefined", v.what)
	default:
		fail("template: a %s cannot be sliced", typeName(v))
	}
	s.spend(n)
	bound := func(e expr) (int64, bool) {
		if e == nil {
			return 0, false
		}
		b := s.eval(e, f)
		if b == nil {
			return 0, false
		}
		i, _, isFloat, ok := number(b)
		if !ok || isFloat {
			fail("template: the bounds of a slice must be integers, not %s", typeName(b))
		}
		return i, true
	}
	indices := sliceIndices(n, bound, x)
	if l, ok := v.(*List); ok {
		out := &List{tuple: l.tuple}
		for _, i := range indices {
			out.Items = append(out.Items, l.Items[i])
		}
		return out
	}
	var b strings.Builder
	for _, i := range indices {
		b.WriteRune(runes[i])
	}
	return b.String()
}

// sliceIndices is Python's slice.indices.
func sliceIndices(n int, bound func(expr) (int64, bool), x *slice) []int {
	step, ok := bound(x.step)
	if !ok {
		step = 1
	}
	if step == 0 {
		fail("template: the step of a slice is zero")
	}
	lo, hi := int64(0), int64(n) // where start and stop may be
	if step < 0 {
		lo, hi = -1, int64(n)-1
	}
	clamp := func(e expr, missing int64) int64 {
		i, ok := bound(e)
		if !ok {
			return missing
		}
		if i < 0 {
			i += int64(n)
		}
		return min(max(i, lo), hi)
	}
	first, last := lo, hi
	if step < 0 {
		first, last = hi, lo
	}
	start, stop := clamp(x.start, first), clamp(x.stop, last)
	step = min(max(step, -int64(n)-1), int64(n)+1)
	var out []int
	for i := start; step > 0 && i < stop || step < 0 && i > stop; i += step {
		out = append(out, int(i))
	}
	return out
}
