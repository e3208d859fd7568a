package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/models/tokenizer"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
	"github.com/gopeft/gopeft/train"
)

// compare prints how all of them do on people that none has learned of. The pair that was
// saved is opened from its folder.
func (w *workshop) compare(ctx context.Context) error {
	opened, err := peft.LoadAdapters(w.model, w.stacked())
	if err != nil {
		return err
	}
	untrained, err := peft.GetPeftModel(w.model, lora.LoraConfig{R: 1}, peft.Options{Name: "new"}) // changes nothing
	if err != nil {
		return err
	}
	fmt.Fprintf(w.out, "\non %d people that no adapter has seen (loss in nats a token):\n", w.data["letters-held"].Len())
	table := tabwriter.NewWriter(w.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "\tloss on letters\tloss on telegrams\tright answers\t")
	for _, row := range []struct {
		title string
		names []string
		from  *peft.PeftModel
	}{
		{"base", []string{"new"}, untrained},
		{"letters", []string{"letters"}, w.pm},
		{"telegrams", []string{"telegrams"}, w.pm},
		{"letters + answers", []string{"letters", "answers"}, opened},
		{"telegrams + answers", []string{"telegrams", "answers"}, w.pm},
		{"answers", []string{"answers"}, w.pm},
	} {
		view, err := row.from.With(row.names...)
		if err != nil {
			return err
		}
		line, err := w.measure(ctx, view)
		if err != nil {
			return err
		}
		fmt.Fprintf(table, "%s\t%s\t\n", row.title, line)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(w.out, "adapters %s, %s\n", w.options.out, w.stacked())
	return nil
}

// measure is a line of the table.
func (w *workshop) measure(ctx context.Context, view *peft.PeftModel) (string, error) {
	var losses [2]float64
	for i, name := range []string{"letters-held", "telegrams-held"} {
		trainer, err := train.NewTrainer(view, w.data[name], w.arguments("compare", 1, w.lr))
		if err != nil {
			return "", err
		}
		losses[i], err = trainer.Evaluate(ctx, w.data[name])
		trainer.Close()
		if err != nil {
			return "", err
		}
	}
	right, err := w.rightAnswers(ctx, view)
	return fmt.Sprintf("%.3f\t%.3f\t%d of %d", losses[0], losses[1], right, w.data["questions-held"].Len()), err
}

// rightAnswers counts the questions that get exactly the answer wanted.
func (w *workshop) rightAnswers(ctx context.Context, view site.View) (int, error) {
	g, err := models.NewGenerator(view)
	if err != nil {
		return 0, err
	}
	defer g.Close()
	data := w.data["questions-held"]
	prompts, answers := make([][]int32, data.Len()), make([]string, data.Len())
	for i := range prompts {
		e := data.Example(i)
		first := 0
		for e.Labels[first] == train.IgnoreIndex {
			first++
		}
		prompts[i] = e.IDs[:first]
		answers[i] = w.model.Tokenizer.Decode(e.IDs[first:], tokenizer.DecodeOptions{SkipSpecialTokens: true})
	}
	out, err := g.Generate(ctx, prompts, models.GenerateOptions{MaxNewTokens: 16})
	if err != nil {
		return 0, err
	}
	right := 0
	for i, row := range out {
		if strings.TrimSpace(row.Text) == strings.TrimSpace(answers[i]) {
			right++
		}
	}
	return right, nil
}
