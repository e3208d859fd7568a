package rewrite

import (
	"fmt"
	"slices"
	"strings"

	"github.com/gopeft/gopeft/site"
)

// Modules names the uses of weights. It does not change once made.
type Modules struct {
	list []site.Module
	byID map[identity]site.Module
	// enclosed says in which operation's closure a module lies, by its path.
	enclosed map[string]string
}

// identity tells modules apart: uses of one weight in one way are one module, applied
// several times.
type identity struct {
	weight, bias string
	kind         site.Kind
	transposed   bool
}

func (u Use) identity() identity { return identity{u.Weight, u.Bias, u.Kind, u.Transposed} }

// NewModules makes modules of uses. A module's path is the scope of its weight, or the
// weight's own name where the scope has several weights; a module that uses another's
// weight in another way has the path of that one and its kind ("embedder.linear"). names
// gives modules other paths. vectors are the parameters that no use has, with their
// lengths, 0 for those that are no vectors: scales and offsets of norms are found among
// them. head is the path of the head, "" without.
func NewModules(uses []Use, vectors []Vector, names map[string]string, head string) (*Modules, error) {
	ms := &Modules{byID: map[identity]site.Module{}, enclosed: map[string]string{}}
	weights := map[string]map[string]bool{} // those of a scope
	for _, u := range uses {
		scope := scopeOf(u.Weight)
		if weights[scope] == nil {
			weights[scope] = map[string]bool{}
		}
		weights[scope][u.Weight] = true
	}
	owners := map[string]string{} // path of the first module of a weight
	taken := map[string]bool{}
	for _, u := range uses {
		if _, ok := ms.byID[u.identity()]; ok {
			continue
		}
		m := site.Module{Kind: u.Kind, In: u.In, Out: u.Out, Transposed: u.Transposed, Conv: u.Conv,
			Bias: u.Bias != "", WeightParameter: u.Weight, BiasParameter: u.Bias, TiedTo: owners[u.Weight]}
		m.Path = scopeOf(u.Weight)
		switch {
		case m.TiedTo != "":
			m.Path = free(m.TiedTo+"."+m.Kind.String(), taken)
		case m.Path == "" || len(weights[m.Path]) > 1:
			m.Path = u.Weight
		}
		if name, ok := names[m.Path]; ok {
			m.Path = name
		}
		if taken[m.Path] {
			return nil, fmt.Errorf("two modules have the path %q", m.Path)
		}
		taken[m.Path] = true
		if m.TiedTo == "" {
			owners[u.Weight] = m.Path
		}
		if u.Enclosed != "" {
			ms.enclosed[m.Path] = u.Enclosed
		}
		m.Head = m.Path == head
		ms.byID[u.identity()] = m
		ms.list = append(ms.list, m)
	}
	ms.addNorms(vectors, names, taken)
	return ms, ms.check(names, head)
}

// check refuses names for modules that there are not.
func (ms *Modules) check(names map[string]string, head string) error {
	has := func(path string) bool {
		return slices.ContainsFunc(ms.list, func(m site.Module) bool { return m.Path == path })
	}
	for from, to := range names {
		if !has(to) {
			return fmt.Errorf("no module %q to be named %q: the model has %s", from, to, strings.Join(ms.paths(), ", "))
		}
	}
	if head != "" && !has(head) {
		return fmt.Errorf("no module %q to be the head: the model has %s", head, strings.Join(ms.paths(), ", "))
	}
	return nil
}

func (ms *Modules) paths() []string {
	var paths []string
	for _, m := range ms.list {
		paths = append(paths, m.Path)
	}
	return paths
}

// Vector is a parameter that is no weight.
type Vector struct {
	Name string
	// Size is its length, 0 if it is no vector.
	Size int
}

// normScales and normOffsets are what GoMLX and others call the parameters of norms.
var (
	normScales  = []string{"gain", "scale", "gamma", "weight", "weights"}
	normOffsets = []string{"offset", "bias", "beta", "biases"}
)

// addNorms finds scopes with a vector that has the name of a norm's scale. They are
// modules whose parameters can be trained; no hook is asked for their outputs.
func (ms *Modules) addNorms(vectors []Vector, names map[string]string, taken map[string]bool) {
	offsets := map[string]Vector{}
	for _, v := range vectors {
		if slices.Contains(normOffsets, last(v.Name)) {
			offsets[scopeOf(v.Name)] = v
		}
	}
	for _, v := range vectors {
		path := scopeOf(v.Name)
		if name, ok := names[path]; ok {
			path = name
		}
		if v.Size == 0 || path == "" || taken[path] || !slices.Contains(normScales, last(v.Name)) {
			continue
		}
		taken[path] = true
		m := site.Module{Path: path, Kind: site.Norm, In: v.Size, Out: v.Size, WeightParameter: v.Name}
		if o := offsets[scopeOf(v.Name)]; o.Size == v.Size {
			m.Bias, m.BiasParameter = true, o.Name
		}
		ms.list = append(ms.list, m)
	}
}

// List returns the modules in the order of their first use, then the norms.
func (ms *Modules) List() []site.Module { return slices.Clone(ms.list) }

// Of returns the module of a use.
func (ms *Modules) Of(u Use) (site.Module, bool) {
	m, ok := ms.byID[u.identity()]
	return m, ok
}

// Enclosed names the operation in whose closure a module lies, "" if in none.
func (ms *Modules) Enclosed(path string) string { return ms.enclosed[path] }

func scopeOf(name string) string { return name[:max(0, strings.LastIndexByte(name, '.'))] }

func last(name string) string { return name[strings.LastIndexByte(name, '.')+1:] }

// free returns path, with a number behind it if it is taken.
func free(path string, taken map[string]bool) string {
	for n, out := 2, path; ; n++ {
		if !taken[out] {
			return out
		}
		out = fmt.Sprintf("%s%d", path, n)
	}
}
