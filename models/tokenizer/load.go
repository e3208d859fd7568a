package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/gopeft/gopeft/internal/atomicfile"
)

// The files of a model folder that have to do with its tokenizer.
const (
	tokenizerJSON    = "tokenizer.json"
	tokenizerConfig  = "tokenizer_config.json"
	specialTokensMap = "special_tokens_map.json"
	generationConfig = "generation_config.json"
	chatTemplate     = "chat_template.jinja"
	chatTemplateJSON = "chat_template.json"
)

// copiedFiles are what SaveFiles copies: all that some loader of the folder reads
// to build the tokenizer. generation_config.json belongs to the model.
var copiedFiles = []string{
	tokenizerJSON, tokenizerConfig, specialTokensMap, chatTemplate, chatTemplateJSON,
	"added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model",
}

// source is where the tokenizer's files are.
type source struct {
	fsys fs.FS
	dir  string
	json []byte // of FromFile and FromBytes, which have no folder
}

// Load reads the tokenizer of a model folder: tokenizer.json, which must be
// there, tokenizer_config.json, special_tokens_map.json, the chat template
// (chat_template.jinja, chat_template.json or in tokenizer_config.json) and the
// end-of-sequence ids of generation_config.json.
func Load(dir string) (*Tokenizer, error) {
	t, err := fromFS(os.DirFS(dir), ".")
	if err != nil {
		return nil, fmt.Errorf("tokenizer: load %s: %w", dir, err)
	}
	return t, nil
}

// FromFS is Load from the folder dir of fsys, an embed.FS for example.
func FromFS(fsys fs.FS, dir string) (*Tokenizer, error) {
	t, err := fromFS(fsys, dir)
	if err != nil {
		return nil, fmt.Errorf("tokenizer: load %s: %w", dir, err)
	}
	return t, nil
}

// FromFile reads a tokenizer.json alone: there are no BOS, EOS and PAD and no
// chat template.
func FromFile(path string) (*Tokenizer, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("tokenizer: %w", err)
	}
	t, err := newFromJSON(data, nil)
	if err != nil {
		return nil, fmt.Errorf("tokenizer: %s: %w", path, err)
	}
	t.files = source{json: data}
	return t, nil
}

// FromBytes is FromFile for a tokenizer.json in memory. data must not change
// afterwards.
func FromBytes(data []byte) (*Tokenizer, error) {
	t, err := newFromJSON(data, nil)
	if err != nil {
		return nil, fmt.Errorf("tokenizer: %w", err)
	}
	t.files = source{json: data}
	return t, nil
}

func fromFS(fsys fs.FS, dir string) (*Tokenizer, error) {
	src := source{fsys: fsys, dir: dir}
	data, err := fs.ReadFile(fsys, path.Join(dir, tokenizerJSON))
	if err != nil {
		return nil, err
	}
	c, extra, err := src.readConfig()
	if err != nil {
		return nil, err
	}
	t, err := newFromJSON(data, extra)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", tokenizerJSON, err)
	}
	t.files, t.config = src, *c
	if err := t.resolveSpecial(); err != nil {
		return nil, err
	}
	return t, nil
}

// readJSON decodes a file of the folder into v and says whether it is there.
func (s source) readJSON(name string, v any) (bool, error) {
	data, err := fs.ReadFile(s.fsys, path.Join(s.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return false, fmt.Errorf("%s: %w", name, err)
	}
	return true, nil
}

// SaveFiles copies the tokenizer's files into dir, which must exist, so that a
// merged model folder can be loaded on its own: all of the folder it was loaded
// from, or tokenizer.json alone. Other files in dir stay as they are.
func (t *Tokenizer) SaveFiles(dir string) error {
	for _, name := range copiedFiles {
		data, err := t.files.read(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = atomicfile.WriteBytes(filepath.Join(dir, name), data)
		}
		if err != nil {
			return fmt.Errorf("tokenizer: save %s: %w", name, err)
		}
	}
	return nil
}

func (s source) read(name string) ([]byte, error) {
	if s.fsys == nil {
		if name == tokenizerJSON {
			return s.json, nil
		}
		return nil, fs.ErrNotExist
	}
	return fs.ReadFile(s.fsys, path.Join(s.dir, name))
}
