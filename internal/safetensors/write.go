package safetensors

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/gopeft/gopeft/internal/atomicfile"
)

// Tensor is one tensor to write. Exactly one of Bytes and Data is set, or
// neither for a tensor without elements.
type Tensor struct {
	Name  string
	DType DType
	Shape []int // empty for a scalar
	// Bytes is the little-endian, row-major content.
	Bytes []byte
	// Data writes the content when its turn comes, so that only one tensor
	// at a time need be in memory. It is called once and must write exactly
	// the size that DType and Shape give.
	Data func(w io.Writer) error
}

// Info describes t as it is found again after writing; Offset is not set.
func (t Tensor) Info() (TensorInfo, error) {
	size, err := t.DType.Size(t.Shape)
	if err != nil {
		return TensorInfo{}, fmt.Errorf("tensor %s: %w", quote(t.Name), err)
	}
	return TensorInfo{Name: t.Name, DType: t.DType, Shape: slices.Clone(t.Shape), Size: size}, nil
}

// Write writes a safetensors file atomically: a crash or an error leaves what
// was at path before. Equal content gives the bytes that Python's safetensors
// gives (with several metadata entries Python's order is random, ours is
// sorted).
//
// metadata may be nil; files for Hugging Face want {"format": "pt"}. Tensors
// may come in any order and are written, and their Data called, in the order
// of the file: by dtype, widest first, then by name.
func Write(path string, metadata map[string]string, tensors []Tensor) error {
	p, err := newPlan(metadata, tensors)
	if err == nil {
		err = atomicfile.WriteFile(path, p.encode)
	}
	if err != nil {
		return fmt.Errorf("safetensors: write %s: %w", path, err)
	}
	return nil
}

// Encode writes the content of a safetensors file to w, as [Write] does.
func Encode(w io.Writer, metadata map[string]string, tensors []Tensor) error {
	p, err := newPlan(metadata, tensors)
	if err == nil {
		err = p.encode(w)
	}
	if err != nil {
		return fmt.Errorf("safetensors: encode: %w", err)
	}
	return nil
}

// plan is a checked file layout.
type plan struct {
	header  []byte
	tensors []Tensor // in file order
	sizes   []int64
}

func newPlan(metadata map[string]string, tensors []Tensor) (*plan, error) {
	p := &plan{tensors: slices.Clone(tensors)}
	slices.SortStableFunc(p.tensors, func(a, b Tensor) int {
		if ra, rb := known[a.DType].rank, known[b.DType].rank; ra != rb {
			return rb - ra
		}
		return strings.Compare(a.Name, b.Name)
	})
	seen := map[string]bool{}
	for _, t := range p.tensors {
		info, err := t.check()
		if err != nil {
			return nil, err
		}
		if seen[t.Name] {
			return nil, fmt.Errorf("tensor %s comes twice", quote(t.Name))
		}
		seen[t.Name] = true
		p.sizes = append(p.sizes, info.Size)
	}
	for k, v := range metadata {
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return nil, fmt.Errorf("metadata %s is not UTF-8", quote(k))
		}
	}
	return p, p.makeHeader(metadata)
}

func (t Tensor) check() (TensorInfo, error) {
	info, err := t.Info()
	if err != nil {
		return info, err
	}
	switch {
	case t.Name == metadataKey:
		err = errors.New("the name is reserved")
	case !utf8.ValidString(t.Name):
		err = errors.New("the name is not UTF-8")
	case len(t.Shape) > maxRank:
		err = fmt.Errorf("%d dimensions, more than %d", len(t.Shape), maxRank)
	case t.Bytes != nil && t.Data != nil:
		err = errors.New("both Bytes and Data are set")
	case t.Data == nil && int64(len(t.Bytes)) != info.Size:
		err = fmt.Errorf("%d bytes, %s%s takes %d", len(t.Bytes), t.DType, shapeText(t.Shape), info.Size)
	}
	if err != nil {
		err = fmt.Errorf("tensor %s: %w", quote(t.Name), err)
	}
	return info, err
}

// makeHeader lays the JSON out as serde_json does in the reference
// implementation: no blanks, metadata first, tensors in file order.
func (p *plan) makeHeader(metadata map[string]string) error {
	text := make([]byte, lengthBytes, 1024)
	text = append(text, '{')
	comma := ""
	if metadata != nil {
		text = append(text, `"`+metadataKey+`":{`...)
		for _, k := range slices.Sorted(maps.Keys(metadata)) {
			text = append(text, comma...)
			text = appendJSON(text, k)
			text = append(text, ':')
			text = appendJSON(text, metadata[k])
			comma = ","
		}
		text = append(text, '}')
		comma = ","
	}
	offset := int64(0)
	for i, t := range p.tensors {
		text = append(text, comma...)
		text = appendJSON(text, t.Name)
		text = fmt.Appendf(text, `:{"dtype":"%s","shape":[`, t.DType)
		for j, dim := range t.Shape {
			if j > 0 {
				text = append(text, ',')
			}
			text = fmt.Append(text, dim)
		}
		end := offset + p.sizes[i]
		if end < offset {
			return errors.New("the file's size overflows 64 bits")
		}
		text = fmt.Appendf(text, `],"data_offsets":[%d,%d]}`, offset, end)
		offset, comma = end, ","
	}
	text = append(text, '}')
	for len(text)%8 != 0 {
		text = append(text, ' ')
	}
	if n := len(text) - lengthBytes; n > maxHeader {
		return fmt.Errorf("the header has %d bytes, more than the allowed %d", n, maxHeader)
	}
	binary.LittleEndian.PutUint64(text, uint64(len(text)-lengthBytes))
	p.header = text
	return nil
}

func (p *plan) encode(w io.Writer) error {
	buf := bufio.NewWriterSize(w, 1<<20)
	if _, err := buf.Write(p.header); err != nil {
		return err
	}
	for i, t := range p.tensors {
		data := t.Data
		if data == nil {
			data = func(w io.Writer) error { _, err := w.Write(t.Bytes); return err }
		}
		exact := &exactWriter{w: buf, left: p.sizes[i]}
		err := data(exact)
		if err == nil {
			err = exact.finish()
		}
		if err != nil {
			return fmt.Errorf("tensor %s: %w", quote(t.Name), err)
		}
	}
	return buf.Flush()
}

// exactWriter holds a tensor's Data to its size.
type exactWriter struct {
	w    io.Writer
	left int64
	err  error
}

func (e *exactWriter) Write(p []byte) (int, error) {
	if e.err == nil && int64(len(p)) > e.left {
		e.err = fmt.Errorf("its Data wrote at least %d bytes too many", int64(len(p))-e.left)
	}
	if e.err != nil {
		return 0, e.err
	}
	n, err := e.w.Write(p)
	e.left -= int64(n)
	e.err = err
	return n, err
}

// finish reports a failed write also if Data swallowed it.
func (e *exactWriter) finish() error {
	if e.err == nil && e.left > 0 {
		return fmt.Errorf("its Data wrote %d bytes too few", e.left)
	}
	return e.err
}

// appendJSON quotes like serde_json: only what JSON demands is escaped
// (encoding/json also escapes U+2028 and U+2029).
func appendJSON(text []byte, s string) []byte {
	const short = "\"\"\\\\\bb\ff\nn\rr\tt" // pairs of character and escape letter
	text = append(text, '"')
	for i := range len(s) {
		c := s[i]
		at := strings.IndexByte(short, c)
		switch {
		case (c < ' ' || c == '"' || c == '\\') && at >= 0:
			text = append(text, '\\', short[at+1])
		case c < ' ':
			text = fmt.Appendf(text, `\u%04x`, c)
		default:
			text = append(text, c)
		}
	}
	return append(text, '"')
}
