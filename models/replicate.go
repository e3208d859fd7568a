package models

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/gopeft/gopeft/site"
)

// layered is an [Architecture] whose layers are a list, so that it can be built with
// them in another order and number. Each parameter below a layer's path belongs to a
// module there, and the layers' modules are read by their paths only.
type layered interface {
	Architecture
	// layer is the path of layer i, "model.layers.3".
	layer(i int) string
	// withLayers returns the same architecture with the layers from[0], from[1], ... of
	// this one: a layer takes along what it has besides parameters, such as its window.
	withLayers(from []int) Architecture
}

var _ site.Replicator = (*Model)(nil)

// Replicate returns a [*Model] over the same parameters whose layers are those of the
// ranges [from, to), one after the other: {{0, 4}, {2, 5}} makes seven layers of five,
// as peft's layer_replication does. Nothing is copied, and its Close frees nothing of m,
// which must stay open. Its module paths count the new layers; a module whose
// parameters are stored under another path names that in TiedTo.
//
// A repeated layer keeps its kind of attention. (With layer_types, transformers goes by
// the new position instead, and fails beyond the old number of layers.)
func (m *Model) Replicate(ranges [][2]int) (site.Base, error) {
	out, err := m.replicate(ranges)
	if err != nil {
		return nil, fmt.Errorf("models: replicate layers of %s: %w", m.config.ModelType, err)
	}
	return out, nil
}

// maxLayers is the largest num_hidden_layers.
const maxLayers = 10000

func (m *Model) replicate(ranges [][2]int) (*Model, error) {
	layers, err := listed(ranges, m.config.NumLayers)
	if err != nil {
		return nil, err
	}
	original := m
	if m.original != nil {
		original, layers = m.original, picked(m.layers, layers)
	}
	arch, ok := original.arch.(layered)
	if !ok {
		return nil, errors.New("repeated layers are not supported for this family")
	}
	out := &Model{Tokenizer: m.Tokenizer, core: original.core, original: original, layers: layers}
	out.arch = newReplica(arch, layers)
	out.config, out.network, out.closeBackend = m.config, out.arch, nil
	out.config.NumLayers = len(layers)
	out.modules = map[string]site.Module{}
	for _, module := range out.arch.Modules() {
		out.modules[module.Path] = module
	}
	out.programs = newPrograms(out)
	return out, nil
}

// listed returns the layers of ranges, each a part of [0, layers).
func listed(ranges [][2]int, layers int) ([]int, error) {
	if len(ranges) == 0 {
		return nil, errors.New("wanted at least one range, got none")
	}
	var out []int
	for i, r := range ranges {
		if r[0] < 0 || r[0] >= r[1] || r[1] > layers {
			return nil, fmt.Errorf("range %d: wanted 0 <= from < to <= %d, the number of layers, got [%d, %d)", i, layers, r[0], r[1])
		}
		if len(out)+r[1]-r[0] > maxLayers {
			return nil, fmt.Errorf("wanted at most %d layers", maxLayers)
		}
		for layer := r[0]; layer < r[1]; layer++ {
			out = append(out, layer)
		}
	}
	return out, nil
}

// picked returns the elements of list at the indices.
func picked[T any](list []T, indices []int) []T {
	out := make([]T, len(indices))
	for i, index := range indices {
		out[i] = list[index]
	}
	return out
}

// replica is an architecture whose layers are some of another's.
type replica struct {
	Architecture // with the new layers, and the parameters that it would have of its own
	modules      []site.Module
	parameters   []site.Parameter
}

func newReplica(arch layered, layers []int) *replica {
	out := &replica{Architecture: arch.withLayers(layers)}
	out.modules = replicatedModules(out.Architecture.Modules(), arch.layer, layers)
	out.parameters = replicatedParameters(arch.Parameters(), arch.layer, arch.Config().NumLayers, layers)
	return out
}

// replicatedModules ties the modules of a network with the layers listed, whose paths
// layer gives, to those that their parameters belong to.
func replicatedModules(modules []site.Module, layer func(i int) string, layers []int) []site.Module {
	out := slices.Clone(modules)
	for i, m := range out {
		at, rest := layerOf(m.Path, layer, len(layers))
		if at >= 0 && layers[at] != at {
			out[i].TiedTo, out[i].Replica = layer(layers[at])+rest, true
		}
	}
	return out
}

// replicatedParameters leaves out the parameters of layers that are not listed; n is
// the number of layers there were.
func replicatedParameters(parameters []site.Parameter, layer func(i int) string, n int, layers []int) []site.Parameter {
	return slices.DeleteFunc(slices.Clone(parameters), func(p site.Parameter) bool {
		at, _ := layerOf(p.Name, layer, n)
		return at >= 0 && !slices.Contains(layers, at)
	})
}

// layerOf returns which of n layers a path lies in, and the path below it; -1 for none.
func layerOf(path string, layer func(i int) string, n int) (at int, rest string) {
	for i := range n {
		if rest, ok := strings.CutPrefix(path, layer(i)); ok && strings.HasPrefix(rest, ".") {
			return i, rest
		}
	}
	return -1, ""
}

// Modules implements [Architecture].
func (r *replica) Modules() []site.Module { return slices.Clone(r.modules) }

// Parameters implements [Architecture].
func (r *replica) Parameters() []site.Parameter { return slices.Clone(r.parameters) }
