package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	_ "github.com/gopeft/gopeft/adapters" // their files can be opened
	_ "github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	_ "github.com/gopeft/gopeft/prefixtuning"
	"github.com/gopeft/gopeft/quant"
)

// load opens the model, from the repository or from where -model says.
func (o options) load(ctx context.Context) (*models.Model, error) {
	scheme, err := quant.Parse(o.quant, o.quant == "nf4" || o.quant == "fp4")
	if err != nil {
		return nil, fmt.Errorf("-quant: %w", err)
	}
	settings := models.Options{Backend: o.backend, Quantization: scheme}
	if o.model == "" {
		return models.FromFS(ctx, tinyFiles(), ".", settings)
	}
	m, err := models.Load(ctx, o.model, settings)
	if err != nil {
		return nil, err
	}
	if m.Tokenizer == nil {
		return nil, errors.Join(fmt.Errorf("-model %s: there is no tokenizer.json", o.model), m.Close())
	}
	if !m.Tokenizer.HasChatTemplate() {
		return nil, errors.Join(fmt.Errorf("-model %s: it has no chat template: want a model that was made for chats", o.model), m.Close())
	}
	return m, nil
}

// loadAdapters opens what -adapter says, and for the tiny base otherwise those that the
// program has in it. It returns nil if there is none.
func (o options) loadAdapters(model *models.Model) (*peft.PeftModel, error) {
	if len(o.adapters) == 0 && o.model == "" {
		return tinyAdapters(model)
	}
	var pm *peft.PeftModel
	for _, entry := range o.adapters {
		name, dir, named := strings.Cut(strings.TrimSpace(entry), "=")
		if !named {
			dir = name
			name = adapterName(dir)
		}
		var err error
		if pm == nil {
			pm, err = openFirst(model, name, dir)
		} else {
			err = pm.LoadAdapter(dir, peft.Options{Name: name})
		}
		if err != nil {
			return nil, fmt.Errorf("-adapter %s: %w", entry, err)
		}
	}
	return pm, nil
}

// openFirst opens the first adapter, or several that were saved together, under the names
// that they had.
func openFirst(model *models.Model, name, dir string) (*peft.PeftModel, error) {
	if _, err := os.Stat(filepath.Join(dir, "adapters.json")); err == nil {
		return peft.LoadAdapters(model, dir)
	}
	return peft.LoadAdapter(model, dir, peft.Options{Name: name})
}

// adapterName is that of a folder; training programs often call it "adapter", and then the
// folder above says more.
func adapterName(dir string) string {
	whole, err := filepath.Abs(dir)
	if err != nil {
		whole = dir
	}
	if name := filepath.Base(whole); name != "adapter" {
		return name
	}
	return filepath.Base(filepath.Dir(whole))
}
