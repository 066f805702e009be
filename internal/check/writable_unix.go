//go:build linux || darwin

package check

import (
	"io/fs"
	"syscall"
)

// checkWritable returns an error if this user cannot create files in a
// directory, or its file system is read-only.
func checkWritable(dir string) error {
	const writeAndSearch = 0o2 | 0o1
	if err := syscall.Access(dir, writeAndSearch); err != nil {
		return &fs.PathError{Op: "write to", Path: dir, Err: err}
	}
	return nil
}
