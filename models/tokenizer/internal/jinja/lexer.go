package jinja

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

type tokenKind int

const (
	tokenData tokenKind = iota
	tokenBlockBegin
	tokenBlockEnd
	tokenVarBegin
	tokenVarEnd
	tokenName
	tokenString
	tokenInt
	tokenFloat
	tokenOp
	tokenEOF
)

type token struct {
	kind tokenKind
	text string
	line int
}

// lexer follows jinja2.lexer with trim_blocks and lstrip_blocks.
type lexer struct {
	src    string
	pos    int
	line   int
	tokens []token
	// lineStart says that the text after the last tag begins a line.
	lineStart bool
}

func lex(source string) []token {
	source = normalizeNewlines(source)
	source = strings.TrimSuffix(source, "\n")
	l := &lexer{src: source, line: 1, lineStart: true}
	for l.root() {
	}
	l.emit(tokenEOF, "")
	return l.tokens
}

func normalizeNewlines(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(s, "\r\n", "\n"), "\r", "\n")
}

func (l *lexer) emit(kind tokenKind, text string) {
	l.tokens = append(l.tokens, token{kind, text, l.line})
}

// advance moves on by n bytes, counting lines.
func (l *lexer) advance(n int) {
	l.line += strings.Count(l.src[l.pos:l.pos+n], "\n")
	l.pos += n
}

// root reads text up to a tag, and the tag. It returns false at the end.
func (l *lexer) root() bool {
	rest := l.src[l.pos:]
	at := -1
	for i := 0; i+1 < len(rest); i++ {
		if rest[i] == '{' && (rest[i+1] == '{' || rest[i+1] == '%' || rest[i+1] == '#') {
			at = i
			break
		}
	}
	if at < 0 {
		if rest != "" {
			l.emit(tokenData, rest)
		}
		l.advance(len(rest))
		return false
	}
	kind := rest[at+1]
	l.text(rest[:at], l.sign(l.pos+at+2), kind != '{')
	l.advance(at + 2)
	if l.sign(l.pos) != 0 {
		l.advance(1)
	}
	switch kind {
	case '#':
		l.comment()
	case '%':
		if !l.raw() {
			l.emit(tokenBlockBegin, "")
			l.inside(tokenBlockEnd, "%}")
		}
	default:
		l.emit(tokenVarBegin, "")
		l.inside(tokenVarEnd, "}}")
	}
	return true
}

// sign is the whitespace control at pos: '-', '+' or 0.
func (l *lexer) sign(pos int) byte {
	if pos < len(l.src) && (l.src[pos] == '-' || l.src[pos] == '+') {
		return l.src[pos]
	}
	return 0
}

// text emits the text before a tag. A tag that is not a variable, alone on its
// line so far, takes the blanks before it away (lstrip_blocks).
func (l *lexer) text(s string, sign byte, lstrip bool) {
	switch {
	case sign == '-':
		s = strings.TrimRightFunc(s, isSpace)
	case sign == 0 && lstrip:
		start := strings.LastIndexByte(s, '\n') + 1
		if (start > 0 || l.lineStart) && strings.TrimLeftFunc(s[start:], isSpace) == "" {
			s = s[:start]
		}
	}
	if s != "" {
		l.emit(tokenData, s)
	}
}

// end reads the end of a tag, with the whitespace it takes along, if it is next.
func (l *lexer) end(mark string) bool {
	rest := l.src[l.pos:]
	sign := l.sign(l.pos)
	if sign == '+' && mark == "}}" || !strings.HasPrefix(rest[min(1, int(sign)):], mark) {
		return false
	}
	n := len(mark)
	if sign != 0 {
		n++
	}
	after := rest[n:]
	switch {
	case sign == '-':
		n += len(after) - len(strings.TrimLeftFunc(after, isSpace))
	case sign == 0 && mark != "}}" && strings.HasPrefix(after, "\n"): // trim_blocks
		n++
	}
	l.lineStart = rest[n-1] == '\n'
	l.advance(n)
	return true
}

func (l *lexer) comment() {
	for l.pos < len(l.src) {
		if l.end("#}") {
			return
		}
		l.advance(1)
	}
	fail("template: line %d: a comment does not end", l.line)
}

// raw reads {% raw %}...{% endraw %} if it is next.
func (l *lexer) raw() bool {
	start := *l
	if !l.word("raw") || l.sign(l.pos) == '+' || !l.endRaw() {
		*l = start
		return false
	}
	begin, lineStart := l.pos, l.lineStart
	for i := begin; ; i++ {
		next := strings.Index(l.src[i:], "{%")
		if next < 0 {
			fail("template: line %d: {%% raw %%} does not end", start.line)
		}
		i += next
		l.pos = i + 2
		if l.sign(l.pos) != 0 {
			l.pos++
		}
		if l.word("endraw") && l.end("%}") {
			after := l.lineStart
			l.lineStart = lineStart
			l.text(l.src[begin:i], l.sign(i+2), true)
			l.lineStart = after
			l.line = 1 + strings.Count(l.src[:l.pos], "\n")
			return true
		}
	}
}

// endRaw reads the end of {% raw %}, after which trim_blocks does not apply.
func (l *lexer) endRaw() bool {
	if strings.HasPrefix(l.src[l.pos:], "%}") {
		l.advance(2)
		l.lineStart = false
		return true
	}
	return l.end("%}")
}

// word reads a name between optional blanks.
func (l *lexer) word(name string) bool {
	l.skipSpace()
	if !strings.HasPrefix(l.src[l.pos:], name) {
		return false
	}
	l.advance(len(name))
	l.skipSpace()
	return true
}

func (l *lexer) skipSpace() {
	rest := l.src[l.pos:]
	l.advance(len(rest) - len(strings.TrimLeftFunc(rest, isSpace)))
}

// inside reads the tokens of a tag up to its end.
func (l *lexer) inside(end tokenKind, mark string) {
	var open []byte // brackets: an end inside them is an operator
	for {
		l.skipSpace()
		if l.pos >= len(l.src) {
			fail("template: line %d: a tag does not end with %s", l.line, mark)
		}
		if len(open) == 0 && l.end(mark) {
			l.emit(end, "")
			return
		}
		open = l.token(open)
	}
}

// token reads one token and returns the open brackets after it.
func (l *lexer) token(open []byte) []byte {
	rest := l.src[l.pos:]
	c, _ := utf8.DecodeRuneInString(rest)
	switch {
	case c >= '0' && c <= '9':
		l.number(rest)
	case c == '_' || unicode.IsLetter(c):
		n := strings.IndexFunc(rest, func(r rune) bool {
			return r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r)
		})
		if n < 0 {
			n = len(rest)
		}
		l.emit(tokenName, rest[:n])
		l.advance(n)
	case c == '\'' || c == '"':
		l.str(rest)
	default:
		return l.operator(rest, open)
	}
	return open
}

func (l *lexer) operator(rest string, open []byte) []byte {
	n := 1
	if len(rest) > 1 {
		switch rest[:2] {
		case "//", "**", "==", "!=", ">=", "<=":
			n = 2
		}
	}
	op := rest[:n]
	if !strings.Contains("+ - / // * % ** ~ [ ] ( ) { } == != > >= < <= = . : | ,", op) || op == " " {
		fail("template: line %d: unexpected character %q", l.line, op)
	}
	switch op {
	case "(", "[", "{":
		open = append(open, op[0])
	case ")", "]", "}":
		want := map[string]byte{")": '(', "]": '[', "}": '{'}[op]
		if len(open) == 0 || open[len(open)-1] != want {
			fail("template: line %d: unexpected %q", l.line, op)
		}
		open = open[:len(open)-1]
	}
	l.emit(tokenOp, op)
	l.advance(n)
	return open
}

// number reads an integer or, with a fraction or an exponent, a float.
func (l *lexer) number(rest string) {
	digits := func(i int) int {
		for i < len(rest) && (rest[i] >= '0' && rest[i] <= '9' || rest[i] == '_') {
			i++
		}
		return i
	}
	if len(rest) > 1 && rest[0] == '0' && strings.ContainsRune("xXoObB", rune(rest[1])) {
		n := 2
		for n < len(rest) && (rest[n] == '_' || rest[n] < 0x80 && strings.IndexByte("0123456789abcdefABCDEF", rest[n]) >= 0) {
			n++
		}
		l.emit(tokenInt, rest[:n])
		l.advance(n)
		return
	}
	n, kind := digits(0), tokenInt
	if n+1 < len(rest) && rest[n] == '.' && rest[n+1] >= '0' && rest[n+1] <= '9' {
		n, kind = digits(n+1), tokenFloat
	}
	if n < len(rest) && (rest[n] == 'e' || rest[n] == 'E') {
		exp := n + 1
		if exp < len(rest) && (rest[exp] == '+' || rest[exp] == '-') {
			exp++
		}
		if exp < len(rest) && rest[exp] >= '0' && rest[exp] <= '9' {
			n, kind = digits(exp), tokenFloat
		}
	}
	l.emit(kind, rest[:n])
	l.advance(n)
}

func (l *lexer) str(rest string) {
	quote := rest[0]
	for i := 1; i < len(rest); i++ {
		switch rest[i] {
		case '\\':
			i++
		case quote:
			l.emit(tokenString, unescape(rest[1:i], l.line))
			l.advance(i + 1)
			return
		}
	}
	fail("template: line %d: a string does not end", l.line)
}

// isSpace is Python's str.isspace and the \s of its regular expressions.
func isSpace(r rune) bool { return unicode.IsSpace(r) || r >= 0x1C && r <= 0x1F }
