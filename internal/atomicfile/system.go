package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// system is every change this package makes to the disk, so that a test can
// stop the world before any of them. The zero value is the real thing.
type system struct {
	// before, if set, is asked ahead of each change; an error stops it.
	before func(op, path string) error
	// noExchange takes the path of systems without an exchanging rename.
	noExchange bool
}

func (s *system) step(op, path string) error {
	if s.before == nil {
		return nil
	}
	return s.before(op, path)
}

func (s *system) create(path string) (*os.File, error) {
	if err := s.step("create", path); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
}

func (s *system) chmod(path string, mode fs.FileMode) error {
	if err := s.step("chmod", path); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

func (s *system) mkdir(path string) error {
	if err := s.step("mkdir", path); err != nil {
		return err
	}
	return os.Mkdir(path, 0o777)
}

func (s *system) mkdirAll(path string) error {
	if err := s.step("mkdirall", path); err != nil {
		return err
	}
	return os.MkdirAll(path, 0o777)
}

func (s *system) rename(from, to string) error {
	if err := s.step("rename", to); err != nil {
		return err
	}
	return os.Rename(from, to)
}

func (s *system) exchange(a, b string) error {
	if s.noExchange {
		return &os.LinkError{Op: "exchange", Old: a, New: b, Err: errors.ErrUnsupported}
	}
	if err := s.step("exchange", b); err != nil {
		return err
	}
	return exchange(a, b)
}

func (s *system) removeAll(path string) error {
	if err := s.step("remove", path); err != nil {
		return err
	}
	return os.RemoveAll(path)
}

func (s *system) syncFile(f *os.File) error {
	if err := s.step("sync", f.Name()); err != nil {
		return err
	}
	return f.Sync()
}

func (s *system) syncDir(path string) error {
	if err := s.step("syncdir", path); err != nil {
		return err
	}
	return syncDir(path)
}

// syncTree syncs the regular files and the folders under root, root last.
func (s *system) syncTree(root string) error {
	var dirs []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			dirs = append(dirs, path)
			return nil
		case !d.Type().IsRegular():
			return nil
		}
		flag := os.O_RDONLY
		if runtime.GOOS == "windows" {
			flag = os.O_RDWR // FlushFileBuffers wants write access
		}
		f, err := os.OpenFile(path, flag, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		return s.syncFile(f)
	})
	for i := len(dirs) - 1; i >= 0 && err == nil; i-- {
		err = s.syncDir(dirs[i])
	}
	return err
}

// stepWriter makes every write a step.
type stepWriter struct {
	s    *system
	f    *os.File
	path string
}

func (w *stepWriter) Write(p []byte) (int, error) {
	if err := w.s.step("write", w.path); err != nil {
		return 0, err
	}
	return w.f.Write(p)
}
