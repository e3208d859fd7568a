package jinja

// args are the evaluated arguments of a call.
type args struct {
	what  string // is called, for errors
	pos   []any
	names []string // of kw, in order
	kw    map[string]any
}

// get returns the argument at position i or of that name, missing if neither is given.
func (a *args) get(i int, id string, missing any) any {
	if v, ok := a.kw[id]; ok {
		if i < len(a.pos) {
			fail("template: %s: argument %q is given twice", a.what, id)
		}
		return v
	}
	if i < len(a.pos) {
		return a.pos[i]
	}
	return missing
}

// need is get for an argument that must be there.
func (a *args) need(i int, id string) any {
	type none struct{}
	v := a.get(i, id, none{})
	if v == (none{}) {
		fail("template: %s: argument %q is missing", a.what, id)
	}
	return v
}

// str and integer are get for an argument of that type.
func (a *args) str(i int, id string, missing string) string {
	v := a.get(i, id, missing)
	s, ok := v.(string)
	if !ok {
		fail("template: %s: argument %q is a %s, wanted a str", a.what, id, typeName(v))
	}
	return s
}

func (a *args) integer(i int, id string, missing int64) int64 {
	v := a.get(i, id, missing)
	n, _, isFloat, ok := number(v)
	if !ok || isFloat {
		fail("template: %s: argument %q is a %s, wanted an int", a.what, id, typeName(v))
	}
	return n
}

// max checks that there are at most n positional arguments and no others than
// the named ones.
func (a *args) max(n int, names ...string) {
	if len(a.pos) > n {
		fail("template: %s takes at most %d arguments, got %d", a.what, n, len(a.pos))
	}
	for _, id := range a.names {
		known := false
		for _, name := range names {
			known = known || id == name
		}
		if !known {
			fail("template: %s has no argument %q", a.what, id)
		}
	}
}

// builtin is a function of the language itself.
type builtin struct {
	name string
	call func(s *state, a *args) any
}

// set changes a variable of a namespace. transformers forbids names that begin
// with an underscore.
func (ns *namespace) set(id string, v any) {
	if len(id) > 0 && id[0] == '_' {
		fail("template: a namespace cannot have the attribute %q", id)
	}
	ns.vars.set(id, v)
}

func builtins() map[string]any {
	return map[string]any{
		"range": &builtin{"range", rangeOf},
		"namespace": &builtin{"namespace", func(s *state, a *args) any {
			ns := &namespace{NewDict()}
			d := dictOf(s, a).(*Dict)
			for _, key := range d.keys {
				v, _ := d.get(key)
				ns.set(text(key), v)
			}
			return ns
		}},
		"dict": &builtin{"dict", dictOf},
	}
}

// dictOf is dict(): of another dictionary or of pairs, and of keyword arguments.
func dictOf(s *state, a *args) any {
	out := NewDict()
	if len(a.pos) > 1 {
		fail("template: %s takes at most 1 argument, got %d", a.what, len(a.pos))
	}
	for _, v := range a.pos {
		if d, ok := v.(*Dict); ok {
			for _, key := range d.keys {
				value, _ := d.get(key)
				out.set(key, value)
			}
			continue
		}
		for _, pair := range s.iterate(v) {
			items := s.iterate(pair)
			if len(items) != 2 {
				fail("template: %s wants pairs", a.what)
			}
			out.set(items[0], items[1])
		}
	}
	for _, id := range a.names {
		out.set(id, a.kw[id])
	}
	return out
}

func rangeOf(s *state, a *args) any {
	a.max(3)
	start, stop, step := int64(0), a.integer(0, "stop", 0), a.integer(2, "step", 1)
	switch len(a.pos) {
	case 0:
		fail("template: range wants an argument")
	case 2, 3:
		start, stop = stop, a.integer(1, "stop", 0)
	}
	if step == 0 {
		fail("template: the step of range is zero")
	}
	l := &List{}
	for i := start; step > 0 && i < stop || step < 0 && i > stop; i += step {
		if len(l.Items) >= maxRange {
			fail("%w: a range of more than %d numbers", ErrTooExpensive, maxRange)
		}
		l.Items = append(l.Items, i)
	}
	s.spend(len(l.Items))
	return l
}
