package peft

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/site"
)

// read reads the values of a planned adapter.
func (na *namedAdapter) read(base site.Base, dir string) error {
	params := na.adapter.Params()
	main, err := openWeights(dir)
	if err != nil {
		return err
	}
	defer main.Close()
	names, report := compare(withBeside(params, false), main, base)
	files := map[bool]adapterFile{false: {main, names}}
	if second := withBeside(params, true); len(second) > 0 {
		file, err := safetensors.Open(filepath.Join(dir, besidesFile))
		if err != nil {
			return err
		}
		defer file.Close()
		names, more := compare(second, file, base)
		files[true] = adapterFile{file, names}
		report = report.and(more)
	}
	if !report.ok() {
		return &LoadError{Dir: dir, Report: report}
	}
	na.report = report
	na.arguments, na.constants, err = na.initial(base.Backend(), 0, func(p Param, values []float32) (bool, error) {
		if p.Unsaved {
			return false, nil
		}
		return true, files[p.Beside].read(p, values)
	})
	if err != nil {
		return err
	}
	return na.checkComputed(files[false])
}

func withBeside(params []Param, beside bool) []Param {
	return slices.DeleteFunc(slices.Clone(params), func(p Param) bool { return p.Beside != beside })
}

// adapterFile is a file and the names in it of what is wanted from it.
type adapterFile struct {
	*safetensors.File
	names map[string]string
}

// read reads one tensor.
func (f adapterFile) read(p Param, values []float32) error {
	name := f.names[strings.TrimPrefix(p.fileKey(), keyPrefix)]
	if err := f.Float32s(name, values); err != nil {
		return err
	}
	f.Release(name)
	if err := checkFinite(p.Name, values); err != nil {
		return err
	}
	return checkTwins(p, f.File, f.names, values)
}

// checkComputed compares the tensors that the file has besides those of programs with what
// the adapter makes of these.
func (na *namedAdapter) checkComputed(file adapterFile) error {
	var made []FileTensor
	for _, p := range na.adapter.Params() {
		if !p.Computed {
			continue
		}
		was := make([]float32, p.fileSize())
		if err := file.read(p, was); err != nil {
			return err
		}
		if made == nil {
			var err error
			if _, made, err = na.fileForm(); err != nil {
				return err
			}
		}
		i := slices.IndexFunc(made, func(t FileTensor) bool { return t.Name == p.Name })
		if i < 0 || len(made[i].Values) != len(was) {
			return fmt.Errorf("peft: the adapter does not make its tensor %q", p.Name)
		}
		info, _ := file.Info(file.names[strings.TrimPrefix(p.fileKey(), keyPrefix)])
		if !alike(was, made[i].Values, info.DType) {
			return fmt.Errorf("%s does not belong to %s: %q is not what its tensors give (delete it to use the adapter as it is)", besidesFile, weightsFile, p.Name)
		}
	}
	return nil
}

// alike reports whether values of a file are computed ones but for rounding.
func alike(was, made []float32, dtype safetensors.DType) bool {
	tolerance, largest := 1e-4, 0.0
	if dtype == safetensors.F16 || dtype == safetensors.BF16 {
		tolerance = 0.02
	}
	for _, v := range was {
		largest = max(largest, math.Abs(float64(v)))
	}
	for i := range was {
		if d := math.Abs(float64(was[i] - made[i])); !(d <= tolerance*largest) {
			return false
		}
	}
	return true
}

// checkTwins compares a tensor's values with the others that the file has of it.
func checkTwins(p Param, file *safetensors.File, names map[string]string, values []float32) error {
	for _, twin := range p.Twins {
		other := make([]float32, len(values))
		if err := file.Float32s(names[twin], other); err != nil {
			return err
		}
		if err := checkFinite(twin, other); err != nil {
			return err
		}
		if !slices.Equal(values, other) {
			return fmt.Errorf("tensors %q and %q differ, but they are one", p.Name, twin)
		}
	}
	return nil
}
