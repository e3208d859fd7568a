package safetensors

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWriteRefuses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x.safetensors")
	require.NoError(t, os.WriteFile(path, []byte("old"), 0o666))
	broken := errors.New("broken")
	writes := func(sizes ...int) func(io.Writer) error {
		return func(w io.Writer) error {
			for _, n := range sizes {
				_, _ = w.Write(make([]byte, n)) // a careless caller
			}
			return nil
		}
	}
	many := make([]int, 65)
	for name, tc := range map[string]struct {
		tensors []Tensor
		want    string
	}{
		"twice":         {[]Tensor{tensor(t, "a", F32, 1), tensor(t, "a", I8, 1)}, `tensor "a" comes twice`},
		"unknown dtype": {[]Tensor{{Name: "a", DType: "F99"}}, `tensor "a": unknown dtype "F99"`},
		"no dtype":      {[]Tensor{{Name: "a"}}, `unknown dtype ""`},
		"negative":      {[]Tensor{{Name: "a", DType: F32, Shape: []int{2, -1}}}, "negative dimension in shape [2 -1]"},
		"overflow":      {[]Tensor{{Name: "a", DType: F32, Shape: []int{1 << 16, 1 << 16, 1 << 16, 1 << 16}}}, "overflows"},
		"rank":          {[]Tensor{{Name: "a", DType: F32, Shape: many}}, "65 dimensions, more than 64"},
		"reserved":      {[]Tensor{tensor(t, "__metadata__", F32, 1)}, "reserved"},
		"not UTF-8":     {[]Tensor{tensor(t, "\xff", F32, 1)}, "not UTF-8"},
		"both":          {[]Tensor{{Name: "a", DType: I8, Shape: []int{1}, Bytes: []byte{1}, Data: writes(1)}}, "both Bytes and Data"},
		"bytes short":   {[]Tensor{{Name: "a", DType: F32, Shape: []int{2}, Bytes: make([]byte, 4)}}, `tensor "a": 4 bytes, F32[2] takes 8`},
		"no content":    {[]Tensor{{Name: "a", DType: F32}}, "0 bytes, F32[] takes 4"},
		"data short":    {[]Tensor{{Name: "a", DType: F32, Shape: []int{2}, Data: writes(4, 3)}}, `tensor "a": its Data wrote 1 bytes too few`},
		"data long":     {[]Tensor{{Name: "a", DType: F32, Shape: []int{2}, Data: writes(4, 5)}}, `tensor "a": its Data wrote at least 1 bytes too many`},
		"data fails":    {[]Tensor{{Name: "a", DType: F32, Data: func(io.Writer) error { return broken }}}, `tensor "a": broken`},
	} {
		t.Run(name, func(t *testing.T) {
			require.ErrorContains(t, Write(path, nil, tc.tensors), tc.want)
			require.ErrorContains(t, Write(path, nil, tc.tensors), path)
			require.ErrorContains(t, Encode(io.Discard, nil, tc.tensors), tc.want)
			sharded := t.TempDir()
			require.ErrorContains(t, WriteSharded(sharded, nil, tc.tensors, 8), tc.want)
			entries, err := os.ReadDir(sharded)
			require.NoError(t, err)
			require.Empty(t, entries)
		})
	}
	require.ErrorContains(t, Write(path, map[string]string{"a": "\xff"}, nil), `metadata "a" is not UTF-8`)
	require.ErrorContains(t, WriteSharded(dir, nil, nil, -1), "shard size -1 is negative")
	require.ErrorIs(t, WriteSharded(filepath.Join(dir, "none"), nil, nil, 0), os.ErrNotExist)
	require.ErrorContains(t, Write(dir, nil, nil), "it is a folder, want a file")
	left, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "old", string(left))
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1, "no temporary file is left")
}

// full fails like a disk after n bytes.
type full struct{ n int }

func (f *full) Write(p []byte) (int, error) {
	if len(p) > f.n {
		n := f.n
		f.n = 0
		return n, syscall.ENOSPC
	}
	f.n -= len(p)
	return len(p), nil
}

func TestEncodeDiskFull(t *testing.T) {
	tensors := []Tensor{tensor(t, "a", F32, 100), tensor(t, "b", F32, 100)}
	for n := range 8 + 800 {
		require.ErrorIs(t, Encode(&full{n}, nil, tensors), syscall.ENOSPC)
	}
}

// 256 MB of tensors pass through the memory of one.
func TestWriteStreams(t *testing.T) {
	const n = 8 << 20
	var tensors []Tensor
	var peak uint64
	for i := range 8 {
		tensors = append(tensors, Tensor{Name: string(rune('a' + i)), DType: F32, Shape: []int{n}, Data: func(w io.Writer) error {
			buf := make([]byte, 4*n)
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapAlloc)
			_, err := w.Write(buf)
			return err
		}})
	}
	require.NoError(t, Encode(io.Discard, nil, tensors))
	require.Less(t, peak, uint64(2*4*n))
}

func TestWriteShardedNothingAndOne(t *testing.T) {
	for _, tensors := range [][]Tensor{nil, {tensor(t, "a", F32, 1000)}} {
		dir := t.TempDir()
		require.NoError(t, WriteSharded(dir, nil, tensors, 10))
		var want []TensorInfo
		for _, ts := range tensors {
			info, err := ts.Info()
			require.NoError(t, err)
			want = append(want, info)
		}
		require.NoError(t, Verify(dir, want))
		require.FileExists(t, filepath.Join(dir, SingleName))
		require.NoFileExists(t, filepath.Join(dir, IndexName))
	}
}

func TestVerifyTellsEveryDifference(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.safetensors")
	require.NoError(t, Write(path, nil, []Tensor{tensor(t, "same", F32, 2), tensor(t, "dtype", F16, 2), tensor(t, "shape", F32, 2, 1), tensor(t, "extra", I8, 1)}))
	err := Verify(path, []TensorInfo{
		{Name: "shape", DType: F32, Shape: []int{1, 2}}, {Name: "same", DType: F32, Shape: []int{2}},
		{Name: "dtype", DType: BF16, Shape: []int{2}}, {Name: "lost", DType: F32},
	})
	require.EqualError(t, err, "safetensors: verify "+path+`: tensor "dtype": want BF16[2], got F16[2]
tensor "lost" is missing
tensor "shape": want F32[1 2], got F32[2 1]
tensor "extra" is not wanted`)
	require.Error(t, Verify(filepath.Dir(path), nil))
	require.Error(t, Verify(path+"x", nil))
}
