//go:build !linux

package web

import "io/fs"

// versionOf knows no version of a file here: its content is hashed each time.
func versionOf(fs.FileInfo) (fileVersion, bool) { return fileVersion{}, false }
