package train

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// A chunk of lines is what one goroutine parses and tokenises at a time.
const (
	chunkLines = 256
	chunkBytes = 1 << 20
)

// LoadJSONL reads a file of one JSON object per line and tokenises it. The
// records hold a text, a prompt with its completion, or the messages of a chat,
// all lines the same; [DataOptions] says in which fields. Blank lines, a byte
// order mark and CRLF are fine; lines may have up to 64 MB. The file is read as
// a stream and tokenised on all cores; the examples keep its order.
//
// A line that is not such an object is an error that names file and line, and a
// file without anything to learn is one too.
func LoadJSONL(path string, tok Tokenizer, options DataOptions) (*Dataset, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("train: load data: %w", err)
	}
	defer f.Close()
	d, err := readJSONL(f, path, tok, options)
	if err != nil {
		return nil, fmt.Errorf("train: load data: %w", err)
	}
	return d, nil
}

func readJSONL(r io.Reader, name string, tok Tokenizer, options DataOptions) (*Dataset, error) {
	options, err := options.withDefaults()
	if err != nil {
		return nil, err
	}
	loader := &jsonlLoader{name: name, labeler: labeler{tok, options}}
	if err := loader.load(newLineReader(r)); err != nil {
		return nil, err
	}
	var examples []Example
	var report Report
	for _, c := range loader.chunks {
		examples = append(examples, c.examples...)
		report.Truncated += c.truncated
	}
	return finishDataset(name, examples, report, options)
}

// finishDataset makes the data set of one file.
func finishDataset(name string, examples []Example, report Report, options DataOptions) (*Dataset, error) {
	d, err := newDataset(examples, labelling{}, report, options.Buckets, options.MaxLength)
	if err == nil && options.Packing {
		d, err = d.Pack(options.MaxLength)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return d, nil
}

// jsonlLoader deals the lines of a file out to goroutines, in chunks.
type jsonlLoader struct {
	name    string
	labeler labeler
	format  format
	chunks  []*chunk
	failed  atomic.Bool
}

type chunk struct {
	lines     [][]byte
	numbers   []int
	bytes     int
	examples  []Example
	truncated int
	err       error
}

// load returns the error of the first bad line, whichever goroutine met it.
func (l *jsonlLoader) load(lines *lineReader) error {
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	readErr := l.deal(lines, func(c *chunk) {
		l.chunks = append(l.chunks, c)
		group.Go(func() error {
			if c.err = l.process(c); c.err != nil {
				l.failed.Store(true)
			}
			c.lines = nil
			return nil
		})
	})
	group.Wait()
	for _, c := range l.chunks {
		if c.err != nil {
			return c.err
		}
	}
	return readErr
}

// deal reads lines and hands them on in chunks, until the end or a failure.
func (l *jsonlLoader) deal(lines *lineReader, hand func(*chunk)) error {
	c := &chunk{}
	first := true
	for !l.failed.Load() {
		line, err := lines.next()
		if err != nil {
			if len(c.lines) > 0 {
				hand(c)
			}
			if err == io.EOF {
				return nil
			}
			return fmt.Errorf("%s:%d: %w", l.name, lines.number, err)
		}
		if first {
			if err := l.decideFormat(line); err != nil {
				return fmt.Errorf("%s:%d: %w", l.name, lines.number, err)
			}
			first = false
		}
		c.lines, c.numbers, c.bytes = append(c.lines, line), append(c.numbers, lines.number), c.bytes+len(line)
		if len(c.lines) == chunkLines || c.bytes >= chunkBytes {
			hand(c)
			c = &chunk{}
		}
	}
	return nil
}

func (l *jsonlLoader) decideFormat(line []byte) error {
	r, err := parseRecord(line)
	if err != nil {
		return err
	}
	l.format, err = formatOf(r, l.labeler.options.Fields)
	return err
}

func (l *jsonlLoader) process(c *chunk) error {
	c.examples = make([]Example, 0, len(c.lines))
	for i, line := range c.lines {
		e, truncated, err := l.example(line)
		if err != nil {
			return fmt.Errorf("%s:%d: %w", l.name, c.numbers[i], err)
		}
		c.examples = append(c.examples, e)
		if truncated {
			c.truncated++
		}
	}
	return nil
}

func (l *jsonlLoader) example(line []byte) (e Example, truncated bool, err error) {
	r, err := parseRecord(line)
	if err != nil {
		return e, false, err
	}
	s, err := l.format.read(r)
	if err != nil {
		return e, false, err
	}
	if e, truncated, err = l.labeler.example(l.format.kind, s); err != nil || l.labeler.options.TaskField == "" {
		return e, truncated, err
	}
	e.Task, err = r.task(l.labeler.options.TaskField)
	return e, truncated, err
}
