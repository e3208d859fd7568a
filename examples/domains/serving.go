package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/gopeft/gopeft/examples/pretrain/world"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// somebody is a person that no adapter has seen.
func somebody() world.Person { return world.People()[0] }

// swap serves both domains from one place: the adapter of a folder takes that of another,
// of another rank, in the programs that are there.
func (w *workshop) swap(ctx context.Context) error {
	served, err := peft.LoadAdapter(w.model, filepath.Join(w.options.out, "letters"), peft.Options{Name: "domain", MaxRank: maxRank})
	if err != nil {
		return err
	}
	fmt.Fprintln(w.out, "\none place for both, their folders swapped while serving:")
	for _, name := range []string{"letters", "telegrams", "letters"} {
		start := time.Now()
		if err := served.SwapAdapter("domain", filepath.Join(w.options.out, name)); err != nil {
			return err
		}
		swapped := time.Since(start)
		texts, err := w.write(ctx, served, opening(somebody()))
		if err != nil {
			return err
		}
		fmt.Fprintf(w.out, "  %s (swapped in %.0f ms, written in %.0f ms)\n%s\n", name,
			1000*swapped.Seconds(), 1000*(time.Since(start)-swapped).Seconds(), indent(texts[0]))
	}
	return nil
}

// mix writes with another adapter in each row of one batch.
func (w *workshop) mix(ctx context.Context) error {
	rows := []string{"telegrams", peft.BaseModel, "letters"}
	mixed, err := w.pm.Mixed(rows...)
	if err != nil {
		return err
	}
	prompt := opening(somebody())
	texts, err := w.write(ctx, mixed, prompt, prompt, prompt)
	if err != nil {
		return err
	}
	fmt.Fprintln(w.out, "one batch, each row with its own:")
	for i, text := range texts {
		fmt.Fprintf(w.out, "  %s\n%s\n", strings.Trim(rows[i], "_"), indent(text))
	}
	return nil
}

// write goes on with prompts, a row each.
func (w *workshop) write(ctx context.Context, view site.View, prompts ...string) ([]string, error) {
	g, err := models.NewGenerator(view)
	if err != nil {
		return nil, err
	}
	defer g.Close()
	rows, err := g.GenerateText(ctx, prompts, models.GenerateOptions{MaxNewTokens: 80})
	if err != nil {
		return nil, err
	}
	texts := make([]string, len(rows))
	for i, row := range rows {
		texts[i] = prompts[i] + row.Text
	}
	return texts, nil
}

func indent(text string) string { return "    " + strings.ReplaceAll(text, "\n", "\n    ") }
