package safetensors

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

const golden = "testdata/golden"

// pattern is the content that testdata/make.py gives its tensors.
func pattern(t *testing.T, d DType, shape ...int) []byte {
	size, err := d.Size(shape)
	require.NoError(t, err)
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(i % 251)
		if d == BOOL {
			b[i] %= 2
		}
	}
	return b
}

func tensor(t *testing.T, name string, d DType, shape ...int) Tensor {
	return Tensor{Name: name, DType: d, Shape: shape, Bytes: pattern(t, d, shape...)}
}

func requireGolden(t *testing.T, name string, metadata map[string]string, tensors []Tensor) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "out.safetensors")
	require.NoError(t, Write(path, metadata, tensors))
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	want, err := os.ReadFile(filepath.Join(golden, name))
	require.NoError(t, err)
	require.Equal(t, string(want), string(got))
	var infos []TensorInfo
	for _, ts := range tensors {
		info, err := ts.Info()
		require.NoError(t, err)
		infos = append(infos, info)
	}
	require.NoError(t, Verify(path, infos))
}

func TestWriteEqualsPython(t *testing.T) {
	dtypes := []struct {
		python string
		d      DType
	}{
		{"bool", BOOL}, {"uint8", U8}, {"int8", I8}, {"float8_e5m2", F8E5M2}, {"float8_e4m3fn", F8E4M3},
		{"float8_e8m0fnu", F8E8M0}, {"float8_e4m3fnuz", F8E4M3FNUZ}, {"float8_e5m2fnuz", F8E5M2FNUZ},
		{"int16", I16}, {"uint16", U16}, {"float16", F16}, {"bfloat16", BF16}, {"int32", I32}, {"uint32", U32},
		{"float32", F32}, {"complex64", C64}, {"float64", F64}, {"int64", I64}, {"uint64", U64},
	}
	var all []Tensor
	for i, x := range dtypes {
		all = append(all, tensor(t, "z."+x.python, x.d, 2, 3), tensor(t, "a."+string(rune('0'+i%10)), x.d, 1))
		if i >= 10 {
			all[len(all)-1].Name = "a.1" + string(rune('0'+i%10))
		}
	}
	requireGolden(t, "dtypes.safetensors", nil, all)
	requireGolden(t, "odd.safetensors", map[string]string{"format": "p\"t\\\u2028\x02é<"}, []Tensor{
		tensor(t, "scalar", F32),
		{Name: "empty", DType: F32, Shape: []int{0, 4}},
		tensor(t, "quote \" backslash \\ slash / <&> é 日本 😀 \u2028 \x01\t\n\x7f", F16, 3),
		tensor(t, "", I64, 1),
	})
	requireGolden(t, "none.safetensors", map[string]string{"format": "pt"}, nil)
}

func TestWriteShardedEqualsPython(t *testing.T) {
	want := filepath.Join(golden, "sharded")
	text, err := os.ReadFile(filepath.Join(want, "order.json"))
	require.NoError(t, err)
	var order []string
	require.NoError(t, json.Unmarshal(text, &order))

	c, err := OpenIndexed(want)
	require.NoError(t, err)
	defer c.Close()
	require.Len(t, c.Files(), 4)
	require.Len(t, c.Names(), len(order))
	var tensors []Tensor
	for _, name := range order {
		info, ok := c.Info(name)
		require.True(t, ok)
		b, err := c.Bytes(name)
		require.NoError(t, err)
		tensors = append(tensors, Tensor{Name: name, DType: info.DType, Shape: info.Shape, Bytes: b})
	}
	dir := t.TempDir()
	require.NoError(t, WriteSharded(dir, map[string]string{"format": "pt"}, tensors, 200))
	requireSameFolder(t, want, dir, "order.json")
	require.ErrorContains(t, WriteSharded(dir, nil, tensors, 200), "already has model-00001-of-00004.safetensors")
}

// requireSameFolder compares two folders byte for byte, but for the files
// that only want has and that are named in except.
func requireSameFolder(t *testing.T, want, got string, except ...string) {
	t.Helper()
	list := func(dir string) map[string]string {
		out := map[string]string{}
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		for _, e := range entries {
			if e.IsDir() {
				continue
			}
			content, err := os.ReadFile(filepath.Join(dir, e.Name()))
			require.NoError(t, err)
			out[e.Name()] = string(content)
		}
		return out
	}
	w := list(want)
	for _, name := range except {
		delete(w, name)
	}
	require.Equal(t, w, list(got))
}

func TestRoundingEqualsTorch(t *testing.T) {
	f, err := Open(filepath.Join(golden, "rounding.safetensors"))
	require.NoError(t, err)
	defer f.Close()
	info, _ := f.Info("f32")
	src := make([]float32, info.Shape[0])
	require.NoError(t, f.Float32s("f32", src))
	for name, d := range map[string]DType{"f32": F32, "f16": F16, "bf16": BF16, "f64": F64} {
		want, err := f.Bytes(name)
		require.NoError(t, err)
		got := make([]byte, len(want))
		require.NoError(t, EncodeFloat32s(got, src, d))
		for i := range src {
			w := d.Bits() / 8
			require.Equal(t, want[i*w:i*w+w], got[i*w:i*w+w], "%g to %s", src[i], d)
		}
	}
	for name, back := range map[string]string{"f16": "f16.back", "bf16": "bf16.back", "f64": "f32"} {
		got, want := make([]float32, len(src)), make([]float32, len(src))
		require.NoError(t, f.Float32s(name, got))
		require.NoError(t, f.Float32s(back, want))
		for i := range want {
			require.Equal(t, math.Float32bits(want[i]), math.Float32bits(got[i]), "%s: %g", name, want[i])
		}
	}
}

// Every 16-bit pattern survives the way to float32 and back, NaN as NaN.
func TestHalvesSurvive(t *testing.T) {
	for _, d := range []DType{F16, BF16} {
		src, back := make([]byte, 2<<16), make([]byte, 2<<16)
		wide := make([]float32, 1<<16)
		for i := range wide {
			le.PutUint16(src[2*i:], uint16(i))
		}
		require.NoError(t, DecodeFloat32s(wide, src, d))
		require.NoError(t, EncodeFloat32s(back, wide, d))
		for i, v := range wide {
			if v == v && !bytes.Equal(src[2*i:2*i+2], back[2*i:2*i+2]) || v != v && halfToFloatOf(d, le.Uint16(back[2*i:])) == v {
				t.Fatalf("%s %#04x became %g and then %#04x", d, i, v, le.Uint16(back[2*i:]))
			}
		}
	}
}

func halfToFloatOf(d DType, h uint16) float32 {
	var out [1]float32
	_ = DecodeFloat32s(out[:], le.AppendUint16(nil, h), d)
	return out[0]
}

// The golden files are what the real library writes today.
func TestGoldenFilesAreCurrent(t *testing.T) {
	python := os.Getenv("GOPEFT_PYTHON")
	if python == "" {
		t.Skip("GOPEFT_PYTHON is not set: want a Python with torch, safetensors and huggingface_hub")
	}
	dir := t.TempDir()
	out, err := exec.Command(python, "testdata/make.py", dir).CombinedOutput()
	require.NoError(t, err, "%s", out)
	requireSameFolder(t, golden, dir)
	requireSameFolder(t, filepath.Join(golden, "sharded"), filepath.Join(dir, "sharded"))
}
