// Command quickstart fine-tunes a language model with LoRA: by default a tiny one that
// this repository ships, on questions that the program makes up, in under a minute.
//
//	go run ./examples/quickstart
//	go run ./examples/quickstart -model HuggingFaceTB/SmolLM2-135M-Instruct -data train.jsonl -fields question,answer
//
// It shows the loss on a held-out tenth of the data and a sample of text, before and
// after, and saves an adapter that loads in Python's peft.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/train"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

// run is the program: load, attach, train, save.
func run(ctx context.Context, args []string, out, progress io.Writer) error {
	o, err := parse(args, out)
	if err != nil {
		return err
	}
	model, err := o.load(ctx)
	if err != nil {
		return err
	}
	defer model.Close()
	pm, err := peft.GetPeftModel(model, o.lora(), peft.Options{Seed: o.seed})
	if err != nil {
		return err
	}
	data, err := train.LoadFile(o.data, model.Tokenizer, train.DataOptions{MaxLength: o.length(model), Fields: o.fieldNames()})
	if err != nil {
		return err
	}
	rest, held, err := data.Split(0.1, o.seed)
	if err != nil {
		return err
	}
	trainer, err := train.NewTrainer(pm, rest, train.Arguments{
		OutputDir: o.out, OverwriteOutputDir: o.resume == "", ResumeFromCheckpoint: o.resume, SaveTotalLimit: 1,
		MaxSteps: o.steps, PerDeviceTrainBatchSize: o.batch, LearningRate: o.lr, WarmupRatio: 0.05, Seed: o.seed,
		EvalDataset: held, Progress: progress,
	})
	if err != nil {
		return err
	}
	defer trainer.Close()

	show := demo{out: out, model: model, pm: pm, held: held, count: o.made}
	show.describe(data)
	before, err := trainer.Evaluate(ctx, held)
	if err != nil {
		return err
	}
	if err := show.sample(ctx, "before"); err != nil {
		return err
	}
	result, err := trainer.Train(ctx)
	if errors.Is(err, context.Canceled) && result != nil && result.Checkpoint != "" {
		return fmt.Errorf("%w; the same command with -resume last goes on", err)
	}
	if err != nil {
		return err
	}
	if err := show.sample(ctx, "after"); err != nil {
		return err
	}
	adapter := filepath.Join(o.out, "adapter")
	if err := pm.SavePretrained(adapter); err != nil {
		return err
	}
	fmt.Fprintf(out, "plot %s\n", filepath.Join(o.out, "loss.png"))
	after := result.Evaluations[len(result.Evaluations)-1].Loss
	fmt.Fprintf(out, "loss before=%.4f after=%.4f\nadapter %s\n", before, after, adapter)
	return nil
}
