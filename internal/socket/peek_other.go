//go:build !unix

package socket

import "net"

// newPeek returns nil, because a socket cannot be read without waiting here.
func newPeek(net.Conn) func() error { return nil }

func wouldWait(error) bool { return false }
