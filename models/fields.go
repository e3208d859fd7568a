package models

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// fields reads the members of one JSON object by name and type and collects
// what is wrong with them. A member that is null counts as absent.
type fields struct {
	where  string // "config.json" or "config.json: rope_scaling"
	values map[string]json.RawMessage
	errs   *[]error
}

func newFields(data []byte) (*fields, error) {
	f := &fields{where: "config.json", errs: new([]error)}
	if err := json.Unmarshal(data, &f.values); err != nil {
		return nil, fmt.Errorf("models: config.json: not a JSON object: %w", err)
	}
	if f.values == nil {
		return nil, errors.New("models: config.json: wanted a JSON object, got null")
	}
	return f, nil
}

// err returns everything that was found wrong so far, or nil.
func (f *fields) err() error { return errors.Join(*f.errs...) }

func (f *fields) fail(format string, args ...any) {
	*f.errs = append(*f.errs, fmt.Errorf("models: "+f.where+": "+format, args...))
}

func (f *fields) has(name string) bool {
	v, ok := f.values[name]
	return ok && !bytes.Equal(bytes.TrimSpace(v), []byte("null"))
}

// get decodes a member that is present into out and reports whether it did.
func (f *fields) get(name, wanted string, out any) bool {
	if !f.has(name) {
		return false
	}
	if err := json.Unmarshal(f.values[name], out); err != nil {
		f.fail("%s: wanted %s, got %s", name, wanted, short(f.values[name]))
		return false
	}
	return true
}

// require reports a missing member.
func (f *fields) require(name, wanted string) bool {
	if !f.has(name) {
		f.fail("%s is missing: wanted %s", name, wanted)
		return false
	}
	return true
}

// text is a required string.
func (f *fields) text(name string) (s string) {
	if f.require(name, "a string") {
		f.get(name, "a string", &s)
	}
	return s
}

// textOr is a string with a default.
func (f *fields) textOr(name, otherwise string) string {
	s := otherwise
	f.get(name, "a string", &s)
	return s
}

// size is a required positive integer.
func (f *fields) size(name string) int {
	if !f.require(name, "a positive integer") {
		return 1
	}
	return f.sizeOr(name, 1)
}

// sizeUpTo is a required positive integer with a limit, for what memory is made of
// before any weight has been seen.
func (f *fields) sizeUpTo(name string, limit int) int {
	n := f.size(name)
	if n > limit {
		f.fail("%s: wanted at most %d, got %d", name, limit, n)
		return 1
	}
	return n
}

// sizeOr is a positive integer with a default.
func (f *fields) sizeOr(name string, otherwise int) int {
	n, ok := f.integer(name, "a positive integer")
	if !ok {
		return otherwise
	}
	if n <= 0 || n > math.MaxInt32 {
		f.fail("%s: wanted a positive integer, got %d", name, n)
		return otherwise
	}
	return n
}

// integer accepts 8 and 8.0, as JSON written by other programs has both.
func (f *fields) integer(name, wanted string) (int, bool) {
	var x float64
	if !f.get(name, wanted, &x) {
		return 0, false
	}
	if x != math.Trunc(x) || math.Abs(x) > 1<<52 {
		f.fail("%s: wanted %s, got %s", name, wanted, short(f.values[name]))
		return 0, false
	}
	return int(x), true
}

// number is a required positive number.
func (f *fields) number(name string) float64 {
	if !f.require(name, "a positive number") {
		return 1
	}
	return f.numberOr(name, 1)
}

// numberOr is a positive number with a default.
func (f *fields) numberOr(name string, otherwise float64) float64 {
	x := otherwise
	if f.get(name, "a positive number", &x) && x <= 0 {
		f.fail("%s: wanted a positive number, got %g", name, x)
		return otherwise
	}
	return x
}

// numberUnlessNull is a positive number; null does not mean the default but 0.
func (f *fields) numberUnlessNull(name string, otherwise float64) float64 {
	if _, present := f.values[name]; present {
		otherwise = 0
	}
	return f.numberOr(name, otherwise)
}

// numbers is a required list of n positive numbers.
func (f *fields) numbers(name string, n int) []float64 {
	wanted := fmt.Sprintf("a list of %d positive numbers", n)
	var list []float64
	if !f.require(name, wanted) || !f.get(name, wanted, &list) {
		return nil
	}
	if len(list) != n {
		f.fail("%s: wanted %s, got %d", name, wanted, len(list))
		return nil
	}
	for i, x := range list {
		if x <= 0 {
			f.fail("%s[%d]: wanted a positive number, got %g", name, i, x)
			return nil
		}
	}
	return list
}

// flag is a boolean with a default.
func (f *fields) flag(name string, otherwise bool) bool {
	b := otherwise
	f.get(name, "true or false", &b)
	return b
}

// object is a member that is itself an object; nil when absent.
func (f *fields) object(name string) *fields {
	inner := &fields{where: f.where + ": " + name, errs: f.errs}
	if !f.get(name, "an object", &inner.values) {
		return nil
	}
	return inner
}

// tokenID is an optional token id; -1 when absent.
func (f *fields) tokenID(name string) int {
	id, ok := f.integer(name, "a token id")
	if !ok {
		return -1
	}
	return id
}

// tokenIDs is an optional token id or list of them.
func (f *fields) tokenIDs(name string) []int {
	if !f.has(name) {
		return nil
	}
	if strings.HasPrefix(strings.TrimSpace(string(f.values[name])), "[") {
		var ids []int
		f.get(name, "a token id or a list of them", &ids)
		return ids
	}
	if id, ok := f.integer(name, "a token id or a list of them"); ok {
		return []int{id}
	}
	return nil
}

// short is a JSON value for an error message.
func short(v json.RawMessage) string {
	s := string(bytes.TrimSpace(v))
	if len(s) > 60 {
		s = s[:57] + "..."
	}
	return s
}

// integerOr is an integer of either sign with a default.
func (f *fields) integerOr(name string, otherwise int) int {
	if n, ok := f.integer(name, "an integer"); ok {
		return n
	}
	return otherwise
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
