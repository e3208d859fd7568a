// Command qlora fine-tunes a quantised language model with LoRA (Dettmers et al. 2023,
// arXiv:2305.14314): the base is held in 4-bit NormalFloat with double quantisation, the
// adapter in float32. It prints what memory a step will take, and what it took.
//
//	go run ./examples/qlora
//	go run ./examples/qlora -model meta-llama/Llama-2-7b-hf -data train.jsonl -r 16 -batch 4 -seq 2048 -checkpoint
//
// By default it trains the tiny base of examples/quickstart, in under a minute. The adapter
// that it saves loads in Python's peft.
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

	"github.com/gopeft/gopeft/examples/quickstart/base"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/quant"
	"github.com/gopeft/gopeft/train"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "qlora:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	model, data, out, backend string
	r, steps, batch, seq      int
	lr, dropout               float64
	checkpoint                bool
	seed                      uint64
}

func parse(args []string, w io.Writer) (o options, err error) {
	f := flag.NewFlagSet("qlora", flag.ContinueOnError)
	f.SetOutput(w)
	f.StringVar(&o.model, "model", "", "a Hugging Face folder or hub id, quantised by bitsandbytes or not (default: the tiny base of this repository)")
	f.StringVar(&o.data, "data", "", "a .jsonl or text file (default: questions that the program makes up)")
	f.StringVar(&o.out, "out", "results/qlora", "folder for adapter, checkpoints, log and plot")
	f.StringVar(&o.backend, "backend", "", "go, xla:cpu, xla:cuda, ... (default: GOMLX_BACKEND, else the best installed)")
	f.IntVar(&o.r, "r", 16, "LoRA rank, on all linear layers")
	f.IntVar(&o.steps, "steps", 60, "optimizer steps")
	f.IntVar(&o.batch, "batch", 8, "rows of a batch")
	f.IntVar(&o.seq, "seq", 0, "longest example in tokens (default: 512, or what the model can)")
	f.Float64Var(&o.lr, "lr", 0, "learning rate (default: 5e-3 for the tiny base, else 2e-4)")
	f.Float64Var(&o.dropout, "dropout", 0, "dropout of LoRA's input")
	f.BoolVar(&o.checkpoint, "checkpoint", false, "compute each block again in the backward pass")
	f.Uint64Var(&o.seed, "seed", 1, "seed of adapter, data and order")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if o.lr == 0 {
		o.lr = 2e-4
		if o.model == "" {
			o.lr = 5e-3
		}
	}
	if err := os.MkdirAll(o.out, 0o777); err != nil {
		return o, fmt.Errorf("-out: %w", err)
	}
	if o.data == "" {
		o.data = filepath.Join(o.out, "questions.jsonl")
		return o, writeQuestions(o.data)
	}
	_, err = os.Stat(o.data) // before a large model is loaded
	return o, err
}

// load holds the model in four bits. Its weights are quantised one by one while they are
// read; a checkpoint that bitsandbytes has quantised is held as it is.
func (o options) load(ctx context.Context) (*models.Model, error) {
	settings := models.Options{Backend: o.backend, Quantization: quant.NF4{DoubleQuant: true}}
	if o.model == "" {
		return models.FromFS(ctx, base.Files, ".", settings)
	}
	m, err := models.Load(ctx, o.model, settings)
	if errors.Is(err, models.ErrQuantised) {
		settings.Quantization = nil
		m, err = models.Load(ctx, o.model, settings)
	}
	if err == nil && m.Tokenizer == nil {
		err = errors.Join(fmt.Errorf("-model %s: there is no tokenizer.json", o.model), m.Close())
	}
	return m, err
}

func (o options) lora() lora.LoraConfig {
	c := lora.LoraConfig{R: o.r, LoraAlpha: float64(2 * o.r), LoraDropout: o.dropout, TargetModules: peft.AllLinear}
	c.TaskType = "CAUSAL_LM"
	if o.model == "" {
		c.BaseModelNameOrPath = "examples/quickstart/base" // where Python finds it
	}
	return c
}

// run is the program: load, attach, plan, train, save.
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
	if o.seq == 0 {
		o.seq = min(512, model.MaxPositions())
	}
	data, err := train.LoadFile(o.data, model.Tokenizer, train.DataOptions{MaxLength: o.seq})
	if err != nil {
		return err
	}
	rest, held, err := data.Split(0.1, o.seed)
	if err != nil {
		return err
	}
	trainer, err := train.NewTrainer(pm, rest, train.Arguments{
		OutputDir: o.out, OverwriteOutputDir: true, SaveTotalLimit: 1, MaxSteps: o.steps, PerDeviceTrainBatchSize: o.batch,
		LearningRate: o.lr, WarmupRatio: 0.05, Seed: o.seed, GradientCheckpointing: o.checkpoint, Progress: progress,
	})
	if err != nil {
		return err
	}
	defer trainer.Close()
	plan, err := trainer.MemoryPlan()
	if err != nil {
		return err
	}
	fmt.Fprintln(out, pm.TrainableParameters())
	fmt.Fprint(out, plan)
	before, err := trainer.Evaluate(ctx, held)
	if err != nil {
		return err
	}
	if _, err := trainer.Train(ctx); err != nil {
		return err
	}
	after, err := trainer.Evaluate(ctx, held)
	if err != nil {
		return err
	}
	adapter := filepath.Join(o.out, "adapter")
	if err := pm.SavePretrained(adapter); err != nil {
		return err
	}
	compiled, err := trainer.ProgramMemory()
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		fmt.Fprintf(out, "the backend %s does not say what its programs need\n", model.Backend().Name())
	case err != nil:
		return err
	default:
		fmt.Fprint(out, plan.Beside(compiled))
	}
	fmt.Fprintf(out, "loss before=%.4f after=%.4f\nadapter %s\n", before, after, adapter)
	return nil
}
