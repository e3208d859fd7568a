package atomicfile

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const (
	partInfix = ".part-"
	oldInfix  = ".old-"
	tokenLen  = 16
)

// token returns 16 random hex digits. Randomness here only avoids two writers
// meeting; it is no input of any result.
func token() string {
	var b [tokenLen / 2]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func partName(path string) string { return path + partInfix + token() }

// Recover cleans up after a crash while path (a file or a folder) was being
// written: if the old folder had been moved away and nothing took its place,
// it is moved back; then the leftovers are removed. It must not run while
// another writer of the same path is at work.
func Recover(path string) error {
	s := new(system)
	target, err := resolve(path)
	if err == nil {
		err = s.restore(target)
	}
	if err == nil {
		err = s.removeLeftovers(target)
	}
	if err != nil {
		return fmt.Errorf("recover %q: %w", path, err)
	}
	return nil
}

// restore moves a backup of target back if target is missing.
func (s *system) restore(target string) error {
	if _, err := os.Lstat(target); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	backups, err := leftovers(target, oldInfix)
	if err != nil || len(backups) == 0 {
		return err
	}
	if len(backups) > 1 {
		return fmt.Errorf("it is missing and there are %d backups of it (%q, ...); rename the right one", len(backups), backups[0])
	}
	if err := s.rename(backups[0], target); err != nil {
		return err
	}
	return s.syncDir(filepath.Dir(target))
}

func (s *system) removeLeftovers(target string) error {
	for _, infix := range []string{partInfix, oldInfix} {
		paths, err := leftovers(target, infix)
		if err != nil {
			return err
		}
		for _, p := range paths {
			if err := s.removeAll(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// leftovers lists TARGET<infix><16 hex digits>, and nothing that merely looks
// similar. A missing parent folder holds none.
func leftovers(target, infix string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(target))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), filepath.Base(target)+infix)
		if !ok || len(rest) != tokenLen {
			continue
		}
		if _, err := hex.DecodeString(rest); err == nil {
			paths = append(paths, filepath.Join(filepath.Dir(target), e.Name()))
		}
	}
	return paths, nil
}
