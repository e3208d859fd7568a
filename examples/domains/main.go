// Command domains adapts a language model to two kinds of text, and to a task on top of one
// of them, with one adapter for each:
//
//	go run ./examples/domains
//
// The tiny base of examples/quickstart knows people from stories. A LoRA of rank 8 learns to
// write their letters, another of rank 4 their telegrams. Served, one takes the place of the other
// without compiling, or each row of a batch has its own. On the frozen LoRA for letters a
// Pfeiffer adapter then learns to answer questions, as MAD-X stacks a task on a language
// (Pfeiffer et al. 2020, arXiv:2005.00052); the pair is saved as one folder per adapter with an
// index, and opened again. A table compares them all on people that no adapter has seen.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/gopeft/gopeft/examples/quickstart/base"
	"github.com/gopeft/gopeft/models"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "domains:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	out, backend     string
	steps, taskSteps int
	batch            int
	lr, taskLR       float64
	seed             uint64
}

func parse(args []string, w io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("domains", flag.ContinueOnError)
	f.SetOutput(w)
	f.StringVar(&o.out, "out", "results/domains", "folder for adapters and data")
	f.StringVar(&o.backend, "backend", "", "go, xla:cpu, xla:cuda, ... (default: GOMLX_BACKEND, else the best installed)")
	f.IntVar(&o.steps, "steps", 50, "optimizer steps of each domain's adapter")
	f.IntVar(&o.taskSteps, "task-steps", 80, "optimizer steps of the task's adapter")
	f.IntVar(&o.batch, "batch", 8, "rows of a batch")
	f.Float64Var(&o.lr, "lr", 1e-2, "learning rate of the domains' adapters")
	f.Float64Var(&o.taskLR, "task-lr", 6e-3, "learning rate of the task's adapter")
	f.Uint64Var(&o.seed, "seed", 1, "seed of adapters, data and order")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if o.steps < 1 || o.taskSteps < 1 || o.batch < 1 {
		return o, fmt.Errorf("-steps %d, -task-steps %d, -batch %d: want at least 1", o.steps, o.taskSteps, o.batch)
	}
	if err := os.MkdirAll(o.out, 0o777); err != nil {
		return o, fmt.Errorf("-out: %w", err)
	}
	return o, nil
}

// run is the program: train each domain, serve both, train the task on top of one, compare.
func run(ctx context.Context, args []string, out, progress io.Writer) error {
	o, err := parse(args, progress)
	if err != nil {
		return err
	}
	model, err := models.FromFS(ctx, base.Files, ".", models.Options{Backend: o.backend})
	if err != nil {
		return err
	}
	defer model.Close()
	w := &workshop{options: o, model: model, out: out, progress: progress}
	if err := w.makeData(); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{w.trainDomains, w.swap, w.mix, w.trainTask, w.compare} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}
