//go:build !windows && !plan9 && !js && !wasip1

package atomicfile

import (
	"errors"
	"os"
	"syscall"
)

// syncDir makes renames inside the folder durable. Some network file systems
// cannot sync a folder and say EINVAL or ENOTSUP; that is no reason to fail.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}
