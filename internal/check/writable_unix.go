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
	return checkAccess(dir, writeAndSearch)
}

// checkWritableFile is checkWritable for a file.
func checkWritableFile(name string) error {
	const write = 0o2
	return checkAccess(name, write)
}

func checkAccess(name string, mode uint32) error {
	if err := syscall.Access(name, mode); err != nil {
		return &fs.PathError{Op: "write to", Path: name, Err: err}
	}
	return nil
}
