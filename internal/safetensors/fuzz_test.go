package safetensors

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// fuzzSeeds are the golden files and one file per kind of damage.
func fuzzSeeds(f *testing.F) {
	paths, _ := filepath.Glob(filepath.Join(golden, "*.safetensors"))
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(content)
	}
	for _, s := range []string{
		`{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`,
		`{"w":{"dtype":"F99","shape":[1],"data_offsets":[0,4],"x":[{}]},"__metadata__":null}`,
		`{"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]},"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}`,
		`{"a":{"dtype":"F4","shape":[8],"data_offsets":[0,4]},"\ud800":{"dtype":"I64","shape":[0,9],"data_offsets":[4,4]}}`,
	} {
		f.Add(raw(s, 1, 2, 3, 4))
	}
}

// FuzzOpen: no input panics; what opens is well-formed, and every tensor's
// bytes are there.
func FuzzOpen(f *testing.F) {
	fuzzSeeds(f)
	f.Fuzz(func(t *testing.T, content []byte) {
		file := inMemory(content)
		if file == nil {
			return
		}
		total := int64(0)
		for _, name := range file.Names() {
			info, _ := file.Info(name)
			b, err := file.Bytes(name)
			if err != nil || int64(len(b)) != info.Size {
				t.Fatalf("%q: %d bytes of %d: %v", name, len(b), info.Size, err)
			}
			total += info.Size
			if n := len(b); n < 1<<16 && (info.DType == F16 || info.DType == BF16) {
				if err := file.Float32s(name, make([]float32, n/2)); err != nil {
					t.Fatal(err)
				}
			}
		}
		text := content[lengthBytes : int64(len(content))-total]
		if !json.Valid(text) {
			t.Fatalf("accepted a header that is not JSON: %q", text)
		}
	})
}

// FuzzRoundTrip: what opens is written and read back as the same content, and
// writing that once more gives the same bytes.
func FuzzRoundTrip(f *testing.F) {
	fuzzSeeds(f)
	f.Fuzz(func(t *testing.T, content []byte) {
		first := inMemory(content)
		if first == nil {
			return
		}
		for _, info := range first.header.tensors {
			if info.DType.Bits() == 0 {
				return // cannot be written
			}
		}
		var once, again bytes.Buffer
		if err := Encode(&once, first.Metadata(), copyOf(t, first)); err != nil {
			t.Fatal(err)
		}
		second := inMemory(once.Bytes())
		if second == nil {
			t.Fatal("cannot read what was written")
		}
		if err := differences(infos(second.Names(), second.Info), infos(first.Names(), first.Info)); err != nil {
			t.Fatal(err)
		}
		for _, name := range first.Names() {
			a, _ := first.Bytes(name)
			b, _ := second.Bytes(name)
			if !bytes.Equal(a, b) {
				t.Fatalf("%q changed", name)
			}
		}
		if err := Encode(&again, second.Metadata(), copyOf(t, second)); err != nil || !bytes.Equal(once.Bytes(), again.Bytes()) {
			t.Fatal("writing is not stable", err)
		}
	})
}

// inMemory is Open on content that stands for a mapped file; nil if Open
// would refuse it.
func inMemory(content []byte) *File {
	m := &mapping{path: "memory", size: int64(len(content)), mem: content}
	if len(content) == 0 {
		m.mem = []byte{}
	}
	h, err := readHeader(m)
	if err != nil {
		return nil
	}
	return &File{path: m.path, data: m, header: h}
}

// FuzzIndex: no index panics or leads out of its folder.
func FuzzIndex(f *testing.F) {
	for _, s := range []string{weightMap("a", "s.safetensors"), weightMap("a", "../s"), `{"weight_map":{"a":"b","a":1}}`, `[`, ``} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		shardOf, err := parseIndex(text)
		if err != nil {
			return
		}
		for _, shard := range shardOf {
			rel, err := filepath.Rel("dir", filepath.Join("dir", shard))
			if err != nil || !filepath.IsLocal(rel) {
				t.Fatalf("shard %q leads out", shard)
			}
		}
	})
}
