//go:build !linux

package web

import "io/fs"

// versionOf has no version of a file on this system, so its content is hashed
// each time.
func versionOf(fs.FileInfo) (fileVersion, bool) { return fileVersion{}, false }
