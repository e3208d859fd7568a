package train

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/gomlx/gomlx/core/tensors"

	"github.com/gopeft/gopeft/internal/atomicfile"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/peft"
)

// The files of a checkpoint, beside those of the adapters. docs/training.md
// describes them.
const (
	stateFile     = "trainer_state.json"
	optimizerFile = "optimizer.safetensors"

	checkpointVersion = 1
)

// trainerState is trainer_state.json.
type trainerState struct {
	Version    int          `json:"version"`
	GlobalStep int          `json:"global_step"`
	MaxSteps   int          `json:"max_steps"`
	Epoch      float64      `json:"epoch"`
	Seed       uint64       `json:"seed"`
	Sampler    SamplerState `json:"sampler"`
	Backend    string       `json:"backend"`
	// Rows is the size of the data set, for an error that says more than a fingerprint.
	Rows int `json:"rows"`
	// Base is the model that was trained on.
	Base baseState `json:"base"`
	// Arguments are the settings that decide the result, by name.
	Arguments map[string]any `json:"arguments"`
	// Adapters are the configurations of the trained adapters, in order.
	Adapters []adapterState `json:"adapters"`
	tally
}

type adapterState struct {
	Name   string          `json:"name"`
	Config json.RawMessage `json:"config"`
}

// saveError is an error of writing a checkpoint.
type saveError struct{ err error }

func (e *saveError) Error() string { return "train: checkpoint: " + e.err.Error() }
func (e *saveError) Unwrap() error { return e.err }

// save publishes the values and writes a checkpoint of the present step, unless
// there is one.
func (r *run) save() error {
	if r.saved == r.state.step {
		return nil
	}
	defer r.progress.Skip()
	if err := r.state.publish(r.pm); err != nil {
		return err
	}
	path := filepath.Join(r.args.OutputDir, checkpointName(r.state.step))
	if err := atomicfile.WriteDir(path, r.writeCheckpoint); err != nil {
		return &saveError{err}
	}
	r.saved, r.checkpoint = r.state.step, path
	if err := r.rotate(); err != nil {
		return &saveError{fmt.Errorf("%s is written, but deleting old ones: %w", path, err)}
	}
	return r.notify(Event{Kind: EventSave, Checkpoint: path})
}

// writeCheckpoint fills a checkpoint's folder.
func (r *run) writeCheckpoint(dir string) error {
	adapters, err := r.adapterStates()
	if err != nil {
		return err
	}
	base, err := r.base()
	if err != nil {
		return err
	}
	if err := saveAdapters(r.pm, dir); err != nil {
		return err
	}
	list, err := r.state.tensors(r.pm)
	if err != nil {
		return err
	}
	if err := safetensors.Write(filepath.Join(dir, optimizerFile), map[string]string{"format": "pt"}, list); err != nil {
		return err
	}
	data, err := json.MarshalIndent(trainerState{
		Version: checkpointVersion, GlobalStep: r.state.step, MaxSteps: r.maxSteps, Epoch: r.epoch(), Seed: r.args.Seed,
		Sampler: r.sampler.State(), Backend: r.pm.Base().Backend().Name(), Rows: r.data.Len(), Base: base,
		Arguments: r.decisive(), Adapters: adapters, tally: r.tally,
	}, "", " ")
	if err != nil {
		return err
	}
	return atomicfile.WriteBytes(filepath.Join(dir, stateFile), append(data, '\n'))
}

// saveAdapters writes those adapters that have a file in peft's format.
func saveAdapters(pm *peft.PeftModel, dir string) error {
	var names []string
	for _, name := range pm.Trained() {
		config, err := pm.Config(name)
		if err != nil {
			return err
		}
		if peft.Saveable(config) == nil {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	view, err := pm.With(names...)
	if err != nil {
		return err
	}
	return view.SavePretrained(dir)
}

func (t *Trainer) adapterStates() ([]adapterState, error) {
	var out []adapterState
	for _, name := range t.pm.Active() {
		config, err := t.pm.Config(name)
		if err != nil {
			return nil, err
		}
		data, err := peft.EncodeConfig(config)
		if err != nil {
			return nil, err
		}
		out = append(out, adapterState{name, data})
	}
	return out, nil
}

// decisive are the settings that decide the result of a training, by their names in
// transformers.
func (t *Trainer) decisive() map[string]any {
	a := t.args
	adamw := a.adamw().withDefaults()
	out := map[string]any{
		"per_device_train_batch_size": a.PerDeviceTrainBatchSize,
		"gradient_accumulation_steps": a.GradientAccumulationSteps,
		"group_by_length":             a.GroupByLength,
		"dataloader_drop_last":        a.DataloaderDropLast,
		"shuffle":                     !a.NoShuffle,
		"seed":                        a.Seed,
		"learning_rate":               a.LearningRate,
		"lr_scheduler_type":           a.LrSchedulerType.String(),
		"warmup_steps":                t.schedule.Warmup,
		"weight_decay":                adamw.WeightDecay,
		"adam_beta1":                  adamw.Beta1,
		"adam_beta2":                  adamw.Beta2,
		"adam_epsilon":                adamw.Epsilon,
		"max_grad_norm":               max(0, a.MaxGradNorm),
		"loss":                        fmt.Sprintf("%T", a.Loss),
	}
	if a.LoraPlusLRRatio != 0 {
		out["loraplus_lr_ratio"], out["loraplus_lr_embedding"] = a.LoraPlusLRRatio, a.LoraPlusLREmbedding
	}
	if a.LrSchedulerType != SchedulerConstant {
		out["max_steps"] = t.maxSteps // a constant rate does not depend on it, so such a training can be made longer
	}
	return out
}

// kinds of tensors in optimizer.safetensors, as torch's AdamW names the moments.
const (
	kindValue  = "value"
	kindFirst  = "exp_avg"
	kindSecond = "exp_avg_sq"
	// kindConstant are tensors that the adapter itself changes after a step.
	kindConstant = "constant"
)

// tensorKey names a trained tensor's value or moment. Adapter names have no "/".
func tensorKey(adapter, kind, name string) string { return adapter + "/" + kind + "/" + name }

// piece is one kind of tensors of one adapter in a state.
type piece struct {
	adapter, kind string
	layout        *peft.Layout
}

// pieces lists the state's tensors in order: values, moments, and the constants that
// change with every step.
func pieces(pm *peft.PeftModel) ([]piece, error) {
	var out []piece
	for _, kind := range []string{kindValue, kindFirst, kindSecond, kindConstant} {
		for _, adapter := range pm.Trained() {
			layout, err := pm.Layout(adapter)
			if kind == kindConstant {
				if !pm.Steps(adapter) {
					continue
				}
				layout, err = pm.ConstantLayout(adapter)
			}
			if err != nil {
				return nil, err
			}
			if layout != nil {
				out = append(out, piece{adapter, kind, layout})
			}
		}
	}
	return out, nil
}

// tensors lists the state by tensor names. The values are fetched when they are
// written, one kind of one adapter at a time.
func (s *state) tensors(pm *peft.PeftModel) ([]safetensors.Tensor, error) {
	list, err := pieces(pm)
	if err != nil {
		return nil, err
	}
	var out []safetensors.Tensor
	var fetched hostTensors
	rest := slices.Concat(s.arguments(), s.constants)
	for _, piece := range list {
		n := piece.layout.NumArguments()
		from := source{piece.layout, rest[:n:n]}
		rest = rest[n:]
		for _, p := range piece.layout.Params() {
			out = append(out, safetensors.Tensor{
				Name: tensorKey(piece.adapter, piece.kind, p.Name), DType: safetensors.F32, Shape: p.Shape,
				Data: func(w io.Writer) error { return fetched.write(w, &from, p.Name) },
			})
		}
	}
	return out, nil
}

// source is one kind of tensors of one adapter.
type source struct {
	layout    *peft.Layout
	arguments []*tensors.Tensor
}

// hostTensors holds the tensors of one source on the host.
type hostTensors struct {
	of     *source
	values map[string][]float32
}

func (h *hostTensors) write(w io.Writer, from *source, name string) (err error) {
	if h.of != from {
		h.values = nil
		if h.values, err = from.layout.Host(from.arguments); err != nil {
			return err
		}
		h.of = from
	}
	values := h.values[name]
	buffer := make([]byte, 4*min(len(values), 1<<16))
	for chunk := range slices.Chunk(values, max(1, len(buffer)/4)) {
		part := buffer[:4*len(chunk)]
		if err := safetensors.EncodeFloat32s(part, chunk, safetensors.F32); err != nil {
			return err
		}
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	return nil
}

// rotate deletes the checkpoints of an earlier training and the oldest beyond the limit.
func (r *run) rotate() error {
	found, err := listCheckpoints(r.args.OutputDir)
	if err != nil {
		return err
	}
	var errs []error
	found = slices.DeleteFunc(found, func(c checkpointFolder) bool {
		if c.path == r.checkpoint || !slices.Contains(r.obsolete, c.path) {
			return false
		}
		errs = append(errs, deleteCheckpoint(c.path))
		return true
	})
	r.obsolete = nil
	if limit := r.args.SaveTotalLimit; limit > 0 {
		for _, c := range found[:max(0, len(found)-limit)] {
			if c.path != r.checkpoint {
				errs = append(errs, deleteCheckpoint(c.path))
			}
		}
	}
	return errors.Join(errs...)
}

// deleteCheckpoint moves a folder out of sight before it is emptied, so that a crash
// leaves no half checkpoint behind that looks like one.
func deleteCheckpoint(path string) error {
	hidden := filepath.Join(filepath.Dir(path), deletedPrefix+filepath.Base(path))
	if err := os.RemoveAll(hidden); err != nil {
		return err
	}
	if err := os.Rename(path, hidden); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return os.RemoveAll(hidden)
}
