package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/models/tokenizer"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/train"
)

const (
	sampleTokens  = 40
	judged        = 60 // questions whose answers are counted, at most
	longestAnswer = 12 // tokens
)

// demo shows what the model says to held-out examples.
type demo struct {
	out   io.Writer
	model *models.Model
	pm    *peft.PeftModel
	held  *train.Dataset
	// count asks for the number of right answers, too.
	count bool
}

// describe prints what is trained on what.
func (d demo) describe(data *train.Dataset) {
	c := d.model.Config()
	fmt.Fprintf(d.out, "model %s: %s, %d layers, hidden size %d, vocabulary %d, on %s\n",
		d.model.NameOrPath(), c.ModelType, c.NumLayers, c.HiddenSize, c.VocabSize, d.model.Backend().Name())
	fmt.Fprintln(d.out, d.pm.TrainableParameters())
	fmt.Fprintf(d.out, "data %s, %d examples held out\n", data.Report(), d.held.Len())
}

// sample prints how the model goes on after the prompt of the first held-out example.
func (d demo) sample(ctx context.Context, title string) error {
	g, err := models.NewGenerator(d.pm)
	if err != nil {
		return err
	}
	defer g.Close()
	prompt, _ := d.parts(0)
	out, err := g.Generate(ctx, [][]int32{prompt}, models.GenerateOptions{MaxNewTokens: sampleTokens})
	if err != nil {
		return err
	}
	text := d.text(prompt) + " [" + strings.TrimPrefix(out[0].Text, " ") + "]" // in brackets what the model wrote
	fmt.Fprintf(d.out, "sample %s\n    %s\n", title, strings.ReplaceAll(text, "\n", "\n    "))
	if d.count {
		return d.countRight(ctx, g)
	}
	return nil
}

// countRight prints how many held-out questions get exactly the answer wanted.
func (d demo) countRight(ctx context.Context, g *models.Generator) error {
	n := min(judged, d.held.Len())
	prompts, answers := make([][]int32, n), make([][]int32, n)
	for i := range n {
		prompts[i], answers[i] = d.parts(i)
	}
	out, err := g.Generate(ctx, prompts, models.GenerateOptions{MaxNewTokens: longestAnswer})
	if err != nil {
		return err
	}
	right := 0
	for i, generated := range out {
		if generated.Text == d.text(answers[i]) {
			right++
		}
	}
	fmt.Fprintf(d.out, "right answers %d of %d\n", right, n)
	return nil
}

// parts cuts a held-out example before its first target; text, which is all
// targets, after its first quarter.
func (d demo) parts(i int) (prompt, answer []int32) {
	e := d.held.Example(i)
	first := 1
	for e.Labels[first] == train.IgnoreIndex {
		first++
	}
	if first == 1 {
		first = (len(e.IDs) + 3) / 4
	}
	return e.IDs[:first], e.IDs[first:]
}

func (d demo) text(ids []int32) string {
	return d.model.Tokenizer.Decode(ids, tokenizer.DecodeOptions{SkipSpecialTokens: true})
}
