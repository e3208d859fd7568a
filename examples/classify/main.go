// Command classify trains a classifier of bank customers' questions, the 77 intents of
// banking77, on a pre-trained encoder, by several methods side by side: LoRA on query and
// value, Pfeiffer's bottleneck adapters and prefix tuning, each with the same new head, data,
// seed and epochs.
//
//	go run ./examples/classify -model path/to/all-MiniLM-L6-v2 -data path/to/banking77
//	go run ./examples/classify -methods pfeiffer -rows 1000 -epochs 10
//
// It prints a table of what is trained, the size of the adapter's folder, the seconds of the
// training with what it compiled, and loss and accuracy on the test file, and then what the
// most accurate says of three questions. Each method has a folder, with the trained head in
// it. With -lora-lr 2e-3 LoRA's is the training of internal/parity/banking77.py in Python.
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
	"slices"
	"strings"

	"github.com/gopeft/gopeft/models"
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
	methods                   []string
	rows, testRows            int
	epochs                    float64
	rates                     map[string]*float64 // by method
	batch, seq                int
	r, reduction, virtual     int
	seed                      uint64
}

func parse(args []string, w io.Writer) (options, error) {
	o := options{rates: map[string]*float64{}}
	chosen := ""
	f := flag.NewFlagSet("classify", flag.ContinueOnError)
	f.SetOutput(w)
	f.StringVar(&o.model, "model", os.Getenv("GOPEFT_MINILM"), "an encoder's Hugging Face folder or hub id (default: $GOPEFT_MINILM)")
	f.StringVar(&o.data, "data", filepath.Join(os.Getenv("GOPEFT_ASSETS"), "banking77"), "a folder with train.csv and test.csv, of a text and a label or category")
	f.StringVar(&o.out, "out", "results/classify", "folder for the adapters, logs and plots, one for each method")
	f.StringVar(&o.backend, "backend", "", "go, xla:cpu, xla:cuda, ... (default: GOMLX_BACKEND, else the best installed)")
	f.StringVar(&chosen, "methods", strings.Join(methodNames(), ","), "what to train, one after the other")
	f.IntVar(&o.rows, "rows", 0, "train on so many rows, drawn at random (default: all)")
	f.IntVar(&o.testRows, "test-rows", 0, "test on so many rows, drawn at random (default: all)")
	f.Float64Var(&o.epochs, "epochs", 3, "passes through the data")
	for _, m := range methods {
		o.rates[m.name] = f.Float64(m.name+"-lr", m.rate, "learning rate of "+m.title)
	}
	f.IntVar(&o.batch, "batch", 32, "rows of a batch")
	f.IntVar(&o.seq, "seq", 64, "longest text in tokens")
	f.IntVar(&o.r, "r", 8, "LoRA rank")
	f.IntVar(&o.reduction, "reduction", 16, "features of the encoder for each of the Pfeiffer adapters' bottleneck")
	f.IntVar(&o.virtual, "virtual-tokens", 20, "length of the prefix of prefix tuning")
	f.Uint64Var(&o.seed, "seed", 1, "seed of head, adapters, subset and order")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if o.model == "" {
		return o, errors.New("which model? give -model or set GOPEFT_MINILM")
	}
	for name := range strings.SplitSeq(chosen, ",") {
		if !slices.Contains(methodNames(), name) || slices.Contains(o.methods, name) {
			return o, fmt.Errorf("-methods %s: %q is unknown, or there twice; want some of %s", chosen, name, strings.Join(methodNames(), ", "))
		}
		o.methods = append(o.methods, name)
	}
	return o, nil
}

// run is the program: load, train and test by each method, compare.
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
	t := trial{options: o, base: base, out: out, progress: progress}
	if t.train, err = o.load(base, "train.csv", classes, o.rows); err != nil {
		return err
	}
	if t.test, err = o.load(base, "test.csv", classes, o.testRows); err != nil {
		return err
	}
	fmt.Fprintf(out, "train: %s\ntest:  %s\n\n", t.train.Report(), t.test.Report())
	return t.run(ctx)
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
