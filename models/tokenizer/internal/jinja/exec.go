package jinja

import "strings"

// flow says how a list of statements ended.
type flow int

const (
	flowNext flow = iota
	flowBreak
	flowContinue
)

func (s *state) exec(body []stmt, f *frame) flow {
	defer s.enter()()
	for _, st := range body {
		if end := s.execOne(st, f); end != flowNext {
			return end
		}
	}
	return flowNext
}

// write adds to the output.
func (s *state) write(t string) {
	if s.written += len(t); s.written > maxText {
		fail("%w: more than %d bytes of output", ErrTooExpensive, maxText)
	}
	s.out.WriteString(t)
}

// capture runs a body and returns its output instead of writing it.
func (s *state) capture(body []stmt, f *frame) string {
	outer, written := s.out, s.written
	s.out = &strings.Builder{}
	s.exec(body, f)
	t := s.out.String()
	s.spendText(len(t))
	s.out, s.written = outer, written
	return t
}

func (s *state) execOne(st stmt, f *frame) flow {
	s.spend(1)
	switch st := st.(type) {
	case *data:
		s.write(st.text)
	case *output:
		t := text(s.eval(st.x, f))
		s.spendText(len(t))
		s.write(t)
	case *ifStmt:
		for i, test := range st.tests {
			if truth(s.eval(test, f)) {
				return s.exec(st.bodies[i], f)
			}
		}
		if len(st.bodies) > len(st.tests) {
			return s.exec(st.bodies[len(st.tests)], f)
		}
	case *forStmt:
		s.forLoop(st, f)
	case *setStmt:
		s.assign(st.target, s.eval(st.value, f), f)
	case *setBlock:
		s.assign(st.target, s.filtered(st.filters, s.capture(st.body, f.child()), f), f)
	case *macroStmt:
		f.vars[st.name] = &macro{&st.macroDef, f}
	case *callStmt:
		s.callBlock(st, f)
	case *filterBlock:
		s.write(text(s.filtered(st.filters, s.capture(st.body, f.child()), f)))
	case *scope:
		inner := f.child()
		for i, target := range st.targets {
			s.assign(target, s.eval(st.values[i], f), inner)
		}
		return s.exec(st.body, inner)
	case *breakStmt:
		return flowBreak
	case *continueStmt:
		return flowContinue
	default:
		fail("template: internal error: statement %T", st)
	}
	return flowNext
}

// filtered runs a chain of filters without an operand on t.
func (s *state) filtered(x expr, t any, f *frame) any {
	chain, ok := x.(*filter)
	if !ok {
		return t
	}
	return s.applyFilter(chain, s.filtered(chain.x, t, f), f)
}

// assign sets a name, an attribute of a namespace or several of them.
func (s *state) assign(target expr, v any, f *frame) {
	switch t := target.(type) {
	case *name:
		f.vars[t.id] = v
	case *attribute:
		ns, ok := s.eval(t.x, f).(*namespace)
		if !ok {
			fail("template: cannot assign an attribute: %s is not a namespace", t.x.(*name).id)
		}
		ns.set(t.name, v)
	case *sequence:
		items := s.iterate(v)
		if len(items) != len(t.items) {
			fail("template: cannot unpack %d values into %d names", len(items), len(t.items))
		}
		for i, item := range items {
			s.assign(t.items[i], item, f)
		}
	}
}

// loop is the variable of that name inside a loop.
type loop struct {
	items []any
	i     int
	depth int
	seen  any // last argument of changed
	asked bool
}

func (l *loop) attribute(id string) any {
	n := len(l.items)
	switch id {
	case "index":
		return int64(l.i + 1)
	case "index0":
		return int64(l.i)
	case "revindex":
		return int64(n - l.i)
	case "revindex0":
		return int64(n - l.i - 1)
	case "first":
		return l.i == 0
	case "last":
		return l.i == n-1
	case "length":
		return int64(n)
	case "depth":
		return int64(l.depth + 1)
	case "depth0":
		return int64(l.depth)
	case "previtem":
		if l.i > 0 {
			return l.items[l.i-1]
		}
	case "nextitem":
		if l.i+1 < n {
			return l.items[l.i+1]
		}
	}
	return undefined{"loop." + id}
}

func (s *state) forLoop(st *forStmt, f *frame) {
	items := s.iterate(s.eval(st.iter, f))
	if st.cond != nil {
		var kept []any
		for _, item := range items {
			inner := f.child()
			s.assign(st.target, item, inner)
			if truth(s.eval(st.cond, inner)) {
				kept = append(kept, item)
			}
		}
		items = kept
	}
	if len(items) == 0 {
		s.exec(st.orElse, f.child())
		return
	}
	l := &loop{items: items}
	for i, item := range items {
		l.i = i
		inner := f.child()
		inner.vars["loop"] = l
		s.assign(st.target, item, inner)
		if s.exec(st.body, inner) == flowBreak {
			return
		}
	}
}

// macro is a macro with the scope it was defined in.
type macro struct {
	def   *macroDef
	frame *frame
}

// callMacro runs a macro; caller is what {% call %} passes, or nil.
func (s *state) callMacro(m *macro, a *args, caller any) any {
	defer s.enter()()
	def, f := m.def, m.frame.child()
	if len(a.pos) > len(def.params) && !def.varargs {
		fail("template: macro %s takes %d arguments, got %d", def.name, len(def.params), len(a.pos))
	}
	for i, param := range def.params {
		v, named := a.kw[param]
		switch {
		case i < len(a.pos):
			if named {
				fail("template: macro %s: argument %q is given twice", def.name, param)
			}
			v = a.pos[i]
		case named:
			delete(a.kw, param)
		case i >= len(def.params)-len(def.defaults):
			v = s.eval(def.defaults[i-len(def.params)+len(def.defaults)], f)
		default:
			v = undefined{"parameter '" + param + "' was not provided, so it"}
		}
		f.vars[param] = v
	}
	if def.varargs {
		f.vars["varargs"] = &List{Items: a.pos[min(len(a.pos), len(def.params)):], tuple: true}
	}
	if def.caller {
		if caller == nil {
			caller = undefined{"'caller'"}
		}
		f.vars["caller"] = caller
	} else if caller != nil {
		fail("template: macro %s was called with {%% call %%} but does not use caller", def.name)
	}
	s.rest(def, a, f)
	return s.capture(def.body, f)
}

// rest passes the remaining keyword arguments on as kwargs.
func (s *state) rest(def *macroDef, a *args, f *frame) {
	kwargs := NewDict()
	for _, id := range a.names {
		if v, ok := a.kw[id]; ok {
			kwargs.set(id, v)
		}
	}
	switch {
	case def.kwargs:
		f.vars["kwargs"] = kwargs
	case len(kwargs.keys) > 0:
		fail("template: macro %s has no parameter %s", def.name, shortText(kwargs.keys[0]))
	}
}

func (s *state) callBlock(st *callStmt, f *frame) {
	v := s.eval(st.call.x, f)
	m, ok := v.(*macro)
	if !ok {
		fail("template: {%% call %%} wants a macro, not a %s", typeName(v))
	}
	caller := &macro{&st.macro, f}
	s.write(text(s.callMacro(m, s.args(m.def.name, st.call.args, f), caller)))
}
