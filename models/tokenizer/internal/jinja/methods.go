package jinja

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// methodFunc is a method of a text, list or dictionary.
type methodFunc func(s *state, self any, a *args) any

// method returns the method of v, nil if there is none of that name. Methods that
// Python has and this package has not give a method that fails.
func method(v any, id string) methodFunc {
	switch v.(type) {
	case string:
		if m, ok := textMethods[id]; ok {
			return m
		}
		if slices.Contains(otherTextMethods, id) {
			return unsupported
		}
	case *Dict:
		if m, ok := dictMethods[id]; ok {
			return m
		}
	case *List:
		if m, ok := listMethods[id]; ok {
			return m
		}
	case *loop:
		return loopMethods[id]
	}
	return nil
}

func unsupported(_ *state, _ any, a *args) any {
	fail("template: the method %s is not supported", a.what)
	return nil
}

// mutates says whether id is a method that would change v. Jinja's immutable
// sandbox makes those undefined.
func mutates(v any, id string) bool {
	switch v.(type) {
	case *Dict:
		return slices.Contains([]string{"clear", "pop", "popitem", "setdefault", "update"}, id)
	case *List:
		return slices.Contains([]string{"append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove"}, id)
	}
	return false
}

var otherTextMethods = []string{
	"casefold", "encode", "expandtabs", "format_map", "isdecimal", "isidentifier",
	"isprintable", "istitle", "maketrans", "partition", "rpartition", "swapcase", "translate",
}

var dictMethods = map[string]methodFunc{
	"get": func(_ *state, self any, a *args) any {
		a.max(2)
		if v, ok := self.(*Dict).get(a.need(0, "key")); ok {
			return v
		}
		return a.get(1, "default", nil)
	},
	"keys": func(_ *state, self any, a *args) any {
		a.max(0)
		return &List{Items: self.(*Dict).keys, view: "dict_keys"}
	},
	"values":   func(s *state, self any, a *args) any { a.max(0); return s.column(self.(*Dict), 1).as("dict_values") },
	"items":    func(s *state, self any, a *args) any { a.max(0); return s.column(self.(*Dict), 2).as("dict_items") },
	"copy":     func(_ *state, self any, a *args) any { a.max(0); return self },
	"fromkeys": unsupported,
}

// column returns the values, or for width 2 pairs of key and value.
func (s *state) column(d *Dict, width int) *List {
	s.spend(len(d.keys))
	l := &List{}
	for _, key := range d.keys {
		v, _ := d.get(key)
		if width == 2 {
			v = &List{Items: []any{key, v}, tuple: true}
		}
		l.Items = append(l.Items, v)
	}
	return l
}

func (l *List) as(view string) *List {
	l.view = view
	return l
}

var listMethods = map[string]methodFunc{
	"index": func(s *state, self any, a *args) any {
		a.max(1)
		for i, item := range self.(*List).Items {
			s.spend(1)
			if s.equal(item, a.need(0, "value"), 0) {
				return int64(i)
			}
		}
		fail("template: index: the value is not in the list")
		return nil
	},
	"count": func(s *state, self any, a *args) any {
		a.max(1)
		n := int64(0)
		for _, item := range self.(*List).Items {
			s.spend(1)
			n += asInt(s.equal(item, a.need(0, "value"), 0))
		}
		return n
	},
	"copy": func(_ *state, self any, a *args) any { a.max(0); return self },
}

var loopMethods = map[string]methodFunc{
	"cycle": func(_ *state, self any, a *args) any {
		a.max(len(a.pos))
		a.need(0, "value")
		return a.pos[self.(*loop).i%len(a.pos)]
	},
	"changed": func(s *state, self any, a *args) any {
		a.max(len(a.pos))
		l, now := self.(*loop), &List{Items: a.pos, tuple: true}
		changed := !l.asked || !s.equal(l.seen, now, 0)
		l.asked, l.seen = true, now
		return changed
	},
}

// textMethod makes a method of a function of a text.
func textMethod(f func(s *state, t string, a *args) any) methodFunc {
	return func(s *state, self any, a *args) any {
		t := self.(string)
		s.spend(1 + len(t)/16)
		return f(s, t, a)
	}
}

// mapping and predicate are methods without arguments.
func mapping(f func(string) string) methodFunc {
	return textMethod(func(_ *state, t string, a *args) any { a.max(0); return f(t) })
}

func predicate(f func(rune) bool) methodFunc {
	return textMethod(func(_ *state, t string, a *args) any {
		a.max(0)
		return t != "" && strings.IndexFunc(t, func(r rune) bool { return !f(r) }) < 0
	})
}

// cased is isupper and islower: of the letters with case there is one, and all are of it.
func cased(want, other func(rune) bool) methodFunc {
	return textMethod(func(_ *state, t string, a *args) any {
		a.max(0)
		return strings.IndexFunc(t, want) >= 0 && strings.IndexFunc(t, other) < 0
	})
}

func isAlnum(r rune) bool { return unicode.IsLetter(r) || unicode.IsNumber(r) }

var textMethods = map[string]methodFunc{
	"upper": mapping(upper), "lower": mapping(lower),
	"capitalize": mapping(capitalize), "title": mapping(pythonTitle),
	"isdigit": predicate(unicode.IsDigit), "isnumeric": predicate(unicode.IsNumber), "isalpha": predicate(unicode.IsLetter),
	"isalnum": predicate(isAlnum), "isspace": predicate(isSpace), "isascii": textMethod(isASCII),
	"isupper": cased(unicode.IsUpper, unicode.IsLower), "islower": cased(unicode.IsLower, unicode.IsUpper),
	"strip":  textMethod(func(_ *state, t string, a *args) any { return strip(t, a, true, true) }),
	"lstrip": textMethod(func(_ *state, t string, a *args) any { return strip(t, a, true, false) }),
	"rstrip": textMethod(func(_ *state, t string, a *args) any { return strip(t, a, false, true) }),
	"split":  textMethod(split), "rsplit": textMethod(rsplit), "splitlines": textMethod(splitLines),
	"startswith": textMethod(func(_ *state, t string, a *args) any { return affix(t, a, strings.HasPrefix) }),
	"endswith":   textMethod(func(_ *state, t string, a *args) any { return affix(t, a, strings.HasSuffix) }),
	"removeprefix": textMethod(func(_ *state, t string, a *args) any {
		a.max(1)
		return strings.TrimPrefix(t, a.str(0, "prefix", ""))
	}),
	"removesuffix": textMethod(func(_ *state, t string, a *args) any {
		a.max(1)
		return strings.TrimSuffix(t, a.str(0, "suffix", ""))
	}),
	"replace": textMethod(func(s *state, t string, a *args) any {
		a.max(3, "count")
		return s.replace(t, text(a.need(0, "old")), text(a.need(1, "new")), a.integer(2, "count", -1))
	}),
	"join": textMethod(func(s *state, t string, a *args) any {
		a.max(1)
		items := s.iterate(a.need(0, "iterable"))
		for _, item := range items {
			if _, ok := item.(string); !ok {
				fail("template: str.join wants texts, not a %s", typeName(item))
			}
		}
		return s.join(items, t)
	}),
	"find":  textMethod(func(_ *state, t string, a *args) any { return find(t, a, strings.Index) }),
	"rfind": textMethod(func(_ *state, t string, a *args) any { return find(t, a, strings.LastIndex) }),
	"index": textMethod(func(_ *state, t string, a *args) any {
		i := find(t, a, strings.Index)
		if i < 0 {
			fail("template: str.index: the text is not there")
		}
		return i
	}),
	"count": textMethod(func(_ *state, t string, a *args) any {
		a.max(1)
		return int64(strings.Count(t, a.str(0, "sub", "")))
	}),
	"format": textMethod(func(s *state, t string, a *args) any { return s.formatBraces(t, a) }),
	"zfill": textMethod(func(s *state, t string, a *args) any {
		a.max(1)
		n := a.integer(0, "width", 0) - int64(utf8.RuneCountInString(t))
		sign := ""
		if t != "" && (t[0] == '-' || t[0] == '+') {
			sign, t = t[:1], t[1:]
		}
		return sign + s.repeat("0", n).(string) + t
	}),
	"ljust":  textMethod(func(s *state, t string, a *args) any { return s.pad(t, a, 0) }),
	"rjust":  textMethod(func(s *state, t string, a *args) any { return s.pad(t, a, 1) }),
	"center": textMethod(func(s *state, t string, a *args) any { return s.pad(t, a, 2) }),
}

func isASCII(_ *state, t string, a *args) any {
	a.max(0)
	return strings.IndexFunc(t, func(r rune) bool { return r > 0x7F }) < 0
}

// pad fills a text up to a width: after it, before it, or on both sides.
func (s *state) pad(t string, a *args, where int) any {
	a.max(2)
	width, fill := a.integer(0, "width", 0), a.str(1, "fillchar", " ")
	if utf8.RuneCountInString(fill) != 1 {
		fail("template: %s: the fill is not one character", a.what)
	}
	n := max(width-int64(utf8.RuneCountInString(t)), 0)
	left := map[int]int64{0: 0, 1: n, 2: n/2 + n&width&1}[where]
	return s.concat(s.repeat(fill, left).(string), t+s.repeat(fill, n-left).(string))
}

// strip cuts blanks, or the characters of the argument, off the ends.
func strip(t string, a *args, left, right bool) string {
	a.max(1)
	cut := isSpace
	if v := a.get(0, "chars", nil); v != nil {
		chars := a.str(0, "chars", "")
		cut = func(r rune) bool { return strings.ContainsRune(chars, r) }
	}
	if left {
		t = strings.TrimLeftFunc(t, cut)
	}
	if right {
		t = strings.TrimRightFunc(t, cut)
	}
	return t
}

// affix is startswith and endswith: of one text or of any of a tuple.
func affix(t string, a *args, has func(s, affix string) bool) bool {
	a.max(1)
	v := a.need(0, "affix")
	if l, ok := v.(*List); ok && l.tuple {
		for _, item := range l.Items {
			if one, ok := item.(string); ok && has(t, one) {
				return true
			}
		}
		return false
	}
	return has(t, a.str(0, "affix", ""))
}

// find returns the position in characters, -1 if the text is not there.
func find(t string, a *args, index func(s, sub string) int) int64 {
	a.max(1)
	i := index(t, a.str(0, "sub", ""))
	if i < 0 {
		return -1
	}
	return int64(utf8.RuneCountInString(t[:i]))
}

func texts(parts []string) *List {
	l := &List{Items: make([]any, 0, len(parts))}
	for _, p := range parts {
		l.Items = append(l.Items, p)
	}
	return l
}

// split is str.split: at blanks without a separator.
func split(s *state, t string, a *args) any {
	a.max(2, "sep", "maxsplit")
	limit := a.integer(1, "maxsplit", -1)
	if a.get(0, "sep", nil) != nil {
		sep := a.str(0, "sep", "")
		if sep == "" {
			fail("template: str.split: empty separator")
		}
		if limit < 0 || limit > int64(len(t)) {
			limit = int64(len(t))
		}
		s.spend(len(t))
		return texts(strings.SplitN(t, sep, int(limit)+1))
	}
	var parts []string
	for t = strings.TrimLeftFunc(t, isSpace); t != ""; {
		end := strings.IndexFunc(t, isSpace)
		if end < 0 || limit >= 0 && int64(len(parts)) >= limit {
			end = len(t)
		}
		parts = append(parts, t[:end])
		t = strings.TrimLeftFunc(t[end:], isSpace)
	}
	s.spend(len(parts))
	return texts(parts)
}

// rsplit is str.rsplit with a separator.
func rsplit(s *state, t string, a *args) any {
	a.max(2, "sep", "maxsplit")
	limit := a.integer(1, "maxsplit", -1)
	if limit < 0 {
		return split(s, t, a)
	}
	sep := a.str(0, "sep", "")
	if sep == "" {
		fail("template: str.rsplit: empty separator")
	}
	var parts []string
	for ; limit > 0; limit-- {
		i := strings.LastIndex(t, sep)
		if i < 0 {
			break
		}
		s.spend(1)
		parts = append(parts, t[i+len(sep):])
		t = t[:i]
	}
	parts = append(parts, t)
	slices.Reverse(parts)
	return texts(parts)
}

func splitLines(s *state, t string, a *args) any {
	a.max(0)
	s.spend(len(t))
	t = strings.NewReplacer("\r\n", "\n", "\r", "\n", "\v", "\n", "\f", "\n", "\x1c", "\n", "\x1d", "\n", "\x1e", "\n",
		"\u0085", "\n", "\u2028", "\n", "\u2029", "\n").Replace(t)
	if t == "" {
		return &List{}
	}
	return texts(strings.Split(strings.TrimSuffix(t, "\n"), "\n"))
}

// replace is str.replace within the limits; count < 0 replaces all.
func (s *state) replace(t, old, to string, count int64) string {
	n := int64(strings.Count(t, old))
	if count >= 0 {
		n = min(n, count)
	}
	if len(to) > 0 && n > int64(maxText/len(to)) {
		fail("%w: a replacement is too long", ErrTooExpensive)
	}
	s.spendText(len(t) + int(n)*len(to))
	return strings.Replace(t, old, to, int(n))
}

// join writes the items with sep between them, within the limits.
func (s *state) join(items []any, sep string) string {
	var b strings.Builder
	for i, item := range items {
		if i > 0 {
			b.WriteString(sep)
		}
		b.WriteString(text(item))
		s.spend(1)
		if b.Len() > maxText {
			break
		}
	}
	s.spendText(b.Len())
	return b.String()
}
