package peft

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gopeft/gopeft/site"
)

// indexFile lists the adapters of a folder that were saved together; see docs/adapters.md.
const indexFile = "adapters.json"

const indexVersion = 1

// adapterIndex is the content of adapters.json.
type adapterIndex struct {
	Version  int            `json:"version"`
	Adapters []indexedEntry `json:"adapters"`
}

type indexedEntry struct {
	Name     string `json:"name"`
	PeftType string `json:"peft_type"`
	// Folder is relative to the index: "." for the adapter "default".
	Folder string `json:"folder"`
	// Frozen is true for an adapter that was active and not trained.
	Frozen bool `json:"frozen"`
}

// index lists the active adapters; nil for fewer than two, which need none.
func (pm *PeftModel) index() ([]byte, error) {
	if len(pm.active) < 2 {
		return nil, nil
	}
	index := adapterIndex{Version: indexVersion}
	for _, name := range pm.active {
		na, err := pm.get(name)
		if err != nil {
			return nil, err
		}
		index.Adapters = append(index.Adapters, indexedEntry{
			Name: name, PeftType: na.config.PeftType(), Folder: filepath.ToSlash(folder(".", name)), Frozen: slices.Contains(pm.frozen, name),
		})
	}
	data, err := json.MarshalIndent(index, "", "  ")
	return append(data, '\n'), err
}

// LoadAdapters opens the adapters that [PeftModel.SavePretrained] saved together, of
// whatever methods, under the names that they had, and makes them active in the same order;
// those that were frozen beside others are again, see [PeftModel.Training]. It reads the
// folder's adapters.json.
func LoadAdapters(base site.Base, dir string) (*PeftModel, error) {
	pm, err := loadAdapters(base, dir)
	if err != nil {
		return nil, fmt.Errorf("peft: load adapters %q: %w", dir, err)
	}
	return pm, nil
}

func loadAdapters(base site.Base, dir string) (*PeftModel, error) {
	index, err := readIndex(dir)
	if err != nil {
		return nil, err
	}
	var pm *PeftModel
	var names, trained []string
	for _, entry := range index.Adapters {
		at, o := filepath.Join(dir, filepath.FromSlash(entry.Folder)), Options{Name: entry.Name}
		if pm == nil {
			pm, err = LoadAdapter(base, at, o)
		} else {
			err = pm.LoadAdapter(at, o)
		}
		if err != nil {
			return nil, err
		}
		na, err := pm.get(entry.Name)
		if err != nil {
			return nil, err
		}
		if got := na.config.PeftType(); got != entry.PeftType {
			return nil, fmt.Errorf("%s says that adapter %q is of type %q, its folder says %q", indexFile, entry.Name, entry.PeftType, got)
		}
		names = append(names, entry.Name)
		if !entry.Frozen {
			trained = append(trained, entry.Name)
		}
	}
	all, err := pm.With(names...)
	if err != nil || len(trained) == len(names) {
		return all, err
	}
	return all.Training(trained...)
}

func readIndex(dir string) (*adapterIndex, error) {
	f, err := os.Open(filepath.Join(dir, indexFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the folder has no %s, which several adapters saved together have; LoadAdapter opens one: %w", indexFile, err)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfigSize+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxConfigSize {
		return nil, fmt.Errorf("%s is larger than %d bytes", indexFile, maxConfigSize)
	}
	return parseIndex(data)
}

// parseIndex reads adapters.json. Folders lead nowhere but below the index.
func parseIndex(data []byte) (*adapterIndex, error) {
	var index adapterIndex
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, fmt.Errorf("%s: %w", indexFile, err)
	}
	if index.Version != indexVersion {
		return nil, fmt.Errorf("%s: version %d, want %d", indexFile, index.Version, indexVersion)
	}
	if len(index.Adapters) == 0 {
		return nil, fmt.Errorf("%s: it lists no adapter", indexFile)
	}
	seen := map[string]bool{}
	if !slices.ContainsFunc(index.Adapters, func(e indexedEntry) bool { return !e.Frozen }) {
		return nil, fmt.Errorf("%s: all adapters are frozen, want one that is trained", indexFile)
	}
	for i, entry := range index.Adapters {
		if err := checkName(entry.Name); err != nil {
			return nil, fmt.Errorf("%s: adapter %d: %w", indexFile, i, errors.New(strings.TrimPrefix(err.Error(), "peft: ")))
		}
		if seen[entry.Name] {
			return nil, fmt.Errorf("%s: two adapters have the name %q", indexFile, entry.Name)
		}
		seen[entry.Name] = true
		if !filepath.IsLocal(filepath.FromSlash(entry.Folder)) {
			return nil, fmt.Errorf("%s: adapter %q: folder %q is not below the index", indexFile, entry.Name, entry.Folder)
		}
	}
	return &index, nil
}
