//go:build linux || darwin

package safetensors

import "golang.org/x/sys/unix"

// dontNeed is advice: the pages are read again if touched again.
func dontNeed(pages []byte) { _ = unix.Madvise(pages, unix.MADV_DONTNEED) }
