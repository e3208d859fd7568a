package train

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gomlx/gomlx/core/tensors"

	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/peft"
)

// resume sets the run to the state of the checkpoint that the arguments name. imported
// reports that it is not the output folder's own.
func (r *run) resume() (imported bool, err error) {
	path := r.args.ResumeFromCheckpoint
	if path == ResumeLast {
		if path, err = LastCheckpoint(r.args.OutputDir); err != nil {
			return false, err
		}
	}
	saved, err := readState(path)
	if err != nil {
		return false, err
	}
	if imported, err = r.placeCheckpoint(path, saved.GlobalStep); err != nil {
		return false, err
	}
	return imported, r.restore(path, saved)
}

// restore takes over the state of a checkpoint, if it is one of this training.
func (r *run) restore(path string, saved *trainerState) (err error) {
	if err := r.checkSame(saved); err != nil {
		return fmt.Errorf("train: resume from %q: %w", path, err)
	}
	if err := r.sampler.Restore(saved.Sampler); err != nil {
		return fmt.Errorf("train: resume from %q: %w", path, err)
	}
	if r.state, err = readTensors(filepath.Join(path, optimizerFile), r.pm); err != nil {
		return fmt.Errorf("train: resume from %q: %w", path, err)
	}
	r.state.step, r.tally = saved.GlobalStep, saved.tally
	if err := r.state.publish(r.pm); err != nil {
		return err
	}
	r.checkpoint = path
	return nil
}

// placeCheckpoint finds out which checkpoints of the output folder go after the first
// save: of its own training those of a future that will be made again; of another
// training all, if they may be replaced at all.
func (r *run) placeCheckpoint(path string, step int) (imported bool, err error) {
	found, err := listCheckpoints(r.args.OutputDir)
	if err != nil {
		return false, fmt.Errorf("train: output folder: %w", err)
	}
	resumed, err := os.Stat(path)
	if err != nil {
		return false, fmt.Errorf("train: checkpoint: %w", err)
	}
	imported = true
	for _, c := range found {
		info, err := os.Stat(c.path)
		if err != nil {
			return false, fmt.Errorf("train: output folder: %w", err)
		}
		if c.step == step && os.SameFile(info, resumed) { // however its path is written
			r.saved, imported = step, false
		}
	}
	if imported {
		r.obsolete, err = r.earlierCheckpoints()
		return true, err
	}
	for _, c := range found {
		if c.step > step {
			r.obsolete = append(r.obsolete, c.path)
		}
	}
	return false, nil
}

// checkSame reports every difference between the checkpoint's training and this one
// that would make its continuation another training.
func (r *run) checkSame(saved *trainerState) error {
	var errs []error
	now, err := canonical(r.decisive())
	if err != nil {
		return err
	}
	for _, name := range union(saved.Arguments, now) {
		before, had := saved.Arguments[name]
		after, has := now[name]
		switch {
		case had && has && before != after:
			errs = append(errs, fmt.Errorf("%s is %v, it was %v", name, after, before))
		case had != has && name != "max_steps": // which only some schedules depend on
			errs = append(errs, fmt.Errorf("%s: only one of checkpoint and program knows it", name))
		}
	}
	if saved.Rows != r.data.Len() {
		errs = append(errs, fmt.Errorf("the data set has %d rows, it had %d", r.data.Len(), saved.Rows))
	} else if want := r.sampler.State().Fingerprint; saved.Sampler.Fingerprint != want && len(errs) == 0 {
		errs = append(errs, errors.New("the data set has other content"))
	}
	base, err := r.base()
	if err != nil {
		return err
	}
	if saved.Base.ModelType != base.ModelType {
		errs = append(errs, fmt.Errorf("the base is of type %q, it was %q", base.ModelType, saved.Base.ModelType))
	} else if saved.Base.Fingerprint != base.Fingerprint {
		errs = append(errs, errors.New("the base is another model: its parameters or their values differ"))
	}
	adapters, err := r.adapterStates()
	if err != nil {
		return err
	}
	return errors.Join(append(errs, compareAdapters(saved.Adapters, adapters)...)...)
}

// canonical makes values comparable with those read from JSON.
func canonical(values map[string]any) (out map[string]any, err error) {
	data, err := json.Marshal(values)
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	return out, err
}

func union[V any](a, b map[string]V) []string {
	all := maps.Clone(b)
	if all == nil {
		all = map[string]V{}
	}
	maps.Copy(all, a)
	return slices.Sorted(maps.Keys(all))
}

func compareAdapters(saved, now []adapterState) []error {
	names := func(list []adapterState) string {
		var out []string
		for _, a := range list {
			out = append(out, a.Name)
		}
		return strings.Join(out, ", ")
	}
	if names(saved) != names(now) {
		return []error{fmt.Errorf("the active adapters are %s, they were %s", names(now), names(saved))}
	}
	var errs []error
	for i := range now {
		var before, after map[string]json.RawMessage
		if err := errors.Join(json.Unmarshal(saved[i].Config, &before), json.Unmarshal(now[i].Config, &after)); err != nil {
			return append(errs, fmt.Errorf("adapter %q: %w", now[i].Name, err))
		}
		for _, key := range union(before, after) {
			// Where the base was loaded from and who wrote the file change no number.
			if key == "base_model_name_or_path" || key == "revision" || key == "peft_version" {
				continue
			}
			if was, is := compact(before[key]), compact(after[key]); was != is {
				errs = append(errs, fmt.Errorf("adapter %q: %s is %s, it was %s", now[i].Name, key, is, was))
			}
		}
	}
	return errs
}

// compact writes a JSON value in one way only.
func compact(data json.RawMessage) string {
	if data == nil {
		return "absent"
	}
	var value any
	if err := json.Unmarshal(data, &value); err != nil {
		return string(data)
	}
	text, err := json.Marshal(value)
	if err != nil {
		return string(data)
	}
	return string(text)
}

// readTensors reads values and moments for the active adapters of pm. The file must
// hold exactly theirs.
func readTensors(path string, pm *peft.PeftModel) (*state, error) {
	file, err := safetensors.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	s, read := &state{}, 0
	if err := s.fromModel(pm); err != nil {
		return nil, err
	}
	constants := s.constants[s.stepped:]
	s.values, s.constants = nil, nil
	list, err := pieces(pm)
	if err != nil {
		return nil, err
	}
	for _, piece := range list {
		host := map[string][]float32{}
		for _, p := range piece.layout.Params() {
			if host[p.Name], err = readTensor(file, tensorKey(piece.adapter, piece.kind, p.Name), p.Shape); err != nil {
				return nil, err
			}
			read++
		}
		arguments, err := piece.layout.FromHost(host)
		if err != nil {
			return nil, err
		}
		into := map[string]*[]*tensors.Tensor{kindValue: &s.values, kindFirst: &s.m, kindSecond: &s.v, kindConstant: &s.constants}[piece.kind]
		*into = append(*into, arguments...)
	}
	s.constants = append(s.constants, constants...)
	if n := len(file.Names()); n != read {
		return nil, fmt.Errorf("%s has %d tensors, want %d", path, n, read)
	}
	return s, toDevice(pm.Base().Backend(), slices.Concat(s.arguments(), s.constants))
}

func readTensor(file *safetensors.File, key string, shape []int) ([]float32, error) {
	info, ok := file.Info(key)
	if !ok {
		return nil, fmt.Errorf("%s has no tensor %q", file.Path(), key)
	}
	if !slices.Equal(info.Shape, shape) || info.DType != safetensors.F32 {
		return nil, fmt.Errorf("%s: tensor %q is %s %v, want F32 %v", file.Path(), key, info.DType, info.Shape, shape)
	}
	size := 1
	for _, d := range shape {
		size *= d
	}
	values := make([]float32, size)
	if err := file.Float32s(key, values); err != nil {
		return nil, err
	}
	for i, v := range values {
		if !finite(float64(v)) {
			return nil, fmt.Errorf("%s: tensor %q: element %d is %v", file.Path(), key, i, v)
		}
	}
	return values, nil
}
