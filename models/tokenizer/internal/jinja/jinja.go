// Package jinja renders the Jinja templates of chat models as transformers does:
// Jinja 3.1 with trim_blocks, lstrip_blocks, loop controls, the immutable sandbox
// and no automatic escaping.
//
// It is a subset: no inheritance, no includes, no recursive loops, no line
// statements. Anything it does not know is an error, when the template is parsed
// where possible. Rendering is bounded in time, memory and depth, so that a
// template from an unknown place can at worst fail.
package jinja

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
)

// Limits of one rendering. A chat of a thousand turns stays far below them.
const (
	maxSteps = 5_000_000 // evaluated nodes, plus one for 16 bytes of text made
	maxText  = 16 << 20  // bytes of one string
	maxDepth = 200       // nested expressions, blocks or macro calls
	maxRange = 100_000   // as in Jinja's sandbox
)

// ErrTooExpensive is wrapped by the errors of templates that exceed a limit.
var ErrTooExpensive = errors.New("the template takes too much time or memory")

// Template is a parsed template. It does not change and may be rendered
// concurrently.
type Template struct{ body []stmt }

// Parse reads a template.
func Parse(source string) (t *Template, err error) {
	defer catch(&err)
	p := &parser{tokens: lex(source)}
	return &Template{body: p.document()}, nil
}

// Render runs the template with variables, whose values must come from [Value],
// and the functions raise_exception, range, namespace and dict, besides globals.
func (t *Template) Render(variables map[string]any, globals map[string]Function) (text string, err error) {
	defer catch(&err)
	s := &state{out: &strings.Builder{}, globals: builtins()}
	for name, f := range globals {
		s.globals[name] = &function{name, f}
	}
	for name, v := range variables {
		s.globals[name] = v
	}
	top := &frame{vars: map[string]any{}}
	s.exec(t.body, top)
	return s.out.String(), nil
}

// Function is a function that a template can call with positional arguments.
type Function func(args []any) (any, error)

// failure carries an error up to Parse or Render.
type failure struct{ err error }

func fail(format string, args ...any) {
	panic(failure{fmt.Errorf(format, args...)})
}

// catch turns a panic into an error. A runtime error would be a mistake in this
// package; the caller's program must survive it all the same.
func catch(err *error) {
	switch r := recover().(type) {
	case nil:
	case failure:
		*err = r.err
	case runtime.Error:
		*err = fmt.Errorf("template: internal error: %w", r)
	default:
		panic(r)
	}
}
