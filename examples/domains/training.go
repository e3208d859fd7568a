package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"

	"github.com/gopeft/gopeft/adapters"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/train"
)

// workshop is where the adapters are made.
type workshop struct {
	options
	model         *models.Model
	pm            *peft.PeftModel // with all adapters
	data          map[string]*train.Dataset
	out, progress io.Writer
}

// maxRank is the room of the adapter whose place others take, see [workshop.swap].
const maxRank = 8

// makeData writes the texts and reads them as tokens: "letters", "letters-held", ...
func (w *workshop) makeData() error {
	w.data = map[string]*train.Dataset{}
	for name, examples := range map[string][]example{
		"letters": texts(letter, false), "letters-held": texts(letter, true),
		"telegrams": texts(telegram, false), "telegrams-held": texts(telegram, true),
		"questions": questions(false), "questions-held": questions(true),
	} {
		path := filepath.Join(w.options.out, name+".jsonl")
		if err := write(path, examples); err != nil {
			return err
		}
		data, err := train.LoadJSONL(path, w.model.Tokenizer, train.DataOptions{MaxLength: w.model.MaxPositions(), Buckets: []int{24, 32, 40, 48, 56, 64, 80, 256}})
		if err != nil {
			return err
		}
		w.data[name] = data
	}
	return nil
}

// trainDomains trains one LoRA for each domain and saves it.
func (w *workshop) trainDomains(ctx context.Context) error {
	for _, domain := range []struct {
		name string
		rank int
	}{{"letters", maxRank}, {"telegrams", maxRank / 2}} {
		config := lora.LoraConfig{R: domain.rank, LoraAlpha: float64(2 * domain.rank), TargetModules: peft.AllLinear}
		config.BaseModelNameOrPath = "examples/quickstart/base" // where Python finds it
		if err := w.add(domain.name, config); err != nil {
			return err
		}
		pm, err := w.pm.With(domain.name)
		if err != nil {
			return err
		}
		if err := w.fit(ctx, pm, domain.name, domain.name, w.steps, w.lr); err != nil {
			return err
		}
		if err := pm.SavePretrained(w.options.out); err != nil { // to the folder of its name
			return err
		}
	}
	return nil
}

// trainTask trains a Pfeiffer adapter on the letters' LoRA, which stays as it is, and saves both.
func (w *workshop) trainTask(ctx context.Context) error {
	config := adapters.Pfeiffer()
	fmt.Fprintln(w.out)
	config.ReductionFactor = adapters.ReductionFactor{Default: 2}
	if err := w.add("answers", config); err != nil {
		return err
	}
	both, err := w.pm.With("letters", "answers")
	if err != nil {
		return err
	}
	onTop, err := both.Training("answers")
	if err != nil {
		return err
	}
	if err := w.fit(ctx, onTop, "answers on letters", "questions", w.taskSteps, w.taskLR); err != nil {
		return err
	}
	return onTop.SavePretrained(w.stacked())
}

func (w *workshop) stacked() string { return filepath.Join(w.options.out, "stacked") }

// add attaches one more adapter to the model.
func (w *workshop) add(name string, config peft.Config) (err error) {
	o := peft.Options{Name: name, Seed: w.seed}
	if w.pm == nil {
		w.pm, err = peft.GetPeftModel(w.model, config, o)
		return err
	}
	return w.pm.AddAdapter(config, o)
}

// fit trains the adapters that a view trains.
func (w *workshop) fit(ctx context.Context, pm *peft.PeftModel, title, data string, steps int, rate float64) error {
	fmt.Fprintf(w.progress, "training %s\n", title)
	trainer, err := train.NewTrainer(pm, w.data[data], w.arguments(data, steps, rate))
	if err != nil {
		return err
	}
	defer trainer.Close()
	result, err := trainer.Train(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(w.out, "%-19s %6d trained parameters, %d steps, %.1f s\n", title, pm.TrainableParameters().Trainable, result.GlobalStep, result.Seconds)
	return nil
}

func (w *workshop) arguments(name string, steps int, rate float64) train.Arguments {
	return train.Arguments{
		OutputDir: filepath.Join(w.options.out, "runs", name), MaxSteps: steps, PerDeviceTrainBatchSize: w.batch, PerDeviceEvalBatchSize: 20,
		LearningRate: rate, WarmupRatio: 0.05, Seed: w.seed, SaveStrategy: train.SaveNo, Progress: w.progress,
	}
}
