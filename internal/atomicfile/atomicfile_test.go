package atomicfile

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWriteFileKeepsMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	require.NoError(t, WriteBytes(path, []byte("one")))
	require.NoError(t, os.Chmod(path, 0o604))
	require.NoError(t, WriteBytes(path, []byte("two")))
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o604), info.Mode().Perm())
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "two", string(got))
}

func TestWriteDirThroughSymlink(t *testing.T) {
	parent := t.TempDir()
	real, link := filepath.Join(parent, "real"), filepath.Join(parent, "link")
	writeTree(t, real, map[string]string{"a": "old"})
	if err := os.Symlink(real, link); err != nil {
		t.Skip("this system makes no symbolic links:", err)
	}
	require.NoError(t, WriteDir(link, func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "a"), []byte("new"), 0o666)
	}))
	require.Equal(t, map[string]string{"a": "new"}, readTree(t, real))
	require.Equal(t, []string{"link", "real"}, names(t, parent))
}

func TestWrongKind(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, []byte("precious"), 0o666))
	nop := func(string) error { return nil }

	require.ErrorContains(t, WriteBytes(dir, nil), "it is a folder, want a file")
	require.ErrorContains(t, WriteDir(file, nop), "it is a file, want a folder")
	require.ErrorContains(t, WriteDir(filepath.Join(file, "sub"), nop), "not a directory")
	require.ErrorIs(t, WriteBytes(filepath.Join(dir, "none", "f"), nil), fs.ErrNotExist)
	require.ErrorContains(t, WriteDir("", nop), "empty path")
	got, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, "precious", string(got))
	require.Equal(t, []string{"file"}, names(t, dir))
}

func TestWriteDirRefusesPrecious(t *testing.T) {
	home := filepath.Join(t.TempDir(), "home")
	writeTree(t, home, map[string]string{"letter": "x", "work/f": "y"})
	t.Setenv("HOME", home)
	t.Setenv("USERPROFILE", home)
	t.Chdir(filepath.Join(home, "work"))
	for _, path := range []string{home, ".", "..", filepath.Dir(home), "/"} {
		require.ErrorContains(t, WriteDir(path, func(string) error { return nil }), "it is or holds", path)
	}
	require.Equal(t, map[string]string{"letter": "x", "work/f": "y"}, readTree(t, home))
}

// Every failing change is reported as what it is, and nothing is left behind.
func TestDiskFullAtAnyStep(t *testing.T) {
	for fail := range 200 {
		parent := t.TempDir()
		file, dir := filepath.Join(parent, "f"), filepath.Join(parent, "d")
		require.NoError(t, os.WriteFile(file, []byte("old"), 0o666))
		writeTree(t, dir, map[string]string{"a": "old"})
		n, swapped := 0, false
		s := &system{before: func(op, _ string) error {
			n++
			if n-1 == fail {
				return syscall.ENOSPC
			}
			swapped = swapped || op == "rename" || op == "exchange"
			return nil
		}}
		err := s.writeFile(file, func(w io.Writer) error { _, err := io.WriteString(w, "new"); return err })
		if err == nil {
			swapped = false
			err = s.writeDir(dir, func(p string) error { return os.WriteFile(filepath.Join(p, "a"), []byte("new"), 0o666) })
		}
		if err == nil {
			require.Greater(t, fail, 8)
			return
		}
		require.ErrorIs(t, err, syscall.ENOSPC)
		if !swapped {
			require.Equal(t, []string{"d", "f"}, names(t, parent))
		} else {
			require.ErrorContains(t, err, "is in place, but")
		}
	}
	t.Fatal("never gets through")
}

// A reader beside a busy writer never finds a missing or mixed folder.
func TestReadersSeeWholeFolders(t *testing.T) {
	if !canExchange(t) {
		t.Skip("this file system cannot exchange two folders in one step")
	}
	path := filepath.Join(t.TempDir(), "d")
	put := func(v string) error {
		return WriteDir(path, func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "a"), []byte(v), 0o666)
		})
	}
	require.NoError(t, put("x"))
	stop := make(chan struct{})
	var readers sync.WaitGroup
	readers.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := os.Stat(path); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 200 {
		require.NoError(t, put("y"))
	}
	close(stop)
	readers.Wait()
}
