//go:build unix

package main

import (
	"io/fs"
	"syscall"
)

// inode returns the number of a file. It changes when the file is replaced.
func inode(info fs.FileInfo) uint64 {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(stat.Ino)
	}
	return 0
}
