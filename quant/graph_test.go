package quant

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend"
	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/safetensors"
)

// inGraph builds a stored weight from its arrays in a graph, tied to an input.
func inGraph(t testing.TB, s Stored, dtype dtypes.DType) []float32 {
	t.Helper()
	var args []any
	at := map[string]int{}
	for i, a := range s.Arrays() {
		x, err := tensors.FromRaw(nil, 0, shapes.Make(a.DType, a.Shape...), a.Data)
		require.NoError(t, err)
		at[a.Name], args = i, append(args, x)
	}
	args = append(args, []float32{1, 2, 3})
	exec, err := graph.NewExec(backendtest.Open(t), func(in []*graph.Node) *graph.Node {
		w := s.Layout().Weight(func(name string) *graph.Node { return in[at[name]] }, dtype, in[len(in)-1])
		return graph.ConvertDType(w, dtypes.Float32)
	})
	require.NoError(t, err)
	defer exec.Finalize()
	out, err := exec.Call1(args...)
	require.NoError(t, err)
	require.Equal(t, s.Layout().Shape(), out.Shape().Dimensions)
	values, err := tensors.CopyFlatData[float32](out)
	require.NoError(t, err)
	return values
}

// A graph makes of a stored weight what the host does, bit by bit; but XLA may fuse the
// product and the sum of double quantisation, which rounds once where the host does twice.
func TestGraphEqualsHost(t *testing.T) {
	for name, s := range map[string]Scheme{
		"nf4": NF4{}, "nf4 double": NF4{DoubleQuant: true}, "fp4 32": FP4{BlockSize: 32}, "fp4 double": FP4{DoubleQuant: true, BlockSize: 128}, "int8": INT8{},
	} {
		require.NoError(t, s.Validate())
		for _, shape := range [][]int{{8, 64}, {3, 43}, {70, 260}, {1, 1}} {
			values := make([]float32, shape[0]*shape[1])
			r := rand.New(rand.NewPCG(1, uint64(len(values))))
			for i := range values {
				values[i] = float32(r.NormFloat64())
			}
			stored, err := s.Store(values, shape, safetensors.F32)
			require.NoError(t, err)
			want, err := stored.Dequantise()
			require.NoError(t, err)
			got := inGraph(t, stored, dtypes.Float32)
			if backend.IsGo(backendtest.Open(t)) || !strings.HasSuffix(name, "double") {
				sameBits(t, want, got, name)
			} else {
				require.InDeltaSlice(t, want, got, 2e-6, name)
			}
			bytes := 0
			data := map[string][]byte{}
			for _, a := range stored.Arrays() {
				bytes += len(a.Data)
				data[a.Name] = a.Data
			}
			require.Equal(t, bytes, stored.Layout().Bytes(), name)
			restored, err := stored.Layout().Restore(func(name string) ([]byte, error) { return data[name], nil })
			require.NoError(t, err)
			again, err := restored.Dequantise()
			require.NoError(t, err)
			sameBits(t, want, again, name)
		}
	}
}

// In 16 bits two values are made as one word: the same as the host's, rounded once.
func TestGraphHalfEqualsHost(t *testing.T) {
	for dtype, stored := range map[dtypes.DType]safetensors.DType{dtypes.BFloat16: safetensors.BF16, dtypes.Float16: safetensors.F16} {
		if dtype == dtypes.Float16 && !backend.IsGo(backendtest.Open(t)) {
			continue // go-xla has no float16
		}
		for name, s := range map[string]Scheme{"nf4": NF4{}, "fp4": FP4{BlockSize: 32}, "nf4 double": NF4{DoubleQuant: true}} {
			for _, shape := range [][]int{{8, 64}, {3, 43}, {96, 256}} {
				values := make([]float32, shape[0]*shape[1])
				r := rand.New(rand.NewPCG(2, uint64(len(values))))
				for i := range values {
					values[i] = float32(r.NormFloat64())
				}
				weight, err := s.Store(values, shape, safetensors.F32)
				require.NoError(t, err)
				want, err := weight.Dequantise()
				require.NoError(t, err)
				got := inGraph(t, weight, dtype)
				if strings.HasSuffix(name, "double") { // an absmax off by one in the last place may round the other way
					for i, v := range rounded(t, want, stored) {
						require.InDelta(t, v, got[i], 1e-2*math.Abs(float64(v)), name)
					}
					continue
				}
				sameBits(t, rounded(t, want, stored), got, name)
			}
		}
	}
}

func TestSkips(t *testing.T) {
	for _, s := range []Scheme{NF4{Skip: []string{"q_proj", "layers.0.up"}}, FP4{Skip: []string{"q_proj", "layers.0.up"}}, INT8{Skip: []string{"q_proj", "layers.0.up"}}} {
		require.True(t, s.Skips("model.layers.1.q_proj"))
		require.True(t, s.Skips("model.layers.0.up"))
		require.False(t, s.Skips("model.layers.1.up"))
		require.False(t, s.Skips("model.layers.1.aq_proj"))
	}
}

// Like bitsandbytes' layer, the scheme quantises what float16 makes of weights.
func TestInt8RoundsToHalf(t *testing.T) {
	values := []float32{1.0001, -0.3, 1e-9, 0.70001}
	got, err := INT8{}.Store(values, []int{2, 2}, safetensors.F32)
	require.NoError(t, err)
	require.Equal(t, safetensors.F16, got.Layout().DType())
	want, err := QuantiseInt8(rounded(t, values, safetensors.F16), []int{2, 2}, safetensors.F16)
	require.NoError(t, err)
	require.Equal(t, want, got)
	require.Equal(t, float32(1.0001), values[0], "the weights were changed")
	other, err := QuantiseInt8(values, []int{2, 2}, safetensors.F32)
	require.NoError(t, err)
	require.NotEqual(t, want.SCB, other.SCB)
	_, err = INT8{}.Store([]float32{1, 70000}, []int{1, 2}, safetensors.BF16)
	require.ErrorContains(t, err, "element 1 is 70000, too large for float16")
	_, err = INT8{}.Store([]float32{1, float32(math.Inf(1))}, []int{1, 2}, safetensors.F32)
	require.ErrorContains(t, err, "element 1 is +Inf")
}
