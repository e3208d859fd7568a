package main

import (
	"context"
	"embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
)

// base is the tiny model that examples/pretrain made.
//
//go:embed base
var base embed.FS

// options are the flags.
type options struct {
	model, data, fields string
	out, backend        string
	steps, batch, seq   int
	r                   int
	targets             string
	lr                  float64
	seed                uint64
	resume              string
	// made says that the data is the program's own.
	made bool
}

// parse reads the command line. What it says about -help goes to w.
func parse(args []string, w io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("quickstart", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&o.model, "model", "", "a Hugging Face folder or hub id (default: the tiny base of this repository)")
	f.StringVar(&o.data, "data", "", "a .jsonl or text file (default: questions that the program makes up)")
	f.StringVar(&o.fields, "fields", "", "fields of the JSONL file, such as question,answer (default: the usual names)")
	f.StringVar(&o.out, "out", "results/quickstart", "folder for adapter, checkpoints, log and plot")
	f.StringVar(&o.backend, "backend", "", "go, xla:cpu, xla:cuda, ... (default: GOMLX_BACKEND, else the best installed)")
	f.IntVar(&o.steps, "steps", 150, "optimizer steps")
	f.IntVar(&o.batch, "batch", 8, "rows of a batch")
	f.IntVar(&o.seq, "seq", 0, "longest example in tokens (default: 512, or what the model can)")
	f.IntVar(&o.r, "r", 8, "LoRA rank")
	f.StringVar(&o.targets, "targets", "all-linear", "modules to adapt, such as q_proj,v_proj")
	f.Float64Var(&o.lr, "lr", 0, "learning rate (default: 5e-3 for the tiny base, else 2e-4)")
	f.Uint64Var(&o.seed, "seed", 1, "seed of adapter, data and order")
	f.StringVar(&o.resume, "resume", "", "go on from a checkpoint's folder, or from the \"last\" in -out")
	err := f.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		f.SetOutput(w)
		fmt.Fprintln(w, "quickstart fine-tunes a language model with LoRA.")
		f.PrintDefaults()
		return o, err
	}
	if err == nil && f.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	for _, count := range []struct {
		name         string
		value, least int
	}{{"steps", o.steps, 1}, {"batch", o.batch, 1}, {"seq", o.seq, 0}} {
		if err == nil && count.value < count.least {
			err = fmt.Errorf("-%s is %d: want at least 1", count.name, count.value)
		}
	}
	if err != nil {
		return o, fmt.Errorf("%w (-help lists the flags)", err)
	}
	return o, o.prepare()
}

// prepare makes the output folder and the data file, and chooses the rate.
func (o *options) prepare() error {
	if o.lr == 0 && o.model == "" {
		o.lr = 5e-3
	} else if o.lr == 0 {
		o.lr = 2e-4
	}
	if err := os.MkdirAll(o.out, 0o777); err != nil {
		return fmt.Errorf("-out: %w", err)
	}
	if o.data != "" {
		_, err := os.Stat(o.data) // before a large model is loaded
		return err
	}
	o.made = true
	o.data, o.fields = filepath.Join(o.out, "task.jsonl"), "question,answer"
	return writeTask(o.data, o.seed)
}

// load opens the model, from the repository or from where -model says.
func (o options) load(ctx context.Context) (*models.Model, error) {
	settings := models.Options{Backend: o.backend}
	if o.model == "" {
		return models.FromFS(ctx, base, "base", settings)
	}
	m, err := models.Load(ctx, o.model, settings)
	if err == nil && m.Tokenizer == nil {
		err = errors.Join(fmt.Errorf("-model %s: there is no tokenizer.json", o.model), m.Close())
	}
	return m, err
}

// lora is the adapter that is trained.
func (o options) lora() lora.LoraConfig {
	targets := peft.AllLinear
	if o.targets != "all-linear" {
		targets = peft.Modules(strings.Split(o.targets, ",")...)
	}
	common := peft.PeftConfig{TaskType: "CAUSAL_LM"}
	if o.model == "" {
		common.BaseModelNameOrPath = "examples/quickstart/base" // where Python finds it
	}
	return lora.LoraConfig{PeftConfig: common, R: o.r, LoraAlpha: float64(2 * o.r), TargetModules: targets}
}

func (o options) fieldNames() []string {
	if o.fields == "" {
		return nil
	}
	return strings.Split(o.fields, ",")
}

func (o options) length(m *models.Model) int {
	if o.seq > 0 {
		return o.seq
	}
	return min(512, m.MaxPositions())
}
