//go:build unix

package main

import (
	"io/fs"
	"syscall"
)

// inode returns the number of a file, which differs if another one was put in its
// place.
func inode(info fs.FileInfo) uint64 {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(stat.Ino)
	}
	return 0
}
