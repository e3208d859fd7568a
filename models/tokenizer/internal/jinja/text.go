package jinja

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// text is Python's str().
func text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case markup:
		return string(v)
	case undefined:
		return ""
	}
	var b strings.Builder
	repr(&b, v, 0)
	return b.String()
}

// repr is Python's repr().
func repr(b *strings.Builder, v any, depth int) {
	if depth > maxDepth || b.Len() > maxText {
		fail("%w: a value is too large to be written", ErrTooExpensive)
	}
	switch v := v.(type) {
	case nil:
		b.WriteString("None")
	case bool:
		b.WriteString(map[bool]string{true: "True", false: "False"}[v])
	case int64:
		b.WriteString(strconv.FormatInt(v, 10))
	case float64:
		b.WriteString(floatText(v))
	case string:
		b.WriteString(quote(v))
	case *List:
		if v.view == generator {
			fail("template: a generator cannot be written out")
		}
		if v.view != "" {
			b.WriteString(v.view + "(")
			repr(b, &List{Items: v.Items}, depth+1)
			b.WriteByte(')')
			return
		}
		brackets := "[]"
		if v.tuple {
			brackets = "()"
		}
		b.WriteByte(brackets[0])
		for i, x := range v.Items {
			if i > 0 {
				b.WriteString(", ")
			}
			repr(b, x, depth+1)
		}
		if v.tuple && len(v.Items) == 1 {
			b.WriteByte(',')
		}
		b.WriteByte(brackets[1])
	case *Dict:
		b.WriteByte('{')
		for i, key := range v.keys {
			if i > 0 {
				b.WriteString(", ")
			}
			repr(b, key, depth+1)
			b.WriteString(": ")
			value, _ := v.get(key)
			repr(b, value, depth+1)
		}
		b.WriteByte('}')
	case markup:
		b.WriteString("Markup(" + quote(string(v)) + ")")
	case undefined:
		b.WriteString("Undefined")
	default:
		fail("template: a %s cannot be written out", typeName(v))
	}
}

// floatText is Python's repr of a float: the shortest text that reads back.
func floatText(f float64) string {
	switch {
	case math.IsNaN(f):
		return "nan"
	case math.IsInf(f, 1):
		return "inf"
	case math.IsInf(f, -1):
		return "-inf"
	}
	s := strconv.FormatFloat(f, 'e', -1, 64)
	_, exponent, _ := strings.Cut(s, "e")
	if n, _ := strconv.Atoi(exponent); n < -4 || n >= 16 {
		return s
	}
	s = strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// quote is Python's repr of a string.
func quote(s string) string {
	mark := '\''
	if strings.Contains(s, "'") && !strings.Contains(s, `"`) {
		mark = '"'
	}
	var b strings.Builder
	b.WriteRune(mark)
	for _, r := range s {
		switch {
		case r == mark || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == ' ' || unicode.IsPrint(r):
			b.WriteRune(r)
		case r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
	}
	b.WriteRune(mark)
	return b.String()
}

// jsonStyle is how json.dumps is called by the tojson filter.
type jsonStyle struct {
	ascii     bool
	indent    string // per level; newline says whether there are lines
	newline   bool
	item, key string // separators
	sort      bool
	state     *state
}

// writeJSON is json.dumps.
func writeJSON(b *strings.Builder, v any, style *jsonStyle, depth int) {
	if depth > maxDepth || b.Len() > maxText {
		fail("%w: a value is too large for tojson", ErrTooExpensive)
	}
	switch v := v.(type) {
	case nil:
		b.WriteString("null")
	case bool:
		b.WriteString(strconv.FormatBool(v))
	case int64:
		b.WriteString(strconv.FormatInt(v, 10))
	case float64:
		b.WriteString(map[string]string{"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[floatText(v)])
		if !math.IsNaN(v) && !math.IsInf(v, 0) {
			b.WriteString(floatText(v))
		}
	case string:
		writeJSONString(b, v, style.ascii)
	case markup:
		writeJSONString(b, string(v), style.ascii)
	case *List:
		if v.view != "" {
			fail("template: a %s cannot be written as JSON", v.view)
		}
		writeJSONItems(b, "[]", len(v.Items), style, depth, func(i int) {
			writeJSON(b, v.Items[i], style, depth+1)
		})
	case *Dict:
		keys := slices.Clone(v.keys)
		if style.sort {
			slices.SortStableFunc(keys, func(x, y any) int {
				if style.state.less(x, y, "<", 0) {
					return -1
				}
				return int(asInt(style.state.less(y, x, "<", 0)))
			})
		}
		writeJSONItems(b, "{}", len(keys), style, depth, func(i int) {
			writeJSONKey(b, keys[i], style)
			b.WriteString(style.key)
			value, _ := v.get(keys[i])
			writeJSON(b, value, style, depth+1)
		})
	default:
		fail("template: a %s cannot be written as JSON", typeName(v))
	}
}

// writeJSONKey writes numbers and constants as strings.
func writeJSONKey(b *strings.Builder, key any, style *jsonStyle) {
	s, ok := key.(string)
	if !ok {
		var k strings.Builder
		writeJSON(&k, key, style, 0)
		s = k.String()
	}
	writeJSONString(b, s, style.ascii)
}

func writeJSONItems(b *strings.Builder, brackets string, n int, style *jsonStyle, depth int, write func(i int)) {
	line := func(level int) {
		if style.newline {
			b.WriteByte('\n')
			b.WriteString(strings.Repeat(style.indent, level))
		}
	}
	b.WriteByte(brackets[0])
	for i := range n {
		if i > 0 {
			b.WriteString(style.item)
		}
		line(depth + 1)
		write(i)
	}
	if n > 0 {
		line(depth)
	}
	b.WriteByte(brackets[1])
}

func writeJSONString(b *strings.Builder, s string, ascii bool) {
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\b':
			b.WriteString(`\b`)
		case r == '\f':
			b.WriteString(`\f`)
		case r < 0x20 || ascii && r >= 0x7F && r < 0x10000:
			fmt.Fprintf(b, `\u%04x`, r)
		case ascii && r >= 0x10000:
			r -= 0x10000
			fmt.Fprintf(b, `\u%04x\u%04x`, 0xD800+r>>10, 0xDC00+r&0x3FF)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
}

// Value makes a value of what Go programs have. json.RawMessage and structs keep
// the order of their fields; the keys of Go maps are sorted.
func Value(v any) (any, error) {
	switch v := v.(type) {
	case nil, bool, int64, float64, string, *List, *Dict:
		return v, nil
	case int:
		return int64(v), nil
	case int32:
		return int64(v), nil
	case float32:
		return float64(v), nil
	}
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return decodeJSON(data)
}
