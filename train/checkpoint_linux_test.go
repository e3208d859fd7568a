package train

import (
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// A disk that is full when a checkpoint is due.
func TestDiskFull(t *testing.T) {
	mnt := t.TempDir()
	if err := syscall.Mount("tmpfs", mnt, "tmpfs", 0, "size=96k"); err != nil {
		t.Skip("cannot mount a tmpfs (needs root); TestSaveFails covers a failing checkpoint:", err)
	}
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(mnt, 0)) })
	args := toyArguments(t)
	args.OutputDir = filepath.Join(mnt, "out")
	args.SaveStrategy, args.SaveSteps = SaveSteps, 1
	pm := toyModel(t)
	before := valuesOf(t, pm)
	result, err := newToyTrainer(t, pm, args).Train(t.Context())
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.Greater(t, result.GlobalStep, 1)
	require.ErrorContains(t, err, checkpointName(result.GlobalStep))
	require.NotEqual(t, before, valuesOf(t, pm), "the trained values are in the model")
	last, err := LastCheckpoint(args.OutputDir)
	require.NoError(t, err)
	require.Equal(t, filepath.Join(args.OutputDir, checkpointName(result.GlobalStep-1)), last)
}
