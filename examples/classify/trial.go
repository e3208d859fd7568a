package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/train"
)

// trial trains the same by several methods.
type trial struct {
	options
	base          *models.Classifier
	train, test   *train.Dataset
	out, progress io.Writer
}

// outcome is a line of the table.
type outcome struct {
	method        method
	pm            *peft.PeftModel
	count         peft.Count
	bytes         int64
	seconds       float64
	before, after train.Evaluation
}

func (t trial) run(ctx context.Context) error {
	var outcomes []outcome
	for _, m := range methods {
		if !slices.Contains(t.methods, m.name) {
			continue
		}
		result, err := t.one(ctx, m)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		outcomes = append(outcomes, result)
	}
	fmt.Fprintln(t.out)
	if err := t.table(outcomes); err != nil {
		return err
	}
	best := slices.MaxFunc(outcomes, func(a, b outcome) int { return cmp.Compare(a.after.Accuracy, b.after.Accuracy) })
	fmt.Fprintf(t.out, "\nadapters %s\n%s says:\n", filepath.Join(t.options.out, "*", "adapter"), best.method.title)
	return show(ctx, best.pm, t.out)
}

// one trains, tests and saves by one method. The base, with its new head, is the same for
// all: an adapter trains a copy of the head.
func (t trial) one(ctx context.Context, m method) (outcome, error) {
	result := outcome{method: m}
	pm, err := peft.GetPeftModel(t.base, m.config(t.options), peft.Options{Seed: t.seed})
	if err != nil {
		return result, err
	}
	result.pm, result.count = pm, pm.TrainableParameters()
	fmt.Fprintf(t.out, "%s: %s\n", m.title, result.count)
	dir := filepath.Join(t.options.out, m.name)
	trainer, err := train.NewTrainer(pm, t.train, train.Arguments{
		OutputDir: dir, NumTrainEpochs: t.epochs, PerDeviceTrainBatchSize: t.batch, PerDeviceEvalBatchSize: 2 * t.batch,
		LearningRate: *t.rates[m.name], GroupByLength: true, SaveStrategy: train.SaveNo, Seed: t.seed, Progress: t.progress,
	})
	if err != nil {
		return result, err
	}
	defer trainer.Close()
	if result.before, err = trainer.Measure(ctx, t.test); err != nil {
		return result, err
	}
	trained, err := trainer.Train(ctx)
	if err != nil {
		return result, err
	}
	result.seconds = trained.Seconds
	start := time.Now()
	if result.after, err = trainer.Measure(ctx, t.test); err != nil {
		return result, err
	}
	fmt.Fprintf(t.out, "  %d steps, train loss %.4f, train seconds %.1f, test seconds %.1f\n",
		trained.GlobalStep, trained.TrainingLoss, trained.Seconds, time.Since(start).Seconds())
	adapter := filepath.Join(dir, "adapter")
	if err := pm.SavePretrained(adapter); err != nil {
		return result, err
	}
	result.bytes, err = folderBytes(adapter)
	return result, err
}

func (t trial) table(outcomes []outcome) error {
	w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "method\ttrainable\tof all\tfolder, bytes\tseconds\tloss before\tafter\taccuracy before\tafter\t")
	for _, o := range outcomes {
		fmt.Fprintf(w, "%s\t%d\t%.2f %%\t%d\t%.1f\t%.4f\t%.4f\t%.4f\t%.4f\t\n", o.method.name, o.count.Trainable,
			100*float64(o.count.Trainable)/float64(o.count.All), o.bytes, o.seconds, o.before.Loss, o.after.Loss, o.before.Accuracy, o.after.Accuracy)
	}
	return w.Flush()
}

// folderBytes is the size of all files of a folder.
func folderBytes(dir string) (total int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			total += info.Size()
		}
		return err
	})
	return total, err
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
