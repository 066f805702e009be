//go:build !unix

package http1

import "net"

// peek reports every connection as closed, because it cannot read without
// waiting here. Each request has its own connection then.
type peek struct{}

func (*peek) init(net.Conn) {}
func (*peek) quiet() bool   { return false }
func (*peek) known() bool   { return false }
