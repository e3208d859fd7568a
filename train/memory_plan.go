package train

import (
	"errors"
	"fmt"
	"slices"

	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// MemoryOptions says what a training does with a model, as far as memory is concerned.
type MemoryOptions struct {
	// Batch is the number of rows of a batch, Length that of the tokens of a row.
	Batch, Length int
	// GradientCheckpointing is that of [Arguments].
	GradientCheckpointing bool
	// ChunkTokens is that of [CausalLM].
	ChunkTokens int
}

// MemoryPlan is what a training step will need on its device, in bytes, computed from
// shapes alone. docs/memory.md derives each part.
type MemoryPlan struct {
	MemoryOptions

	// Weights are the base's parameters that the step reads, those that are quantised as
	// codes; Statistics is what quantised ones have besides.
	Weights, Statistics int64
	// Adapters are the values of adapters, Moments AdamW's, in float32. Frozen are the values
	// of active adapters that are not trained, see [peft.PeftModel.Training].
	Adapters, Moments, Frozen int64

	// Activations are kept from the forward to the backward pass: of each block what its
	// gradients need, or with GradientCheckpointing its input alone.
	Activations int64
	// Gradients are those of all trained values, in float32.
	Gradients int64
	// Converted are trained weights in the dtype that products are computed in.
	Converted int64
	// Backward is what one block's backward pass holds at its peak: the gradients of its
	// activations and, with GradientCheckpointing, the activations themselves.
	Backward int64
	// Dequantised are the quantised weights that are alive at once: those of the layers
	// with one input, such as gate and up.
	Dequantised int64
	// Logits are those of one chunk of tokens and their gradient. Either they are alive or
	// Backward and Dequantised are.
	Logits int64

	// Results are the new values and moments, which exist beside the old ones until the
	// step ends.
	Results int64
	// Idle are parameters of the base that stay on the device although trained copies
	// replace them.
	Idle int64

	// hosted is the part of Results that temporaries can lie in, largest the largest
	// gradient that is an array of its own.
	hosted, largest int64
}

// plannedBase is what can be planned on: models.Model and models.Blueprint are.
type plannedBase interface {
	site.Base
	CacheShape() site.CacheShape
	Head() site.Module
	VocabSize() int
}

// held is implemented by bases whose parameters may be held in another form than values
// of the base's dtype.
type held interface {
	ParameterBytes(p site.Parameter) (values, statistics int64)
}

// PlanMemory plans the training of an adapter, or with [peft.Full] of the base itself, by
// the causal loss. It needs no weights: a models.Blueprint will do. It fails where
// [peft.GetPeftModel] would.
//
// The plan is of the program for CUDA; on other backends it is a rough guide.
func PlanMemory(base site.Base, config peft.Config, o MemoryOptions) (*MemoryPlan, error) {
	adapter, err := peft.DryRun(base, config)
	if err != nil {
		return nil, err
	}
	return planMemory(base, []*peft.Plan{adapter}, nil, o)
}

// MemoryPlan plans the step on the longest batch of the trainer's data.
func (t *Trainer) MemoryPlan() (*MemoryPlan, error) {
	longest := 0 // without buckets, the data is of arrays: refused below
	if n := len(t.data.buckets); n > 0 {
		longest = t.data.buckets[n-1]
	}
	return t.planMemory(longest)
}

// planMemory plans the step on rows of this length.
func (t *Trainer) planMemory(length int) (*MemoryPlan, error) {
	loss, ok := t.args.Loss.(CausalLM)
	if !ok {
		return nil, fmt.Errorf("train: memory plan: loss %T: only the causal loss can be planned", t.args.Loss)
	}
	var adapters, frozen []*peft.Plan
	trained := t.pm.Trained()
	for _, name := range t.pm.Active() {
		p, err := t.pm.Plan(name)
		if err != nil {
			return nil, err
		}
		if slices.Contains(trained, name) {
			adapters = append(adapters, p)
		} else {
			frozen = append(frozen, p)
		}
	}
	return planMemory(t.pm.Base(), adapters, frozen, MemoryOptions{
		Batch: t.args.PerDeviceTrainBatchSize, Length: length,
		GradientCheckpointing: t.args.GradientCheckpointing, ChunkTokens: loss.ChunkTokens,
	})
}

func planMemory(base site.Base, adapters, frozen []*peft.Plan, o MemoryOptions) (*MemoryPlan, error) {
	b, ok := base.(plannedBase)
	if !ok || b.Head().In == 0 {
		return nil, errors.New("train: memory plan: the base is no language model")
	}
	if b.CacheShape().Layers == 0 {
		return nil, fmt.Errorf("train: memory plan: %s is no causal language model, and only the causal loss can be planned", base.ModelType())
	}
	if o.Batch < 1 || o.Length < 1 {
		return nil, fmt.Errorf("train: memory plan: batch %d x %d: want at least 1 row of 1 token", o.Batch, o.Length)
	}
	p := &MemoryPlan{MemoryOptions: o}
	w := newWork(b, adapters)
	w.parameters(p)
	for _, a := range frozen {
		p.Frozen += a.Count.Trainable * floatBytes // of its own training
		w.virtual += a.VirtualTokens
	}
	p.Gradients, p.Results = p.Adapters, p.Adapters+p.Moments
	w.activations(p)
	return p, nil
}

// Inputs are the arguments of the compiled program.
func (p *MemoryPlan) Inputs() int64 {
	return p.Weights + p.Statistics + p.Adapters + p.Moments + p.Frozen
}

// Temporaries are the most that is alive at once inside the compiled program.
func (p *MemoryPlan) Temporaries() int64 {
	// XLA puts temporaries where large results will be, but not a gradient where what is
	// made of it will be.
	return max(p.alive()-p.hosted, p.largest)
}

func (p *MemoryPlan) alive() int64 {
	return p.Activations + p.Gradients + p.Converted + max(p.Logits, p.Backward+p.Dequantised)
}

// Program is what [ProgramMemory] will say: Inputs and Temporaries.
func (p *MemoryPlan) Program() int64 { return p.Inputs() + p.Temporaries() }

// Total is what must fit on the device.
func (p *MemoryPlan) Total() int64 { return p.Program() + p.Results + p.Idle }
