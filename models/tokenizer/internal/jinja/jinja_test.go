package jinja

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// TestLimits: a template that would run for ever, or fill the memory, fails soon.
func TestLimits(t *testing.T) {
	nested := strings.Repeat("(", 5000) + "1" + strings.Repeat(")", 5000)
	for name, source := range map[string]string{
		"recursion":         "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
		"mutual recursion":  "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
		"loops":             "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
		"range":             "{{ range(10 ** 12)|length }}",
		"doubling":          "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s|length }}",
		"doubling with ~":   "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
		"doubling lists":    "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
		"repetition":        "{{ 'abc' * 10 ** 12 }}",
		"list repetition":   "{{ ([1] * 10 ** 12)|length }}",
		"replacement":       "{% set s = 'a' * 1000000 %}{{ s.replace('a', s)|length }}",
		"empty replacement": "{% set s = 'a' * 1000000 %}{{ s|replace('', s) }}",
		"join":              "{% set s = 'a' * 1000000 %}{{ (s * 2).join(range(9999)|map('string')) }}",
		"indent":            "{{ ('\n' * 100000)|indent(100000, blank=true) }}",
		"padding":           "{{ 'a'.ljust(10 ** 12) }}",
		"format":            "{{ '%999999999d' % 1 }}",
		"output":            "{% set s = 'a' * 1000000 %}{% for i in range(9999) %}{{ s }}{% endfor %}",
		"nested value":      "{% set n = namespace(l=[]) %}{% for i in range(99999) %}{% set n.l = [n.l] %}{% endfor %}{{ n.l }}",
		"nested JSON":       "{% set n = namespace(l=[]) %}{% for i in range(99999) %}{% set n.l = {'a': n.l} %}{% endfor %}{{ n.l|tojson }}",
		"wide value":        "{% set n = namespace(l=['abc']) %}{% for i in range(60) %}{% set n.l = [n.l, n.l] %}{% endfor %}{{ n.l }}",
		"wide equality":     "{% set n = namespace(l=['abc'], m=['abc']) %}{% for i in range(60) %}{% set n.l = [n.l, n.l] %}{% set n.m = [n.m, n.m] %}{% endfor %}{{ n.l == n.m }}",
		"deep source":       "{{ " + nested + " }}",
		"deep blocks":       strings.Repeat("{% if 1 %}", 5000) + strings.Repeat("{% endif %}", 5000),
		"deep not":          "{{ " + strings.Repeat("not ", 100000) + "1 }}",
		"deep minus":        "{{ " + strings.Repeat("-", 100000) + "1 }}",
		"long chain":        "{{ 1" + strings.Repeat("|string", 100000) + " }}",
		"long sum":          "{{ 1" + strings.Repeat("+1", 100000) + " }}",
		"long attributes":   "{{ a" + strings.Repeat(".a", 100000) + " }}",
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			tmpl, err := Parse(source)
			if err == nil {
				_, err = tmpl.Render(nil, nil)
			}
			if err == nil {
				t.Error("no error")
			}
			if d := time.Since(start); d > 20*time.Second {
				t.Errorf("it took %v", d)
			}
		})
	}
}

// TestExpensive: exceeding a limit can be told from other errors.
func TestExpensive(t *testing.T) {
	tmpl, err := Parse("{{ 'abc' * 10 ** 12 }}")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tmpl.Render(nil, nil); !errors.Is(err, ErrTooExpensive) {
		t.Errorf("error %v, wanted ErrTooExpensive", err)
	}
}

// TestErrors: messages name the place or the thing.
func TestErrors(t *testing.T) {
	for source, want := range map[string]string{
		"a\nb{{ 1 + }}":                 "line 2",
		"{{ x.y.z }}":                   "'y' of a dict",
		"{{ missing.y }}":               "'missing'",
		"{{ x|nosuch }}":                `filter "nosuch"`,
		"{{ x is nosuch }}":             `test "nosuch"`,
		"{% nosuch %}":                  "nosuch",
		"{{ 'a' + 1 }}":                 "str and int",
		"{{ fail('because') }}":         "because",
		"{% for m in [1] %}{{ m.x.y }}": "endfor",
		"{% macro m(a) %}{% endmacro %}{{ m(b=1) }}": "no parameter b",
	} {
		tmpl, err := Parse(source)
		if err == nil {
			_, err = tmpl.Render(map[string]any{"x": NewDict()}, map[string]Function{
				"fail": func(args []any) (any, error) { return nil, errors.New(args[0].(string)) },
			})
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, wanted %q in it", source, err, want)
		}
	}
}

// FuzzRender: no template panics, and each ends.
func FuzzRender(f *testing.F) {
	for _, s := range []string{
		"{{ a }}", "{% for x in l if x %}{{ loop.index }}{% else %}-{% endfor %}", "{%- set ns = namespace(a=1) -%}{{ ns.a }}",
		"{% macro m(a, b=2) %}{{ a }}{{ caller() }}{% endmacro %}{% call(x) m(1) %}y{% endcall %}", "{{ l[::-1]|map('upper')|join(',')|tojson(indent=2) }}",
		"{% raw %}{{ }}{% endraw %}{# c #}", "{{ 'a\\x41\\u00e9' ~ -1 // 2 ** 3 is odd }}", "{% if not (a in l and b is defined) %}{% break %}{% endif %}",
		"{{ m[0]['role'].split('x', 1)[-1].strip('\\n') }}", "{% filter upper %}{% with a = 1 %}{{ a }}{% endwith %}{% endfilter %}", "{{ '%5.1f%%' % 2.25 }}",
	} {
		f.Add(s)
	}
	message := NewDict()
	message.Set("role", "user")
	variables := map[string]any{"a": "text", "l": &List{Items: []any{int64(1), "b", nil, 2.5}}, "m": &List{Items: []any{message}}}
	f.Fuzz(func(t *testing.T, source string) {
		tmpl, err := Parse(source)
		if err != nil {
			return
		}
		if _, err := tmpl.Render(variables, nil); err != nil && strings.Contains(err.Error(), "internal error") {
			t.Fatal(err)
		}
	})
}

// TestValue: order and types of what Go programs pass in.
func TestValue(t *testing.T) {
	type tool struct {
		Name string         `json:"name"`
		Args map[string]int `json:"args"`
		Skip *int           `json:"skip,omitempty"`
	}
	v, err := Value([]any{tool{Name: "é<", Args: map[string]int{"b": 1, "a": 2}}, 1, int32(2), float32(0.5), uint8(3), nil, true})
	if err != nil {
		t.Fatal(err)
	}
	tmpl, err := Parse("{{ v|tojson }}")
	if err != nil {
		t.Fatal(err)
	}
	got, err := tmpl.Render(map[string]any{"v": v}, nil)
	want := `[{"name": "é<", "args": {"a": 2, "b": 1}}, 1, 2, 0.5, 3, null, true]`
	if err != nil || got != want {
		t.Errorf("got %s, %v, wanted %s", got, err, want)
	}
	if _, err := Value(make(chan int)); err == nil {
		t.Error("no error for a channel")
	}
}
