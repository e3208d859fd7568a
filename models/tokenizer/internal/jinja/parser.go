package jinja

import "slices"

// parser follows jinja2.parser. parseexpr.go has the expressions.
type parser struct {
	tokens []token
	pos    int
	depth  int
	loops  int         // open loops in the current macro
	macros []*macroDef // open macros
}

func (p *parser) peek() token { return p.tokens[p.pos] }

func (p *parser) next() token {
	t := p.tokens[p.pos]
	if t.kind != tokenEOF {
		p.pos++
	}
	return t
}

func (p *parser) fail(format string, args ...any) {
	fail("template: line %d: "+format, append([]any{p.peek().line}, args...)...)
}

// is says whether the next token is this name or operator.
func (p *parser) is(kind tokenKind, text string) bool {
	t := p.peek()
	return t.kind == kind && t.text == text
}

// skip reads the token if it is next.
func (p *parser) skip(kind tokenKind, text string) bool {
	if p.is(kind, text) {
		p.pos++
		return true
	}
	return false
}

func (p *parser) expect(kind tokenKind, text string) {
	if !p.skip(kind, text) {
		p.fail("unexpected %q, wanted %q", p.peek().text, text)
	}
}

func (p *parser) expectKind(kind tokenKind, what string) token {
	if p.peek().kind != kind {
		p.fail("unexpected %q, wanted %s", p.peek().text, what)
	}
	return p.next()
}

// enter bounds the nesting; the caller defers what it returns.
func (p *parser) enter() func() {
	p.depth++
	if p.depth > maxDepth {
		p.fail("nested more than %d deep", maxDepth)
	}
	return func() { p.depth-- }
}

func (p *parser) document() []stmt {
	body, end := p.body()
	if end != "" {
		p.fail("unexpected {%% %s %%}", end)
	}
	return body
}

// body reads statements up to a block that starts with one of the names, which
// it leaves to read, or, without names, up to the end.
func (p *parser) body(ends ...string) (body []stmt, end string) {
	defer p.enter()()
	for {
		switch t := p.next(); t.kind {
		case tokenEOF:
			if len(ends) > 0 {
				p.fail("the template ends where {%% %s %%} was wanted", ends[0])
			}
			return body, ""
		case tokenData:
			body = append(body, &data{t.text})
		case tokenVarBegin:
			body = append(body, &output{p.tuple(true)})
			p.expectKind(tokenVarEnd, "}}")
		case tokenBlockBegin:
			tag := p.expectKind(tokenName, "the name of a block").text
			if slices.Contains(ends, tag) {
				return body, tag
			}
			body = append(body, p.statement(tag))
			p.endBlock()
		}
	}
}

func (p *parser) endBlock() { p.expectKind(tokenBlockEnd, "%}") }

// block reads the rest of the opening tag, the body and the name of the closing one.
func (p *parser) block(ends ...string) (body []stmt, end string) {
	p.endBlock()
	return p.body(ends...)
}

// statement reads a block whose tag has been read, up to before its last %}.
func (p *parser) statement(tag string) stmt {
	switch tag {
	case "if":
		return p.ifStatement()
	case "for":
		return p.forStatement()
	case "set":
		return p.setStatement()
	case "macro":
		return p.macroStatement()
	case "call":
		return p.callStatement()
	case "filter":
		filters := p.filters(nil, true)
		body, _ := p.block("endfilter")
		return &filterBlock{filters, body}
	case "with":
		return p.withStatement()
	case "generation":
		// transformers renders it through a call block, which is a scope.
		loops := p.loops
		p.loops = 0
		body, _ := p.block("endgeneration")
		p.loops = loops
		return &scope{body: body}
	case "break", "continue":
		if p.loops == 0 {
			p.fail("{%% %s %%} outside of a loop", tag)
		}
		if tag == "break" {
			return &breakStmt{}
		}
		return &continueStmt{}
	}
	p.fail("{%% %s %%} is not supported", tag)
	return nil
}

func (p *parser) ifStatement() stmt {
	s := &ifStmt{}
	for {
		s.tests = append(s.tests, p.tuple(false))
		body, end := p.block("elif", "else", "endif")
		s.bodies = append(s.bodies, body)
		switch end {
		case "else":
			body, _ := p.block("endif")
			s.bodies = append(s.bodies, body)
			return s
		case "endif":
			return s
		}
	}
}

func (p *parser) forStatement() stmt {
	s := &forStmt{target: p.target("in")}
	p.expect(tokenName, "in")
	s.iter = p.tuple(false, "recursive")
	if p.skip(tokenName, "if") {
		s.cond = p.expression()
	}
	if p.is(tokenName, "recursive") {
		p.fail("recursive loops are not supported")
	}
	p.loops++
	var end string
	s.body, end = p.block("endfor", "else")
	p.loops--
	if end == "else" {
		s.orElse, _ = p.block("endfor")
	}
	return s
}

func (p *parser) setStatement() stmt {
	target := p.target()
	if p.skip(tokenOp, "=") {
		return &setStmt{target, p.tuple(true)}
	}
	b := &setBlock{target: target}
	if p.is(tokenOp, "|") {
		b.filters = p.filters(nil, false)
	}
	b.body, _ = p.block("endset")
	return b
}

// target reads what a value is assigned to: a name, an attribute of a namespace,
// or several of them.
func (p *parser) target(ends ...string) expr {
	one := func() expr {
		if p.skip(tokenOp, "(") {
			t := p.target()
			p.expect(tokenOp, ")")
			return t
		}
		id := p.expectKind(tokenName, "a name").text
		if slices.Contains([]string{"true", "false", "none", "True", "False", "None"}, id) {
			p.fail("cannot assign to %s", id)
		}
		if p.skip(tokenOp, ".") {
			return &attribute{&name{id}, p.expectKind(tokenName, "a name").text}
		}
		return &name{id}
	}
	first := one()
	if !p.is(tokenOp, ",") {
		return first
	}
	all := &sequence{items: []expr{first}, tuple: true}
	for p.skip(tokenOp, ",") {
		if p.is(tokenOp, "=") || len(ends) > 0 && p.is(tokenName, ends[0]) {
			break
		}
		all.items = append(all.items, one())
	}
	return all
}

// params reads the parameters of a macro after the opening bracket.
func (p *parser) params(m *macroDef) {
	for !p.skip(tokenOp, ")") {
		if len(m.params) > 0 {
			p.expect(tokenOp, ",")
		}
		m.params = append(m.params, p.expectKind(tokenName, "a parameter").text)
		if p.skip(tokenOp, "=") {
			m.defaults = append(m.defaults, p.expression())
		} else if len(m.defaults) > 0 {
			p.fail("a parameter without a default follows one with a default")
		}
	}
}

func (p *parser) macroBody(m *macroDef, end string) {
	loops := p.loops
	p.loops, p.macros = 0, append(p.macros, m)
	m.body, _ = p.block(end)
	p.loops, p.macros = loops, p.macros[:len(p.macros)-1]
}

func (p *parser) macroStatement() stmt {
	s := &macroStmt{macroDef{name: p.expectKind(tokenName, "the macro's name").text}}
	p.expect(tokenOp, "(")
	p.params(&s.macroDef)
	p.macroBody(&s.macroDef, "endmacro")
	return s
}

func (p *parser) callStatement() stmt {
	s := &callStmt{macro: macroDef{name: "caller"}}
	if p.skip(tokenOp, "(") {
		p.params(&s.macro)
	}
	x, ok := p.expression().(*call)
	if !ok {
		p.fail("{%% call %%} wants a call")
	}
	s.call = x
	p.macroBody(&s.macro, "endcall")
	return s
}

func (p *parser) withStatement() stmt {
	s := &scope{}
	for p.peek().kind != tokenBlockEnd {
		if len(s.targets) > 0 {
			p.expect(tokenOp, ",")
		}
		s.targets = append(s.targets, p.target())
		p.expect(tokenOp, "=")
		s.values = append(s.values, p.expression())
	}
	s.body, _ = p.block("endwith")
	return s
}
