package train

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"
)

// LoadText reads a file of plain text in UTF-8, tokenises it as one stream and
// cuts that into blocks of MaxLength tokens, every token a target but the first
// of each block, which has nothing before it. The last block is what is left
// and may be shorter; only a single token that is left over is dropped. The
// fields of [DataOptions] about prompts do not apply.
//
// The whole file is in memory while it is read.
func LoadText(path string, tok Tokenizer, options DataOptions) (*Dataset, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("train: load data: %w", err)
	}
	d, err := readText(content, path, tok, options)
	if err != nil {
		return nil, fmt.Errorf("train: load data: %w", err)
	}
	return d, nil
}

// LoadFile reads a file by its name: [LoadJSONL] if it ends in .jsonl, .ndjson
// or .json, else [LoadText].
func LoadFile(path string, tok Tokenizer, options DataOptions) (*Dataset, error) {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".jsonl", ".ndjson", ".json":
		return LoadJSONL(path, tok, options)
	}
	return LoadText(path, tok, options)
}

func readText(content []byte, name string, tok Tokenizer, options DataOptions) (*Dataset, error) {
	options, err := options.withDefaults()
	if err != nil {
		return nil, err
	}
	if len(options.Fields) > 0 {
		return nil, fmt.Errorf("%s: Fields is %q, but plain text has no fields; JSONL files end in .jsonl", name, options.Fields)
	}
	if options.TaskField != "" {
		return nil, fmt.Errorf("%s: TaskField is %q, but plain text has no fields; JSONL files end in .jsonl", name, options.TaskField)
	}
	content = bytes.TrimPrefix(content, byteOrderMark)
	if i := invalidUTF8(content); i >= 0 {
		return nil, fmt.Errorf("%s:%d: not valid UTF-8 (byte %d of the file's text)", name, 1+bytes.Count(content[:i], []byte("\n")), i+1)
	}
	if len(bytes.TrimSpace(content)) == 0 {
		return nil, fmt.Errorf("%s: %w", name, errEmpty)
	}
	l := labeler{tok, options}
	ids := l.withEOS(encode(tok, string(content), true))
	var examples []Example
	for block := range slices.Chunk(ids, options.MaxLength) {
		if len(block) > 1 {
			examples = append(examples, Example{IDs: block, Labels: block})
		}
	}
	return finishDataset(name, examples, Report{}, options)
}

// errEmpty is the cause when a data set has no examples at all.
var errEmpty = errors.New("data set is empty")

// invalidUTF8 returns the index of the first byte that is not part of valid
// UTF-8, or -1.
func invalidUTF8(b []byte) int {
	for i := 0; i < len(b); {
		r, size := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return -1
}
