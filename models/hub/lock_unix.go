//go:build unix && !solaris && !aix

package hub

import (
	"os"

	"golang.org/x/sys/unix"
)

func tryLock(f *os.File) error {
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err {
	case unix.EWOULDBLOCK, unix.EINTR:
		return errLocked
	case unix.ENOSYS, unix.ENOTSUP, unix.ENOLCK:
		return nil
	default:
		return err
	}
}
