package main

import (
	"io/fs"
	"syscall"
	"time"
)

// changeTime returns when content, owner or permissions of a file were changed.
func changeTime(info fs.FileInfo) time.Time {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return time.Unix(stat.Ctim.Unix())
	}
	return time.Time{}
}
