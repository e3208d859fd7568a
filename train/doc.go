// Package train fine-tunes the adapters of a peft.PeftModel: data sets, losses,
// the optimizer step, and a trainer that evaluates, saves and resumes.
//
// A training step is one compiled program: adapter values and optimizer moments
// go in as arguments and come back as results; the frozen base is never changed.
// With gradient accumulation it is two programs, gradients and apply, with the
// sums of gradients, losses and target counts between them.
//
// Losses are those of causal language models, of classifiers and of plain functions; [PlanMemory]
// says what a training will need before anything is loaded.
package train
