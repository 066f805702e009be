package web

import (
	"io/fs"
	"syscall"
	"time"
)

// versionOf returns the version of a file on disk. ok is false for other files.
func versionOf(info fs.FileInfo) (v fileVersion, ok bool) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fileVersion{}, false
	}
	return fileVersion{
		device: uint64(stat.Dev), inode: stat.Ino, size: stat.Size,
		modified: time.Unix(stat.Mtim.Unix()), change: time.Unix(stat.Ctim.Unix()),
	}, true
}
