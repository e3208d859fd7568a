package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/gopeft/gopeft/internal/backend"
	"github.com/gopeft/gopeft/internal/geometry"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/quant"
	"github.com/gopeft/gopeft/train"
)

// settings is one measurement; the flags of the command.
type settings struct {
	Config, Backend string
	Rank            int
	Targets         string
	Dropout         float64
	Batch, Length   int
	Checkpoint      bool
	Quant           string
	DoubleQuant     bool
	Full            bool
	Steps, Warmup   int
}

// result is what a measurement found. Sizes are bytes.
type result struct {
	settings
	Platform, Method      string
	MedianMS, FastestMS   float64
	TokensPerSecond       float64
	Trainable, Parameters int64
	Inputs, Temporaries   int64 // of the compiled program; 0 on the Go backend
	Results               int64 // likewise: the new values and moments
	Planned               int64 // train.MemoryPlan's figure for Inputs and Temporaries
	HostPeak              int64
	Loss                  float64
}

// measure makes the model and trains it for a few steps.
func measure(ctx context.Context, s settings) (result, error) {
	r := result{settings: s}
	if s.Steps < 1 || s.Warmup < 1 {
		return r, fmt.Errorf("-steps and -warmup: want at least 1, got %d and %d", s.Steps, s.Warmup)
	}
	config, err := geometry.Read(ctx, s.Config)
	if err != nil {
		return r, err
	}
	scheme, err := quant.Parse(s.Quant, s.DoubleQuant)
	if err != nil {
		return r, fmt.Errorf("-quant: %w", err)
	}
	model, err := models.New(ctx, config, 1, models.Options{Backend: s.Backend, Quantization: scheme})
	if err != nil {
		return r, err
	}
	defer model.Close()
	r.Platform = string(backend.Kind(model.Backend()))
	pm, err := peft.GetPeftModel(model, s.method())
	if err != nil {
		return r, err
	}
	r.Method = s.method().PeftType()
	parameters := pm.TrainableParameters()
	r.Trainable, r.Parameters = parameters.Trainable, parameters.All
	dir, err := os.MkdirTemp("", "gopeft-benchmark")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(dir)
	data, err := randomTokens(s, model.VocabSize())
	if err != nil {
		return r, err
	}
	clock := stopwatch{warmup: s.Warmup}
	trainer, err := train.NewTrainer(pm, data, train.Arguments{
		OutputDir: dir, MaxSteps: s.Warmup + s.Steps, PerDeviceTrainBatchSize: s.Batch, LearningRate: 1e-4,
		LrSchedulerType: train.SchedulerConstant, GradientCheckpointing: s.Checkpoint, SaveStrategy: train.SaveNo,
		LoggingSteps: s.Warmup + s.Steps, Quiet: true, Callback: clock.event,
	})
	if err != nil {
		return r, err
	}
	defer trainer.Close()
	if _, err := trainer.Train(ctx); err != nil {
		return r, err
	}
	if m, err := trainer.ProgramMemory(); err == nil {
		r.Inputs, r.Temporaries, r.Results = m.Inputs, m.Temporaries, m.Results
	}
	plan, err := trainer.MemoryPlan()
	if err != nil {
		return r, err
	}
	r.Planned = plan.Program()
	slices.Sort(clock.steps)
	median := clock.steps[len(clock.steps)/2]
	r.MedianMS, r.FastestMS = median.Seconds()*1e3, clock.steps[0].Seconds()*1e3
	r.TokensPerSecond = float64(s.Batch*s.Length) / median.Seconds()
	r.HostPeak, r.Loss = hostPeak(), clock.loss
	return r, nil
}

func (s settings) method() peft.Config {
	if s.Full {
		return peft.Full{}
	}
	targets := peft.AllLinear
	if s.Targets != "all-linear" {
		targets = peft.Modules(strings.Split(s.Targets, ",")...)
	}
	return lora.LoraConfig{R: s.Rank, LoraAlpha: 32, LoraDropout: s.Dropout, TargetModules: targets}
}

// randomTokens is a data set of full rows, so that no step pads.
func randomTokens(s settings, vocabulary int) (*train.Dataset, error) {
	r := rand.New(rand.NewPCG(1, 2))
	examples := make([]train.Example, 4*s.Batch)
	for i := range examples {
		ids := make([]int32, s.Length)
		for k := range ids {
			ids[k] = int32(r.IntN(vocabulary))
		}
		examples[i] = train.Example{IDs: ids, Labels: ids}
	}
	return train.NewDataset(examples)
}

// stopwatch takes the time between the ends of consecutive steps.
type stopwatch struct {
	warmup int
	last   time.Time
	steps  []time.Duration
	loss   float64
}

func (w *stopwatch) event(e train.Event) error {
	if e.Kind != train.EventStep {
		return nil
	}
	now := time.Now()
	if e.Step > w.warmup {
		w.steps = append(w.steps, now.Sub(w.last))
	}
	w.last, w.loss = now, e.Loss
	return nil
}
