//go:build !unix

package http1

import "net"

// look cannot look here: each request has a connection of its own.
type look struct{}

func (*look) at(net.Conn) {}
func (*look) quiet() bool { return false }
