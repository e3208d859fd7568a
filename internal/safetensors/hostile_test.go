package safetensors

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// raw builds a file from a header text and data.
func raw(header string, data ...byte) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), data...)
}

func TestOpenRefuses(t *testing.T) {
	zeros := func(n int) []byte { return make([]byte, n) }
	one := func(fields string) []byte { return raw(`{"w":{`+fields+`}}`, zeros(4)...) }
	two := func(a, b string) []byte {
		return raw(fmt.Sprintf(`{"a":{"dtype":"U8","shape":[4],"data_offsets":%s},"b":{"dtype":"U8","shape":[4],"data_offsets":%s}}`, a, b), zeros(8)...)
	}
	lfs := "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 538090408\n"
	for name, tc := range map[string]struct {
		content []byte
		want    string
	}{
		"empty file":           {nil, "the file is empty"},
		"too short":            {zeros(7), "truncated: 7 bytes"},
		"git lfs":              {[]byte(lfs), `Git LFS pointer ( oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393 size 538090408 ), not the weights; run "git lfs install && git lfs pull"`},
		"html":                 {[]byte("\n<!DOCTYPE html><html>"), "HTML or XML page"},
		"torch zip":            {[]byte("PK\x03\x04................"), "PyTorch pickle"},
		"gguf":                 {[]byte("GGUF................"), "GGUF"},
		"header beyond file":   {binary.LittleEndian.AppendUint64(nil, 10), "header length is 10, but only 0 bytes follow"},
		"header over limit":    {binary.LittleEndian.AppendUint64(nil, 100_000_001), "more than the allowed 100000000"},
		"header length 2^64-1": {[]byte(strings.Repeat("\xff", 16)), "header length is 18446744073709551615"},
		"no header":            {raw(""), "not JSON"},
		"header not JSON":      {raw("hello"), "not JSON"},
		"header cut":           {raw(`{"w":{"dtype":"F32",`), "not JSON"},
		"header a list":        {raw(`[]`), `want "{", got [`},
		"header null":          {raw(`null`), "got null"},
		"header not UTF-8":     {raw("{\"\xff\":1}"), "not UTF-8"},
		"text after":           {raw(`{} {}`), "more text after"},
		"deep nesting":         {raw(strings.Repeat(`{"a":`, 100000)), "exceeded max depth"},
		"deep skipped value":   {raw(`{"w":{"x":` + strings.Repeat(`[`, 100000)), "not JSON"},
		"duplicate tensor":     {raw(`{"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}`), `key "w" comes twice`},
		"duplicate metadata":   {raw(`{"__metadata__":{},"__metadata__":{}}`), `key "__metadata__" comes twice`},
		"duplicate meta key":   {raw(`{"__metadata__":{"a":"","a":""}}`), `__metadata__: key "a" comes twice`},
		"duplicate field":      {one(`"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]`), `tensor "w": key "dtype" comes twice`},
		"metadata number":      {raw(`{"__metadata__":{"a":1}}`), `value of "a": want a string, got 1`},
		"metadata list":        {raw(`{"__metadata__":[]}`), `__metadata__: want "{"`},
		"tensor a number":      {raw(`{"w":3}`), `tensor "w": want "{", got 3`},
		"no dtype":             {one(`"shape":[1],"data_offsets":[0,4]`), "no dtype"},
		"no shape":             {one(`"dtype":"F32","data_offsets":[0,4]`), "no shape"},
		"no offsets":           {one(`"dtype":"F32","shape":[1]`), "want two numbers"},
		"dtype a number":       {one(`"dtype":1,"shape":[1],"data_offsets":[0,4]`), "dtype: want a string, got 1"},
		"shape a number":       {one(`"dtype":"F32","shape":1,"data_offsets":[0,4]`), "shape: want a list"},
		"shape of strings":     {one(`"dtype":"F32","shape":["1"],"data_offsets":[0,4]`), "shape: want integers"},
		"shape of fractions":   {one(`"dtype":"F32","shape":[1.0],"data_offsets":[0,4]`), "shape: want integers"},
		"shape negative":       {one(`"dtype":"F32","shape":[-1],"data_offsets":[0,4]`), "shape: want integers from 0 to 2^63-1, got -1"},
		"shape of rank 65":     {one(`"dtype":"F32","shape":[` + strings.Repeat("1,", 64) + `1],"data_offsets":[0,4]`), "more than 64 numbers"},
		"shape overflow":       {one(`"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]`), "overflows 64 bits"},
		"shape overflow, 0":    {one(`"dtype":"F32","shape":[4294967296,4294967296,0],"data_offsets":[0,0]`), "overflows 64 bits"},
		"size overflow":        {one(`"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,4]`), "overflows 64 bits"},
		"shape not size":       {one(`"dtype":"F32","shape":[2],"data_offsets":[0,4]`), `tensor "w": data_offsets [0, 4] hold 4 bytes, F32[2] takes 8`},
		"half a byte":          {one(`"dtype":"F4","shape":[7],"data_offsets":[0,4]`), "does not fill whole bytes"},
		"offset 2^63":          {one(`"dtype":"F32","shape":[1],"data_offsets":[0,9223372036854775808]`), "data_offsets: want integers"},
		"offset negative":      {one(`"dtype":"F32","shape":[1],"data_offsets":[-4,0]`), "data_offsets: want integers"},
		"offset fraction":      {one(`"dtype":"F32","shape":[1],"data_offsets":[0,4e0]`), "data_offsets: want integers"},
		"offsets reversed":     {one(`"dtype":"F32","shape":[1],"data_offsets":[4,0]`), "reversed"},
		"three offsets":        {one(`"dtype":"F32","shape":[1],"data_offsets":[0,4,8]`), "more than 2 numbers"},
		"one offset":           {one(`"dtype":"F32","shape":[1],"data_offsets":[4]`), "want two numbers"},
		"past the end":         {two("[0,4]", "[8,12]"), `tensor "b": its data ends at byte 12, but the file has 8 bytes`},
		"huge, unknown dtype":  {one(`"dtype":"F99","shape":[1],"data_offsets":[0,9223372036854775807]`), "but the file has 4 bytes"},
		"overlap":              {two("[0,4]", "[2,6]"), `tensor "b": its data starts at byte 2 and overlaps that of "a"`},
		"same place":           {two("[0,4]", "[0,4]"), "overlaps"},
		"hole":                 {raw(`{"w":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}`, zeros(8)...), "4 bytes ahead of its data belong to no tensor"},
		"data after":           {raw(`{}`, 1, 2, 3), "the last 3 bytes belong to no tensor"},
		"long name":            {raw(`{"` + strings.Repeat("n", 100000) + `":3}`), "(100000 bytes)"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "x.safetensors")
			require.NoError(t, os.WriteFile(path, tc.content, 0o666))
			for _, noMap := range []bool{false, true} {
				f, err := open(path, noMap)
				require.Nil(t, f)
				require.ErrorContains(t, err, tc.want)
				require.ErrorContains(t, err, path)
				require.Less(t, len(err.Error()), 1000)
			}
		})
	}
}

func TestOpenRefusesOtherThanFiles(t *testing.T) {
	dir := t.TempDir()
	_, err := Open(dir)
	require.ErrorContains(t, err, "it is a folder, want a file")
	_, err = Open(filepath.Join(dir, "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
	if runtime.GOOS == "linux" {
		_, err = Open("/dev/zero")
		require.ErrorContains(t, err, "not a regular file")
	}
}

// Whatever the length a download stopped at, the error comes from Open and
// not from the first touch of a missing page.
func TestOpenTruncatedAnywhere(t *testing.T) {
	whole, err := os.ReadFile(filepath.Join(golden, "odd.safetensors"))
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "x.safetensors")
	for n := range whole {
		require.NoError(t, os.WriteFile(path, whole[:n], 0o666))
		_, err := Open(path)
		require.ErrorContains(t, err, path, "%d of %d bytes", n, len(whole))
	}
	require.NoError(t, os.WriteFile(path, append(whole, 0), 0o666))
	_, err = Open(path)
	require.ErrorContains(t, err, "the last 1 bytes belong to no tensor")
}

// A lying header must not cost memory: 16 bytes on disk that promise 99 MB.
func TestHostileHeaderAllocatesLittle(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.safetensors")
	require.NoError(t, os.WriteFile(path, append(binary.LittleEndian.AppendUint64(nil, 99_000_000), "{       "...), 0o666))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := open(path, true)
	runtime.ReadMemStats(&after)
	require.ErrorContains(t, err, "truncated")
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(1<<20))
}

// What the reference implementation accepts is accepted.
func TestOpenAccepts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.safetensors")
	text := ` {"w":{"dtype":"F32","shape":[],"data_offsets":[0,4],"note":{"a":[1]}},"__metadata__":null,` +
		`"new":{"dtype":"F99","shape":[3,3],"data_offsets":[4,5]},"empty":{"dtype":"I8","shape":[0],"data_offsets":[4,4]},` +
		`"packed":{"dtype":"F4","shape":[2,3],"data_offsets":[5,8]}}  `
	require.NoError(t, os.WriteFile(path, raw(text, 0, 0, 0x80, 0x3f, 7, 1, 2, 3), 0o666))
	f, err := Open(path)
	require.NoError(t, err)
	defer f.Close()
	require.Equal(t, []string{"empty", "new", "packed", "w"}, f.Names())
	one := []float32{0}
	require.NoError(t, f.Float32s("w", one))
	require.Equal(t, []float32{1}, one)
	b, err := f.Bytes("new")
	require.NoError(t, err)
	require.Equal(t, []byte{7}, b)
	require.ErrorContains(t, f.Float32s("new", one), `tensor "new": cannot convert between "F99" and float32`)
	require.ErrorContains(t, f.Float32s("w", nil), "0 float32 are 0 bytes of F32, got 4")
	require.ErrorContains(t, f.Float32s("v", nil), `tensor "v": the file has no such tensor`)
}
