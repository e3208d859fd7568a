package train

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend"
	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/safetensors"
	_ "github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
)

const fixtures = "../internal/golden/testdata"

// curve is a training that Python's peft made, see internal/golden/curves_golden.py.
type curve struct {
	Start, Model string
	Loss         []float64
	GradNorm     []float64 `json:"grad_norm"`
	LR           []float64
	Targets      []int
	MaxGradNorm  float64 `json:"max_grad_norm"`
	PeakLR       float64 `json:"peak_lr"`
	WarmupSteps  int     `json:"warmup_steps"`
	Optimizer    struct {
		Beta1, Beta2, Eps float64
		WeightDecay       float64 `json:"weight_decay"`
	}
	// steps[s] are the micro-batches of a step.
	steps [][]Batch
	final map[string][]float32
}

func readCurve(t testing.TB, name string) curve {
	t.Helper()
	var c curve
	data, err := os.ReadFile(filepath.Join(fixtures, "curves", name, "curve.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &c))
	file, err := safetensors.Open(filepath.Join(fixtures, "curves", name, "golden.safetensors"))
	require.NoError(t, err)
	defer file.Close()
	info, ok := file.Info("ids")
	require.True(t, ok)
	steps, micro, rows, length := info.Shape[0], info.Shape[1], info.Shape[2], info.Shape[3]
	ids, labels := readInt32s(t, file, "ids"), readInt32s(t, file, "labels")
	for s := range steps {
		var group []Batch
		for m := range micro {
			from, size := (s*micro+m)*rows*length, rows*length
			group = append(group, Batch{Rows: rows, Length: length, RowOffset: m * rows, IDs: ids[from : from+size], Labels: labels[from : from+size]})
		}
		c.steps = append(c.steps, group)
	}
	c.final = map[string][]float32{}
	for _, name := range file.Names() {
		var key string
		if n, _ := fmt.Sscanf(name, "final.base_model.model.%s", &key); n == 1 {
			info, _ := file.Info(name)
			values := make([]float32, info.Size/4)
			require.NoError(t, file.Float32s(name, values))
			c.final[key] = values
		}
	}
	require.NotEmpty(t, c.final)
	return c
}

func readInt32s(t testing.TB, file *safetensors.File, name string) []int32 {
	t.Helper()
	data, err := file.Bytes(name)
	require.NoError(t, err)
	out := make([]int32, len(data)/4)
	for i := range out {
		out[i] = int32(data[4*i]) | int32(data[4*i+1])<<8 | int32(data[4*i+2])<<16 | int32(data[4*i+3])<<24
	}
	return out
}

func (c curve) load(t testing.TB) *peft.PeftModel {
	t.Helper()
	m, err := models.Load(t.Context(), filepath.Join(fixtures, c.Model), models.Options{On: testBackend(t), DType: dtypes.Float32})
	require.NoError(t, err)
	pm, err := peft.LoadAdapter(m, filepath.Join(fixtures, c.Start))
	require.NoError(t, err)
	return pm
}

func (c curve) stepConfig() stepConfig {
	o := c.Optimizer
	return stepConfig{maxGradNorm: c.MaxGradNorm, adamw: AdamW{Beta1: o.Beta1, Beta2: o.Beta2, Epsilon: o.Eps, WeightDecay: o.WeightDecay}}
}

// Twenty steps give the losses, gradient norms and tensors that Python's peft gets.
func TestCurvesOfPeft(t *testing.T) {
	variants := []struct {
		parts      int
		checkpoint bool
	}{{1, false}, {1, true}, {4, false}}
	for _, name := range []string{"llama", "llama_accum", "qwen3"} {
		c := readCurve(t, name)
		for _, v := range variants {
			if v != variants[0] && !backend.IsGo(testBackend(t)) && name != "llama" {
				continue // compiling takes XLA seconds
			}
			t.Run(fmt.Sprintf("%s/parts=%d,checkpoint=%v", name, v.parts, v.checkpoint), func(t *testing.T) {
				backendtest.Sample(t, 5)
				pm := c.load(t)
				config := c.stepConfig()
				config.parts, config.checkpoint = v.parts, v.checkpoint
				s, st := newTestStepper(t, pm, config)
				schedule := Schedule{Warmup: c.WarmupSteps, Total: len(c.steps)}
				for i, micro := range c.steps {
					lr := schedule.LR(i, c.PeakLR)
					require.InDelta(t, c.LR[i], lr, 1e-12)
					result, err := s.step(t.Context(), st, micro, lr)
					require.NoError(t, err)
					require.Equal(t, c.Targets[i], result.targets)
					require.InEpsilon(t, c.Loss[i], result.loss, 1e-4, "loss of step %d", i)
					require.InEpsilon(t, c.GradNorm[i], result.gradNorm, 1e-3, "gradient norm of step %d", i)
				}
				require.NoError(t, st.publish(pm))
				got := valuesOf(t, pm)
				require.Len(t, got, len(c.final))
				worst := 0.0
				for key, want := range c.final {
					d := maxDifference(want, got[key])
					require.LessOrEqual(t, d, 1e-4, key)
					worst = max(worst, d)
				}
				t.Logf("largest difference of a value: %.2g", worst)
			})
		}
	}
}

// BenchmarkStep times a step of a model so small that little but the host's part is left.
func BenchmarkStep(b *testing.B) {
	c := readCurve(b, "llama")
	pm := c.load(b)
	s, st := newTestStepper(b, pm, c.stepConfig())
	micro := c.steps[0]
	_, err := s.step(b.Context(), st, micro, 1e-3)
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.step(b.Context(), st, micro, 1e-3); err != nil {
			b.Fatal(err)
		}
	}
}
