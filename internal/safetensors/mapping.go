package safetensors

import (
	"fmt"
	"io"
	"os"

	"github.com/edsrzf/mmap-go"
)

// mapping gives access to ranges of a file: views of a memory map, or reads
// where the system has none.
type mapping struct {
	path string
	size int64
	mem  mmap.MMap // nil if not mapped
	held bool      // mem is the caller's memory, not a map
	file *os.File  // nil if mapped
}

// openMapping opens a regular file. noMap forces reads.
func openMapping(path string, noMap bool) (*mapping, error) {
	info, err := os.Stat(path) // ahead of Open, which would wait for ever on a pipe
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, fmt.Errorf("%s: it is a folder, want a file", path)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: it is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if info, err = f.Stat(); err != nil {
		f.Close()
		return nil, err
	}
	m := &mapping{path: path, size: info.Size(), file: f}
	if noMap || m.size == 0 || int64(int(m.size)) != m.size {
		return m, nil
	}
	if mem, err := mmap.MapRegion(f, int(m.size), mmap.RDONLY, 0, 0); err == nil {
		m.mem, m.file = mem, nil
		f.Close() // the map stays
	}
	return m, nil
}

// view returns size bytes at offset: of the map if there is one, else a copy.
func (m *mapping) view(offset, size int64) ([]byte, error) {
	if m.mem != nil {
		return m.mem[offset : offset+size : offset+size], nil
	}
	if int64(int(size)) != size {
		return nil, fmt.Errorf("%d bytes are too many for this machine", size)
	}
	buf := make([]byte, size)
	if _, err := io.ReadFull(io.NewSectionReader(m.file, offset, size), buf); err != nil {
		return nil, fmt.Errorf("read %d bytes at %d: %w", size, offset, err)
	}
	return buf, nil
}

// release tells the system that a range is not needed in memory for now.
func (m *mapping) release(offset, size int64) {
	if m.mem == nil || m.held {
		return
	}
	page := int64(os.Getpagesize())
	from := (offset + page - 1) / page * page // the map starts on a page
	to := (offset + size) / page * page
	if to > from {
		dontNeed(m.mem[from:to])
	}
}

func (m *mapping) close() error {
	if m.held {
		return nil
	}
	if m.mem != nil {
		return m.mem.Unmap()
	}
	return m.file.Close()
}
