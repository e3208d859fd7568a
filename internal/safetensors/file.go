package safetensors

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"sync/atomic"
)

// File is an open safetensors file. Its methods may be used concurrently,
// except Close.
type File struct {
	path   string
	data   *mapping
	header *header
	closed atomic.Bool
}

// Open maps the file and checks its header in full; tensor data is not read.
// Where files cannot be mapped it is read on demand.
//
// The file must not be truncated or rewritten in place while it is open: the
// system would kill the program for touching a page that is gone. Files
// replaced by rename, as this package and the hub cache do, are safe.
//
// Errors name the path and, where there is one, the tensor.
func Open(path string) (*File, error) { return open(path, false) }

// FromBytes is Open for a file's content in memory, such as an embedded one,
// which must not change before Close. name stands for the path in errors.
func FromBytes(name string, data []byte) (*File, error) {
	if data == nil {
		data = []byte{}
	}
	m := &mapping{path: name, size: int64(len(data)), mem: data, held: true}
	h, err := readHeader(m)
	if err != nil {
		return nil, fmt.Errorf("safetensors: %s: %w", name, err)
	}
	return &File{path: name, data: m, header: h}, nil
}

func open(path string, noMap bool) (*File, error) {
	m, err := openMapping(path, noMap)
	if err != nil {
		return nil, fmt.Errorf("safetensors: open: %w", err)
	}
	h, err := readHeader(m)
	if err != nil {
		m.close()
		return nil, fmt.Errorf("safetensors: %s: %w", path, err)
	}
	return &File{path: path, data: m, header: h}, nil
}

func readHeader(m *mapping) (*header, error) {
	first, err := m.view(0, min(m.size, sniffBytes))
	if err != nil {
		return nil, err
	}
	if err := sniff(first); err != nil {
		return nil, err
	}
	n, err := headerLength(first, m.size)
	if err != nil {
		return nil, err
	}
	text, err := m.view(lengthBytes, n)
	if err != nil {
		return nil, err
	}
	return parseHeader(text, m.size-lengthBytes-n)
}

// Path returns the path that the file was opened with.
func (f *File) Path() string { return f.path }

// Names returns the names of all tensors, sorted.
func (f *File) Names() []string { return slices.Clone(f.header.names) }

// Metadata returns the file's own strings, such as "format": "pt"; nil if it
// has none.
func (f *File) Metadata() map[string]string { return maps.Clone(f.header.metadata) }

// Info describes the named tensor; false if there is none.
func (f *File) Info(name string) (TensorInfo, bool) {
	info, ok := f.header.tensors[name]
	info.Shape = slices.Clone(info.Shape)
	return info, ok
}

// Bytes returns the tensor's bytes: little-endian, row-major, at any
// alignment. They are a view of the mapped file, valid until Close and not to
// be written to (the system kills a program that does).
func (f *File) Bytes(name string) ([]byte, error) {
	_, b, err := f.tensor(name)
	return b, err
}

// Float32s converts the tensor, which must be F64, F32, F16 or BF16 and of
// len(dst) elements, into dst.
func (f *File) Float32s(name string, dst []float32) error {
	info, b, err := f.tensor(name)
	if err != nil {
		return err
	}
	if err := DecodeFloat32s(dst, b, info.DType); err != nil {
		return f.errorf(name, "%w", err)
	}
	return nil
}

// Release lets the system drop the tensor's pages from memory; a later read
// brings them back from disk. With it, reading a checkpoint tensor by tensor
// keeps one tensor resident.
func (f *File) Release(name string) {
	if info, ok := f.header.tensors[name]; ok && !f.closed.Load() {
		f.data.release(info.Offset, info.Size)
	}
}

// Close unmaps the file. Views from Bytes are invalid afterwards.
func (f *File) Close() error {
	if f.closed.Swap(true) {
		return nil
	}
	return f.data.close()
}

func (f *File) tensor(name string) (TensorInfo, []byte, error) {
	info, ok := f.header.tensors[name]
	if !ok {
		return info, nil, f.errorf(name, "the file has no such tensor")
	}
	if f.closed.Load() {
		return info, nil, f.errorf(name, "%w", os.ErrClosed)
	}
	b, err := f.data.view(info.Offset, info.Size)
	if err != nil {
		return info, nil, f.errorf(name, "%w", err)
	}
	return info, b, nil
}

func (f *File) errorf(name, format string, args ...any) error {
	return fmt.Errorf("safetensors: %s: tensor %s: "+format, append([]any{f.path, quote(name)}, args...)...)
}
