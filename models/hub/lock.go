package hub

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// errLocked says that another holder has the lock.
var errLocked = errors.New("locked")

// lock waits for the exclusive lock on path, which processes, Python's
// filelock and other calls in this process respect. The system drops the lock
// of a process that dies. The lock file stays: removing it would let two
// processes lock two files of one name. On file systems without locks it is
// not taken; two downloads at once then cost time, but the hash catches a mix.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return nil, err
	}
	for {
		err := tryLock(f)
		if err == nil {
			return func() { f.Close() }, nil // closing unlocks
		}
		if !errors.Is(err, errLocked) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}
