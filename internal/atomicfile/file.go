package atomicfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteFile replaces the file path with what write produces. If write or any
// step after it fails, path is as it was and the temporary file is removed.
//
// Writes are not buffered: wrap w in a bufio.Writer for many small ones. A new
// file gets mode 0666 less the umask, an existing one keeps its mode. If path
// is a symbolic link, the link is replaced and not what it points to. The
// parent folder must exist.
//
// Errors name path and wrap the cause, so errors.Is(err, syscall.ENOSPC) and
// errors.Is(err, fs.ErrPermission) work.
func WriteFile(path string, write func(w io.Writer) error) error {
	if err := new(system).writeFile(path, write); err != nil {
		return fmt.Errorf("write file %q: %w", path, err)
	}
	return nil
}

// WriteBytes is [WriteFile] for content that is already in memory.
func WriteBytes(path string, data []byte) error {
	return WriteFile(path, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

func (s *system) writeFile(path string, write func(w io.Writer) error) (err error) {
	info, err := os.Lstat(path)
	switch {
	case err == nil && info.IsDir():
		return errors.New("it is a folder, want a file or nothing")
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	part := partName(path)
	f, err := s.create(part)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			s.removeAll(part) // best effort: the first error is the one to report
		}
	}()
	if info != nil && info.Mode().IsRegular() {
		if err := s.chmod(part, info.Mode().Perm()); err != nil {
			return err
		}
	}
	if err := write(&stepWriter{s, f, part}); err != nil {
		return err
	}
	if err := s.syncFile(f); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := s.rename(part, path); err != nil {
		return err
	}
	if err := s.syncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("the new file is in place, but: %w", err)
	}
	return nil
}
