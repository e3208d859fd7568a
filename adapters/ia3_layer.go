package adapters

import (
	"fmt"
	"math/rand/v2"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// ia3 is an IA3Config planned on a base: all of the adapter but the feed-forward modules'
// effect, which is that of ia3Inputs. Merging changes inputs and outputs at different times,
// and so asks for two parts.
type ia3 struct {
	config   IA3Config
	targets  []site.Module
	forward  []bool              // of each target
	layers   map[string]ia3Layer // by path
	byName   map[string]ia3Layer // by the parameters that merging changes
	patterns []peft.PatternCount
}

var (
	_ peft.OutputAdapter = (*ia3)(nil)
	_ peft.Merger        = (*ia3)(nil)
	_ peft.Describer     = (*ia3)(nil)
	_ peft.Configured    = (*ia3)(nil)
)

// ia3Inputs scales the inputs of the feed-forward modules.
type ia3Inputs struct {
	all     *ia3
	targets []site.Module
}

var (
	_ peft.InputAdapter = ia3Inputs{}
	_ peft.Merger       = ia3Inputs{}
)

// ia3Layer is a vector of one module.
type ia3Layer struct {
	site.Module
	forward bool
}

func newIA3(c IA3Config, targets []site.Module, forward []bool, patterns []peft.PatternCount) *ia3 {
	a := &ia3{config: c, targets: targets, forward: forward, patterns: patterns, layers: map[string]ia3Layer{}, byName: map[string]ia3Layer{}}
	for i, m := range targets {
		l := ia3Layer{m, forward[i]}
		a.layers[m.Path], a.byName[peft.OwnWeight(m)] = l, l
		if m.Bias && !l.forward {
			a.byName[m.BiasName()] = l
		}
	}
	return a
}

// parts are what the adapter is composed of.
func (a *ia3) parts() []peft.Adapter {
	var inputs []site.Module
	for i, m := range a.targets {
		if a.forward[i] {
			inputs = append(inputs, m)
		}
	}
	if len(inputs) == 0 {
		return []peft.Adapter{a}
	}
	return []peft.Adapter{a, ia3Inputs{a, inputs}}
}

// Params implements [peft.Adapter].
func (a *ia3) Params() []peft.Param {
	var params []peft.Param
	for _, m := range a.targets {
		l := a.layers[m.Path]
		params = append(params, peft.Param{Name: l.name(), Shape: l.shape(), Init: a.config.fill})
	}
	return params
}

// Targets implements [peft.Adapter].
func (a *ia3) Targets() []site.Module { return a.targets }

// Config implements [peft.Configured].
func (a *ia3) Config() peft.Config { return a.config }

// Patterns implements [peft.Describer].
func (a *ia3) Patterns() []peft.PatternCount { return a.patterns }

// Describe implements [peft.Describer].
func (a *ia3) Describe(m site.Module) []peft.Setting {
	what := "outputs"
	if a.layers[m.Path].forward {
		what = "inputs"
	}
	return []peft.Setting{{Name: "scales", Value: what}}
}

func (c IA3Config) fill(r *rand.Rand, values []float32) error {
	for i := range values {
		values[i] = 1
		if c.InitIA3Weights == peft.Off {
			values[i] = float32(r.NormFloat64())
		}
	}
	return nil
}

// Output implements [peft.OutputAdapter].
func (a *ia3) Output(u *peft.Use, y *graph.Node) *graph.Node {
	l := a.layers[u.Site.Path]
	if l.forward {
		return y
	}
	return l.scale(u, y)
}

// Merges implements [peft.Merger].
func (a *ia3) Merges() []string {
	var names []string
	for i, m := range a.targets {
		if a.forward[i] {
			continue
		}
		names = append(names, peft.OwnWeight(m))
		if m.Bias {
			names = append(names, m.BiasName())
		}
	}
	return names
}

// Merge implements [peft.Merger].
func (a *ia3) Merge(name string, values, _ []float32, value func(name string) []float32) error {
	l, ok := a.byName[name]
	if !ok {
		return fmt.Errorf("%q is no parameter of a target", name)
	}
	vector := value(l.name())
	if len(vector) != l.features() {
		return fmt.Errorf("the vector of %q has %d values, want %d", l.Path, len(vector), l.features())
	}
	if name == peft.OwnWeight(l.Module) {
		l.scaleWeight(values, vector)
		return nil
	}
	for i := range values {
		values[i] *= vector[i]
	}
	return nil
}

// Params implements [peft.Adapter]: they are among those of the other part.
func (ia3Inputs) Params() []peft.Param { return nil }

// Targets implements [peft.Adapter].
func (a ia3Inputs) Targets() []site.Module { return a.targets }

// Input implements [peft.InputAdapter].
func (a ia3Inputs) Input(u *peft.Use, x *graph.Node) *graph.Node {
	return a.all.layers[u.Site.Path].scale(u, x)
}

// Merges implements [peft.Merger].
func (a ia3Inputs) Merges() []string {
	names := make([]string, len(a.targets))
	for i, m := range a.targets {
		names[i] = peft.OwnWeight(m)
	}
	return names
}

// Merge implements [peft.Merger].
func (a ia3Inputs) Merge(name string, values, frozen []float32, value func(name string) []float32) error {
	return a.all.Merge(name, values, frozen, value)
}

func (l ia3Layer) name() string { return l.Path + ".ia3_l" }

// features is the number of channels that are scaled.
func (l ia3Layer) features() int {
	if l.forward {
		return l.In
	}
	return l.Out
}

// shape is the vector's shape in the file.
func (l ia3Layer) shape() []int {
	switch {
	case l.Kind == site.Convolution:
		shape := []int{1, l.features()}
		for range l.Conv.Kernel {
			shape = append(shape, 1)
		}
		return shape
	case l.forward:
		return []int{1, l.In}
	}
	return []int{l.Out, 1}
}

// scale multiplies the channels of the module's input or output by the vector, in float32
// whatever the pass computes in, and rounds once.
func (l ia3Layer) scale(u *peft.Use, x *graph.Node) *graph.Node {
	dims := make([]int, x.Rank())
	for i := range dims {
		dims[i] = 1
	}
	channel := x.Rank() - 1
	if l.Kind == site.Convolution && !l.Conv.ChannelsLast {
		channel = 1
	}
	dims[channel] = l.features()
	scaled := graph.Mul(graph.ConvertDType(x, dtypes.Float32), graph.Reshape(u.Value("ia3_l"), dims...))
	return graph.ConvertDType(scaled, x.DType())
}

// scaleWeight multiplies the rows (columns, if feed-forward) of a weight as the base
// stores it, see [site.Module.Transposed].
func (l ia3Layer) scaleWeight(w, vector []float32) {
	in, groups := l.In, 1
	if l.Kind == site.Convolution {
		groups = l.Conv.Groups
		in /= groups
	}
	kernel := len(w) / (l.Out * in)
	for o := range l.Out {
		first := o / (l.Out / groups) * in // of the group's inputs
		for i := range in {
			channel := o
			if l.forward {
				channel = first + i
			}
			for k := range kernel {
				at := (o*in+i)*kernel + k
				if l.Transposed {
					at = (k*in+i)*l.Out + o
				}
				w[at] *= vector[channel]
			}
		}
	}
}
