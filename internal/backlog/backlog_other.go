//go:build !linux

package backlog

import "net"

// Close closes a listener. Connections that were not accepted yet are lost.
func Close(l net.Listener) error { return l.Close() }
