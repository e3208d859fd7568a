package prefixtuning

import (
	"errors"
	"fmt"

	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// geometry points at the fields of a configuration that say how large what is: those of
// peft's PromptLearningConfig.
type geometry struct {
	virtual           int
	width, submodules *Size
	heads, layers     *Size
	hidden            *Size // encoder_hidden_size, nil for methods without
}

// maxSize is beyond any real network: a larger number is a mistake.
const maxSize = 1 << 20

// check reports sizes that make no sense on any base.
func (g geometry) check() error {
	if g.virtual <= 0 || g.virtual > maxSize {
		return fmt.Errorf("num_virtual_tokens is %d, want 1 or more", g.virtual)
	}
	for name, size := range map[string]*Size{"token_dim": g.width, "num_attention_heads": g.heads, "num_layers": g.layers, "encoder_hidden_size": g.hidden} {
		if size != nil && (*size < 0 || *size > maxSize) {
			return fmt.Errorf("%s is %d, want 1 or more, or 0 for what the base has", name, *size)
		}
	}
	if s := *g.submodules; s != 0 && s != 1 {
		return fmt.Errorf("num_transformer_submodules is %d, want 1: models of an encoder and a decoder are not supported", s)
	}
	if *g.heads > 0 && *g.width%*g.heads != 0 {
		return fmt.Errorf("token_dim %d is no multiple of num_attention_heads %d", *g.width, *g.heads)
	}
	return nil
}

// transformer returns the base as one, if it can have virtual tokens before others.
func (g geometry) transformer(base site.Base) (site.Transformer, error) {
	t, ok := base.(site.Transformer)
	if !ok {
		return nil, fmt.Errorf("the base (%T) is no transformer of known layers: it has no place for virtual tokens", base)
	}
	if len(t.Layers()) == 0 {
		return nil, errors.New("the base has no layers")
	}
	if positions := t.MaxPositions(); positions > 0 && g.virtual >= positions {
		return nil, fmt.Errorf("%d virtual tokens leave no room in the %d positions of the base", g.virtual, positions)
	}
	return t, nil
}

// settle fills in the sizes that the base decides, or checks them. A width and heads of queries
// in place of those of keys are what users of peft write for grouped queries, as it replaces them.
func (g geometry) settle(width, heads, layers, queryWidth, queryHeads int) error {
	if (*g.width == 0 || *g.width == Size(queryWidth)) && (*g.heads == 0 || *g.heads == Size(queryHeads)) {
		*g.width, *g.heads = 0, 0
	}
	for _, s := range []struct {
		name string
		size *Size
		want int
	}{{"token_dim", g.width, width}, {"num_attention_heads", g.heads, heads}, {"num_layers", g.layers, layers}, {"num_transformer_submodules", g.submodules, 1}} {
		if *s.size != 0 && *s.size != Size(s.want) {
			return fmt.Errorf("%s is %d, but the base has %d", s.name, *s.size, s.want)
		}
		*s.size = Size(s.want)
	}
	if g.hidden != nil && *g.hidden == 0 {
		*g.hidden = *g.width
	}
	return nil
}

// attention returns the heads of keys and values and their size, the same in all layers.
func attention(t site.Transformer) (heads, size int, err error) {
	layers := t.Layers()
	for i, l := range layers {
		if l.KVHeads != layers[0].KVHeads || l.HeadDim != layers[0].HeadDim {
			return 0, 0, fmt.Errorf("layer %d has %d key/value heads of size %d, layer 0 %d of size %d: want all the same", i, l.KVHeads, l.HeadDim, layers[0].KVHeads, layers[0].HeadDim)
		}
	}
	return layers[0].KVHeads, layers[0].HeadDim, nil
}

// saved plans the modules that are trained as a whole, whose keys in the file begin at the
// base itself: peft's model of these methods is a wrapper less.
func saved(base site.Base, names peft.Strings, common peft.PeftConfig) (peft.Adapter, error) {
	copies, err := peft.CopyModules(base, names, common)
	if copies == nil || err != nil {
		return nil, err
	}
	return savedModules{copies.(moduleCopies)}, nil
}

type moduleCopies interface {
	peft.Adapter
	peft.ParameterAdapter
	peft.ModuleAdapter
	peft.Merger
}

type savedModules struct{ moduleCopies }

// Params implements [peft.Adapter].
func (s savedModules) Params() []peft.Param {
	var out []peft.Param
	for _, p := range s.moduleCopies.Params() {
		p.Key = "base_model." + p.Name
		out = append(out, p)
	}
	return out
}
