//go:build windows || plan9 || js || wasip1

package atomicfile

// syncDir does nothing: these systems have no way to sync a folder.
func syncDir(string) error { return nil }
