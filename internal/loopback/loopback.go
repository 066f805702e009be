// Package loopback tells which hosts are this machine.
package loopback

import (
	"net/netip"
	"strings"
)

// IsHost reports whether host, a name or an IP address, is a loopback host: one
// at which plain http is safe. Browsers and RFC 6761, section 6.3, treat
// localhost and the names below it so. Capital letters are as small ones.
func IsHost(host string) bool {
	ip, err := netip.ParseAddr(host)
	host = strings.ToLower(host)
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || err == nil && ip.IsLoopback()
}
