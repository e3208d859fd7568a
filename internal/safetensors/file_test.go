package safetensors

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMappedEqualsRead(t *testing.T) {
	path := filepath.Join(golden, "dtypes.safetensors")
	mapped, err := open(path, false)
	require.NoError(t, err)
	defer mapped.Close()
	read, err := open(path, true)
	require.NoError(t, err)
	defer read.Close()
	require.Nil(t, read.data.mem)
	require.Equal(t, mapped.Names(), read.Names())
	for _, name := range mapped.Names() {
		info, ok := mapped.Info(name)
		require.True(t, ok)
		other, _ := read.Info(name)
		require.Equal(t, info, other)
		a, err := mapped.Bytes(name)
		require.NoError(t, err)
		b, err := read.Bytes(name)
		require.NoError(t, err)
		require.Equal(t, pattern(t, info.DType, info.Shape...), a)
		require.Equal(t, a, b)
		mapped.Release(name)
		read.Release(name)
	}
}

func TestClosed(t *testing.T) {
	for _, noMap := range []bool{false, true} {
		f, err := open(filepath.Join(golden, "odd.safetensors"), noMap)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		require.NoError(t, f.Close())
		_, err = f.Bytes("scalar")
		require.ErrorIs(t, err, os.ErrClosed)
		require.ErrorIs(t, f.Float32s("scalar", make([]float32, 1)), os.ErrClosed)
		f.Release("scalar")
	}
}

// Callers cannot change the file's own description.
func TestResultsAreCopies(t *testing.T) {
	f, err := Open(filepath.Join(golden, "odd.safetensors"))
	require.NoError(t, err)
	defer f.Close()
	f.Names()[0] = "x"
	f.Metadata()["format"] = "x"
	info, _ := f.Info("empty")
	info.Shape[0] = 9
	info, _ = f.Info("empty")
	require.Equal(t, []int{0, 4}, info.Shape)
	require.Equal(t, "", f.Names()[0])
	require.Equal(t, "p\"t\\\u2028\x02é<", f.Metadata()["format"])
}

func TestConcurrentReads(t *testing.T) {
	for _, noMap := range []bool{false, true} {
		f, err := open(filepath.Join(golden, "rounding.safetensors"), noMap)
		require.NoError(t, err)
		info, _ := f.Info("bf16")
		want := make([]float32, info.Shape[0])
		require.NoError(t, f.Float32s("bf16.back", want))
		var readers sync.WaitGroup
		for range 8 {
			readers.Go(func() {
				got := make([]float32, len(want))
				for range 50 {
					if err := f.Float32s("bf16", got); err != nil || got[3] != want[3] {
						t.Errorf("got %g, want %g (%v)", got[3], want[3], err)
					}
					f.Release("bf16")
				}
			})
		}
		readers.Wait()
		require.NoError(t, f.Close())
	}
}

// asset finds a file of other people, or skips.
func asset(t testing.TB, parts ...string) string {
	root := os.Getenv("GOPEFT_ASSETS")
	if root == "" {
		root = filepath.Join("..", "..", "..", "shared", "assets")
	}
	path := filepath.Join(append([]string{root}, parts...)...)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("%s is missing; set GOPEFT_ASSETS to the folder with the real models", path)
	}
	return path
}

// Real files: every one opens, and writing its content again gives its bytes,
// if Python's library laid it out (older files have other orders).
func TestRealFiles(t *testing.T) {
	for _, tc := range []struct {
		path    []string
		tensors int
		name    string
		shape   []int
		rewrite bool
	}{
		{[]string{"stories260K", "hf", "model.safetensors"}, 47, "model.embed_tokens.weight", []int{512, 64}, true},
		{[]string{"lora-smollm135m-llama", "adapter_model.safetensors"}, 120, "", nil, true},
		{[]string{"lora-gptneo125m", "adapter_model.safetensors"}, 48, "", nil, true},
		{[]string{"lora-dialogpt-synthetic", "adapter_model.safetensors"}, 24, "", nil, true},
		{[]string{"rxnmapper-albert", "model.safetensors"}, 32, "", nil, true},
	} {
		t.Run(tc.path[0], func(t *testing.T) {
			path := asset(t, tc.path...)
			f, err := Open(path)
			require.NoError(t, err)
			defer f.Close()
			require.Len(t, f.Names(), tc.tensors)
			if tc.name != "" {
				info, ok := f.Info(tc.name)
				require.True(t, ok)
				require.Equal(t, tc.shape, info.Shape)
			}
			var buf strings.Builder
			require.NoError(t, Encode(&buf, f.Metadata(), copyOf(t, f)))
			want, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Equal(t, tc.rewrite, buf.String() == string(want))
		})
	}
}

// copyOf describes all tensors of f for writing.
func copyOf(t testing.TB, f *File) []Tensor {
	var tensors []Tensor
	for _, name := range f.Names() {
		info, _ := f.Info(name)
		b, err := f.Bytes(name)
		require.NoError(t, err)
		tensors = append(tensors, Tensor{Name: name, DType: info.DType, Shape: info.Shape, Bytes: b})
	}
	return tensors
}

func TestRealChatModel(t *testing.T) {
	dir := os.Getenv("GOPEFT_SMOLLM2")
	if dir == "" {
		t.Skip("GOPEFT_SMOLLM2 is not set: want the folder of SmolLM2-135M-Instruct")
	}
	c, err := OpenIndexed(dir)
	require.NoError(t, err)
	defer c.Close()
	total := 0
	for _, name := range c.Names() {
		info, _ := c.Info(name)
		n := 1
		for _, dim := range info.Shape {
			n *= dim
		}
		dst := make([]float32, n)
		require.NoError(t, c.Float32s(name, dst))
		c.Release(name)
		total += n
	}
	require.Equal(t, 134_515_008, total)
}

func TestFromBytes(t *testing.T) {
	var text bytes.Buffer
	if err := Encode(&text, nil, []Tensor{{Name: "a", DType: U8, Shape: []int{3}, Bytes: []byte{7, 8, 9}}}); err != nil {
		t.Fatal(err)
	}
	f, err := FromBytes("memory", text.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	f.Release("a") // must not touch memory that is no map
	got, err := f.Bytes("a")
	if err != nil || !bytes.Equal(got, []byte{7, 8, 9}) {
		t.Fatalf("got %v, %v", got, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Bytes("a"); err == nil {
		t.Fatal("reading after Close: want an error")
	}
	for _, data := range [][]byte{nil, text.Bytes()[:20]} {
		if _, err := FromBytes("memory", data); err == nil || !strings.Contains(err.Error(), "safetensors: memory: ") {
			t.Fatalf("%d bytes: got %v", len(data), err)
		}
	}
}
