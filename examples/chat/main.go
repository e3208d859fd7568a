// Command chat talks in the terminal with a chat model and any adapters, of whatever
// methods, that it switches between while the conversation goes on.
//
//	go run ./examples/chat
//	go run ./examples/chat -model HuggingFaceTB/SmolLM2-135M-Instruct -adapter results/pirate,results/poet
//	printf 'Where does Mia live?\n/base\n/adapter sentences\nWhat does she play?\n' | go run ./examples/chat
//
// By default it talks with the tiny base of examples/quickstart about the people whom that
// knows. Two adapters teach it to chat; they are trained at the first start, in seconds.
// /help lists the commands. Ctrl-C stops an answer, and ends the program between answers.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	"github.com/gopeft/gopeft/models"
)

func main() {
	c := console{in: os.Stdin, out: os.Stdout, progress: os.Stderr, terminal: term.IsTerminal(int(os.Stdin.Fd()))}
	err := run(context.Background(), os.Args[1:], c)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "chat:", err)
		os.Exit(1)
	}
}

// console is where the user is. What is read from elsewhere than a terminal is written,
// too, so that the conversation can be read.
type console struct {
	in            io.Reader
	out, progress io.Writer
	terminal      bool
}

// options are the flags.
type options struct {
	model, backend, quant string
	adapters              []string
	teachTo, system       string
	generate              models.GenerateOptions
	steps                 int
}

func parse(args []string, w io.Writer) (options, error) {
	var o options
	adapters := ""
	f := flag.NewFlagSet("chat", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&o.model, "model", "", "a Hugging Face folder or hub id (default: the tiny base of this repository)")
	f.StringVar(&adapters, "adapter", "", "folders of adapters, or NAME=FOLDER, separated by commas; the first is active")
	f.StringVar(&o.backend, "backend", "", "go, xla:cpu, xla:cuda, ... (default: GOMLX_BACKEND, else the best installed)")
	f.StringVar(&o.quant, "quant", "", "hold the model's linear layers in nf4, fp4 or int8")
	f.StringVar(&o.system, "system", "", "a system prompt")
	f.IntVar(&o.generate.MaxNewTokens, "max-tokens", 256, "longest answer in tokens")
	f.Float64Var(&o.generate.Temperature, "temperature", 0, "draw tokens at this temperature (default: take the most probable)")
	f.Float64Var(&o.generate.TopP, "top-p", 0, "draw from the most probable tokens that reach this together (default: all)")
	f.IntVar(&o.generate.TopK, "top-k", 0, "draw from so many tokens (default: all)")
	f.Float64Var(&o.generate.RepetitionPenalty, "repetition-penalty", 0, "make tokens that were there less probable, such as 1.1 (default: no)")
	f.Uint64Var(&o.generate.Seed, "seed", 1, "seed of the drawing")
	f.StringVar(&o.teachTo, "teach", "", "train the tiny base's adapters, write them to this folder and do nothing else")
	f.IntVar(&o.steps, "steps", 400, "optimizer steps of each with -teach")
	err := f.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		f.SetOutput(w)
		fmt.Fprintln(w, "chat talks with a model and its adapters.")
		f.PrintDefaults()
		return o, err
	case err == nil && f.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", f.Arg(0))
	case err == nil && o.generate.MaxNewTokens < 1:
		err = fmt.Errorf("-max-tokens is %d: want at least 1", o.generate.MaxNewTokens)
	case err == nil && o.teachTo != "" && o.model != "":
		err = errors.New("-teach is for the tiny base, not for -model")
	case err == nil && o.steps < 1:
		err = fmt.Errorf("-steps is %d: want at least 1", o.steps)
	}
	if err != nil {
		return o, fmt.Errorf("%w (-help lists the flags)", err)
	}
	if adapters != "" {
		o.adapters = strings.Split(adapters, ",")
	}
	return o, nil
}

// run is the program: load the model, then its adapters, then talk.
func run(ctx context.Context, args []string, c console) error {
	o, err := parse(args, c.out)
	if err != nil {
		return err
	}
	model, err := o.load(ctx)
	if err != nil {
		return err
	}
	defer model.Close()
	if o.teachTo != "" {
		return o.teachAll(ctx, model, c)
	}
	pm, err := o.loadAdapters(model)
	if err != nil {
		return err
	}
	s, err := newSession(model, pm, o, c)
	if err != nil {
		return err
	}
	return s.talk(ctx)
}
