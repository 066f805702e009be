package bff

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// browserHost returns the host of a URL as browsers write it in Host and
// Origin: in lower case, a name in other letters than ASCII as its A-label (RFC
// 5891), an address in its shortest form, without the port that the scheme
// implies. The error says what to write instead of a host that no browser
// sends.
func browserHost(u *url.URL) (string, error) {
	host := strings.ToLower(u.Hostname())
	if strings.Contains(u.Host, "[") {
		addr, err := netip.ParseAddr(host)
		if err != nil || addr.Zone() != "" {
			return "", fmt.Errorf("%q is not an IPv6 address that browsers take", u.Host)
		}
		host = addr.String()
	} else {
		var err error
		if host, err = asciiHost(host); err != nil {
			return "", err
		}
	}
	port := ""
	if raw := u.Port(); raw != "" {
		n, err := strconv.ParseUint(raw, 10, 16)
		if err != nil || n == 0 {
			return "", fmt.Errorf("%q is not a port", raw)
		}
		if !(u.Scheme == "https" && n == 443) && !(u.Scheme == "http" && n == 80) {
			port = strconv.FormatUint(n, 10)
		}
	}
	switch {
	case port != "":
		return net.JoinHostPort(host, port), nil
	case strings.Contains(host, ":"):
		return "[" + host + "]", nil
	}
	return host, nil
}

// asciiHost returns a host name or an IPv4 address as it is looked up and sent.
func asciiHost(host string) (string, error) {
	if name, dot := strings.CutSuffix(host, "."); dot {
		return "", fmt.Errorf("%q ends with a dot, which browsers send only where users type it; write %q", host, name)
	}
	ascii := host
	if !isASCII(host) {
		var err error
		if ascii, err = idna.Lookup.ToASCII(host); err != nil {
			return "", fmt.Errorf("%q is not a host name: %w", host, err)
		}
	}
	labels := strings.Split(ascii, ".")
	for _, label := range labels {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return "", fmt.Errorf("%q is not a host name", host)
		}
	}
	if len(ascii) > 253 {
		return "", fmt.Errorf("%q is not a host name: it is longer than 253 characters", host)
	}
	// A name whose last label is a number is an IPv4 address to a browser,
	// which writes 127.1 and 0x7f.1 as 127.0.0.1 (URL Standard, host parsing).
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") {
		if addr, err := netip.ParseAddr(ascii); err != nil || !addr.Is4() {
			return "", fmt.Errorf("%q is not an IPv4 address in its usual form, four numbers", host)
		}
	}
	return ascii, nil
}

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(c rune) bool { return c >= utf8.RuneSelf }) < 0
}
