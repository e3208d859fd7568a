// Command pretrain makes the tiny base model that examples/quickstart fine-tunes: it
// writes its own text, learns a tokenizer from it, trains a Llama of 0.34 M
// parameters from scratch and saves all of it as a Hugging Face folder.
//
//	go run ./examples/pretrain
//
// The flags' defaults are how the folder in the repository was made. It takes minutes
// on XLA and about an hour on the Go backend.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
)

func main() {
	s, show := defaults(), 0
	flag.StringVar(&s.Out, "out", s.Out, "folder to write; it is replaced")
	flag.StringVar(&s.Backend, "backend", s.Backend, "backend: go, xla:cpu, xla:cuda, ... (default: GOMLX_BACKEND, else the best installed)")
	flag.IntVar(&s.Stories, "stories", s.Stories, "stories to learn from")
	flag.IntVar(&s.Held, "held", s.Held, "stories to measure the loss on")
	flag.IntVar(&s.Vocabulary, "vocab", s.Vocabulary, "tokens of the tokenizer")
	flag.IntVar(&s.Steps, "steps", s.Steps, "optimizer steps")
	flag.IntVar(&s.Batch, "batch", s.Batch, "rows of a batch")
	flag.Float64Var(&s.LearningRate, "lr", s.LearningRate, "peak learning rate")
	flag.Uint64Var(&s.Seed, "seed", s.Seed, "seed of text, model and order")
	flag.IntVar(&show, "show", 0, "print this many stories and do nothing else")
	flag.Parse()
	if show > 0 {
		for _, text := range stories(s.Seed, show) {
			fmt.Println(text)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	loss, err := pretrain(ctx, s)
	if err != nil {
		fmt.Fprintln(os.Stderr, "pretrain:", err)
		os.Exit(1)
	}
	fmt.Printf("held-out loss %.4f, model in %s\n", loss, s.Out)
}

// defaults are the settings that made the folder in the repository.
func defaults() settings {
	return settings{
		Out: "examples/quickstart/base", Stories: 30000, Held: 100, Vocabulary: 640,
		Steps: 3000, Batch: 6, LearningRate: 4e-3, Seed: 1,
	}
}
