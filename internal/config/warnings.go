package config

import (
	"net/netip"
	"reflect"
	"slices"
)

// Warnings returns the settings that are valid but dangerous.
func (c *Config) Warnings() Errors {
	var all Errors
	if trustsTheWorld(c.trustedProxies(new(Errors))) {
		all.addWithFix("server.trusted_proxies", "list only your proxies", "%q covers much of the internet, where "+
			"any client could send any client address", c.Server.TrustedProxies)
	}
	if n := len(c.Server.AdminToken); n > 0 && n < 20 {
		all.addWithFix("server.admin_token", "use at least 20, such as the output of cloakroom keygen",
			"[redacted] has %d characters, so it can be guessed", n)
	}
	for _, w := range c.webConfig().Warnings() {
		all = append(all, &Error{Key: frontendKey(w.Key), Value: w.Value, Err: w.Err, Fix: w.Fix})
	}
	c.warnOfPage(&all)
	warnOfSecrets("frontend.config", reflect.ValueOf(c.Frontend.Config), &all)
	return all
}

// notGlobal lists networks that are not routed on the internet (RFC 6890).
var notGlobal = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("::1/128"),
	netip.MustParsePrefix("fc00::/7"),
	netip.MustParsePrefix("fe80::/10"),
}

// trustsTheWorld reports whether networks cover more of the internet than one
// operator can own: a 64th of all IPv4 addresses, or an IPv6 network larger
// than a /20.
func trustsTheWorld(proxies []netip.Prefix) bool {
	var addresses uint64
	for _, p := range proxies {
		if p.Addr().Is4In6() {
			if p.Bits() < 96 {
				return true
			}
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		inside := func(n netip.Prefix) bool { return n.Bits() <= p.Bits() && n.Contains(p.Addr()) }
		switch {
		case slices.ContainsFunc(notGlobal, inside):
		case p.Addr().Is4():
			addresses += 1 << (32 - p.Bits())
		case p.Bits() < 20:
			return true
		}
	}
	return addresses >= 1<<26
}
