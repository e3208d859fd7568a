package jinja

import (
	"fmt"
	"strconv"
	"strings"
)

// format is Python's text % args for %s, %r, %d, %i, %x, %f and %%, with flags,
// width and precision.
func (s *state) format(t string, args []any) string {
	var b strings.Builder
	next := 0
	for {
		text, rest, found := strings.Cut(t, "%")
		b.WriteString(text)
		if !found {
			break
		}
		n := strings.IndexFunc(rest, func(r rune) bool { return !strings.ContainsRune("-+ 0#.123456789", r) })
		if n < 0 {
			fail("template: incomplete format")
		}
		spec, verb := rest[:n], rest[n]
		t = rest[n+1:]
		if verb == '%' && spec == "" {
			b.WriteByte('%')
			continue
		}
		if next >= len(args) {
			fail("template: not enough arguments for a format")
		}
		b.WriteString(s.formatOne(spec, verb, args[next]))
		s.spendText(b.Len())
		next++
	}
	if next < len(args) {
		fail("template: not all arguments of a format are used")
	}
	return b.String()
}

func (s *state) formatOne(spec string, verb byte, v any) string {
	for _, part := range strings.FieldsFunc(spec, func(r rune) bool { return r < '0' || r > '9' }) {
		if width, err := strconv.Atoi(part); err != nil || width > 1000 {
			fail("%w: format %%%s", ErrTooExpensive, spec)
		}
	}
	i, f, isFloat, isNumber := number(v)
	switch {
	case verb == 's':
		return fmt.Sprintf("%"+spec+"s", text(v))
	case verb == 'r':
		var b strings.Builder
		repr(&b, v, 0)
		return fmt.Sprintf("%"+spec+"s", b.String())
	case (verb == 'd' || verb == 'i') && isNumber:
		if isFloat {
			i = int64(f)
		}
		return fmt.Sprintf("%"+spec+"d", i)
	case (verb == 'x' || verb == 'X') && isNumber && !isFloat:
		return fmt.Sprintf("%"+spec+string(verb), i)
	case verb == 'f' && isNumber:
		return fmt.Sprintf("%"+spec+"f", f)
	}
	fail("template: format %%%s%c of a %s is not supported", spec, verb, typeName(v))
	return ""
}

// formatBraces is str.format for {}, {0} and {name}, without formats.
func (s *state) formatBraces(t string, a *args) string {
	var b strings.Builder
	next := 0
	for t != "" {
		i := strings.IndexAny(t, "{}")
		if i < 0 {
			i = len(t)
		}
		b.WriteString(t[:i])
		if t = t[i:]; t == "" {
			break
		}
		if strings.HasPrefix(t, "{{") || strings.HasPrefix(t, "}}") {
			b.WriteByte(t[0])
			t = t[2:]
			continue
		}
		field, rest, closed := strings.Cut(t[1:], "}")
		if t[0] == '}' || !closed {
			fail("template: str.format: single %q", t[:1])
		}
		t = rest
		if field == "" {
			field = strconv.Itoa(next)
			next++
		}
		b.WriteString(text(a.field(field)))
		s.spendText(b.Len())
	}
	return b.String()
}

// field is the argument that a field of str.format names.
func (a *args) field(id string) any {
	if v, ok := a.kw[id]; ok {
		return v
	}
	n, err := strconv.Atoi(id)
	switch {
	case err != nil:
		fail("template: str.format: the field {%s} is not supported", id)
	case n < 0 || n >= len(a.pos):
		fail("template: str.format: there is no argument %s", id)
	}
	return a.pos[n]
}
