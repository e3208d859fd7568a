package quant

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/safetensors"
)

const fixtures = "../internal/golden/testdata/quant"

func open(t testing.TB, name string) *safetensors.File {
	t.Helper()
	f, err := safetensors.Open(filepath.Join(fixtures, name+".safetensors"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	return f
}

func floats(t testing.TB, f *safetensors.File, name string) []float32 {
	t.Helper()
	info, ok := f.Info(name)
	require.True(t, ok, name)
	n := 1
	for _, d := range info.Shape {
		n *= d
	}
	values := make([]float32, n)
	require.NoError(t, f.Float32s(name, values))
	return values
}

func raw(t testing.TB, f *safetensors.File, name string) []byte {
	t.Helper()
	data, err := f.Bytes(name)
	require.NoError(t, err)
	return data
}

// sameBits compares floats bit by bit.
func sameBits(t testing.TB, want, got []float32, what string) {
	t.Helper()
	require.Len(t, got, len(want), what)
	for i := range want {
		require.Equal(t, math.Float32bits(want[i]), math.Float32bits(got[i]), "%s: element %d: want %v, got %v", what, i, want[i], got[i])
	}
}

var fileDTypes = map[string]safetensors.DType{"float32": safetensors.F32, "bfloat16": safetensors.BF16, "float16": safetensors.F16}

// Codes, absmax, nested statistics and dequantised values are bitsandbytes' own, bit by bit.
func TestFourBitEqualsBitsandbytes(t *testing.T) {
	var cases []struct {
		Name, DType string
		Type        Type
		Shape       []int
		Block       int
		Nested      bool
	}
	data, err := os.ReadFile(filepath.Join(fixtures, "cases.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &cases))
	require.Greater(t, len(cases), 10)
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			f := open(t, c.Name)
			got, err := FourBit{Type: c.Type, BlockSize: c.Block, DoubleQuant: c.Nested}.Quantise(floats(t, f, "weight"), c.Shape, fileDTypes[c.DType])
			require.NoError(t, err)
			require.Equal(t, raw(t, f, "packed"), got.Packed, "codes")
			levels := codes4[c.Type].levels
			sameBits(t, floats(t, f, "quant_map"), levels[:], "levels")
			if c.Nested {
				require.Equal(t, raw(t, f, "absmax"), got.Nested.Codes, "nested codes")
				sameBits(t, floats(t, f, "nested_absmax"), got.Nested.Absmax, "nested absmax")
				sameBits(t, floats(t, f, "nested_quant_map"), got.Nested.Code[:], "nested code")
				var state struct {
					Offset float64 `json:"nested_offset"`
				}
				require.NoError(t, json.Unmarshal(raw(t, f, "quant_state.bitsandbytes__"+string(c.Type)), &state))
				require.Equal(t, float32(state.Offset), got.Nested.Offset, "offset")
			} else {
				sameBits(t, floats(t, f, "absmax"), got.Absmax, "absmax")
			}
			values, err := got.Dequantise()
			require.NoError(t, err)
			sameBits(t, floats(t, f, "values"), rounded(t, values, got.DType), "values")
		})
	}
}

// rounded stores values in a dtype and reads them again.
func rounded(t testing.TB, values []float32, dtype safetensors.DType) []float32 {
	t.Helper()
	size, err := dtype.Size([]int{len(values)})
	require.NoError(t, err)
	data := make([]byte, size)
	require.NoError(t, safetensors.EncodeFloat32s(data, values, dtype))
	out := make([]float32, len(values))
	require.NoError(t, safetensors.DecodeFloat32s(out, data, dtype))
	return out
}

func TestInt8EqualsBitsandbytes(t *testing.T) {
	for name, dtype := range fileDTypes {
		f := open(t, "int8_"+name)
		info, _ := f.Info("weight")
		got, err := QuantiseInt8(floats(t, f, "weight"), info.Shape, dtype)
		require.NoError(t, err)
		want := raw(t, f, "codes")
		for i, c := range got.Codes {
			require.Equal(t, want[i], byte(c), "%s: code %d", name, i)
		}
		sameBits(t, floats(t, f, "scb"), got.SCB, "scales")
		values, err := got.Dequantise()
		require.NoError(t, err)
		sameBits(t, floats(t, f, "values"), values, "values")
	}
}

func TestTablesEqualBitsandbytes(t *testing.T) {
	f := open(t, "tables")
	sameBits(t, floats(t, f, "dynamic_map"), dynamicMap()[:], "dynamic map")
	values, lengths, means := floats(t, f, "mean_values"), raw(t, f, "mean_lengths"), floats(t, f, "means")
	for i, want := range means {
		n := int(lengths[4*i]) | int(lengths[4*i+1])<<8 | int(lengths[4*i+2])<<16
		require.Equal(t, want, mean(values[:n]), "mean of %d", n)
	}
	probe := floats(t, f, "probe")
	codes, absmax := make([]byte, len(probe)), make([]float32, len(probe)/nestedBlock)
	quantise8(probe, codes, absmax)
	require.Equal(t, raw(t, f, "probe_codes"), codes)
	sameBits(t, floats(t, f, "probe_absmax"), absmax, "absmax")
}
