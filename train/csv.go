package train

import (
	"bufio"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/sync/errgroup"

	"github.com/gopeft/gopeft/models/tokenizer"
)

// ClassOptions says how labelled texts become examples for a classifier.
type ClassOptions struct {
	// MaxLength is the number of tokens, special ones included, after which a text is
	// cut off; the special tokens after it stay. Zero: 512.
	MaxLength int
	// TextColumn and LabelColumn name the columns of a CSV file. Zero: "text"; "label",
	// or "category" where there is no "label".
	TextColumn, LabelColumn string
	// Classes are the names of the classes; a label is a name's index. nil: the names in
	// the data, sorted.
	Classes []string
	// Buckets are the lengths that batches are padded to. Zero: 16, 24, 32, 48, 64, 96, ...,
	// and the length of the longest text rounded up to a multiple of 8.
	Buckets []int
}

// LoadCSV reads a file of comma-separated values with a header, as RFC 4180 has it, and
// tokenises the text of each record, with what the tokenizer puts around it ([CLS] and
// [SEP]). Its label is the class of the whole row ([LabelRow]).
//
// A record that is no such line, that has no text or whose label is not among the
// classes is an error that names file and line.
func LoadCSV(path string, tok Tokenizer, options ClassOptions) (*Dataset, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("train: load data: %w", err)
	}
	defer f.Close()
	d, err := readCSV(f, path, tok, options)
	if err != nil {
		return nil, fmt.Errorf("train: load data: %w", err)
	}
	return d, nil
}

// CSVClasses returns the names of the classes in a file, sorted: the labels of a
// classifier that is to be trained on it. The options name the column.
func CSVClasses(path string, options ClassOptions) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("train: classes: %w", err)
	}
	defer f.Close()
	records, err := parseCSV(f, path, options)
	if err != nil {
		return nil, fmt.Errorf("train: classes: %w", err)
	}
	return classesOf(records), nil
}

// NewClassDataset makes a data set for a classifier of examples that are already
// tokenised: with one label each ([LabelRow]), or one for each token ([LabelToken],
// [IgnoreIndex] where there is none). classes names the labels; nil: they have no names.
func NewClassDataset(kind LabelKind, examples []Example, classes []string) (*Dataset, error) {
	d, err := newClassDataset(kind, examples, classes, Report{}, nil)
	if err != nil {
		return nil, fmt.Errorf("train: new data set: %w", err)
	}
	return d, nil
}

func newClassDataset(kind LabelKind, examples []Example, classes []string, report Report, buckets []int) (*Dataset, error) {
	if kind != LabelRow && kind != LabelToken {
		return nil, fmt.Errorf("labels of a %s: want those of a row or a token", kind)
	}
	longest := 0
	for i, e := range examples {
		longest = max(longest, len(e.IDs))
		for _, label := range e.Labels {
			if classes != nil && int(label) >= len(classes) {
				return nil, fmt.Errorf("example %d: label %d, but there are %d classes", i, label, len(classes))
			}
		}
	}
	fixed := buckets != nil
	if !fixed {
		buckets = shortBuckets(longest)
	}
	d, err := newDataset(examples, labelling{kind, slices.Clone(classes)}, report, buckets, 0)
	if err == nil {
		d.fixed = fixed
	}
	return d, err
}

// shortBuckets are closer together than the buckets of next-token data: texts to
// classify are short, and so is the compilation of what classifies them.
func shortBuckets(longest int) []int {
	last := max((longest+7)/8*8, 8)
	var buckets []int
	for b := 16; b < last; b *= 2 {
		buckets = append(buckets, b)
		if b+b/2 < last {
			buckets = append(buckets, b+b/2)
		}
	}
	return append(buckets, last)
}

// labelledText is one labelled text.
type labelledText struct {
	text, label string
	line        int
}

func readCSV(r io.Reader, name string, tok Tokenizer, options ClassOptions) (*Dataset, error) {
	if options.MaxLength == 0 {
		options.MaxLength = defaultMaxLength
	}
	if options.MaxLength < 3 {
		return nil, fmt.Errorf("MaxLength is %d, want 3 or more, or 0 for %d", options.MaxLength, defaultMaxLength)
	}
	records, err := parseCSV(r, name, options)
	if err != nil {
		return nil, err
	}
	classes := options.Classes
	if classes == nil {
		classes = classesOf(records)
	}
	ids := map[string]int32{}
	for i, class := range classes {
		if _, twice := ids[class]; twice {
			return nil, fmt.Errorf("Classes has %q twice", class)
		}
		ids[class] = int32(i)
	}
	examples := make([]Example, len(records))
	truncated := make([]bool, len(records))
	for i, r := range records {
		id, ok := ids[r.label]
		if !ok {
			return nil, fmt.Errorf("%s:%d: label %q is not among the %d classes", name, r.line, r.label, len(classes))
		}
		examples[i].Labels = []int32{id}
	}
	err = inChunks(len(records), func(i int) {
		examples[i].IDs, truncated[i] = tokenizer.EncodeUpTo(tok, records[i].text, options.MaxLength)
	})
	if err != nil {
		return nil, err
	}
	var report Report
	for _, cut := range truncated {
		if cut {
			report.Truncated++
		}
	}
	d, err := newClassDataset(LabelRow, examples, classes, report, options.Buckets)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return d, nil
}

// inChunks calls f for 0..n-1 on all cores.
func inChunks(n int, f func(i int)) error {
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for from := 0; from < n; from += chunkLines {
		group.Go(func() error {
			for i := from; i < min(from+chunkLines, n); i++ {
				f(i)
			}
			return nil
		})
	}
	return group.Wait()
}

func classesOf(records []labelledText) []string {
	seen := map[string]bool{}
	var classes []string
	for _, r := range records {
		if !seen[r.label] {
			seen[r.label] = true
			classes = append(classes, r.label)
		}
	}
	slices.Sort(classes)
	return classes
}

// parseCSV reads texts and labels.
func parseCSV(r io.Reader, name string, options ClassOptions) ([]labelledText, error) {
	buffered := bufio.NewReader(r)
	if start, _ := buffered.Peek(len(byteOrderMark)); string(start) == string(byteOrderMark) {
		_, _ = buffered.Discard(len(byteOrderMark))
	}
	reader := csv.NewReader(buffered)
	header, err := reader.Read()
	if errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: %w", name, errEmpty)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	text, err := column(header, options.TextColumn, "text")
	if err != nil {
		return nil, fmt.Errorf("%s:1: %w", name, err)
	}
	label, err := column(header, options.LabelColumn, "label", "category")
	if err != nil {
		return nil, fmt.Errorf("%s:1: %w", name, err)
	}
	var records []labelledText
	for {
		fields, err := reader.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err) // it names the line
		}
		line, _ := reader.FieldPos(0)
		rec := labelledText{text: fields[text], label: fields[label], line: line}
		switch {
		case !utf8.ValidString(rec.text) || !utf8.ValidString(rec.label):
			return nil, fmt.Errorf("%s:%d: not valid UTF-8", name, line)
		case strings.TrimSpace(rec.text) == "":
			return nil, fmt.Errorf("%s:%d: the text is empty", name, line)
		case rec.label == "":
			return nil, fmt.Errorf("%s:%d: the label is empty", name, line)
		}
		records = append(records, rec)
	}
	if len(records) == 0 {
		return nil, fmt.Errorf("%s: %w", name, errEmpty)
	}
	return records, nil
}

// column finds a column by the name that is asked for, or else by the first of others.
func column(header []string, wanted string, others ...string) (int, error) {
	if wanted != "" {
		others = []string{wanted}
	}
	for _, name := range others {
		if i := slices.Index(header, name); i >= 0 {
			return i, nil
		}
	}
	return 0, fmt.Errorf("want the column \"%s\", found %q: name the columns to use", strings.Join(others, `" or "`), header)
}
