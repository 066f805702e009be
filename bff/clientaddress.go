package bff

import (
	"net/http"
	"net/netip"
	"strings"
)

// The client's address and the host that it asked for, as trusted proxies tell
// them by X-Forwarded-For and X-Forwarded-Host, or by Forwarded (RFC 7239).

// maxHops bounds how many proxies are believed.
const maxHops = 32

// clientIP returns the address of the client: the first one that is no trusted
// proxy's, from the right. What the proxies say is believed as far as it can be
// read, so behind an element that cannot be the client is the proxy that sent
// it. If the two headers disagree, a client may have sent one of them that no
// proxy removes, and neither is believed.
func (a *app) clientIP(r *http.Request) string {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	ip := peer.Addr().Unmap()
	if !a.trusts(ip) {
		return ip.String()
	}
	hops := a.trustedHops(r, ip)
	return hops.client.String()
}

// hops is what trusted proxies tell about a request.
type hops struct {
	client netip.Addr
	n      int    // trusted proxies, at least the one that has connected to us
	host   string // of Forwarded, as the first of them has seen it
}

// trustedHops reads the headers of a request that has come from a trusted
// proxy.
func (a *app) trustedHops(r *http.Request, peer netip.Addr) hops {
	untold := hops{client: peer, n: 1}
	byList, byForwarded := untold, untold
	listed, forwarded := r.Header["X-Forwarded-For"], r.Header["Forwarded"]
	if len(listed) > 0 {
		byList = a.walk(peer, listed, func(element string) (forwardedElement, bool) {
			return forwardedElement{node: element}, true
		})
	}
	if len(forwarded) > 0 {
		byForwarded = a.walk(peer, forwarded, parseForwarded)
	}
	if !strings.Contains(strings.ToLower(strings.Join(forwarded, ",")), "for=") {
		byList.host = byForwarded.host
		return byList // there may be a Forwarded that tells other things
	}
	if len(listed) > 0 && byList.client != byForwarded.client {
		untold.host = byForwarded.host
		return untold
	}
	return byForwarded
}

// forwardedElement is what one proxy tells.
type forwardedElement struct{ node, host string }

// walk goes through the elements of a header from the right, as long as they
// come from trusted proxies.
func (a *app) walk(peer netip.Addr, lines []string, parse func(element string) (forwardedElement, bool)) hops {
	found := hops{client: peer, n: 1}
	for i := len(lines) - 1; i >= 0; i-- {
		for rest, more := lines[i], true; more; {
			var element string
			rest, element, more = cutLast(rest)
			if element == "" { // RFC 9110, section 5.6.1.2
				continue
			}
			told, ok := parse(element)
			if !ok {
				return found
			}
			found.host = told.host
			ip, ok := parseNode(told.node)
			if !ok || found.n == maxHops {
				return found
			}
			found.client = ip
			if !a.trusts(ip) {
				return found
			}
			found.n++
		}
	}
	return found
}

// cutLast returns the last element of a list (RFC 9110, section 5.6.1), and
// what is before it. A comma in quotes separates nothing.
func cutLast(list string) (before, last string, more bool) {
	quoted := false
	for i := len(list) - 1; i >= 0; i-- {
		switch {
		case list[i] == '"':
			quoted = !quoted
		case list[i] == ',' && !quoted:
			return list[:i], strings.Trim(list[i+1:], " \t"), true
		}
	}
	return "", strings.Trim(list, " \t"), false
}

// parseForwarded reads an element of Forwarded (RFC 7239, section 4). A
// parameter that is there twice makes it invalid.
func parseForwarded(element string) (forwardedElement, bool) {
	var told forwardedElement
	seen := make(map[string]bool)
	for pair := range strings.SplitSeq(element, ";") {
		if pair = strings.Trim(pair, " \t"); pair == "" {
			continue
		}
		name, value, ok := strings.Cut(pair, "=")
		if name = strings.ToLower(name); !ok || !isToken(name) || seen[name] {
			return told, false
		}
		seen[name] = true
		if len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
			value = value[1 : len(value)-1]
		}
		if strings.ContainsAny(value, "\"\\") { // no node and no host needs them
			return told, false
		}
		switch name {
		case "for":
			told.node = value
		case "host":
			told.host = value
		}
	}
	return told, true
}

// parseNode reads an address, with or without a port. IPv6 is in brackets if it
// has one. A zone means nothing on another host, and is refused.
func parseNode(text string) (netip.Addr, bool) {
	host, port := text, ""
	switch {
	case strings.HasPrefix(text, "["):
		var ok bool
		if host, port, ok = strings.Cut(text[1:], "]"); !ok || !strings.Contains(host, ":") || port != "" &&
			port[0] != ':' {
			return netip.Addr{}, false
		}
		port = strings.TrimPrefix(port, ":")
		if strings.HasSuffix(text, ":") {
			return netip.Addr{}, false
		}
	case strings.Count(text, ":") == 1:
		if host, port, _ = strings.Cut(text, ":"); port == "" {
			return netip.Addr{}, false
		}
	}
	if len(port) > 5 || strings.Trim(port, "0123456789") != "" {
		return netip.Addr{}, false
	}
	ip, err := netip.ParseAddr(host)
	if err != nil || ip.Zone() != "" {
		return netip.Addr{}, false
	}
	return ip.Unmap(), true
}

// forwardedHosts returns the hosts that a trusted proxy says the client has
// asked for; none if it says nothing. Of a list each proxy has added one.
func (a *app) forwardedHosts(r *http.Request) []string {
	listed, forwarded := r.Header["X-Forwarded-Host"], r.Header["Forwarded"]
	if len(listed) == 0 && len(forwarded) == 0 {
		return nil
	}
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !a.trusts(peer.Addr()) {
		return nil
	}
	told := a.trustedHops(r, peer.Addr().Unmap())
	var hosts []string
	if told.host != "" {
		hosts = append(hosts, told.host)
	}
	if len(listed) > 0 {
		all := strings.Split(strings.Join(listed, ","), ",")
		if host := strings.Trim(all[max(0, len(all)-told.n)], " \t"); host != "" || told.host == "" {
			hosts = append(hosts, host)
		}
	}
	return hosts
}
