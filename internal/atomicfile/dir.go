package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// ErrPrecious is wrapped by the error of replacing a folder that is or holds the
// working folder, the home folder or the root.
var ErrPrecious = errors.New("replacing it would delete all in it")

// WriteDir replaces the folder path with a new one that fill writes. fill
// gets the path of an empty folder beside the target and may use any calls to
// write into it; WriteDir syncs all of it before the swap. If fill or any
// step after it fails, path is as it was and the new folder is removed.
//
// A reader that opens several files one after the other may see the swap
// happen between them; it does not see a folder that is half of each.
//
// Everything in the old folder goes, also files that the program did not
// write. WriteDir refuses the root, the home and the working folder and the
// parents of these. Missing parents of path are created. If path is a
// symbolic link to a folder, the folder it points to is replaced and the link
// stays.
//
// Errors name path and wrap the cause.
func WriteDir(path string, fill func(dir string) error) error {
	if err := new(system).writeDir(path, fill); err != nil {
		return fmt.Errorf("write folder %q: %w", path, err)
	}
	return nil
}

func (s *system) writeDir(path string, fill func(dir string) error) (err error) {
	target, err := resolve(path)
	if err != nil {
		return err
	}
	if err := s.mkdirAll(filepath.Dir(target)); err != nil {
		return err
	}
	if err := s.restore(target); err != nil {
		return err
	}
	info, err := replaceable(target)
	if err != nil {
		return err
	}
	part := partName(target)
	if err := s.mkdir(part); err != nil {
		return err
	}
	swapped := false
	defer func() {
		if err != nil && !swapped {
			s.removeAll(part) // best effort: the first error is the one to report
		}
	}()
	if info != nil {
		if err := s.chmod(part, info.Mode().Perm()); err != nil {
			return err
		}
	}
	if err := fill(part); err != nil {
		return err
	}
	if err := s.syncTree(part); err != nil {
		return err
	}
	old, err := s.swap(part, target, info != nil)
	if err != nil {
		return err
	}
	swapped = true
	if err := s.syncDir(filepath.Dir(target)); err != nil {
		return fmt.Errorf("the new folder is in place, but: %w", err)
	}
	if old == "" {
		return nil
	}
	if err := s.removeAll(old); err != nil {
		return fmt.Errorf("the new folder is in place, but the old one could not be removed: %w", err)
	}
	return nil
}

// replaceable describes the folder to replace; nil if there is none yet.
func replaceable(target string) (fs.FileInfo, error) {
	info, err := os.Lstat(target)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case !info.IsDir():
		return nil, errors.New("it is a file, want a folder or nothing")
	}
	return info, refusePrecious(target)
}

// swap puts part in the place of target and returns where the old folder went
// ("" if there was none). On an error target is as it was.
func (s *system) swap(part, target string, exists bool) (old string, err error) {
	if !exists {
		return "", s.rename(part, target)
	}
	err = s.exchange(part, target)
	if err == nil {
		return part, nil
	}
	if !errors.Is(err, errors.ErrUnsupported) {
		return "", err
	}
	old = target + oldInfix + token()
	if err := s.rename(target, old); err != nil {
		return "", err
	}
	if err := s.rename(part, target); err != nil {
		if back := s.rename(old, target); back != nil {
			return "", fmt.Errorf("%w; the old folder is at %q: %w", err, old, back)
		}
		return "", err
	}
	return old, nil
}

// resolve makes path absolute and follows symbolic links at its end, so that
// the swap happens where the folder really is.
func resolve(path string) (string, error) {
	if path == "" {
		return "", errors.New("empty path")
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if _, err := os.Lstat(abs); err != nil {
		return abs, nil // missing: nothing to follow
	}
	return filepath.EvalSymlinks(abs)
}

// refusePrecious guards against replacing a folder that can only have been
// named by mistake.
func refusePrecious(target string) error {
	precious := map[string]string{}
	if wd, err := os.Getwd(); err == nil {
		precious["the working folder"] = wd
	}
	if home, err := os.UserHomeDir(); err == nil {
		precious["the home folder"] = home
	}
	for what, p := range precious {
		if real, err := filepath.EvalSymlinks(p); err == nil {
			p = real
		}
		for ; ; p = filepath.Dir(p) {
			if p == target {
				return fmt.Errorf("it is or holds %s; %w", what, ErrPrecious)
			}
			if p == filepath.Dir(p) {
				break
			}
		}
	}
	if target == filepath.Dir(target) {
		return fmt.Errorf("it is the root of a file system; %w", ErrPrecious)
	}
	return nil
}
