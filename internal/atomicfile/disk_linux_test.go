package atomicfile

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// A file system of 64 kB that really is full.
func TestFullDisk(t *testing.T) {
	mnt := t.TempDir()
	if err := syscall.Mount("tmpfs", mnt, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip("cannot mount a tmpfs (needs root); TestDiskFullAtAnyStep covers the same by injection:", err)
	}
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(mnt, 0)) })
	file, dir := filepath.Join(mnt, "f"), filepath.Join(mnt, "d")
	require.NoError(t, WriteBytes(file, []byte("old")))
	writeTree(t, dir, map[string]string{"a": "old"})
	big := make([]byte, 128<<10)

	err := WriteBytes(file, big)
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.ErrorContains(t, err, file)
	err = WriteDir(dir, func(p string) error { return os.WriteFile(filepath.Join(p, "a"), big, 0o666) })
	require.ErrorIs(t, err, syscall.ENOSPC)

	require.Equal(t, []string{"d", "f"}, names(t, mnt))
	require.Equal(t, map[string]string{"a": "old"}, readTree(t, dir))
	require.NoError(t, WriteBytes(file, []byte("new")), "the failed attempts must have given the space back")
}

// The test runs itself again as nobody, since root may write anywhere.
func TestReadOnlyFolder(t *testing.T) {
	if dir := os.Getenv("ATOMICFILE_TEST_READONLY"); dir != "" {
		for _, err := range []error{
			WriteFile(filepath.Join(dir, "f"), func(io.Writer) error { return nil }),
			WriteDir(filepath.Join(dir, "d"), func(string) error { return nil }),
		} {
			if !errors.Is(err, os.ErrPermission) {
				t.Fatalf("want a permission error, got %v", err)
			}
		}
		return
	}
	dir := filepath.Join(t.TempDir(), "ro")
	require.NoError(t, os.Mkdir(dir, 0o777))
	writeTree(t, dir, map[string]string{"f": "old", "d/a": "old"})
	require.NoError(t, os.Chmod(dir, 0o555))
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self, "-test.run=^TestReadOnlyFolder$", "-test.v")
	cmd.Env = append(os.Environ(), "ATOMICFILE_TEST_READONLY="+dir)
	if os.Getuid() == 0 {
		asNobody(t, cmd, dir)
	}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "--- PASS: TestReadOnlyFolder")
	require.Equal(t, map[string]string{"f": "old", "d/a": "old"}, readTree(t, dir))
}

// asNobody makes cmd run without root's rights, from a copy of its program in
// a folder that nobody can reach, and opens the way to dir.
func asNobody(t *testing.T, cmd *exec.Cmd, dir string) {
	bin, err := os.ReadFile(cmd.Path)
	require.NoError(t, err)
	cmd.Path = filepath.Join(t.TempDir(), "test")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	require.NoError(t, os.WriteFile(cmd.Path, bin, 0o755))
	for _, leaf := range []string{dir, cmd.Path} {
		for p := filepath.Dir(leaf); p != os.TempDir() && p != "/"; p = filepath.Dir(p) {
			require.NoError(t, os.Chmod(p, 0o755))
		}
	}
}
