package train

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// maxLine is the longest line of a JSONL file that is read, in bytes.
const maxLine = 64 << 20

var byteOrderMark = []byte("\xef\xbb\xbf")

// lineReader reads a file line by line and counts them from 1.
type lineReader struct {
	r      *bufio.Reader
	number int
	limit  int
}

func newLineReader(r io.Reader) *lineReader {
	return &lineReader{r: bufio.NewReaderSize(r, 1<<20), limit: maxLine}
}

// next returns the next line that is not blank, without white space around it
// and without a byte order mark, in memory of its own. At the end the error is
// [io.EOF].
func (l *lineReader) next() ([]byte, error) {
	for {
		line, err := l.read()
		if l.number == 1 {
			line = bytes.TrimPrefix(line, byteOrderMark)
		}
		if line = bytes.TrimSpace(line); len(line) > 0 && (err == nil || err == io.EOF) {
			return line, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

func (l *lineReader) read() ([]byte, error) {
	l.number++
	var line []byte
	for {
		part, err := l.r.ReadSlice('\n')
		if len(line)+len(part) > l.limit {
			return nil, fmt.Errorf("line of more than %d bytes", l.limit)
		}
		line = append(line, part...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
	}
}

// record is one line of a JSONL file.
type record map[string]json.RawMessage

// parseRecord parses a line that holds one JSON object in UTF-8. Of equal keys
// the last counts, as in most JSON readers.
func parseRecord(line []byte) (record, error) {
	if !utf8.Valid(line) {
		return nil, errors.New("not valid UTF-8")
	}
	if bytes.HasPrefix(line, []byte("[")) {
		return nil, errors.New("want one JSON object per line (JSONL), got an array")
	}
	if !json.Valid(line) {
		var ignored any
		err := json.Unmarshal(line, &ignored)
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return nil, fmt.Errorf("not JSON: %w (byte %d)", err, syntax.Offset)
		}
		return nil, fmt.Errorf("not JSON: %w", err)
	}
	if kind := jsonKind(line); kind != "object" {
		return nil, fmt.Errorf("want a JSON object, got %s", kind)
	}
	var r record
	if err := json.Unmarshal(line, &r); err != nil {
		return nil, fmt.Errorf("not JSON: %w", err)
	}
	return r, nil
}

// text returns a field that must be a string.
func (r record) text(field string) (string, error) {
	raw, err := r.get(field)
	if err != nil {
		return "", err
	}
	if kind := jsonKind(raw); kind != "string" {
		return "", fmt.Errorf("field %q: want a string, got %s", field, kind)
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", fmt.Errorf("field %q: %w", field, err)
	}
	return s, nil
}

// task returns a field that must be an integer of at least 0.
func (r record) task(field string) (*int32, error) {
	raw, err := r.get(field)
	if err != nil {
		return nil, err
	}
	var task int32
	if jsonKind(raw) != "number" || json.Unmarshal(raw, &task) != nil || task < 0 {
		return nil, fmt.Errorf("field %q: want an integer of 0 or more, got %s", field, raw)
	}
	return &task, nil
}

func (r record) get(field string) (json.RawMessage, error) {
	raw, ok := r[field]
	if !ok {
		return nil, fmt.Errorf("no field %q among %s", field, r.fieldNames())
	}
	return raw, nil
}

// jsonKind names the kind of a valid JSON value.
func jsonKind(raw []byte) string {
	switch bytes.TrimLeft(raw, " \t\r\n")[0] {
	case '{':
		return "object"
	case '[':
		return "array"
	case '"':
		return "string"
	case 't', 'f':
		return "boolean"
	case 'n':
		return "null"
	}
	return "number"
}
