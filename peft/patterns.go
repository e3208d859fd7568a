package peft

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/gopeft/gopeft/internal/suggest"
)

// Pattern gives the modules that a regular expression fits their own value of an option.
type Pattern struct {
	// Pattern is a Python regular expression that must fit the end of a module's
	// path, at its start or after a dot: "q_proj", "layers\.[01]\..*", "^model.norm".
	Pattern string
	Value   float64
}

// Patterns is a list of patterns, the first that fits counts: peft's rank_pattern
// and alpha_pattern, whose order in JSON is kept. (peft sorts the keys when it
// saves; where two patterns fit one module, such a file may mean something else
// than what was trained. Ours keeps the order, which Python reads as it is.)
type Patterns []Pattern

// MarshalJSON writes an object in the order of the list.
func (p Patterns) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, one := range p {
		key, err := json.Marshal(one.Pattern)
		if err != nil {
			return nil, err
		}
		value, err := json.Marshal(one.Value)
		if err != nil {
			return nil, fmt.Errorf("pattern %q: %w", one.Pattern, err)
		}
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%s:%s", key, value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// UnmarshalJSON reads null or an object of numbers. Of a key that occurs twice the
// first place and the last value count, as in Python.
func (p *Patterns) UnmarshalJSON(data []byte) error {
	d := json.NewDecoder(bytes.NewReader(data))
	token, err := d.Token()
	if err != nil {
		return err
	}
	*p = nil
	if token == nil {
		return nil
	}
	if token != json.Delim('{') {
		return fmt.Errorf("want an object of numbers, got %s", data)
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return err
		}
		value, err := d.Token()
		if err != nil {
			return err
		}
		number, ok := value.(float64)
		if !ok {
			return fmt.Errorf("pattern %q: want a number, got %v", key, value)
		}
		one := Pattern{key.(string), number}
		if i := slices.IndexFunc(*p, func(q Pattern) bool { return q.Pattern == one.Pattern }); i >= 0 {
			(*p)[i] = one
		} else {
			*p = append(*p, one)
		}
	}
	_, err = d.Token()
	return err
}

// Match returns for each path the index of the first pattern that fits it, or -1.
func (p Patterns) Match(paths []string) ([]int, error) {
	index := make([]int, len(paths))
	for i := range index {
		index[i] = -1
	}
	for k, one := range p {
		// get_pattern_key in peft/utils/other.py
		re, err := compilePython(`\A(.*\.)?(%s)$`, one.Pattern)
		if err != nil {
			return nil, err
		}
		for i, path := range paths {
			if index[i] >= 0 {
				continue
			}
			ok, _, err := re.match(path)
			if err != nil {
				return nil, err
			}
			if ok {
				index[i] = k
			}
		}
	}
	return index, nil
}

// Values returns each path's value: that of the first pattern that fits, else
// fallback. option is the name of the list in messages. A pattern that decides
// nothing is an error, unless allowUnused.
func (p Patterns) Values(option string, paths []string, fallback float64, allowUnused bool) ([]float64, []PatternCount, error) {
	index, err := p.Match(paths)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", option, err)
	}
	values := make([]float64, len(paths))
	used := make([]int, len(p))
	for i, k := range index {
		values[i] = fallback
		if k >= 0 {
			values[i] = p[k].Value
			used[k]++
		}
	}
	var counts []PatternCount
	var unused []error
	for k, n := range used {
		counts = append(counts, PatternCount{Option: option, Pattern: p[k].Pattern, Modules: n})
		if n == 0 && !allowUnused {
			unused = append(unused, p.unused(option, k, paths))
		}
	}
	return values, counts, errors.Join(unused...)
}

// unused explains why the k-th pattern decides nothing.
func (p Patterns) unused(option string, k int, paths []string) error {
	if alone, err := p[k : k+1].Match(paths); err == nil && slices.Contains(alone, 0) {
		return fmt.Errorf("%s: %q never applies: an earlier pattern fits each of its modules", option, p[k].Pattern)
	}
	return fmt.Errorf("%s: %q matches none of the adapted modules%s", option, p[k].Pattern,
		suggest.DidYouMean(p[k].Pattern, suffixes(paths, p[k].Pattern)))
}

// Check reports the first value that is not finite or not valid; want says what is.
func (p Patterns) Check(option string, valid func(float64) bool, want string) error {
	for _, one := range p {
		if math.IsNaN(one.Value) || math.IsInf(one.Value, 0) || !valid(one.Value) {
			return fmt.Errorf("%s: %q is %v, want %s", option, one.Pattern, one.Value, want)
		}
	}
	return nil
}
