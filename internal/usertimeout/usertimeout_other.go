//go:build !linux

package usertimeout

import (
	"syscall"
	"time"
)

// Set leaves it to keep-alive to notice dead connections.
func Set(syscall.RawConn, time.Duration) error { return nil }
