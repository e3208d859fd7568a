// Command gopeft is the command line of the library.
//
//	go run ./cmd/gopeft plan --config llama-2-7b --r 16 --targets all-linear --quant nf4 --double-quant --batch 4 --seq 2048 --checkpoint
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/alecthomas/kong"
)

// commands are those of the program: a field with a Run method each.
type commands struct {
	Plan planCommand `cmd:"" help:"Say what memory a training will take, from a config.json without weights."`
}

// output is where a command writes its results.
type output struct{ io.Writer }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "gopeft:", err)
		os.Exit(1)
	}
}

// errHelp ends a run that only showed help.
var errHelp = errors.New("help")

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	// Kong exits after it has shown help.
	defer func() {
		if r := recover(); r == errHelp {
			err = nil
		} else if r != nil {
			panic(r)
		}
	}()
	var c commands
	parser, err := kong.New(&c, kong.Name("gopeft"), kong.Description("Fine-tune language models with small adapters."),
		kong.Writers(out, out), kong.Exit(func(int) { panic(errHelp) }),
		kong.BindTo(ctx, (*context.Context)(nil)), kong.Bind(output{out}), planVars)
	if err != nil {
		return err
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	parsed, err := parser.Parse(args)
	if err != nil {
		return fmt.Errorf("%w (gopeft --help lists the commands)", err)
	}
	return parsed.Run()
}
