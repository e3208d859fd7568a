package adapters

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// The files of an adapter that AdapterHub's library saved.
const (
	hubConfigFile  = "adapter_config.json"
	hubWeightsFile = "adapter.safetensors"
	hubHeadConfig  = "head_config.json"
	hubHeadWeights = "model_head.safetensors"

	maxHubConfig = 16 << 20
)

// HubOptions are the settings of [LoadAdapterHub].
type HubOptions struct {
	// Name of the adapter in the model. "": its name in the folder.
	Name string
	// WithoutHead leaves a prediction head in the folder alone. A classifier's head then
	// starts as it is in the base.
	WithoutHead bool
}

// LoadAdapterHub opens a bottleneck adapter in a folder that AdapterHub's library wrote
// (github.com/adapter-hub/adapters: adapter_config.json and adapter.safetensors), on a base of
// the same model_type, and makes it active.
//
// A prediction head in the folder becomes part of the adapter, as modules_to_save: that of one
// of transformers' own classes as it is, one of AdapterHub's flexible heads where the base has
// the same head in its own form. Others are an error, unless [HubOptions] leaves them out. A
// classifier's adapter without a head in the folder starts with a copy of the base's.
//
// pytorch_adapter.bin, a Python pickle, is not read. At most one HubOptions is used.
func LoadAdapterHub(base site.Base, dir string, options ...HubOptions) (*peft.PeftModel, error) {
	f, err := openHub(base, dir, options)
	if err != nil {
		return nil, hubError(dir, err)
	}
	pm, err := peft.GetPeftModel(base, f.config, peft.Options{Name: f.name})
	if err != nil {
		return nil, hubError(dir, err)
	}
	layout, err := pm.Layout(f.name)
	if err != nil {
		return nil, hubError(dir, err)
	}
	values, err := layout.FromHost(f.values)
	if err == nil {
		err = pm.SetValues(f.name, values)
	}
	if err != nil {
		return nil, hubError(dir, err)
	}
	return pm, nil
}

// AddAdapterHub opens one more adapter, as [LoadAdapterHub] does, which [peft.PeftModel.With]
// can then select by the name that is returned. A failed call changes nothing.
func AddAdapterHub(pm *peft.PeftModel, dir string, options ...HubOptions) (name string, err error) {
	f, err := openHub(pm.Base(), dir, options)
	if err == nil {
		err = pm.AddAdapterWith(f.config, func(name string) []float32 { return f.values[name] }, peft.Options{Name: f.name})
	}
	if err != nil {
		return "", hubError(dir, err)
	}
	return f.name, nil
}

// hubError says which folder an error is about.
func hubError(dir string, err error) error {
	var report *peft.LoadError
	if errors.As(err, &report) {
		return err
	}
	return fmt.Errorf("adapters: load AdapterHub's adapter %q: %w", dir, err)
}

// hubAdapter is what a folder holds, planned on a base.
type hubAdapter struct {
	name   string
	config BottleneckConfig
	// values are those of all tensors by their names here.
	values map[string][]float32
	// wholeHead is true where the folder must have all of the head.
	wholeHead bool
}

func openHub(base site.Base, dir string, options []HubOptions) (*hubAdapter, error) {
	if base == nil {
		return nil, errors.New("base model is nil")
	}
	var o HubOptions
	if len(options) > 0 {
		o = options[0]
	}
	data, err := readHubFile(dir, hubConfigFile)
	if err != nil {
		return nil, err
	}
	read, err := decodeHub(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", hubConfigFile, err)
	}
	family, err := read.check(base)
	if err != nil {
		return nil, err
	}
	f := &hubAdapter{name: read.Name, config: read.config, values: map[string][]float32{}}
	if o.Name != "" {
		f.name = o.Name
	}
	if f.name == "" {
		f.name = peft.DefaultAdapter
	}
	if t, ok := base.(site.Tasked); ok {
		f.config.TaskType = t.TaskType()
	}
	if !o.WithoutHead {
		if err := f.readHead(base, dir); err != nil {
			return nil, fmt.Errorf("its prediction head (HubOptions.WithoutHead leaves it out): %w", err)
		}
	}
	return f, f.readTensors(base, dir, read.Name, family)
}

// readTensors reads the adapter's own tensors, and from the base those of a head that the
// folder does not have.
func (f *hubAdapter) readTensors(base site.Base, dir, hubName string, family hubFamily) error {
	own, err := f.config.withDefaults().attach(base)
	if err != nil {
		return err
	}
	whole, err := f.config.Attach(base)
	if err != nil {
		return err
	}
	file, err := openHubWeights(dir)
	if err != nil {
		return err
	}
	defer file.Close()
	keys := map[string][]string{} // of each tensor
	for _, p := range own.Params() {
		if keys[p.Name], err = family.keys(p.Name, hubName, f.config.LnBefore, own.Targets()); err != nil {
			return err
		}
	}
	if err := readAll(dir, file, own.Params(), keys, f.values); err != nil {
		return err
	}
	for _, p := range whole.Params() {
		if f.values[p.Name] != nil {
			continue
		}
		if f.wholeHead {
			return fmt.Errorf("%s has no tensor for %q (HubOptions.WithoutHead leaves the head out)", hubHeadWeights, p.Name)
		}
		if f.values[p.Name], err = peft.BaseValues(base, site.Parameter{Name: p.Name, Shape: p.Shape}); err != nil {
			return err
		}
	}
	return nil
}

// readAll reads tensors, each of which may stand in the file under several keys that must
// agree, and refuses a file that has others.
func readAll(dir string, file *safetensors.File, params []peft.Param, keys map[string][]string, values map[string][]float32) error {
	var report peft.LoadReport
	found := map[string]string{} // the name in the file of a key
	for _, name := range file.Names() {
		key := legacyKey(name)
		if other, ok := found[key]; ok {
			return fmt.Errorf("%s has both %q and %q, an old and a new name of one tensor", hubWeightsFile, other, name)
		}
		found[key] = name
	}
	for _, p := range params {
		for i, key := range keys[p.Name] {
			name, ok := found[key]
			if !ok {
				if _, trunk, cut := strings.Cut(key, "."); cut { // saved from a model without head
					if name, ok = found[trunk]; ok {
						key = trunk
					}
				}
			}
			if !ok {
				if i == 0 {
					report.Missing = append(report.Missing, key)
				}
				continue
			}
			delete(found, key)
			info, _ := file.Info(name)
			if !slices.Equal(info.Shape, p.Shape) {
				report.Mismatched = append(report.Mismatched, peft.Mismatch{Name: key, Want: p.Shape, Got: info.Shape, DType: string(info.DType)})
				continue
			}
			report.Loaded = append(report.Loaded, key)
			got := make([]float32, p.Size())
			if err := file.Float32s(name, got); err != nil {
				return err
			}
			if i > 0 && values[p.Name] != nil && !slices.Equal(values[p.Name], got) {
				return fmt.Errorf("tensors %q and %q differ, but they are one", keys[p.Name][0], key)
			}
			if err := allFinite(key, got); err != nil {
				return err
			}
			values[p.Name] = got
		}
	}
	for key := range found {
		report.Unexpected = append(report.Unexpected, key)
	}
	slices.Sort(report.Unexpected)
	if len(report.Missing)+len(report.Unexpected)+len(report.Mismatched) > 0 {
		return &peft.LoadError{Dir: dir, Report: report}
	}
	return nil
}

func allFinite(name string, values []float32) error {
	for i, v := range values {
		if !isFinite(float64(v)) {
			return fmt.Errorf("tensor %q holds %v at element %d", name, v, i)
		}
	}
	return nil
}

func openHubWeights(dir string) (*safetensors.File, error) {
	path := filepath.Join(dir, hubWeightsFile)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(dir, "pytorch_adapter.bin")); err == nil {
			return nil, errors.New("pytorch_adapter.bin is a Python pickle: load it once with AdapterHub's library and save it with save_adapter(..., use_safetensors=True) to get " + hubWeightsFile)
		}
		return nil, fmt.Errorf("the folder has no %s: %w", hubWeightsFile, err)
	}
	return safetensors.Open(path)
}

// readHubFile reads one of the small files of a folder.
func readHubFile(dir, name string) ([]byte, error) {
	f, err := os.Open(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		if _, fusion := os.Stat(filepath.Join(dir, "adapter_fusion_config.json")); fusion == nil {
			return nil, errors.New("it is an AdapterFusion, which is not supported")
		}
		return nil, fmt.Errorf("the folder has no %s: %w", name, err)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxHubConfig+1))
	if err == nil && len(data) > maxHubConfig {
		err = fmt.Errorf("%s is larger than %d bytes", name, maxHubConfig)
	}
	return data, err
}
