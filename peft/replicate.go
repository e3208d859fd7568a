package peft

import (
	"errors"
	"fmt"
	"slices"

	"github.com/gopeft/gopeft/site"
)

// Replicating is a [Config] that may ask for a base with its layers repeated.
type Replicating interface {
	// LayerRanges are the ranges [from, to) of layers that make the new base, nil for the
	// base as it is.
	LayerRanges() [][2]int
}

func layerRanges(c Config) [][2]int {
	if r, ok := c.(Replicating); ok && len(r.LayerRanges()) > 0 {
		return slices.Clone(r.LayerRanges())
	}
	return nil
}

// newSet returns the adapters, none yet, of the base that a configuration asks for.
func newSet(base site.Base, c Config) (*adapterSet, error) {
	switch {
	case base == nil:
		return nil, errors.New("peft: base model is nil")
	case c == nil:
		return nil, errNoConfig
	}
	s := &adapterSet{base: base, ranges: layerRanges(c), adapters: map[string]*namedAdapter{}}
	if s.ranges == nil {
		return s, nil
	}
	r, ok := base.(site.Replicator)
	if !ok {
		return nil, fmt.Errorf("peft: layer_replication: the layers of a %T cannot be repeated", base)
	}
	replica, err := r.Replicate(s.ranges)
	if err != nil {
		return nil, fmt.Errorf("peft: layer_replication: %w", err)
	}
	s.base = replica
	return s, nil
}

// checkRanges refuses an adapter for other layers than the model's other adapters have.
func (s *adapterSet) checkRanges(c Config) error {
	if want, got := s.ranges, layerRanges(c); !slices.Equal(want, got) {
		return fmt.Errorf("peft: layer_replication: the model's layers are %v, the adapter's %v: attach it to a model of its own", ranges(want), ranges(got))
	}
	return nil
}

// ranges prints as the base's own layers where there are none.
type ranges [][2]int

// String implements fmt.Stringer.
func (r ranges) String() string {
	if r == nil {
		return "the base's own"
	}
	return fmt.Sprint([][2]int(r))
}
