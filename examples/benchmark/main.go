// Command benchmark times a training step at any Llama geometry, with random
// weights made on the device and random tokens. It runs the very model, adapter
// and trainer code that users run.
//
//	go run ./examples/benchmark -config llama-2-7b -backend xla:cuda
//	go run ./examples/benchmark -config path/to/config.json -r 16 -targets all-linear -seq 2048 -checkpoint
//
// The last line of its output is one JSON object with every figure.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/gopeft/gopeft/internal/backend"
	"github.com/gopeft/gopeft/internal/geometry"
)

func main() {
	s := settings{}
	flag.StringVar(&s.Config, "config", "smollm2-135m", "a config.json, a folder, a hub id, or one of "+strings.Join(geometry.Names(), ", "))
	flag.StringVar(&s.Backend, "backend", "", "backend: go, xla:cpu, xla:cuda, ... (default: GOMLX_BACKEND, else the best installed)")
	flag.IntVar(&s.Rank, "r", 8, "LoRA rank")
	flag.StringVar(&s.Targets, "targets", "q_proj,v_proj", "LoRA targets, or all-linear")
	flag.Float64Var(&s.Dropout, "dropout", 0, "LoRA dropout")
	flag.IntVar(&s.Batch, "batch", 4, "rows of a batch")
	flag.IntVar(&s.Length, "seq", 512, "tokens of a row")
	flag.BoolVar(&s.Checkpoint, "checkpoint", false, "recompute each block in the backward pass")
	flag.StringVar(&s.Quant, "quant", "", "hold the base's linear layers in nf4, fp4 or int8")
	flag.BoolVar(&s.DoubleQuant, "double-quant", false, "quantise the statistics of nf4 or fp4, too")
	flag.BoolVar(&s.Full, "full", false, "train all parameters instead of LoRA")
	flag.IntVar(&s.Steps, "steps", 20, "timed steps")
	flag.IntVar(&s.Warmup, "warmup", 3, "steps before the timed ones, compilation among them")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "benchmark: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	r, err := measure(ctx, s)
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchmark:", err)
		os.Exit(1)
	}
	fmt.Printf("%s, %s, %s\n", r.Config, r.Platform, r.Method)
	fmt.Printf("%-12s %10.1f ms (median of %d; fastest %.1f)\n", "step", r.MedianMS, r.Steps, r.FastestMS)
	fmt.Printf("%-12s %10.0f\n", "tokens/s", r.TokensPerSecond)
	fmt.Printf("%-12s %10s of %s\n", "trainable", count(r.Trainable), count(r.Parameters))
	if r.Inputs > 0 {
		fmt.Printf("%-12s %10.2f GiB inputs + %.2f GiB temporaries = %.2f GiB\n", "program", gib(r.Inputs), gib(r.Temporaries), gib(r.Inputs+r.Temporaries))
	}
	fmt.Printf("%-12s %10.2f GiB\n", "planned", gib(r.Planned))
	fmt.Printf("%-12s %10.2f GiB\n", "host peak", gib(r.HostPeak))
	line, err := json.Marshal(r)
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchmark:", err)
		os.Exit(1)
	}
	fmt.Println(string(line))
}

func gib(bytes int64) float64 { return float64(bytes) / (1 << 30) }

func count(n int64) string { return fmt.Sprintf("%.3f M", float64(n)/1e6) }

// hostPeak is the process's largest resident size, 0 where the system does not tell.
func hostPeak() int64 {
	peak, err := backend.HostPeakRSS()
	if err != nil {
		return 0
	}
	return int64(peak)
}
