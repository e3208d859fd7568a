package quant

import (
	"bytes"
	"math"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/safetensors"
)

// renamed is a fixture as a checkpoint would hold it: the fixture's "packed" is the weight.
type renamed struct{ *safetensors.File }

func (r renamed) name(name string) string {
	if name == "w" {
		return "packed"
	}
	return strings.TrimPrefix(name, "w.")
}

func (r renamed) Info(name string) (safetensors.TensorInfo, bool) { return r.File.Info(r.name(name)) }
func (r renamed) Bytes(name string) ([]byte, error)               { return r.File.Bytes(r.name(name)) }

// What bitsandbytes wrote is read, and written again byte by byte.
func TestReadAndWrite(t *testing.T) {
	names, err := filepath.Glob(filepath.Join(fixtures, "*_*4_*.safetensors"))
	require.NoError(t, err)
	require.NotEmpty(t, names)
	for _, name := range names {
		f := open(t, strings.TrimSuffix(filepath.Base(name), ".safetensors"))
		require.True(t, IsQuantised(renamed{f}, "w"))
		got, err := Read(renamed{f}, "w")
		require.NoError(t, err, name)
		values, err := got.Dequantise()
		require.NoError(t, err)
		sameBits(t, floats(t, f, "values"), rounded(t, values, got.Layout().DType()), name)
		list, err := got.Tensors("w")
		require.NoError(t, err)
		require.Len(t, list, len(f.Names())-2) // all but the plain weight and its values
		for _, tensor := range list {
			require.Equal(t, raw(t, f, renamed{f}.name(tensor.Name)), tensor.Bytes, "%s: %s", name, tensor.Name)
			if tensor.Name != "w" {
				require.Contains(t, Statistics(renamed{f}, "w"), tensor.Name)
			}
		}
	}
}

// table is a checkpoint in memory.
type table map[string]safetensors.Tensor

func (c table) Info(name string) (safetensors.TensorInfo, bool) {
	tensor, ok := c[name]
	return safetensors.TensorInfo{DType: tensor.DType, Shape: tensor.Shape}, ok
}

func (c table) Bytes(name string) ([]byte, error) { return c[name].Bytes, nil }

func stored(t testing.TB, f FourBit) table {
	t.Helper()
	values := make([]float32, 300)
	random := rand.New(rand.NewPCG(1, 1))
	for i := range values {
		values[i] = float32(random.NormFloat64())
	}
	tensor, err := f.Quantise(values, []int{3, 100}, safetensors.BF16)
	require.NoError(t, err)
	list, err := tensor.Tensors("w")
	require.NoError(t, err)
	c := table{}
	for _, tensor := range list {
		c[tensor.Name] = tensor
	}
	return c
}

func TestReadRefuses(t *testing.T) {
	const stateName = "w.quant_state.bitsandbytes__nf4"
	edit := func(name string, change func(*safetensors.Tensor)) func(table) {
		return func(c table) {
			tensor := c[name]
			tensor.Bytes = bytes.Clone(tensor.Bytes)
			change(&tensor)
			c[name] = tensor
		}
	}
	replace := func(old, new string) func(table) {
		return edit(stateName, func(s *safetensors.Tensor) {
			if !strings.Contains(string(s.Bytes), old) {
				panic(old)
			}
			s.Bytes = []byte(strings.ReplaceAll(string(s.Bytes), old, new))
		})
	}
	for _, c := range []struct {
		change func(table)
		want   string
	}{
		{func(c table) { delete(c, stateName) }, `reading "w": it has no quant_state`},
		{func(c table) { delete(c, "w.absmax") }, `there is no tensor "w.absmax"`},
		{func(c table) { delete(c, "w.nested_quant_map") }, `there is no tensor "w.nested_quant_map"`},
		{edit("w", func(s *safetensors.Tensor) { s.Bytes = s.Bytes[1:] }), "shape [3 100] needs 150 bytes of codes, got 149"},
		{edit("w", func(s *safetensors.Tensor) { s.DType = safetensors.F32 }), `tensor "w" has dtype F32, want U8`},
		{edit("w.absmax", func(s *safetensors.Tensor) { s.Bytes = s.Bytes[1:] }), "needs 5 nested absmax codes, got 4"},
		{edit("w.nested_absmax", func(s *safetensors.Tensor) { s.Bytes = append(s.Bytes, 0, 0, 0, 0) }), "need 1 nested absmax values, got 2"},
		{edit("w.nested_absmax", func(s *safetensors.Tensor) { copy(s.Bytes, []byte{0, 0, 0xc0, 0x7f}) }), `"w.nested_absmax" holds NaN`},
		{edit("w.quant_map", func(s *safetensors.Tensor) { s.Bytes[0] ^= 1 }), "is not the table of the format"},
		{edit(stateName, func(s *safetensors.Tensor) { s.Bytes = s.Bytes[1:] }), stateName + ":"},
		{replace(`"nf4"`, `"fp4"`), `says quant_type "fp4"`},
		{replace(`"blocksize": 64`, `"blocksize": 65`), "block size is 65, want a power of two"},
		{replace(`"blocksize": 64`, `"blocksize": 0`), "has no blocksize"},
		{replace("[3, 100]", "[3, -100]"), "shape [3 -100] is not that of a weight"},
		{replace("[3, 100]", "[4611686018427387904, 100]"), "is not that of a weight"},
		{replace("[3, 100]", "[3, 101]"), "needs 152 bytes of codes"},
		{replace("bfloat16", "int8"), `dtype "int8", want float32`},
		{replace(`"nested_blocksize": 256`, `"nested_blocksize": 0`), "nested block size is 0"},
		{replace(`"nested_dtype": "float32"`, `"nested_dtype": "float16"`), `nested_dtype "float16", want float32`},
	} {
		checkpoint := stored(t, FourBit{Type: NormalFloat, DoubleQuant: true})
		c.change(checkpoint)
		_, err := Read(checkpoint, "w")
		require.ErrorContains(t, err, c.want)
	}
}

func TestQuantiseRefuses(t *testing.T) {
	values := make([]float32, 64)
	for _, c := range []struct {
		f      FourBit
		values []float32
		shape  []int
		dtype  safetensors.DType
		want   string
	}{
		{FourBit{}, values, []int{64}, safetensors.F32, `quant: unknown quant type "", want "nf4" or "fp4"`},
		{FourBit{Type: "nf5"}, values, []int{64}, safetensors.F32, `unknown quant type "nf5"`},
		{FourBit{Type: NormalFloat, BlockSize: 48}, values, []int{64}, safetensors.F32, "block size is 48, want a power of two from 32 to 4096"},
		{FourBit{Type: NormalFloat, BlockSize: 8192}, values, []int{64}, safetensors.F32, "block size is 8192"},
		{FourBit{Type: NormalFloat}, values, []int{63}, safetensors.F32, "shape [63] has 63 elements, got 64 values"},
		{FourBit{Type: NormalFloat}, values, []int{64, 0}, safetensors.F32, "shape [64 0] has an axis of 0"},
		{FourBit{Type: NormalFloat}, values, []int{64}, safetensors.I8, "dtype I8 cannot be quantised"},
		{FourBit{Type: NormalFloat}, []float32{1, float32(math.NaN())}, []int{2}, safetensors.F32, "element 1 is NaN"},
		{FourBit{Type: NormalFloat}, []float32{float32(math.Inf(-1)), 1}, []int{2}, safetensors.F32, "element 0 is -Inf"},
	} {
		_, err := c.f.Quantise(c.values, c.shape, c.dtype)
		require.ErrorContains(t, err, c.want)
	}
	_, err := QuantiseInt8(values, []int{64}, safetensors.F32)
	require.ErrorContains(t, err, "int8: shape [64], want two axes")
}

// The search without branches finds what counting the bounds finds, also next to them.
func TestNearest(t *testing.T) {
	for kind, c := range codes4 {
		check := func(v float32) {
			n := 0
			for n < 15 && v > c.bounds[n] {
				n++
			}
			require.Equal(t, c.order[n], c.nearest(v), "%s: %v", kind, v)
		}
		for _, b := range c.bounds[:15] {
			for _, v := range []float32{b, math.Nextafter32(b, 2), math.Nextafter32(b, -2)} {
				check(v)
			}
		}
		for i := range pieces + 1 {
			at := float32(i)*(2./pieces) - 1
			for _, v := range []float32{at, math.Nextafter32(at, 2), math.Nextafter32(at, -2)} {
				check(max(-1, min(1, v)))
			}
		}
		random := rand.New(rand.NewPCG(5, 6))
		for range 200_000 {
			check(2*random.Float32() - 1)
		}
	}
}

// Any tensors are refused or read, never more than they hold.
func FuzzRead(f *testing.F) {
	for _, format := range []FourBit{{Type: NormalFloat, DoubleQuant: true}, {Type: Float4, BlockSize: 32}} {
		c := stored(f, format)
		f.Add(c["w.quant_state.bitsandbytes__"+string(format.Type)].Bytes, c["w"].Bytes, c["w.absmax"].Bytes, c["w.nested_absmax"].Bytes, string(format.Type))
	}
	f.Fuzz(func(t *testing.T, stateJSON, codes, absmax, nested []byte, kind string) {
		levels := codes4[Type(kind)]
		if levels == nil {
			return
		}
		u8 := func(b []byte) safetensors.Tensor {
			return safetensors.Tensor{DType: safetensors.U8, Shape: []int{len(b)}, Bytes: b}
		}
		c := table{"w": u8(codes), "w.quant_state.bitsandbytes__" + kind: u8(stateJSON)}
		list, err := (&Tensor4{FourBit: FourBit{Type: Type(kind)}, Shape: []int{1}, DType: safetensors.F32, Packed: []byte{0}, Absmax: []float32{1}}).Tensors("w")
		require.NoError(t, err)
		c["w.quant_map"] = list[1]
		c["w.absmax"] = u8(absmax)
		if len(nested) > 0 {
			c["w.nested_absmax"] = safetensors.Tensor{DType: safetensors.F32, Bytes: nested}
			c["w.nested_quant_map"] = safetensors.Tensor{DType: safetensors.F32, Bytes: make([]byte, 1024)}
		} else {
			c["w.absmax"] = safetensors.Tensor{DType: safetensors.F32, Bytes: absmax}
		}
		tensor, err := Read(c, "w")
		if err != nil {
			return
		}
		values, err := tensor.Dequantise()
		require.NoError(t, err)
		require.Len(t, values, (&Tensor4{Shape: tensor.Layout().Shape()}).Size())
	})
}
