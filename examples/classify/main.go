// Command classify trains a classifier of bank customers' questions, the 77 intents of
// banking77, on a pre-trained encoder: LoRA on query and value, and a new head.
//
//	go run ./examples/classify -model path/to/all-MiniLM-L6-v2 -data path/to/banking77
//
// It prints the accuracy on the test file before and after, the seconds that the
// training took, and what the trained model says of three questions. The adapter, with
// the head in it, loads in Python's peft; internal/parity/banking77.py is the same
// training there.
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
	"strings"
	"time"

	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/train"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "classify:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	model, data, out, backend string
	rows, testRows            int
	epochs, lr                float64
	batch, seq, r             int
	seed                      uint64
}

func parse(args []string, w io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("classify", flag.ContinueOnError)
	f.SetOutput(w)
	f.StringVar(&o.model, "model", os.Getenv("GOPEFT_MINILM"), "an encoder's Hugging Face folder or hub id (default: $GOPEFT_MINILM)")
	f.StringVar(&o.data, "data", filepath.Join(os.Getenv("GOPEFT_ASSETS"), "banking77"), "a folder with train.csv and test.csv, of a text and a label or category")
	f.StringVar(&o.out, "out", "results/classify", "folder for adapter, log and plot")
	f.StringVar(&o.backend, "backend", "", "go, xla:cpu, xla:cuda, ... (default: GOMLX_BACKEND, else the best installed)")
	f.IntVar(&o.rows, "rows", 0, "train on so many rows, drawn at random (default: all)")
	f.IntVar(&o.testRows, "test-rows", 0, "test on so many rows, drawn at random (default: all)")
	f.Float64Var(&o.epochs, "epochs", 3, "passes through the data")
	f.Float64Var(&o.lr, "lr", 2e-3, "learning rate")
	f.IntVar(&o.batch, "batch", 32, "rows of a batch")
	f.IntVar(&o.seq, "seq", 64, "longest text in tokens")
	f.IntVar(&o.r, "r", 8, "LoRA rank")
	f.Uint64Var(&o.seed, "seed", 1, "seed of head, adapter, subset and order")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if o.model == "" {
		return o, errors.New("which model? give -model or set GOPEFT_MINILM")
	}
	return o, nil
}

// run is the program: load, attach, train, test, save.
func run(ctx context.Context, args []string, out, progress io.Writer) error {
	o, err := parse(args, progress)
	if err != nil {
		return err
	}
	classes, err := train.CSVClasses(filepath.Join(o.data, "train.csv"), train.ClassOptions{})
	if err != nil {
		return err
	}
	base, err := models.LoadClassifier(ctx, o.model, models.ClassifierOptions{
		Options: models.Options{Backend: o.backend}, Labels: classes, Seed: o.seed,
	})
	if err != nil {
		return err
	}
	defer base.Close()
	fmt.Fprintf(out, "%d classes; new parameters: %s\n", len(classes), strings.Join(base.LoadReport().New, ", "))

	data, err := o.load(base, "train.csv", classes, o.rows)
	if err != nil {
		return err
	}
	test, err := o.load(base, "test.csv", classes, o.testRows)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "train: %s\ntest:  %s\n", data.Report(), test.Report())

	pm, err := peft.GetPeftModel(base, lora.LoraConfig{
		R: o.r, LoraAlpha: float64(2 * o.r), LoraDropout: 0.1, TargetModules: peft.Modules("query", "value"),
	}, peft.Options{Seed: o.seed})
	if err != nil {
		return err
	}
	fmt.Fprintln(out, pm.TrainableParameters())
	trainer, err := train.NewTrainer(pm, data, train.Arguments{
		OutputDir: o.out, NumTrainEpochs: o.epochs, PerDeviceTrainBatchSize: o.batch, PerDeviceEvalBatchSize: 2 * o.batch,
		LearningRate: o.lr, GroupByLength: true, SaveStrategy: train.SaveNo, Seed: o.seed, Progress: progress,
	})
	if err != nil {
		return err
	}
	defer trainer.Close()
	before, err := trainer.Measure(ctx, test)
	if err != nil {
		return err
	}
	result, err := trainer.Train(ctx)
	if err != nil {
		return err
	}
	start := time.Now()
	after, err := trainer.Measure(ctx, test)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "steps %d, train loss %.4f, train seconds %.1f, test seconds %.1f\n",
		result.GlobalStep, result.TrainingLoss, result.Seconds, time.Since(start).Seconds())
	fmt.Fprintf(out, "test loss before=%.4f after=%.4f\naccuracy before=%.4f after=%.4f\n", before.Loss, after.Loss, before.Accuracy, after.Accuracy)

	adapter := filepath.Join(o.out, "adapter")
	if err := pm.SavePretrained(adapter); err != nil {
		return err
	}
	fmt.Fprintf(out, "adapter %s\n", adapter)
	return show(ctx, pm, out)
}

// load reads a file, and draws rows from it if that is asked for.
func (o options) load(base *models.Classifier, name string, classes []string, rows int) (*train.Dataset, error) {
	d, err := train.LoadCSV(filepath.Join(o.data, name), base.Tokenizer, train.ClassOptions{MaxLength: o.seq, Classes: classes})
	if err != nil || rows == 0 || rows >= d.Len() {
		return d, err
	}
	_, d, err = d.Split(float64(rows)/float64(d.Len()), o.seed)
	return d, err
}

// show classifies questions that are in no file.
func show(ctx context.Context, view models.ClassifierView, out io.Writer) error {
	questions := []string{
		"My card has not come in the mail, where is it?",
		"Why was I charged twice for the same coffee?",
		"How do I change the secret number of my card?",
	}
	answers, err := models.Predict(ctx, view, questions)
	if err != nil {
		return err
	}
	for i, a := range answers {
		fmt.Fprintf(out, "%-50s %s (%.0f %%)\n", questions[i], a.Label, 100*a.Probability)
	}
	return nil
}
