package peft

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Targets names modules of a base, in one of three ways; the zero value leaves the
// choice to the method. In JSON it is null, a list or a string, as in peft.
type Targets struct {
	names []string // not nil for a list, which may be empty
	regex string
	all   bool
}

// allLinear is how peft spells AllLinear, in any case.
const allLinear = "all-linear"

// AllLinear is every linear layer but the head.
var AllLinear = Targets{all: true}

// Modules targets every module whose path is one of names or ends in "." and one of
// them: "q_proj", "mlp.up_proj" or "model.layers.0.self_attn.q_proj".
func Modules(names ...string) Targets {
	return Targets{names: append([]string{}, names...)}
}

// Regex targets every module whose whole path a Python regular expression matches.
// The text "all-linear" is [AllLinear], as in peft's files.
func Regex(pattern string) Targets {
	if strings.EqualFold(pattern, allLinear) {
		return AllLinear
	}
	return Targets{regex: pattern}
}

// IsZero reports whether t leaves the choice to the method.
func (t Targets) IsZero() bool { return t.names == nil && t.regex == "" && !t.all }

// Names returns the names of a list, nil for the other kinds.
func (t Targets) Names() []string { return slices.Clone(t.names) }

// Pattern returns the regular expression, "" for the other kinds.
func (t Targets) Pattern() string { return t.regex }

// IsAllLinear reports whether t is [AllLinear].
func (t Targets) IsAllLinear() bool { return t.all }

// isText reports whether the JSON form is a string.
func (t Targets) isText() bool { return t.all || t.regex != "" }

// String returns the JSON form.
func (t Targets) String() string {
	text, _ := t.MarshalJSON() // strings and lists of strings always marshal
	return string(text)
}

// MarshalJSON writes null, a sorted list, or a string. (peft keeps a set, whose
// order in the file is random.)
func (t Targets) MarshalJSON() ([]byte, error) {
	switch {
	case t.all:
		return json.Marshal(allLinear)
	case t.regex != "":
		return json.Marshal(t.regex)
	case t.names != nil:
		names := slices.Clone(t.names)
		slices.Sort(names)
		return json.Marshal(slices.Compact(names))
	}
	return []byte("null"), nil
}

// UnmarshalJSON reads null, a list of strings or a string.
func (t *Targets) UnmarshalJSON(data []byte) error {
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		return err
	}
	switch v := v.(type) {
	case nil:
		*t = Targets{}
		return nil
	case string:
		*t = Regex(v)
		return nil
	case []any:
		var names []string
		if err := json.Unmarshal(data, &names); err == nil {
			*t = Modules(names...)
			return nil
		}
	}
	return fmt.Errorf("want a list of module names, a regular expression or null, got %s", data)
}

// Layers are indices of layers. In JSON a single index may stand for a list of one.
type Layers []int

// UnmarshalJSON reads null, an int or a list of ints.
func (l *Layers) UnmarshalJSON(data []byte) error {
	var one int
	if err := json.Unmarshal(data, &one); err == nil && string(data) != "null" {
		*l = Layers{one}
		return nil
	}
	return json.Unmarshal(data, (*[]int)(l))
}

// Strings is a list of strings. In JSON a single string may stand for a list of one.
type Strings []string

// UnmarshalJSON reads null, a string or a list of strings.
func (s *Strings) UnmarshalJSON(data []byte) error {
	var one string
	if err := json.Unmarshal(data, &one); err == nil && string(data) != "null" {
		*s = Strings{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(s))
}
