package hub

import (
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// A full disk is an error that keeps what came; with more room the download
// goes on from there.
func TestFullDisk(t *testing.T) {
	cache := t.TempDir()
	if err := syscall.Mount("tmpfs", cache, "tmpfs", 0, "size=400k"); err != nil {
		t.Skip("cannot mount a tmpfs (needs root):", err)
	}
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(cache, 0)) })
	h := newFakeHub(t, tinyModel())
	_, err := h.resolve(t, Options{CacheDir: cache})
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.ErrorContains(t, err, "download model.safetensors")
	require.Equal(t, 1, h.count("GET /model.safetensors"), "trying again would not help")
	parts, err := filepath.Glob(filepath.Join(cache, "*", "blobs", "*.incomplete"))
	require.NoError(t, err)
	require.Len(t, parts, 1)

	require.NoError(t, syscall.Mount("tmpfs", cache, "tmpfs", syscall.MS_REMOUNT, "size=4m"))
	dir, err := h.resolve(t, Options{CacheDir: cache})
	require.NoError(t, err)
	requireFolder(t, tinyModel(), dir)
	require.Equal(t, 1, h.count("GET /model.safetensors bytes="), "resumed")
}
