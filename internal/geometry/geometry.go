// Package geometry has configurations of well-known models, written for this repository:
// the sizes alone, for measurements and plans without weights.
package geometry

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/gopeft/gopeft/internal/suggest"
	"github.com/gopeft/gopeft/models/hub"
)

//go:embed configs/*.json
var configs embed.FS

// Names lists the configurations in alphabetical order.
func Names() []string {
	entries, err := fs.ReadDir(configs, "configs")
	if err != nil {
		panic(err) // of the program's own data
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = strings.TrimSuffix(e.Name(), ".json")
	}
	return names
}

// Read returns the config.json of one of Names, of a file, of a Hugging Face folder, or of a
// hub id, "org/name", whose weights are not fetched.
func Read(ctx context.Context, name string) ([]byte, error) {
	if data, err := configs.ReadFile("configs/" + name + ".json"); err == nil {
		return data, nil
	}
	info, err := os.Stat(name)
	switch {
	case err == nil && info.IsDir():
		name = filepath.Join(name, "config.json")
	case err != nil && strings.Count(name, "/") == 1 && !strings.HasSuffix(name, ".json") && name[0] != '.':
		dir, err := hub.Resolve(ctx, name, hub.Options{NoWeights: true})
		if err != nil {
			return nil, fmt.Errorf("configuration: %w", err)
		}
		name = filepath.Join(dir, "config.json")
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w; known names are %s%s", err, strings.Join(Names(), ", "), suggest.DidYouMean(name, Names()))
	}
	return data, nil
}
