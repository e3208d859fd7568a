package jinja

import (
	"math"
	"math/bits"
	"strings"
)

// arithmetic is Python's + - * / // % ** on values.
func (s *state) arithmetic(op string, a, b any) any {
	ai, af, aFloat, aNumber := number(a)
	bi, bf, bFloat, bNumber := number(b)
	switch {
	case aNumber && bNumber && (aFloat || bFloat || op == "/"):
		return floatArithmetic(op, af, bf)
	case aNumber && bNumber:
		return intArithmetic(op, ai, bi)
	case op == "+":
		if v := s.add(a, b); v != nil {
			return v
		}
	case op == "*" && bNumber && !bFloat:
		if v := s.repeat(a, bi); v != nil {
			return v
		}
	case op == "*" && aNumber && !aFloat:
		if v := s.repeat(b, ai); v != nil {
			return v
		}
	case op == "%":
		if format, ok := a.(string); ok {
			args := []any{b}
			if l, ok := b.(*List); ok && l.tuple {
				args = l.Items
			}
			return s.format(format, args)
		}
	}
	for _, v := range []any{a, b} {
		if u, ok := v.(undefined); ok {
			fail("template: %s is undefined", u.what)
		}
	}
	fail("template: unsupported operand types for %s: %s and %s", op, typeName(a), typeName(b))
	return nil
}

func floatArithmetic(op string, a, b float64) any {
	if b == 0 && (op == "/" || op == "//" || op == "%") {
		fail("template: division by zero")
	}
	switch op {
	case "+":
		return a + b
	case "-":
		return a - b
	case "*":
		return a * b
	case "/":
		return a / b
	case "//":
		return math.Floor(a / b)
	case "%":
		r := math.Mod(a, b)
		if r != 0 && (r < 0) != (b < 0) {
			r += b
		}
		return r
	}
	return math.Pow(a, b)
}

// intArithmetic fails where Python's unbounded integers would leave 64 bits.
func intArithmetic(op string, a, b int64) any {
	overflow := func(bad bool) {
		if bad {
			fail("template: %d %s %d does not fit into 64 bits", a, op, b)
		}
	}
	switch op {
	case "+":
		overflow((a+b < a) != (b < 0))
		return a + b
	case "-":
		overflow((a-b > a) != (b < 0))
		return a - b
	case "*":
		return multiply(a, b)
	case "**":
		if b < 0 {
			return math.Pow(float64(a), float64(b))
		}
		overflow(b > 64 && a != 0 && a != 1 && a != -1)
		result := int64(1)
		if b > 64 { // 0, 1 or -1
			b = 2 - b%2
		}
		for range b {
			result = multiply(result, a)
		}
		return result
	}
	if b == 0 {
		fail("template: division by zero")
	}
	overflow(a == math.MinInt64 && b == -1)
	quotient, rest := a/b, a%b
	if rest != 0 && (rest < 0) != (b < 0) {
		quotient, rest = quotient-1, rest+b
	}
	if op == "//" {
		return quotient
	}
	return rest
}

func multiply(a, b int64) int64 {
	abs := func(x int64) uint64 {
		if x < 0 {
			return -uint64(x)
		}
		return uint64(x)
	}
	hi, lo := bits.Mul64(abs(a), abs(b))
	if hi != 0 || lo > math.MaxInt64 {
		fail("template: %d * %d does not fit into 64 bits", a, b)
	}
	return a * b
}

// add joins texts and lists; nil if it cannot.
func (s *state) add(a, b any) any {
	switch x := a.(type) {
	case string, markup:
		if isText(b) {
			return s.joinTexts(x, b)
		}
	case *List:
		if y, ok := b.(*List); ok && x.tuple == y.tuple && x.view == "" && y.view == "" {
			s.spend(len(x.Items) + len(y.Items))
			items := append(append(make([]any, 0, len(x.Items)+len(y.Items)), x.Items...), y.Items...)
			return &List{Items: items, tuple: x.tuple}
		}
	}
	return nil
}

func isText(v any) bool {
	switch v.(type) {
	case string, markup:
		return true
	}
	return false
}

// joinTexts is the sum of two texts. If one is markup, the result is too, and
// what is not is escaped.
func (s *state) joinTexts(a, b any) any {
	_, aMarkup := a.(markup)
	_, bMarkup := b.(markup)
	if !aMarkup && !bMarkup {
		return s.concat(text(a), text(b))
	}
	return markup(s.concat(string(escaped(a)), string(escaped(b))))
}

// concat joins texts within the limits.
func (s *state) concat(a, b string) string {
	s.spendText(len(a) + len(b))
	return a + b
}

// repeat is text * n or list * n; nil if it cannot.
func (s *state) repeat(v any, n int64) any {
	n = max(n, 0)
	size := func(length int) int {
		if length > 0 && n > int64(maxText/length) {
			fail("%w: a repetition is too long", ErrTooExpensive)
		}
		return length * int(n)
	}
	switch v := v.(type) {
	case string:
		s.spendText(size(len(v)))
		if v == "" {
			return ""
		}
		return strings.Repeat(v, int(n))
	case *List:
		s.spend(size(len(v.Items)))
		l := &List{tuple: v.tuple}
		if len(v.Items) == 0 {
			return l
		}
		for range n {
			l.Items = append(l.Items, v.Items...)
		}
		return l
	}
	return nil
}

// comparison is one link of a chain of comparisons.
func (s *state) comparison(op string, a, b any) bool {
	for _, v := range []any{a, b} {
		if u, ok := v.(undefined); ok && op[0] != '=' && op[0] != '!' && op != "in" && op != "not in" {
			fail("template: %s is undefined", u.what)
		}
	}
	a, b = plain(a), plain(b)
	switch op {
	case "==":
		return s.equal(a, b, 0)
	case "!=":
		return !s.equal(a, b, 0)
	case "<":
		return s.less(a, b, op, 0)
	case ">":
		return s.less(b, a, op, 0)
	case "<=":
		return !s.less(b, a, op, 0)
	case ">=":
		return !s.less(a, b, op, 0)
	case "in":
		return s.contains(b, a)
	}
	return !s.contains(b, a)
}

// contains is "x in container".
func (s *state) contains(container, x any) bool {
	switch c := container.(type) {
	case string:
		part, ok := x.(string)
		if !ok {
			fail("template: \"in\" wants a str on the left of a str, not a %s", typeName(x))
		}
		s.spendOn(c)
		return strings.Contains(c, part)
	case *Dict:
		s.spendOn(x)
		_, ok := c.get(x)
		return ok
	}
	items := s.iterate(container)
	s.spend(len(items))
	for i, item := range items {
		if s.equal(item, x, 0) {
			if l, ok := container.(*List); ok && l.view == generator {
				l.Items = items[i+1:] // it was looked through this far
			}
			return true
		}
	}
	return false
}
