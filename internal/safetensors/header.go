package safetensors

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	lengthBytes = 8
	// maxHeader is the reference implementation's limit, against headers
	// that exist to exhaust memory.
	maxHeader = 100_000_000
	// maxRank is ours: no framework has more dimensions.
	maxRank     = 64
	metadataKey = "__metadata__"
)

// TensorInfo describes one tensor of a file.
type TensorInfo struct {
	Name  string
	DType DType
	Shape []int // empty for a scalar
	// Offset and Size are the tensor's byte range, counted from the start of
	// the file.
	Offset, Size int64
}

// header is a parsed and checked header.
type header struct {
	metadata map[string]string
	tensors  map[string]TensorInfo
	names    []string // sorted
}

// headerLength checks the first eight bytes of a file of the given size.
func headerLength(first []byte, size int64) (int64, error) {
	if size < lengthBytes || len(first) < lengthBytes {
		return 0, fmt.Errorf("truncated: %d bytes, want at least the %d of the header length", size, lengthBytes)
	}
	n := binary.LittleEndian.Uint64(first)
	if n > maxHeader {
		return 0, fmt.Errorf("header length is %d, more than the allowed %d: not a safetensors file, or a hostile one", n, maxHeader)
	}
	if int64(n) > size-lengthBytes {
		return 0, fmt.Errorf("truncated: header length is %d, but only %d bytes follow", n, size-lengthBytes)
	}
	return int64(n), nil
}

// parseHeader parses the JSON text of a file that has dataSize bytes after it.
func parseHeader(text []byte, dataSize int64) (*header, error) {
	h := &header{tensors: map[string]TensorInfo{}}
	err := parseJSON(text, func(dec *json.Decoder, key string) error {
		if key == metadataKey {
			var err error
			h.metadata, err = parseMetadata(dec)
			return err
		}
		info, err := parseTensor(dec)
		if err != nil {
			return fmt.Errorf("tensor %s: %w", quote(key), err)
		}
		info.Name = key
		h.tensors[key] = info
		h.names = append(h.names, key)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	slices.Sort(h.names)
	if err := h.checkLayout(dataSize); err != nil {
		return nil, err
	}
	// Ranges in the file count from the end of the header.
	for name, info := range h.tensors {
		info.Offset += lengthBytes + int64(len(text))
		h.tensors[name] = info
	}
	return h, nil
}

// parseJSON calls member for each member of the JSON object that is the whole
// of text; member must consume the value.
func parseJSON(text []byte, member func(dec *json.Decoder, key string) error) error {
	if !utf8.Valid(text) {
		return errors.New("not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	if err := eachMember(dec, func(key string) error { return member(dec, key) }); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("more text after the JSON object")
	}
	return nil
}

// eachMember walks one JSON object and refuses a key that comes twice, which
// encoding/json would silently accept.
func eachMember(dec *json.Decoder, member func(key string) error) error {
	if err := expectDelim(dec, '{'); err != nil {
		return err
	}
	seen := map[string]bool{}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return notJSON(err)
		}
		key, ok := tok.(string)
		if !ok {
			return fmt.Errorf("not JSON: key %v", tok)
		}
		if seen[key] {
			return fmt.Errorf("key %s comes twice", quote(key))
		}
		seen[key] = true
		if err := member(key); err != nil {
			return err
		}
	}
	return expectDelim(dec, '}')
}

func expectDelim(dec *json.Decoder, want json.Delim) error {
	tok, err := dec.Token()
	if err != nil {
		return notJSON(err)
	}
	if tok != want {
		return fmt.Errorf("want %q, got %s", want, tokenText(tok))
	}
	return nil
}

func notJSON(err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("not JSON: %w", err)
}

// parseMetadata reads a flat object of strings. null, which the reference
// implementation accepts, is none.
func parseMetadata(dec *json.Decoder) (map[string]string, error) {
	var raw json.RawMessage
	if err := dec.Decode(&raw); err != nil {
		return nil, notJSON(err)
	}
	if string(raw) == "null" {
		return nil, nil
	}
	metadata := map[string]string{}
	inner := json.NewDecoder(bytes.NewReader(raw))
	err := eachMember(inner, func(key string) error {
		tok, err := inner.Token()
		if err != nil {
			return notJSON(err)
		}
		value, ok := tok.(string)
		if !ok {
			return fmt.Errorf("value of %s: want a string, got %s", quote(key), tokenText(tok))
		}
		metadata[key] = value
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", metadataKey, err)
	}
	return metadata, nil
}

// parseTensor reads {"dtype", "shape", "data_offsets"}. Other members are
// skipped, as the reference implementation does.
func parseTensor(dec *json.Decoder) (TensorInfo, error) {
	var info TensorInfo
	var dtype *string
	var shape, offsets []int64
	err := eachMember(dec, func(key string) (err error) {
		switch key {
		case "dtype":
			tok, err := dec.Token()
			if err != nil {
				return notJSON(err)
			}
			s, ok := tok.(string)
			if !ok {
				return fmt.Errorf("dtype: want a string, got %s", tokenText(tok))
			}
			dtype = &s
		case "shape":
			shape, err = parseInts(dec, key, maxRank)
		case "data_offsets":
			offsets, err = parseInts(dec, key, 2)
		default:
			var skipped json.RawMessage
			if err := dec.Decode(&skipped); err != nil {
				return notJSON(err)
			}
		}
		return err
	})
	switch {
	case err != nil:
		return info, err
	case dtype == nil:
		return info, errors.New("no dtype")
	case shape == nil:
		return info, errors.New("no shape")
	case len(offsets) != 2:
		return info, errors.New("data_offsets: want two numbers")
	case offsets[1] < offsets[0]:
		return info, fmt.Errorf("data_offsets [%d, %d] are reversed", offsets[0], offsets[1])
	}
	info.DType = DType(*dtype)
	info.Offset, info.Size = offsets[0], offsets[1]-offsets[0]
	info.Shape, err = toShape(shape)
	if err == nil {
		err = info.checkSize()
	}
	return info, err
}

func toShape(dims []int64) ([]int, error) {
	shape := make([]int, len(dims))
	for i, dim := range dims {
		shape[i] = int(dim)
		if int64(shape[i]) != dim {
			return nil, fmt.Errorf("shape: %d is too large for this machine", dim)
		}
	}
	return shape, nil
}

// checkSize compares the byte range with dtype and shape. Of an unknown dtype
// only the place can be checked, later.
func (t TensorInfo) checkSize() error {
	if t.DType.Bits() == 0 {
		return nil
	}
	want, err := t.DType.Size(t.Shape)
	if err == nil && want != t.Size {
		err = fmt.Errorf("data_offsets [%d, %d] hold %d bytes, %s%s takes %d",
			t.Offset, t.Offset+t.Size, t.Size, t.DType, shapeText(t.Shape), want)
	}
	return err
}

// parseInts reads a list of at most limit integers >= 0. It never returns a
// nil slice without an error.
func parseInts(dec *json.Decoder, what string, limit int) ([]int64, error) {
	tok, err := dec.Token()
	if err != nil {
		return nil, notJSON(err)
	}
	if tok != json.Delim('[') {
		return nil, fmt.Errorf("%s: want a list, got %s", what, tokenText(tok))
	}
	list := []int64{}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, notJSON(err)
		}
		number, ok := tok.(json.Number)
		if !ok {
			return nil, fmt.Errorf("%s: want integers, got %s", what, tokenText(tok))
		}
		n, err := strconv.ParseUint(string(number), 10, 63)
		if err != nil {
			return nil, fmt.Errorf("%s: want integers from 0 to 2^63-1, got %s", what, shorten(string(number)))
		}
		if len(list) == limit {
			return nil, fmt.Errorf("%s: more than %d numbers", what, limit)
		}
		list = append(list, int64(n))
	}
	_, err = dec.Token()
	if err != nil {
		return nil, notJSON(err)
	}
	return list, nil
}

// checkLayout demands that the tensors cover the data exactly: a hole could
// hide content, an overlap would alias two tensors.
func (h *header) checkLayout(dataSize int64) error {
	order := make([]TensorInfo, 0, len(h.tensors))
	for _, name := range h.names {
		order = append(order, h.tensors[name])
	}
	slices.SortStableFunc(order, func(a, b TensorInfo) int {
		if a.Offset != b.Offset {
			return compare(a.Offset, b.Offset)
		}
		return compare(a.Size, b.Size)
	})
	end, last := int64(0), ""
	for _, t := range order {
		switch {
		case t.Offset+t.Size > dataSize:
			return fmt.Errorf("tensor %s: its data ends at byte %d, but the file has %d bytes after the header: truncated?",
				quote(t.Name), t.Offset+t.Size, dataSize)
		case t.Offset < end:
			return fmt.Errorf("tensor %s: its data starts at byte %d and overlaps that of %s, which ends at %d",
				quote(t.Name), t.Offset, quote(last), end)
		case t.Offset > end:
			return fmt.Errorf("tensor %s: %d bytes ahead of its data belong to no tensor", quote(t.Name), t.Offset-end)
		}
		end, last = t.Offset+t.Size, t.Name
	}
	if end != dataSize {
		return fmt.Errorf("the last %d bytes belong to no tensor", dataSize-end)
	}
	return nil
}

func compare(a, b int64) int {
	if a < b {
		return -1
	}
	return 1
}

// quote and shorten keep hostile names from flooding a message.
func quote(s string) string { return strconv.Quote(shorten(s)) }

func shorten(s string) string {
	const limit = 120
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + fmt.Sprintf("... (%d bytes)", len(s))
}

// shapeText prints a shape as "[2 3]".
func shapeText(shape []int) string { return fmt.Sprint(shape) }

func tokenText(tok json.Token) string {
	switch v := tok.(type) {
	case nil:
		return "null"
	case string:
		return "the string " + quote(v)
	}
	return shorten(fmt.Sprint(tok))
}
