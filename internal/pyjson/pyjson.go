// Package pyjson writes JSON byte for byte as Python's
// json.dumps(value, indent=2, sort_keys=True) does: what Hugging Face's
// libraries write their configurations with.
package pyjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Float is a number that Python would hold as a float: it is written with a dot
// or an exponent (0.0, 0.05, 1e-05), where a whole Go number looks like an int.
type Float float64

// MarshalJSON writes f as Python's repr does.
func (f Float) MarshalJSON() ([]byte, error) {
	v := float64(f)
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return nil, fmt.Errorf("pyjson: %v is not a JSON number", v)
	}
	return []byte(repr(v)), nil
}

// repr is Python's float.__repr__: the shortest digits that read back the same,
// in positional notation for exponents from -4 to 15.
func repr(v float64) string {
	digits := strconv.FormatFloat(v, 'e', -1, 64)
	exponent, _ := strconv.Atoi(digits[strings.IndexByte(digits, 'e')+1:])
	if v != 0 && (exponent < -4 || exponent >= 16) {
		return digits // Go's exponent has at least two digits and a sign, as Python's
	}
	s := strconv.FormatFloat(v, 'f', -1, 64)
	if !strings.ContainsRune(s, '.') {
		s += ".0"
	}
	return s
}

// Marshal writes the members of one object, sorted by key, with an indent of two
// blanks, all but ASCII escaped, and no newline at the end. Values are converted by
// encoding/json and then laid out as Python does; numbers keep the digits that
// encoding/json or a [json.RawMessage] gave them. Objects inside a value keep
// their order: encoding/json sorts maps, and raw messages and types with an order
// of their own may mean something by it.
func Marshal(members map[string]any) ([]byte, error) {
	keys := make([]string, 0, len(members))
	for k := range members {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	var w writer
	if len(keys) == 0 {
		return []byte("{}"), nil
	}
	w.open('{')
	for i, k := range keys {
		raw, err := json.Marshal(members[k])
		if err != nil {
			return nil, fmt.Errorf("pyjson: key %q: %w", k, err)
		}
		w.item(i)
		w.str(k)
		w.out.WriteString(": ")
		d := json.NewDecoder(bytes.NewReader(raw))
		d.UseNumber()
		if err := w.value(d); err != nil {
			return nil, fmt.Errorf("pyjson: key %q: %w", k, err)
		}
	}
	w.close('}')
	return w.out.Bytes(), nil
}

type writer struct {
	out   bytes.Buffer
	depth int
}

func (w *writer) open(b byte) {
	w.out.WriteByte(b)
	w.depth++
}

func (w *writer) close(b byte) {
	w.depth--
	w.newline()
	w.out.WriteByte(b)
}

func (w *writer) newline() {
	w.out.WriteByte('\n')
	for range w.depth {
		w.out.WriteString("  ")
	}
}

// item starts the i-th member of an object or array.
func (w *writer) item(i int) {
	if i > 0 {
		w.out.WriteByte(',')
	}
	w.newline()
}

// value copies the next value of d.
func (w *writer) value(d *json.Decoder) error {
	token, err := d.Token()
	if err != nil {
		return err
	}
	switch t := token.(type) {
	case json.Delim:
		return w.composite(d, t)
	case string:
		w.str(t)
	case json.Number:
		w.out.WriteString(t.String())
	case bool:
		w.out.WriteString(strconv.FormatBool(t))
	case nil:
		w.out.WriteString("null")
	}
	return nil
}

// composite copies the rest of an object or array whose first byte was read.
func (w *writer) composite(d *json.Decoder, open json.Delim) error {
	closing := byte('}')
	if open == '[' {
		closing = ']'
	}
	if !d.More() {
		w.out.WriteByte(byte(open))
		w.out.WriteByte(closing)
		_, err := d.Token()
		return err
	}
	w.open(byte(open))
	for i := 0; d.More(); i++ {
		w.item(i)
		if open == '{' {
			key, err := d.Token()
			if err != nil {
				return err
			}
			w.str(key.(string))
			w.out.WriteString(": ")
		}
		if err := w.value(d); err != nil {
			return err
		}
	}
	w.close(closing)
	_, err := d.Token()
	return err
}

// str writes a string as Python does with ensure_ascii: only ASCII, without the
// escapes of <, > and & that Go adds for HTML.
func (w *writer) str(s string) {
	w.out.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			w.out.WriteByte('\\')
			w.out.WriteRune(r)
		case r == '\n':
			w.out.WriteString(`\n`)
		case r == '\r':
			w.out.WriteString(`\r`)
		case r == '\t':
			w.out.WriteString(`\t`)
		case r == '\b':
			w.out.WriteString(`\b`)
		case r == '\f':
			w.out.WriteString(`\f`)
		case r < 0x20 || r >= 0x7f && r < 0x10000:
			fmt.Fprintf(&w.out, `\u%04x`, r)
		case r >= 0x10000:
			r -= 0x10000
			fmt.Fprintf(&w.out, `\u%04x\u%04x`, 0xd800+(r>>10), 0xdc00+(r&0x3ff))
		default:
			w.out.WriteByte(byte(r))
		}
	}
	w.out.WriteByte('"')
}

// Object is the members of a JSON object, unparsed.
type Object map[string]json.RawMessage

// maxDepth bounds nesting, far above any configuration; with the indent the text
// grows with its square.
const maxDepth = 200

// Parse reads one JSON object and nothing after it. Keys are exact; of a key that
// occurs twice the last value counts, as in Python.
func Parse(data []byte) (Object, error) {
	if depth(data) > maxDepth {
		return nil, fmt.Errorf("nested deeper than %d", maxDepth)
	}
	d := json.NewDecoder(bytes.NewReader(bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))))
	if !utf8.Valid(data) {
		return nil, errors.New("not valid UTF-8")
	}
	var o Object
	if err := d.Decode(&o); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("empty, want a JSON object")
		}
		return nil, err
	}
	if o == nil {
		return nil, errors.New("null, want a JSON object")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("more text after the object, at byte %d", d.InputOffset())
	}
	return o, nil
}

// depth returns how deep the brackets outside of strings are nested.
func depth(data []byte) int {
	deepest, now, inString := 0, 0, false
	for i := 0; i < len(data); i++ {
		switch b := data[i]; {
		case inString && b == '\\':
			i++
		case b == '"':
			inString = !inString
		case inString:
		case b == '[' || b == '{':
			now++
			deepest = max(deepest, now)
		case b == ']' || b == '}':
			now--
		}
	}
	return deepest
}

// Subset returns the object with the given keys alone, as JSON: encoding/json
// ignores case when it fills a struct, and a key that differs in case is another key.
func (o Object) Subset(keys func(string) bool) ([]byte, error) {
	part := Object{}
	for k, v := range o {
		if keys(k) {
			part[k] = v
		}
	}
	return json.Marshal(part)
}
