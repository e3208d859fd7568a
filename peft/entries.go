package peft

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/gopeft/gopeft/internal/suggest"
	"github.com/gopeft/gopeft/site"
)

// entries are the entries of one option, and how many modules each found and kept.
type entries struct {
	option string
	all    bool
	regex  *pythonRegexp
	names  []string
	index  map[string]int
	found  []int
	kept   []int
}

func compileEntries(option string, t Targets) (*entries, error) {
	e := &entries{option: option, all: t.all, index: map[string]int{}}
	switch {
	case t.all:
		e.names = []string{allLinear}
	case t.regex != "":
		re, err := compilePython(`\A(?:%s)\z`, t.regex)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", option, err)
		}
		e.regex, e.names = re, []string{t.regex}
	default:
		for _, name := range t.names {
			if _, ok := e.index[name]; !ok {
				e.index[name] = len(e.names)
				e.names = append(e.names, name)
			}
		}
	}
	e.found, e.kept = make([]int, len(e.names)), make([]int, len(e.names))
	return e, nil
}

// match returns the entries that match a module, and whether one is its whole path.
func (e *entries) match(m site.Module) (hit []int, whole bool, err error) {
	switch {
	case e.all:
		if m.Kind == site.Linear && !m.Head {
			hit = []int{0}
		}
	case e.regex != nil:
		ok, _, err := e.regex.match(m.Path)
		if err != nil {
			return nil, false, fmt.Errorf("%s: %w", e.option, err)
		}
		if ok {
			hit = []int{0}
		}
	default:
		for suffix, more := m.Path, true; more; _, suffix, more = strings.Cut(suffix, ".") {
			if i, ok := e.index[suffix]; ok {
				hit = append(hit, i)
				whole = whole || suffix == m.Path
			}
		}
	}
	for _, i := range hit {
		e.found[i]++
	}
	return hit, whole, nil
}

func (e *entries) counts() []PatternCount {
	var counts []PatternCount
	for i, name := range e.names {
		counts = append(counts, PatternCount{e.option, name, e.kept[i]})
	}
	return counts
}

// describe names the i-th entry in a message.
func (e *entries) describe(i int) string {
	what := "target module"
	if e.option == "exclude_modules" {
		what = "excluded module"
	}
	if e.regex != nil {
		what += " pattern"
	}
	return fmt.Sprintf("%s %q", what, e.names[i])
}

// unknown is the error for the i-th entry when it matches nothing.
func (e *entries) unknown(i int, paths []string) error {
	name := e.names[i]
	if e.regex != nil {
		example := ""
		if len(paths) > 0 {
			example = fmt.Sprintf(`; it must match a whole path such as %q`, paths[len(paths)/2])
		}
		return fmt.Errorf("%s matches nothing%s", e.describe(i), example)
	}
	for _, path := range paths {
		if inside := strings.Index("."+path, "."+name+"."); inside >= 0 && name != "" {
			return fmt.Errorf("%s is no layer itself: it holds %q and others", e.describe(i), path)
		}
	}
	hint := suggest.DidYouMean(name, suffixes(paths, name))
	if hint == "" {
		hint = "; the base has " + someNames(paths)
	}
	return fmt.Errorf("%s matches nothing%s", e.describe(i), hint)
}

// suffixes returns the ends of paths with as many parts as name has.
func suffixes(paths []string, name string) []string {
	n := strings.Count(name, ".") + 1
	ends := make([]string, 0, len(paths))
	for _, path := range paths {
		parts := strings.Split(path, ".")
		ends = append(ends, strings.Join(parts[max(0, len(parts)-n):], "."))
	}
	return ends
}

// someNames lists the distinct last parts of paths, at most a dozen.
func someNames(paths []string) string {
	var names []string
	for _, path := range paths {
		if last := path[strings.LastIndexByte(path, '.')+1:]; !slices.Contains(names, last) {
			names = append(names, last)
		}
	}
	if len(names) == 0 {
		return "no modules"
	}
	if len(names) > 12 {
		names = append(names[:12], "...")
	}
	return strings.Join(names, ", ")
}

// Exactly targets the selected modules of the base and no others, if it can by names that are
// short, see [Shorten]. Where a path ends that of a module that is not selected names would
// match both: then it is a regular expression of all paths.
func Exactly(selected, all []site.Module) Targets {
	names, others := Shorten(selected, all), otherEnds(selected, all)
	if !slices.ContainsFunc(names, func(name string) bool { return others[name] }) {
		return Modules(names...)
	}
	paths := make([]string, len(selected))
	for i, m := range selected {
		paths[i] = regexp.QuoteMeta(m.Path)
	}
	return Regex(strings.Join(paths, "|"))
}

// Shorten replaces a list of at least twenty whole paths by the shortest ends that
// select the same modules of the base, as peft does before it saves (its
// _find_minimal_target_modules). A path all of whose ends are those of others too stays.
func Shorten(selected, all []site.Module) []string {
	var paths []string
	for _, m := range selected {
		paths = append(paths, m.Path)
	}
	if len(paths) < 20 {
		return paths
	}
	others := otherEnds(selected, all)
	var short []string
	have := map[string]bool{}
	for _, path := range paths {
		e := ends(path)
		if slices.ContainsFunc(e, func(end string) bool { return have[end] }) {
			continue
		}
		for _, end := range e {
			if !others[end] || end == path {
				short, have[end] = append(short, end), true
				break
			}
		}
	}
	return short
}

// otherEnds are the ends of the paths of modules that are not selected.
func otherEnds(selected, all []site.Module) map[string]bool {
	taken := map[string]bool{}
	for _, m := range selected {
		taken[m.Path] = true
	}
	others := map[string]bool{}
	for _, m := range all {
		if !taken[m.Path] {
			for _, end := range ends(m.Path) {
				others[end] = true
			}
		}
	}
	return others
}

// ends returns the ends of a path at its dots, shortest first.
func ends(path string) []string {
	var out []string
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '.' {
			out = append(out, path[i+1:])
		}
	}
	return append(out, path)
}
