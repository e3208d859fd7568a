package prefixtuning

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/gopeft/gopeft/internal/safetensors"
)

// source is what a multitask prompt starts from: tensors of another one's file.
type source map[string][]float32

func (s source) init(name string) func(r *rand.Rand, values []float32) error {
	return func(_ *rand.Rand, values []float32) error {
		copy(values, s[name])
		return nil
	}
}

// source reads the file that the configuration names, and of its tasks what the prompt wants.
func (c MultitaskPromptTuningConfig) source() (source, error) {
	path := string(c.PromptTuningInitStateDictPath)
	if !strings.HasSuffix(path, ".safetensors") {
		return nil, errors.New("want a .safetensors file: load and save another format once with Python's peft")
	}
	file, err := safetensors.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	n, width := c.NumVirtualTokens, int(c.TokenDim)
	s := source{}
	if s[flatKey], _, err = readShape(file, flatKey, n, width); err != nil || c.PromptTuningInit == InitOnlySourceShared {
		return s, err
	}
	for name, shape := range map[string][]int{taskCols: {-1, n, c.NumRanks}, taskRows: {-1, c.NumRanks, width}} {
		all, tasks, err := readShape(file, name, shape...)
		if err != nil {
			return nil, err
		}
		size := shape[1] * shape[2]
		one := make([]float32, size)
		if c.PromptTuningInit == InitExactSourceTask {
			if c.PromptTuningInitTask >= tasks {
				return nil, fmt.Errorf("prompt_tuning_init_task is %d, but it has %d tasks", c.PromptTuningInitTask, tasks)
			}
			copy(one, all[c.PromptTuningInitTask*size:])
		} else {
			for i := range one {
				var sum float64
				for task := range tasks {
					sum += float64(all[task*size+i])
				}
				one[i] = float32(sum / float64(tasks))
			}
		}
		s[name] = one
	}
	return s, nil
}

// readShape reads a tensor that must have a shape; -1 is any number of at least 1, which is
// returned too.
func readShape(file *safetensors.File, name string, shape ...int) (values []float32, first int, err error) {
	info, ok := file.Info(name)
	if !ok {
		return nil, 0, fmt.Errorf("it has no tensor %q", name)
	}
	want := slices.Clone(shape)
	if want[0] == -1 && len(info.Shape) == len(want) && info.Shape[0] > 0 {
		want[0] = info.Shape[0]
	}
	if !slices.Equal(info.Shape, want) {
		return nil, 0, fmt.Errorf("%q: want shape %v, got %v", name, want, info.Shape)
	}
	n := 1
	for _, d := range want {
		n *= d
	}
	values = make([]float32, n)
	if err := file.Float32s(name, values); err != nil {
		return nil, 0, err
	}
	for i, v := range values {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return nil, 0, fmt.Errorf("%q holds %v at element %d", name, v, i)
		}
	}
	return values, want[0], nil
}
