// Package basetest holds bases for the tests of adapters.
package basetest

import (
	"fmt"
	"slices"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/ml/model"

	"github.com/gopeft/gopeft/site"
)

// Shape is a base without values: it can be planned on, not run.
type Shape struct {
	Type, Path string
	// Bare are parameters beside those of modules.
	Bare    []site.Parameter
	modules []site.Module
}

var _ site.Base = (*Shape)(nil)

// Add appends modules.
func (s *Shape) Add(modules ...site.Module) { s.modules = append(s.modules, modules...) }

// Backend implements [site.Base]; there is none.
func (s *Shape) Backend() compute.Backend { return nil }

// Store implements [site.Base].
func (s *Shape) Store() *model.Store { return nil }

// DType implements [site.Base].
func (s *Shape) DType() dtypes.DType { return dtypes.Float32 }

// ModelType implements [site.Base].
func (s *Shape) ModelType() string { return s.Type }

// NameOrPath implements [site.Base].
func (s *Shape) NameOrPath() string { return s.Path }

// Modules implements [site.Base].
func (s *Shape) Modules() []site.Module { return s.modules }

// Parameters implements [site.Base].
func (s *Shape) Parameters() []site.Parameter {
	out := slices.Clone(s.Bare)
	for _, m := range s.modules {
		if m.TiedTo != "" {
			continue
		}
		shape := []int{m.Out, m.In}
		switch {
		case m.Kind == site.Norm:
			shape = []int{m.Out}
		case m.Kind == site.Embedding || m.Transposed:
			shape = []int{m.In, m.Out}
		}
		out = append(out, site.Parameter{Name: m.Weight(), Shape: shape})
		if m.Bias {
			out = append(out, site.Parameter{Name: m.Path + ".bias", Shape: []int{m.Out}})
		}
	}
	return out
}

// Llama returns the shape of a Llama model with the given geometry and a tied head.
func Llama(hidden, layers, heads, kvHeads, headDim, feedForward, vocabulary int) *Shape {
	s := &Shape{Type: "llama"}
	linear := func(path string, in, out int) {
		s.Add(site.Module{Path: path, Kind: site.Linear, In: in, Out: out})
	}
	norm := func(path string) { s.Add(site.Module{Path: path, Kind: site.Norm, In: hidden, Out: hidden}) }
	s.Add(site.Module{Path: "model.embed_tokens", Kind: site.Embedding, In: vocabulary, Out: hidden})
	for i := range layers {
		at := fmt.Sprintf("model.layers.%d.", i)
		norm(at + "input_layernorm")
		linear(at+"self_attn.q_proj", hidden, heads*headDim)
		linear(at+"self_attn.k_proj", hidden, kvHeads*headDim)
		linear(at+"self_attn.v_proj", hidden, kvHeads*headDim)
		linear(at+"self_attn.o_proj", heads*headDim, hidden)
		norm(at + "post_attention_layernorm")
		linear(at+"mlp.gate_proj", hidden, feedForward)
		linear(at+"mlp.up_proj", hidden, feedForward)
		linear(at+"mlp.down_proj", feedForward, hidden)
	}
	norm("model.norm")
	s.Add(site.Module{Path: "lm_head", Kind: site.Linear, In: hidden, Out: vocabulary, Head: true, TiedTo: "model.embed_tokens"})
	return s
}
