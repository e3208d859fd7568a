package lora

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/peft"
)

// scalings is the constant that holds the factors s of a padded adapter, one for each
// target in order.
const scalings = "lora_scaling"

var _ peft.Swappable = (*adapter)(nil)

// pad lays the adapter out for ranks up to n: further rows of A and columns of B are zero
// and stay so in training, as the gradient of either is a product with the other.
func (a *adapter) pad(n int) error {
	for path, l := range a.layers {
		if l.rank > n {
			return fmt.Errorf("target module %q has rank %d, more than MaxRank %d", path, l.rank, n)
		}
	}
	for i := range a.params {
		p := &a.params[i]
		axis, ok := rankAxis(p.Name)
		if !ok || p.Derive != nil || p.Frozen {
			return fmt.Errorf("MaxRank is %d, but the adapter has %q besides plain A and B", n, p.Name)
		}
		p.FileShape = slices.Clone(p.Shape)
		p.Shape[axis] = n
	}
	for i, m := range a.targets {
		l := a.layers[m.Path]
		l.r = n
		a.setLayer(i, l)
	}
	a.addScalings(n)
	return nil
}

// addScalings makes the factors a constant.
func (a *adapter) addScalings(n int) {
	a.maxRank = n
	a.params = append(a.params, peft.Param{
		Name: scalings, Shape: []int{len(a.targets)}, Frozen: true, Unsaved: true,
		Init: func(_ *rand.Rand, values []float32) error {
			for i, m := range a.targets {
				values[i] = float32(a.layers[m.Path].scaling)
			}
			return nil
		},
	})
}

// setLayer replaces the i-th target's layer.
func (a *adapter) setLayer(i int, l layer) {
	l.index = i
	a.layers[l.Path], a.byWeight[peft.OwnWeight(l.Module)] = l, l
}

// rankAxis returns the axis of A or B that counts the rank.
func rankAxis(name string) (axis int, ok bool) {
	switch {
	case strings.HasSuffix(name, "."+matrixA), strings.HasSuffix(name, "."+embeddingA):
		return 0, true
	case strings.HasSuffix(name, "."+matrixB), strings.HasSuffix(name, "."+embeddingB):
		return 1, true
	}
	return 0, false
}

// scale multiplies x·Aᵀ of a target by its factor.
func (a *adapter) scale(u *peft.Use, low *graph.Node) *graph.Node {
	l := a.layers[u.Site.Path]
	if a.maxRank == 0 {
		return graphx.Scale(low, l.scaling)
	}
	factor := graph.Slice(u.Values().Get(scalings), graph.AxisElem(l.index))
	return graphx.ScaleBy(low, graph.Reshape(factor))
}

// ProgramConfig implements [peft.Swappable].
func (a *adapter) ProgramConfig() peft.Config {
	c := a.config
	if a.maxRank > 0 {
		c.R, c.LoraAlpha, c.RankPattern, c.AlphaPattern, c.UseRSLoRA = a.maxRank, 0, nil, nil, false
		c.InitLoraWeights = InitDefault
	}
	c.LoraDropout, c.FanInFanOut = 0, false
	// What is adapted shows in the tensors.
	c.TargetModules, c.ExcludeModules, c.LayersToTransform, c.LayersPattern = peft.Targets{}, peft.Targets{}, nil, nil
	return c
}

// Swapped implements [peft.Swappable].
func (a *adapter) Swapped(next peft.Adapter) (peft.Adapter, error) {
	n, ok := next.(*adapter)
	if !ok || n.maxRank != a.maxRank {
		return nil, fmt.Errorf("want a LoRA laid out for rank %d, got %T", a.maxRank, next)
	}
	var unknown []string
	for _, m := range n.targets {
		if _, ok := a.layers[m.Path]; !ok {
			unknown = append(unknown, m.Path)
		}
	}
	if len(unknown) > 0 {
		const most = 4
		return nil, fmt.Errorf("the new adapter has %d targets that the old one was not made for: %s",
			len(unknown), strings.Join(unknown[:min(len(unknown), most)], ", "))
	}
	out := &adapter{config: n.config, targets: a.targets, patterns: n.patterns, layers: map[string]layer{}, byWeight: map[string]layer{}}
	of := map[string]peft.Param{}
	for _, p := range n.params {
		of[p.Name] = p
	}
	for i, m := range a.targets {
		l, ok := n.layers[m.Path]
		if !ok {
			l = layer{Module: m, r: a.maxRank} // adds nothing: scaling 0
		}
		out.setLayer(i, l)
	}
	for _, p := range a.params {
		if p.Name == scalings {
			continue
		}
		q, ok := of[p.Name]
		if !ok {
			q = peft.Param{Name: p.Name, Shape: p.Shape, FileShape: slices.Clone(p.Shape), Unsaved: true, Group: p.Group, NoDecay: p.NoDecay}
			axis, _ := rankAxis(p.Name)
			q.FileShape[axis] = 0
		}
		out.params = append(out.params, q)
	}
	out.addScalings(a.maxRank)
	return out, nil
}
