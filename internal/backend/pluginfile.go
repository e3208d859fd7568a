package backend

import (
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// pluginFile checks a plugin given by its path, as far as that goes without loading it,
// and returns the path absolute.
func pluginFile(name, path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("backend: %q: %w", name, err)
	}
	info, err := os.Stat(abs)
	switch {
	case os.IsNotExist(err):
		return "", fmt.Errorf("backend: %q: there is no plugin file %s\n%s", name, abs, installHelp)
	case err != nil:
		return "", fmt.Errorf("backend: %q: %w", name, err)
	case info.IsDir():
		return "", fmt.Errorf("backend: %q: %s is a folder; name the .so file in it%s", name, abs, pluginIn(abs))
	}
	if err := checkELF(abs); err != nil {
		return "", fmt.Errorf("backend: %q: %w", name, err)
	}
	return abs, nil
}

// pluginIn names a plugin somewhere under dir.
func pluginIn(dir string) string {
	var found string
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error { // what cannot be read is no hint
		if err == nil && !d.IsDir() && pluginName(path) != "" {
			found = ", " + path
			return filepath.SkipAll
		}
		return nil
	})
	return found
}

var elfMachines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// checkELF finds out on Linux whether path can be loaded into this program at all, since
// the loader's own words for it ("invalid ELF header") help nobody.
func checkELF(path string) error {
	if runtime.GOOS != "linux" {
		return nil
	}
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("%s is no shared library (or cut short: fetch it again): %w", path, err)
	}
	defer f.Close()
	if want, known := elfMachines[runtime.GOARCH]; known && f.Machine != want {
		return fmt.Errorf("%s was built for %v, this program for %s (%v): fetch the plugin for linux/%s",
			path, f.Machine, runtime.GOARCH, want, runtime.GOARCH)
	}
	return nil
}

// misleadingPath returns an error if go-xla would take a plugin for a CUDA one by words in
// its folder's name: it looks at the whole path.
func misleadingPath(path string) error {
	saysCUDA := func(s string) bool {
		s = strings.ToLower(s)
		return strings.Contains(s, "cuda") || strings.Contains(s, "nvidia")
	}
	if saysCUDA(path) && !saysCUDA(filepath.Base(path)) && !strings.Contains(path, "jax_plugins") {
		return fmt.Errorf(`%s: go-xla takes a plugin for a CUDA one if "cuda" or "nvidia" is anywhere in its path; link the file into a folder without these words`, path)
	}
	return nil
}
