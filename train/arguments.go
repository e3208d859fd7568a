package train

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/gopeft/gopeft/peft"
)

// Arguments are the settings of a [Trainer]. Names and meanings are those of
// transformers.TrainingArguments; so are the defaults that zero values stand for,
// except where it says otherwise.
type Arguments struct {
	// OutputDir receives checkpoints, log.jsonl and loss.png. It is created; it must
	// not be empty.
	OutputDir string
	// OverwriteOutputDir allows a new training, or one resumed from a checkpoint
	// elsewhere, in a folder with checkpoints of an earlier one, which are deleted once
	// the first new one is complete. false: that is an error.
	OverwriteOutputDir bool
	// ResumeFromCheckpoint goes on from a checkpoint: "last" for the last complete
	// one in OutputDir, or a checkpoint's folder. "": from the beginning. See docs/training.md.
	ResumeFromCheckpoint string

	// NumTrainEpochs is how often the data is gone through; parts of an epoch are
	// fine. 0: 3.
	NumTrainEpochs float64
	// MaxSteps is the number of optimizer steps, in place of NumTrainEpochs. 0: by epochs.
	MaxSteps int
	// PerDeviceTrainBatchSize is the number of rows of a batch. 0: 8.
	PerDeviceTrainBatchSize int
	// GradientAccumulationSteps is the number of batches of one optimizer step, whose
	// losses are weighted by their targets. An epoch's last step may have fewer. 0: 1.
	GradientAccumulationSteps int
	// GroupByLength makes batches of examples of similar length.
	GroupByLength bool
	// DataloaderDropLast leaves out the last, incomplete batch of an epoch.
	DataloaderDropLast bool
	// NoShuffle takes the examples in the data set's order. false: a new random order
	// every epoch.
	NoShuffle bool
	// Seed decides the order of the data and the dropout masks. transformers' is 42 by default.
	Seed uint64

	// LearningRate is the full rate, which LrSchedulerType scales. 0: 5e-5.
	LearningRate float64
	// LoraPlusLRRatio is LoRA+ (Hayou et al. 2024, arXiv:2402.12354): matrices B of LoRA
	// and vectors (biases, DoRA's magnitudes) have a rate this many times LearningRate. It
	// should be more than 1; the paper's is 16. 0: all have the same rate.
	LoraPlusLRRatio float64
	// LoraPlusLREmbedding is the rate of adapters of embeddings with LoRA+, in place of
	// LearningRate. 0: 1e-6, as in peft.
	LoraPlusLREmbedding float64
	// LrSchedulerType is linear by default.
	LrSchedulerType SchedulerType
	// WarmupSteps is the number of optimizer steps over which the rate rises from 0.
	WarmupSteps int
	// WarmupRatio is the same as a part of all steps, rounded up; WarmupSteps comes first.
	WarmupRatio float64
	// WeightDecay is AdamW's, on all trained tensors but those of peft.Param.NoDecay:
	// with [peft.Full], as in transformers, biases and the weights of norms.
	WeightDecay float64
	// AdamBeta1, AdamBeta2 and AdamEpsilon are AdamW's. 0: 0.9, 0.999, 1e-8.
	AdamBeta1, AdamBeta2, AdamEpsilon float64
	// MaxGradNorm is the global norm that gradients are clipped to. 0: 1; negative: no clipping.
	MaxGradNorm float64
	// Loss is what is minimised. nil: [CausalLM], or [Classification] for a classifier.
	Loss Loss
	// GradientCheckpointing computes each block again in the backward pass instead of
	// keeping its activations: less memory, about a third more work.
	GradientCheckpointing bool

	// EvalDataset is held-out data. It is evaluated as EvalStrategy says and at the end.
	EvalDataset *Dataset
	// PerDeviceEvalBatchSize is the number of rows of a batch in evaluation. 0: 8.
	PerDeviceEvalBatchSize int
	// EvalStrategy is never, by default.
	EvalStrategy EvalStrategy
	// EvalSteps is the number of optimizer steps between evaluations with [EvalSteps].
	// 0: LoggingSteps.
	EvalSteps int

	// SaveStrategy is [SaveSteps] by default.
	SaveStrategy SaveStrategy
	// SaveSteps is the number of optimizer steps between checkpoints with [SaveSteps];
	// the last step is saved too. 0: 500.
	SaveSteps int
	// SaveTotalLimit is the number of checkpoints to keep; older ones are deleted, the
	// newest never. 0: all.
	SaveTotalLimit int

	// LoggingSteps is the number of optimizer steps between two records in log.jsonl;
	// the first and the last step always have one. 0: 10 (transformers: 500).
	LoggingSteps int
	// Progress is where progress is shown. nil: standard error.
	Progress io.Writer
	// Quiet shows no progress.
	Quiet bool
	// Callback is told what happens, see [Event]. An error stops the training, which
	// writes a checkpoint; [ErrStopTraining] ends it without an error.
	Callback func(Event) error
}

// SaveStrategy says when checkpoints are written.
type SaveStrategy int

// Each writes a checkpoint when the training is cancelled, too.
const (
	// SaveSteps saves every Arguments.SaveSteps steps and at the end.
	SaveSteps SaveStrategy = iota
	// SaveEpoch saves at the end of every epoch, and of the training.
	SaveEpoch
	// SaveNo saves nothing.
	SaveNo
)

// EvalStrategy says when Arguments.EvalDataset is evaluated.
type EvalStrategy int

const (
	// EvalNo evaluates at the end only.
	EvalNo EvalStrategy = iota
	// EvalSteps evaluates every Arguments.EvalSteps steps.
	EvalSteps
	// EvalEpoch evaluates at the end of every epoch.
	EvalEpoch
)

// ResumeLast is the value of Arguments.ResumeFromCheckpoint for the last complete
// checkpoint in the output folder.
const ResumeLast = "last"

const (
	defaultEpochs       = 3
	defaultLearningRate = 5e-5
	defaultLREmbedding  = 1e-6
	defaultMaxGradNorm  = 1
	defaultSaveSteps    = 500
	defaultLoggingSteps = 10
)

// withDefaults fills in what zero values stand for.
func (a Arguments) withDefaults() Arguments {
	a.NumTrainEpochs = cmp.Or(a.NumTrainEpochs, defaultEpochs)
	a.PerDeviceTrainBatchSize = cmp.Or(a.PerDeviceTrainBatchSize, defaultBatchSize)
	a.PerDeviceEvalBatchSize = cmp.Or(a.PerDeviceEvalBatchSize, defaultBatchSize)
	a.GradientAccumulationSteps = cmp.Or(a.GradientAccumulationSteps, 1)
	a.LearningRate = cmp.Or(a.LearningRate, defaultLearningRate)
	if a.LoraPlusLRRatio != 0 {
		a.LoraPlusLREmbedding = cmp.Or(a.LoraPlusLREmbedding, defaultLREmbedding)
	}
	a.MaxGradNorm = cmp.Or(a.MaxGradNorm, defaultMaxGradNorm)
	a.SaveSteps = cmp.Or(a.SaveSteps, defaultSaveSteps)
	a.LoggingSteps = cmp.Or(a.LoggingSteps, defaultLoggingSteps)
	a.EvalSteps = cmp.Or(a.EvalSteps, a.LoggingSteps)
	if a.Loss == nil {
		a.Loss = CausalLM{}
	}
	return a
}

// Validate reports every setting that makes no sense.
func (a Arguments) Validate() error {
	var errs []error
	bad := func(is bool, format string, values ...any) {
		if is {
			errs = append(errs, fmt.Errorf(format, values...))
		}
	}
	bad(a.OutputDir == "", "OutputDir is empty")
	bad(!finite(a.NumTrainEpochs) || a.NumTrainEpochs < 0, "NumTrainEpochs is %g, want more than 0", a.NumTrainEpochs)
	for _, count := range []struct {
		name  string
		value int
	}{
		{"MaxSteps", a.MaxSteps}, {"PerDeviceTrainBatchSize", a.PerDeviceTrainBatchSize},
		{"PerDeviceEvalBatchSize", a.PerDeviceEvalBatchSize}, {"GradientAccumulationSteps", a.GradientAccumulationSteps},
		{"WarmupSteps", a.WarmupSteps}, {"EvalSteps", a.EvalSteps}, {"SaveSteps", a.SaveSteps},
		{"SaveTotalLimit", a.SaveTotalLimit}, {"LoggingSteps", a.LoggingSteps},
	} {
		bad(count.value < 0, "%s is %d, want 0 or more", count.name, count.value)
	}
	bad(!finite(a.LearningRate) || a.LearningRate < 0, "LearningRate is %g, want more than 0", a.LearningRate)
	bad(!finite(a.LoraPlusLRRatio) || a.LoraPlusLRRatio < 0, "LoraPlusLRRatio is %g, want more than 0", a.LoraPlusLRRatio)
	bad(!finite(a.LoraPlusLREmbedding) || a.LoraPlusLREmbedding < 0, "LoraPlusLREmbedding is %g, want more than 0", a.LoraPlusLREmbedding)
	bad(a.LoraPlusLRRatio == 0 && a.LoraPlusLREmbedding > 0, "LoraPlusLREmbedding is %g, but LoraPlusLRRatio is 0", a.LoraPlusLREmbedding)
	bad(!finite(a.MaxGradNorm) || a.MaxGradNorm > 0 && float32(a.MaxGradNorm) == 0, "MaxGradNorm is %g, want a number that float32 has", a.MaxGradNorm)
	bad(!(a.WarmupRatio >= 0 && a.WarmupRatio <= 1), "WarmupRatio is %g, want 0 to 1", a.WarmupRatio)
	bad(a.LrSchedulerType < 0 || int(a.LrSchedulerType) >= len(schedulerNames), "LrSchedulerType is %d, which does not exist", int(a.LrSchedulerType))
	bad(a.SaveStrategy < 0 || a.SaveStrategy > SaveNo, "SaveStrategy is %d, which does not exist", int(a.SaveStrategy))
	bad(a.EvalStrategy < 0 || a.EvalStrategy > EvalEpoch, "EvalStrategy is %d, which does not exist", int(a.EvalStrategy))
	bad(a.EvalStrategy != EvalNo && a.EvalDataset == nil, "EvalStrategy asks for evaluations, but EvalDataset is nil")
	bad(a.EvalDataset != nil && a.EvalDataset.Len() == 0, "EvalDataset is empty")
	bad(a.EvalStrategy != EvalSteps && a.EvalSteps > 0, "EvalSteps is %d, but EvalStrategy is not EvalSteps", a.EvalSteps)
	bad(a.SaveStrategy != SaveSteps && a.SaveSteps > 0, "SaveSteps is %d, but SaveStrategy is not SaveSteps", a.SaveSteps)
	bad(a.OverwriteOutputDir && a.ResumeFromCheckpoint == ResumeLast, "OverwriteOutputDir contradicts ResumeFromCheckpoint %q", ResumeLast)
	if err := a.adamw().Validate(); err != nil {
		errs = append(errs, err)
	} else {
		// The first step's size is the largest for a rate.
		inRange := !slices.ContainsFunc(a.adamw().withDefaults().scalars(1, a.LearningRate), func(x float32) bool { return !finite(float64(x)) })
		bad(finite(a.LearningRate) && !inRange, "LearningRate is %g, which with AdamW's constants leaves the range of float32", a.LearningRate)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("train: arguments: %w", err)
	}
	return nil
}

// rates are those of the groups of LoRA+, relative to LearningRate.
func (a Arguments) rates() groupRates {
	rates := groupRates{peft.GroupOther: 1, peft.GroupB: 1, peft.GroupEmbedding: 1}
	if a.LoraPlusLRRatio != 0 {
		rates[peft.GroupB], rates[peft.GroupEmbedding] = a.LoraPlusLRRatio, a.LoraPlusLREmbedding/a.LearningRate
	}
	return rates
}

func (a Arguments) adamw() AdamW {
	return AdamW{Beta1: a.AdamBeta1, Beta2: a.AdamBeta2, Epsilon: a.AdamEpsilon, WeightDecay: a.WeightDecay}
}

// schedule is the learning rate's, for a training of total steps.
func (a Arguments) schedule(total int) Schedule {
	warmup := a.WarmupSteps
	if warmup == 0 {
		warmup = int(math.Ceil(a.WarmupRatio * float64(total)))
	}
	return Schedule{Type: a.LrSchedulerType, Warmup: warmup, Total: total}
}

func (a Arguments) samplerOptions() SamplerOptions {
	return SamplerOptions{
		BatchSize: a.PerDeviceTrainBatchSize, Seed: a.Seed, Shuffle: !a.NoShuffle,
		GroupByLength: a.GroupByLength, DropLast: a.DataloaderDropLast,
	}
}
