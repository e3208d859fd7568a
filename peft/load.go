package peft

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/site"
)

// The files of an adapter, and the prefix of its tensors' names: PeftModel.base_model
// is a LoraModel, LoraModel.model is the base.
const (
	configFile  = "adapter_config.json"
	weightsFile = "adapter_model.safetensors"
	besidesFile = "prompt_encoder.safetensors"
	keyPrefix   = "base_model.model."

	maxConfigSize = 64 << 20
)

// LoadAdapter opens the adapter in a folder, of any method whose package is
// imported, on a base, and makes it active. Options may name it; its values are
// those of the file, whatever the seed.
//
// The file must hold exactly the tensors that its configuration asks for on this
// base, in F32, F16, BF16 or F64 and without NaN or infinity; names may lack the
// prefix "base_model.model.". Differences are a [*LoadError]. Which base the
// configuration names does not matter.
func LoadAdapter(base site.Base, dir string, options ...Options) (*PeftModel, error) {
	if base == nil {
		return nil, errors.New("peft: base model is nil")
	}
	config, err := fileConfig(dir)
	if err != nil {
		return nil, loadError(dir, err)
	}
	set, err := newSet(base, config)
	if err != nil {
		return nil, loadError(dir, err)
	}
	pm := &PeftModel{set: set}
	o := first(options)
	if err := pm.LoadAdapter(dir, o); err != nil {
		return nil, err
	}
	return pm.With(o.name())
}

// LoadAdapter opens one more adapter, which [PeftModel.With] can then select. A
// failed call changes nothing. See the function [LoadAdapter].
func (pm *PeftModel) LoadAdapter(dir string, options ...Options) error {
	o := first(options)
	na, err := pm.set.planFile(dir, o.MaxRank)
	if err == nil {
		err = na.read(pm.set.base, dir)
	}
	if err != nil {
		return loadError(dir, err)
	}
	return pm.set.add(o.name(), na)
}

// loadError says which folder an error is about.
func loadError(dir string, err error) error {
	var report *LoadError
	if errors.As(err, &report) {
		return err
	}
	return fmt.Errorf("peft: load adapter %q: %w", dir, err)
}

// fileConfig reads the configuration of a folder.
func fileConfig(dir string) (Config, error) {
	data, err := readConfig(dir)
	if err != nil {
		return nil, err
	}
	return decodeConfig(data)
}

// planFile plans the adapter of a folder.
func (s *adapterSet) planFile(dir string, maxRank int) (*namedAdapter, error) {
	config, err := fileConfig(dir)
	if err != nil {
		return nil, err
	}
	if err := s.checkRanges(config); err != nil {
		return nil, err
	}
	common := config.Common()
	_, err = os.Stat(filepath.Join(dir, besidesFile))
	common.besides = err == nil
	return plan(s.base, config.WithCommon(common), true, maxRank)
}

func readConfig(dir string) ([]byte, error) {
	if info, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no such folder: %w", fs.ErrNotExist)
	} else if err != nil {
		return nil, err
	} else if !info.IsDir() {
		return nil, fmt.Errorf("it is a file, want a folder with %s and %s", configFile, weightsFile)
	}
	f, err := os.Open(filepath.Join(dir, configFile))
	if errors.Is(err, fs.ErrNotExist) {
		if _, statErr := os.Stat(filepath.Join(dir, indexFile)); statErr == nil {
			return nil, fmt.Errorf("the folder has no %s but an %s, which LoadAdapters reads: %w", configFile, indexFile, err)
		}
		return nil, fmt.Errorf("the folder has no %s: %w", configFile, err)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfigSize+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxConfigSize {
		return nil, fmt.Errorf("%s is larger than %d bytes", configFile, maxConfigSize)
	}
	return data, nil
}

func openWeights(dir string) (*safetensors.File, error) {
	path := filepath.Join(dir, weightsFile)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(dir, "adapter_model.bin")); err == nil {
			return nil, errors.New("adapter_model.bin is a Python pickle: load and save it once with Python's peft to get " + weightsFile)
		}
		return nil, fmt.Errorf("the folder has no %s: %w", weightsFile, err)
	}
	return safetensors.Open(path)
}

// compare finds each wanted tensor's name in the file.
func compare(params []Param, file *safetensors.File, base site.Base) (map[string]string, LoadReport) {
	names := map[string]string{}
	var r LoadReport
	for _, name := range file.Names() {
		short := strings.TrimPrefix(name, keyPrefix)
		if _, twice := names[short]; twice {
			r.Unexpected = append(r.Unexpected, name) // with and without the prefix
			continue
		}
		names[short] = name
	}
	wanted := map[string]bool{}
	for _, p := range withTwins(params) {
		if p.Unsaved {
			continue
		}
		short := strings.TrimPrefix(p.fileKey(), keyPrefix)
		wanted[short] = true
		for _, old := range p.OldKeys {
			if name, ok := names[old]; ok && names[short] == "" {
				names[short] = name
				delete(names, old)
			}
		}
		name, ok := names[short]
		if !ok {
			r.Missing = append(r.Missing, p.Name)
			continue
		}
		info, _ := file.Info(name)
		if !isFloat(info.DType) || !slices.Equal(info.Shape, p.fileShape()) {
			r.Mismatched = append(r.Mismatched, Mismatch{Name: p.Name, Want: p.fileShape(), Got: info.Shape, DType: string(info.DType)})
			continue
		}
		r.Loaded = append(r.Loaded, p.Name)
	}
	for short, name := range names {
		switch {
		case wanted[short]:
		case copyOfBase(base, short, file, name):
			r.Copies = append(r.Copies, short)
		default:
			r.Unexpected = append(r.Unexpected, short)
		}
	}
	slices.Sort(r.Copies)
	slices.Sort(r.Unexpected)
	return names, r
}

// withTwins lists the tensors of the file, see [Param].
func withTwins(params []Param) []Param {
	var all []Param
	for _, p := range params {
		all = append(all, p)
		for _, twin := range p.Twins {
			p.Name, p.Key, p.OldKeys = twin, "", nil
			all = append(all, p)
		}
	}
	return all
}

func isFloat(d safetensors.DType) bool {
	return slices.Contains([]safetensors.DType{safetensors.F64, safetensors.F32, safetensors.F16, safetensors.BF16}, d)
}

// copyOfBase reports whether a tensor of the file is a weight of the base with the
// base's own values: peft saves embeddings along when they are targets
// (peft.md 3.7).
func copyOfBase(base site.Base, short string, file *safetensors.File, name string) bool {
	path, ok := strings.CutSuffix(short, ".weight")
	if !ok {
		return false
	}
	path = strings.TrimSuffix(path, ".base_layer")
	modules := base.Modules()
	i := slices.IndexFunc(modules, func(m site.Module) bool { return m.Path == path })
	info, _ := file.Info(name)
	if i < 0 || !isFloat(info.DType) {
		return false
	}
	for _, p := range base.Parameters() {
		if p.Name != modules[i].Weight() || !slices.Equal(p.Shape, info.Shape) {
			continue
		}
		ours, dtype, err := baseValues(base, p)
		if err != nil {
			return false
		}
		theirs := make([]float32, p.Size())
		if file.Float32s(name, theirs) != nil {
			return false
		}
		return equalRounded(ours, theirs, dtype)
	}
	return false
}

// checkFinite refuses NaN and infinity.
func checkFinite(name string, values []float32) error {
	for i, v := range values {
		if f := float64(v); math.IsNaN(f) || math.IsInf(f, 0) {
			return fmt.Errorf("tensor %q holds %v at element %d", name, v, i)
		}
	}
	return nil
}
