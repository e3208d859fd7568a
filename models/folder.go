package models

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/models/tokenizer"
)

const (
	configFile     = "config.json"
	generationFile = "generation_config.json"
	tokenizerFile  = "tokenizer.json"
)

// folder is where a model's files are.
type folder struct {
	fsys fs.FS
	path string // on disk; "" if the files are in another file system
	name string // for messages
	open func() (source, error)
}

// diskFolder is a folder of the operating system, whose weights are mapped.
func diskFolder(path string) *folder {
	return &folder{
		fsys: os.DirFS(path), path: path, name: path,
		open: func() (source, error) { return safetensors.OpenIndexed(path) },
	}
}

// memoryFolder is a folder of another file system, whose weights are read as a whole.
func memoryFolder(fsys fs.FS, dir string) (*folder, error) {
	sub, err := fs.Sub(fsys, dir)
	if err != nil {
		return nil, err
	}
	return &folder{
		fsys: sub, name: dir,
		open: func() (source, error) {
			data, err := fs.ReadFile(sub, safetensors.SingleName)
			if err != nil {
				return nil, fmt.Errorf("folder %s: %w (weights in shards are read from disk only)", dir, err)
			}
			return safetensors.FromBytes(path.Join(dir, safetensors.SingleName), data)
		},
	}, nil
}

func (f *folder) read(name string) ([]byte, error) { return fs.ReadFile(f.fsys, name) }

// holds reports whether dir is this folder.
func (f *folder) holds(dir string) bool {
	if f == nil || f.path == "" {
		return false
	}
	own, err1 := os.Stat(f.path)
	other, err2 := os.Stat(dir)
	return err1 == nil && err2 == nil && os.SameFile(own, other)
}

// architecture reads config.json and the family it names.
func (f *folder) architecture() (Architecture, error) {
	data, err := f.read(configFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("folder %s has no %s: %w", f.name, configFile, err)
	}
	if err != nil {
		return nil, err
	}
	return NewArchitecture(data)
}

// tokenizer reads the folder's tokenizer and checks that the model has a row for
// each of its ids; nil if the folder has none. (More rows than ids is common: they
// pad the embedding to a round number.)
func (f *folder) tokenizer(c Config) (*tokenizer.Tokenizer, error) {
	if _, err := fs.Stat(f.fsys, tokenizerFile); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	t, err := tokenizer.FromFS(f.fsys, ".")
	if err != nil {
		return nil, err
	}
	if t.VocabSize() > c.VocabSize {
		return nil, fmt.Errorf("%s has %d tokens but the model's embedding has only %d rows (vocab_size in %s)",
			tokenizerFile, t.VocabSize(), c.VocabSize, configFile)
	}
	return t, nil
}

// generationEOS returns the end tokens of generation_config.json; nil if it names none.
func (f *folder) generationEOS() ([]int, error) {
	data, err := f.read(generationFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	values, err := newFields(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", generationFile, err)
	}
	values.where = generationFile
	ids := values.tokenIDs("eos_token_id")
	return ids, values.err()
}

// load makes the model of a folder.
func (f *folder) load(ctx context.Context, name string, options Options) (*Model, error) {
	arch, err := f.architecture()
	if err != nil {
		return nil, err
	}
	tok, err := f.tokenizer(arch.Config())
	if err != nil {
		return nil, err
	}
	eos, err := f.generationEOS()
	if err != nil {
		return nil, err
	}
	src, err := f.open()
	if err != nil {
		return nil, err
	}
	defer src.Close()
	if src, err = renamed(arch, src); err != nil {
		return nil, err
	}
	report := compare(arch, src)
	if !report.OK() {
		return nil, &LoadError{Path: f.name, Report: report}
	}
	m, err := newModel(arch, name, options)
	if err != nil {
		return nil, err
	}
	m.folder, m.Tokenizer, m.report = f, tok, report
	if eos != nil {
		m.config.EOSTokenIDs = eos
	}
	if err := m.upload(ctx, src); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}
