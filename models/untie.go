package models

import (
	"context"
	"errors"
	"fmt"

	"github.com/gopeft/gopeft/internal/pyjson"
	"github.com/gopeft/gopeft/site"
)

var _ site.Untier = (*Model)(nil)

// ExportUntied is [Model.Export] of the same model with a head that does not share the
// embedding's weight: the head's is written beside it, and config.json says
// tie_word_embeddings false. Without changes the outputs are the same.
func (m *Model) ExportUntied(ctx context.Context, dir string, edit func(p site.Parameter, values []float32) (changed bool, err error)) error {
	as, err := m.untied()
	if err != nil {
		return fmt.Errorf("models: export to %q with the head untied: %w", dir, err)
	}
	return m.core.exportAs(ctx, dir, m.Tokenizer, as, edit)
}

func (m *Model) untied() (exported, error) {
	head := m.Head()
	switch {
	case m.original != nil:
		return exported{}, errors.New("the model repeats layers")
	case head.TiedTo == "":
		return exported{}, errors.New("the head has a weight of its own")
	}
	object, err := pyjson.Parse(m.config.JSON)
	if err != nil {
		return exported{}, err
	}
	members := map[string]any{"tie_word_embeddings": false}
	for key, value := range object {
		if key != "tie_word_embeddings" {
			members[key] = value
		}
	}
	config, err := pyjson.Marshal(members)
	if err != nil {
		return exported{}, err
	}
	arch, err := NewArchitecture(config)
	if err != nil {
		return exported{}, err
	}
	known := map[string]bool{}
	for _, p := range m.Parameters() {
		known[p.Name] = true
	}
	own := head.Path + ".weight"
	for _, p := range arch.Parameters() {
		if !known[p.Name] && p.Name != own {
			return exported{}, fmt.Errorf("an untied %s has a parameter %q, which this one lacks", m.config.ModelType, p.Name)
		}
	}
	return exported{network: arch, json: append(config, '\n'), from: func(name string) string {
		if name == own {
			return head.Weight()
		}
		return name
	}}, nil
}
