package peft

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/dlclark/regexp2"
)

// maxPattern bounds the length of a regular expression, and patternBudget the time
// that one may take on all modules of a base: both come from files.
const (
	maxPattern    = 1 << 16
	patternBudget = 2 * time.Second
)

// pythonRegexp is a regular expression with the meaning that Python's re gives it,
// look-ahead included, on text without newlines.
type pythonRegexp struct {
	source string
	re     *regexp2.Regexp
	left   time.Duration
}

// compilePython compiles format with the pattern in place of %s: `\A(?:%s)\z` for a
// full match.
func compilePython(format, pattern string) (*pythonRegexp, error) {
	if len(pattern) > maxPattern {
		return nil, fmt.Errorf("regular expression of %d bytes, want at most %d", len(pattern), maxPattern)
	}
	translated := translatePython(pattern)
	// Alone first: a stray parenthesis must not pair with one of the format.
	if _, err := regexp2.Compile(translated, regexp2.None); err != nil {
		return nil, fmt.Errorf("regular expression %q: %w", pattern, err)
	}
	re, err := regexp2.Compile(strings.Replace(format, "%s", translated, 1), regexp2.None)
	if err != nil {
		return nil, fmt.Errorf("regular expression %q: %w", pattern, err)
	}
	return &pythonRegexp{source: pattern, re: re, left: patternBudget}, nil
}

// FullMatches reports which paths a Python regular expression matches as a whole, as
// re.fullmatch does.
func FullMatches(pattern string, paths []string) ([]bool, error) {
	re, err := compilePython(`\A(?:%s)\z`, pattern)
	if err != nil {
		return nil, err
	}
	matches := make([]bool, len(paths))
	for i, path := range paths {
		if matches[i], _, err = re.match(path); err != nil {
			return nil, err
		}
	}
	return matches, nil
}

var (
	upToRepeat   = regexp.MustCompile(`^\{,(\d+)\}`)
	pythonTokens = []struct{ python, net string }{{`(?P<`, `(?<`}, {`(?P=`, `\k<`}, {`\Z`, `\z`}}
)

// translatePython rewrites the few things that Python spells differently from the
// .NET dialect of regexp2: named groups, \Z and {,n}.
func translatePython(pattern string) string {
	var b strings.Builder
	inClass := false
scan:
	for i := 0; i < len(pattern); {
		rest := pattern[i:]
		if !inClass {
			for _, t := range pythonTokens {
				if !strings.HasPrefix(rest, t.python) {
					continue
				}
				b.WriteString(t.net)
				i += len(t.python)
				if t.python == `(?P=` {
					name, _, _ := strings.Cut(pattern[i:], ")")
					b.WriteString(name + ">")
					i = min(len(pattern), i+len(name)+1)
				}
				continue scan
			}
			if m := upToRepeat.FindStringSubmatch(rest); m != nil {
				b.WriteString("{0," + m[1] + "}")
				i += len(m[0])
				continue
			}
		}
		switch {
		case rest[0] == '\\' && len(rest) > 1:
			b.WriteString(rest[:2])
			i += 2
			continue
		case rest[0] == '[' && !inClass:
			inClass = true
			// A closing bracket that comes first is an ordinary character.
			for _, first := range []string{"[^]", "[]"} {
				if strings.HasPrefix(rest, first) {
					b.WriteString(first[:len(first)-1] + `\]`)
					i += len(first)
					continue scan
				}
			}
		case rest[0] == '[': // a set inside a set is .NET's, not Python's
			b.WriteByte('\\')
		case rest[0] == ']':
			inClass = false
		}
		b.WriteByte(rest[0])
		i++
	}
	return b.String()
}

// match returns whether the expression matches, and its first group.
func (p *pythonRegexp) match(text string) (ok bool, group string, err error) {
	p.re.MatchTimeout = max(p.left, time.Nanosecond)
	start := time.Now()
	m, err := p.re.FindStringMatch(text)
	p.left -= time.Since(start)
	if err != nil || p.left <= 0 {
		return false, "", fmt.Errorf("regular expression %q takes longer than %v", p.source, patternBudget)
	}
	if m == nil {
		return false, "", nil
	}
	if g := m.GroupByName("index"); g != nil {
		group = g.String()
	}
	return true, group, nil
}
