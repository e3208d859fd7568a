package jinja

import (
	"math"
	"slices"
	"strconv"
	"strings"
)

// filterFunc is what follows "|".
type filterFunc func(s *state, v any, a *args) any

// filters is filled by init, because map refers to it.
var filters = map[string]filterFunc{}

func init() {
	mapText := func(f func(string) string) filterFunc {
		return func(s *state, v any, a *args) any {
			a.max(0)
			t := text(v)
			s.spendText(len(t))
			return like(v, f(t))
		}
	}
	for id, f := range map[string]filterFunc{
		"upper": mapText(upper), "lower": mapText(lower), "capitalize": mapText(capitalize), "title": mapText(jinjaTitle),
		"string": mapText(func(t string) string { return t }),
		"trim":   func(_ *state, v any, a *args) any { a.max(1, "chars"); return like(v, strip(text(v), a, true, true)) },
		"safe":   func(_ *state, v any, a *args) any { a.max(0); return markup(text(v)) },
		"e":      escape, "escape": escape,
		"length": size, "count": size,
		"wordcount": func(_ *state, v any, a *args) any { a.max(0); return int64(len(strings.FieldsFunc(text(v), isSpace))) },
		"list":      func(s *state, v any, a *args) any { a.max(0); return &List{Items: s.iterate(v)} },
		"items":     items,
		"first":     func(s *state, v any, a *args) any { a.max(0); return end(s.iterate(v), "first", false) },
		"last":      last,
		"reverse":   reverse,
		"default":   defaultTo, "d": defaultTo,
		"join": join, "replace": replace, "indent": indent, "format": formatFilter,
		"tojson": tojson,
		"abs":    abs, "int": toInt, "float": toFloat, "round": round,
		"sum": sum, "min": extreme, "max": extreme, "sort": sortFilter, "dictsort": dictSort, "unique": unique,
		"map": mapFilter, "attr": attr,
		"select": selecting(true, false), "reject": selecting(false, false),
		"selectattr": selecting(true, true), "rejectattr": selecting(false, true),
	} {
		filters[id] = f
	}
}

func (s *state) applyFilter(x *filter, v any, f *frame) any {
	s.spendOn(v)
	run, ok := filters[x.name]
	if !ok {
		fail("template: the filter %q is not supported", x.name)
	}
	return run(s, v, s.args(x.name, x.args, f))
}

func size(_ *state, v any, a *args) any { a.max(0); return int64(length(v)) }

func escape(s *state, v any, a *args) any {
	a.max(0)
	m := escaped(v)
	s.spendText(len(m))
	return m
}

var htmlEscapes = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "'", "&#39;", `"`, "&#34;")

// escaped is the HTML of a value; markup stays as it is.
func escaped(v any) markup {
	if m, ok := v.(markup); ok {
		return m
	}
	return markup(htmlEscapes.Replace(text(v)))
}

// like makes markup of t if v is markup.
func like(v any, t string) any {
	if _, ok := v.(markup); ok {
		return markup(t)
	}
	return t
}

func items(s *state, v any, a *args) any {
	a.max(0)
	switch v := v.(type) {
	case *Dict:
		return s.column(v, 2).as(generator)
	case undefined:
		return &List{view: generator}
	}
	fail("template: items wants a dictionary, not a %s", typeName(v))
	return nil
}

func end(items []any, what string, last bool) any {
	switch {
	case len(items) == 0:
		return undefined{"the " + what + " item of an empty sequence"}
	case last:
		return items[len(items)-1]
	}
	return items[0]
}

func last(s *state, v any, a *args) any {
	a.max(0)
	if l, ok := v.(*List); ok && l.view == generator {
		fail("template: a generator has no last item")
	}
	return end(s.iterate(v), "last", true)
}

func reverse(s *state, v any, a *args) any {
	a.max(0)
	_, isString := v.(string)
	if l, ok := v.(*List); ok && l.view == generator {
		v = &List{Items: s.iterate(v)}
	}
	items := slices.Clone(s.iterate(v))
	slices.Reverse(items)
	if isString {
		return s.join(items, "")
	}
	return &List{Items: items, view: generator}
}

func defaultTo(_ *state, v any, a *args) any {
	a.max(2, "default_value", "boolean")
	if isUndefined(v) || truth(a.get(1, "boolean", false)) && !truth(v) {
		return a.get(0, "default_value", "")
	}
	return v
}

func join(s *state, v any, a *args) any {
	a.max(2, "d", "attribute")
	items := s.iterate(v)
	if path := a.get(1, "attribute", nil); path != nil {
		items = s.pick(items, path)
	}
	return s.join(items, text(a.get(0, "d", "")))
}

func replace(s *state, v any, a *args) any {
	a.max(3, "old", "new", "count")
	count := int64(-1)
	if a.get(2, "count", nil) != nil {
		count = a.integer(2, "count", -1)
	}
	return s.replace(text(v), text(a.need(0, "old")), text(a.need(1, "new")), count)
}

// indent puts blanks before each line but the first and, by default, empty ones.
func indent(s *state, v any, a *args) any {
	a.max(3, "width", "first", "blank")
	pad, ok := a.get(0, "width", int64(4)).(string)
	if !ok {
		pad = s.repeat(" ", a.integer(0, "width", 4)).(string)
	}
	t := text(v) + "\n" // as Jinja does: splitlines would lose a last empty line
	lines := splitLines(s, t, &args{}).(*List).Items
	var b strings.Builder
	for i, line := range lines {
		if i > 0 {
			b.WriteByte('\n')
		}
		first := i == 0
		if first && truth(a.get(1, "first", false)) || !first && (truth(a.get(2, "blank", false)) || line != "") {
			b.WriteString(pad)
		}
		b.WriteString(line.(string))
		s.spendText(b.Len() - len(t))
	}
	return b.String()
}

func formatFilter(s *state, v any, a *args) any {
	a.max(len(a.pos))
	return s.format(text(v), a.pos)
}

func tojson(s *state, v any, a *args) any {
	a.max(4, "ensure_ascii", "indent", "separators", "sort_keys")
	style := &jsonStyle{
		state: s,
		ascii: truth(a.get(0, "ensure_ascii", false)), sort: truth(a.get(3, "sort_keys", false)),
		item: ", ", key: ": ",
	}
	if by := a.get(1, "indent", nil); by != nil {
		style.newline, style.item = true, ","
		if t, ok := by.(string); ok {
			style.indent = t
		} else {
			style.indent = strings.Repeat(" ", int(min(max(a.integer(1, "indent", 0), 0), 1000)))
		}
	}
	if sep, ok := a.get(2, "separators", nil).(*List); ok && len(sep.Items) == 2 {
		style.item, style.key = text(sep.Items[0]), text(sep.Items[1])
	}
	var b strings.Builder
	writeJSON(&b, v, style, 0)
	return b.String()
}

func abs(s *state, v any, a *args) any {
	a.max(0)
	if s.less(v, int64(0), "<", 0) {
		return s.arithmetic("-", int64(0), v)
	}
	return s.arithmetic("+", int64(0), v)
}

func toInt(_ *state, v any, a *args) any {
	a.max(2, "default", "base")
	i, f, isFloat, ok := number(v)
	switch {
	case ok && !isFloat:
		return i
	case ok && math.Abs(f) < 1<<62:
		return int64(f)
	}
	if t, ok := v.(string); ok {
		t = strings.TrimFunc(t, isSpace)
		if n, err := strconv.ParseInt(strings.ReplaceAll(t, "_", ""), int(min(max(a.integer(1, "base", 10), 2), 36)), 64); err == nil {
			return n
		}
		if f, err := strconv.ParseFloat(t, 64); err == nil && math.Abs(f) < 1<<62 {
			return int64(f)
		}
	}
	return a.get(0, "default", int64(0))
}

func toFloat(_ *state, v any, a *args) any {
	a.max(1, "default")
	if _, f, _, ok := number(v); ok {
		return f
	}
	if t, ok := v.(string); ok {
		if f, err := strconv.ParseFloat(strings.TrimFunc(t, isSpace), 64); err == nil {
			return f
		}
	}
	return a.get(0, "default", 0.0)
}

// round returns a float, as Jinja's does: to even with the common method.
func round(_ *state, v any, a *args) any {
	a.max(2, "precision", "method")
	i, f, isFloat, ok := number(v)
	if !ok {
		fail("template: round wants a number, not a %s", typeName(v))
	}
	precision := a.integer(0, "precision", 0)
	if precision < -20 || precision > 20 {
		fail("template: round to %d places is not supported", precision)
	}
	scale := math.Pow(10, float64(precision))
	switch method := a.str(1, "method", "common"); method {
	case "ceil":
		return math.Ceil(f*scale) / scale
	case "floor":
		return math.Floor(f*scale) / scale
	case "common":
		if !isFloat && precision >= 0 {
			return i // Python's round keeps an int
		}
		if precision > 0 {
			r, _ := strconv.ParseFloat(strconv.FormatFloat(f, 'f', int(precision), 64), 64)
			return r
		}
		return math.RoundToEven(f*scale) / scale
	default:
		fail("template: round: unknown method %q", method)
	}
	return nil
}

// pick is the attribute of each item; path may be dotted.
func (s *state) pick(items []any, path any) []any {
	out := make([]any, 0, len(items))
	for _, item := range items {
		out = append(out, s.path(item, path))
	}
	return out
}

func (s *state) path(v, path any) any {
	s.spend(1)
	t, ok := path.(string)
	if !ok {
		return s.item(v, path)
	}
	for part := range strings.SplitSeq(t, ".") {
		if n, err := strconv.ParseInt(part, 10, 64); err == nil {
			v = s.item(v, n)
		} else {
			v = s.item(v, part)
		}
	}
	return v
}

func attr(s *state, v any, a *args) any {
	a.max(1, "name")
	if _, ok := v.(*Dict); ok {
		return undefined{"an attribute of a dict"} // attr never looks up items
	}
	return s.attribute(v, a.str(0, "name", ""))
}
