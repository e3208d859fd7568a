package jinja

import (
	"errors"
	"slices"
	"strconv"
	"strings"
)

// expression is a conditional expression, the loosest kind.
func (p *parser) expression() expr {
	defer p.enter()()
	x := p.or()
	for p.skip(tokenName, "if") {
		c := &cond{a: x, test: p.or()}
		if p.skip(tokenName, "else") {
			c.b = p.expression()
		}
		x = c
	}
	return x
}

// tuple is one expression or several separated by commas. Without conditional
// the expressions cannot be conditional ones, as in "for x in y if z". stops are
// names that end it.
func (p *parser) tuple(conditional bool, stops ...string) expr {
	one := p.or
	if conditional {
		one = p.expression
	}
	first := one()
	if !p.is(tokenOp, ",") {
		return first
	}
	t := &sequence{items: []expr{first}, tuple: true}
	for p.skip(tokenOp, ",") {
		next := p.peek()
		if next.kind == tokenVarEnd || next.kind == tokenBlockEnd || p.is(tokenOp, ")") ||
			next.kind == tokenName && slices.Contains(stops, next.text) {
			break
		}
		t.items = append(t.items, one())
	}
	return t
}

func (p *parser) or() expr {
	x := p.and()
	for p.skip(tokenName, "or") {
		x = &binary{"or", x, p.and()}
	}
	return x
}

func (p *parser) and() expr {
	x := p.not()
	for p.skip(tokenName, "and") {
		x = &binary{"and", x, p.not()}
	}
	return x
}

func (p *parser) not() expr {
	defer p.enter()()
	if p.skip(tokenName, "not") {
		return &unary{"not", p.not()}
	}
	return p.comparison()
}

func (p *parser) comparison() expr {
	c := &compare{first: p.sum()}
	for {
		switch {
		case p.peek().kind == tokenOp && slices.Contains([]string{"==", "!=", "<", "<=", ">", ">="}, p.peek().text):
			c.ops = append(c.ops, p.next().text)
		case p.skip(tokenName, "in"):
			c.ops = append(c.ops, "in")
		case p.is(tokenName, "not") && p.tokens[p.pos+1].kind == tokenName && p.tokens[p.pos+1].text == "in":
			p.pos += 2
			c.ops = append(c.ops, "not in")
		case len(c.ops) == 0:
			return c.first
		default:
			return c
		}
		c.rest = append(c.rest, p.sum())
	}
}

// leftAssociative reads operands joined by any of the operators.
func (p *parser) leftAssociative(operand func() expr, ops ...string) expr {
	x := operand()
	for p.peek().kind == tokenOp && slices.Contains(ops, p.peek().text) {
		op := p.next().text
		x = &binary{op, x, operand()}
	}
	return x
}

func (p *parser) sum() expr     { return p.leftAssociative(p.concat, "+", "-") }
func (p *parser) concat() expr  { return p.leftAssociative(p.product, "~") }
func (p *parser) product() expr { return p.leftAssociative(p.power, "*", "/", "//", "%") }
func (p *parser) power() expr   { return p.leftAssociative(p.unary, "**") }

func (p *parser) unary() expr { return p.filtersAndTests(p.signed()) }

// signed is a primary expression with its attributes and calls, or a sign before one.
func (p *parser) signed() expr {
	defer p.enter()()
	if p.is(tokenOp, "-") || p.is(tokenOp, "+") {
		return p.postfix(&unary{p.next().text, p.signed()})
	}
	return p.postfix(p.primary())
}

func (p *parser) primary() expr {
	t := p.next()
	switch t.kind {
	case tokenName:
		return p.nameOrConstant(t.text)
	case tokenString:
		text := t.text
		for p.peek().kind == tokenString { // as in Python
			text += p.next().text
		}
		return &literal{text}
	case tokenInt:
		n, err := strconv.ParseInt(strings.ReplaceAll(t.text, "_", ""), 0, 64)
		if err != nil {
			// Only zeros may start with a zero, so base 0 fits but for "00".
			n, err = strconv.ParseInt(strings.ReplaceAll(t.text, "_", ""), 10, 64)
		}
		if err != nil {
			p.fail("the number %s does not fit into 64 bits", t.text)
		}
		return &literal{n}
	case tokenFloat:
		f, err := strconv.ParseFloat(strings.ReplaceAll(t.text, "_", ""), 64)
		if err != nil && !errors.Is(err, strconv.ErrRange) { // too large is infinite
			p.fail("bad number %s", t.text)
		}
		return &literal{f}
	case tokenOp:
		switch t.text {
		case "(":
			return p.brackets()
		case "[":
			return &sequence{items: p.list("]")}
		case "{":
			return p.dict()
		}
	}
	p.pos--
	p.fail("unexpected %q", t.text)
	return nil
}

func (p *parser) nameOrConstant(id string) expr {
	switch id {
	case "true", "True":
		return &literal{true}
	case "false", "False":
		return &literal{false}
	case "none", "None":
		return &literal{nil}
	}
	if len(p.macros) > 0 {
		m := p.macros[len(p.macros)-1]
		m.varargs = m.varargs || id == "varargs"
		m.kwargs = m.kwargs || id == "kwargs"
		m.caller = m.caller || id == "caller"
	}
	return &name{id}
}

// brackets is what follows "(": an expression or a tuple.
func (p *parser) brackets() expr {
	if p.skip(tokenOp, ")") {
		return &sequence{tuple: true}
	}
	x := p.tuple(true)
	p.expect(tokenOp, ")")
	return x
}

// list reads expressions up to the closing bracket.
func (p *parser) list(end string) []expr {
	var items []expr
	for !p.skip(tokenOp, end) {
		if len(items) > 0 {
			p.expect(tokenOp, ",")
			if p.skip(tokenOp, end) {
				break
			}
		}
		items = append(items, p.expression())
	}
	return items
}

func (p *parser) dict() expr {
	d := &dictLit{}
	for !p.skip(tokenOp, "}") {
		if len(d.keys) > 0 {
			p.expect(tokenOp, ",")
			if p.skip(tokenOp, "}") {
				break
			}
		}
		d.keys = append(d.keys, p.expression())
		p.expect(tokenOp, ":")
		d.values = append(d.values, p.expression())
	}
	return d
}

// postfix reads attributes, items and calls.
func (p *parser) postfix(x expr) expr {
	for {
		switch {
		case p.skip(tokenOp, "."):
			if p.peek().kind == tokenInt {
				n, _ := strconv.ParseInt(p.next().text, 10, 64)
				x = &item{x, &literal{n}}
				continue
			}
			x = &attribute{x, p.expectKind(tokenName, "a name").text}
		case p.skip(tokenOp, "["):
			x = p.subscript(x)
		case p.skip(tokenOp, "("):
			x = &call{x, p.arguments()}
		default:
			return x
		}
	}
}

// subscript is what follows "[".
func (p *parser) subscript(x expr) expr {
	var parts [3]expr
	n, isSlice := 0, false
	for !p.skip(tokenOp, "]") {
		switch {
		case p.skip(tokenOp, ":"):
			isSlice = true
			if n++; n > 2 {
				p.fail("a slice has more than three parts")
			}
		case parts[n] != nil || p.is(tokenOp, ","):
			p.fail("unexpected %q, wanted \"]\"", p.peek().text)
		default:
			parts[n] = p.expression()
		}
	}
	if isSlice {
		return &slice{x, parts[0], parts[1], parts[2]}
	}
	if parts[0] == nil {
		p.fail("empty subscript")
	}
	return &item{x, parts[0]}
}

// arguments reads the arguments of a call after its opening bracket.
func (p *parser) arguments() arguments {
	var a arguments
	for first := true; !p.skip(tokenOp, ")"); first = false {
		if !first {
			p.expect(tokenOp, ",")
			if p.skip(tokenOp, ")") {
				break
			}
		}
		if p.is(tokenOp, "*") || p.is(tokenOp, "**") {
			p.fail("unpacking of arguments is not supported")
		}
		next := p.tokens[min(p.pos+1, len(p.tokens)-1)]
		if p.peek().kind == tokenName && next.kind == tokenOp && next.text == "=" {
			a.names = append(a.names, p.next().text)
			p.pos++
			a.keyword = append(a.keyword, p.expression())
			continue
		}
		if len(a.names) > 0 {
			p.fail("a positional argument follows a keyword argument")
		}
		a.positional = append(a.positional, p.expression())
	}
	return a
}

// filtersAndTests reads what may follow any operand.
func (p *parser) filtersAndTests(x expr) expr {
	for {
		switch {
		case p.is(tokenOp, "|"):
			x = p.filters(x, false)
		case p.skip(tokenName, "is"):
			x = p.test(x)
		case p.skip(tokenOp, "("):
			x = &call{x, p.arguments()}
		default:
			return x
		}
	}
}

// filters reads "|name(args)..."; with bare the first has no "|".
func (p *parser) filters(x expr, bare bool) expr {
	for bare || p.skip(tokenOp, "|") {
		bare = false
		id := p.expectKind(tokenName, "the name of a filter").text
		f := &filter{x: x, name: id}
		if p.skip(tokenOp, "(") {
			f.args = p.arguments()
		}
		x = f
	}
	return x
}

// test is what follows "is".
func (p *parser) test(x expr) expr {
	t := &test{x: x, negate: p.skip(tokenName, "not")}
	t.name = p.expectKind(tokenName, "the name of a test").text
	next := p.peek()
	switch {
	case p.skip(tokenOp, "("):
		t.args = p.arguments()
	case next.kind == tokenName && slices.Contains([]string{"else", "or", "and"}, next.text):
	case next.kind == tokenName && next.text == "is":
		p.fail("tests cannot be chained with is")
	case next.kind == tokenName, next.kind == tokenString, next.kind == tokenInt, next.kind == tokenFloat,
		p.is(tokenOp, "["), p.is(tokenOp, "{"):
		t.args.positional = []expr{p.postfix(p.primary())}
	}
	return t
}
