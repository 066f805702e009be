package bff

import (
	"crypto/tls"
	"net"
)

// NewListener returns a listener for an http.Server that is to serve a Server.
func NewListener(l net.Listener, cfg *tls.Config) net.Listener {
	if cfg != nil {
		return tls.NewListener(l, cfg)
	}
	return l
}
