package safetensors

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const (
	// SingleName and IndexName are the weight files of a Hugging Face folder.
	SingleName = "model.safetensors"
	IndexName  = "model.safetensors.index.json"
)

// Checkpoint is a folder's tensors, in one file or in shards. Its methods may
// be used concurrently, except Close.
type Checkpoint struct {
	dir   string
	files []*File
	where map[string]*File
	names []string // sorted
}

// OpenIndexed opens a folder that holds model.safetensors or, where that is
// missing, model.safetensors.index.json and the shards it lists. All headers
// are read and checked, no tensor data.
//
// Each tensor must be in the shard that the index names and in no other. A
// tensor that is in a shard and not in the index becomes part of the
// checkpoint like the others: whoever builds a model from it reports it as
// unexpected, while dropping it here would be silent.
func OpenIndexed(dir string) (*Checkpoint, error) {
	c := &Checkpoint{dir: dir, where: map[string]*File{}}
	if err := c.open(); err != nil {
		c.Close()
		return nil, err
	}
	c.names = slices.Sorted(maps.Keys(c.where))
	return c, nil
}

func (c *Checkpoint) open() error {
	info, err := os.Stat(c.dir)
	if err != nil {
		return fmt.Errorf("safetensors: open checkpoint: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("safetensors: open checkpoint: %s: it is a file, want a folder with %s or %s", c.dir, SingleName, IndexName)
	}
	single := filepath.Join(c.dir, SingleName)
	if exists(single) {
		return c.add(single)
	}
	index := filepath.Join(c.dir, IndexName)
	text, err := readIndex(index)
	if errors.Is(err, fs.ErrNotExist) {
		return c.nothingFound()
	}
	if err != nil {
		return fmt.Errorf("safetensors: %s: %w", index, err)
	}
	shardOf, err := parseIndex(text)
	if err == nil {
		err = c.openShards(shardOf)
	}
	if err != nil {
		return fmt.Errorf("safetensors: %s: %w", index, err)
	}
	return nil
}

func (c *Checkpoint) nothingFound() error {
	hint := ""
	if others, _ := filepath.Glob(filepath.Join(escapeGlob(c.dir), "*.bin")); len(others) > 0 {
		hint = fmt.Sprintf("; it has %s, which is a PyTorch pickle: save the model with safe_serialization=True", filepath.Base(others[0]))
	} else if others, _ := filepath.Glob(filepath.Join(escapeGlob(c.dir), "*.safetensors")); len(others) > 0 {
		hint = fmt.Sprintf("; it has %s", filepath.Base(others[0]))
	}
	return fmt.Errorf("safetensors: open checkpoint: folder %s has neither %s nor %s%s: %w", c.dir, SingleName, IndexName, hint, fs.ErrNotExist)
}

// openShards opens every shard once and checks it against the index.
func (c *Checkpoint) openShards(shardOf map[string]string) error {
	opened := map[string]*File{}
	for _, shard := range slices.Sorted(maps.Values(shardOf)) {
		if opened[shard] != nil {
			continue
		}
		if err := c.add(filepath.Join(c.dir, filepath.FromSlash(shard))); err != nil {
			return fmt.Errorf("shard %s: %w", quote(shard), err)
		}
		opened[shard] = c.files[len(c.files)-1]
	}
	for _, name := range slices.Sorted(maps.Keys(shardOf)) {
		want, got := opened[shardOf[name]], c.where[name]
		if got == nil {
			return fmt.Errorf("tensor %s is not in its shard %s nor in any other", quote(name), quote(shardOf[name]))
		}
		if got != want {
			return fmt.Errorf("tensor %s is in shard %s, the index says %s", quote(name), quote(filepath.Base(got.path)), quote(shardOf[name]))
		}
	}
	return nil
}

func (c *Checkpoint) add(path string) error {
	f, err := Open(path)
	if err != nil {
		return err
	}
	c.files = append(c.files, f)
	for _, name := range f.header.names {
		if other := c.where[name]; other != nil {
			return fmt.Errorf("tensor %s is in two shards, %s and %s", quote(name), filepath.Base(other.path), filepath.Base(path))
		}
		c.where[name] = f
	}
	return nil
}

// Dir returns the folder that the checkpoint was opened from.
func (c *Checkpoint) Dir() string { return c.dir }

// Files returns the open files, sorted by path.
func (c *Checkpoint) Files() []*File { return slices.Clone(c.files) }

// Names returns the names of all tensors, sorted.
func (c *Checkpoint) Names() []string { return slices.Clone(c.names) }

// Info is [File.Info] on the file that holds the tensor.
func (c *Checkpoint) Info(name string) (TensorInfo, bool) {
	if f := c.where[name]; f != nil {
		return f.Info(name)
	}
	return TensorInfo{}, false
}

// Bytes is [File.Bytes] on the file that holds the tensor.
func (c *Checkpoint) Bytes(name string) ([]byte, error) {
	if f := c.where[name]; f != nil {
		return f.Bytes(name)
	}
	return nil, c.missing(name)
}

// Float32s is [File.Float32s] on the file that holds the tensor.
func (c *Checkpoint) Float32s(name string, dst []float32) error {
	if f := c.where[name]; f != nil {
		return f.Float32s(name, dst)
	}
	return c.missing(name)
}

// Release is [File.Release] on the file that holds the tensor.
func (c *Checkpoint) Release(name string) {
	if f := c.where[name]; f != nil {
		f.Release(name)
	}
}

// Close closes all files.
func (c *Checkpoint) Close() error {
	var errs []error
	for _, f := range c.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

func (c *Checkpoint) missing(name string) error {
	return fmt.Errorf("safetensors: %s: tensor %s: the checkpoint has no such tensor", c.dir, quote(name))
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// exists also says true where the path cannot be looked at, so that opening it
// gives the reason.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

func escapeGlob(path string) string {
	return strings.NewReplacer("*", "[*]", "?", "[?]", "[", "[[]").Replace(path)
}
