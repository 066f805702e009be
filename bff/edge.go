package bff

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/internal/loopback"
)

// checkAuthority verifies that a request names one host, which is that of the
// public URL, and uses a method that is served. Methods are case-sensitive (RFC
// 9110, section 9.1), but an upstream may take trace for TRACE.
func (a *app) checkAuthority(w *response, r *http.Request) error {
	if r.ProtoMajor == 1 {
		a.ignoreUpgrade(w, r) // before any response, which may have to close the connection
	}
	if strings.EqualFold(r.Method, http.MethodTrace) || strings.EqualFold(r.Method, http.MethodConnect) {
		// A 405 has to have the header (RFC 9110, section 15.5.6). What
		// follows may accept fewer.
		w.Header().Set("Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
		return problem.MethodNotAllowed
	}
	// A whole URL as the target would override the header Host (RFC 9112,
	// section 3.2.2), which others on the way may use. In HTTP/2 :path has no
	// host (RFC 9113, section 8.3.1), but net/http accepts one.
	if r.URL.Host != "" {
		return problem.AmbiguousHost.WithCause(errors.New("the request target is a whole URL"))
	}
	// RFC 9113, section 8.3.1. In HTTP/1.1 net/http removes this header.
	if hosts := r.Header["Host"]; len(hosts) > 1 || len(hosts) == 1 && !strings.EqualFold(hosts[0], r.Host) {
		return problem.AmbiguousHost.WithCause(fmt.Errorf("authority %.80q, Host %.80q", r.Host, hosts))
	}
	anyHost := r.URL.Path == a.endpoint(backchannelLogoutPath) || r.URL.Path == a.endpoint(clientKeysPath)
	if !anyHost && !a.hostAllowed(r) {
		return a.wrongHost(w, r)
	}
	return nil
}

// checkLength verifies that the Content-Length of a request in HTTP/2 is a
// number, and that a body follows unless it is 0 (RFC 9113, section 8.1.1).
// net/http takes the body for an empty one otherwise. In HTTP/1.1 the listener
// verifies it.
func checkLength(r *http.Request) error {
	lengths := r.Header["Content-Length"]
	if r.ProtoMajor < 2 || len(lengths) == 0 {
		return nil
	}
	n, err := strconv.ParseUint(lengths[0], 10, 63)
	if err != nil || len(lengths) > 1 || n > 0 && r.ContentLength == 0 {
		cause := fmt.Errorf("header Content-Length is %.80q, not the length of the body", lengths)
		return problem.BadBody.WithCause(cause)
	}
	return nil
}

// wrongHost returns the problem for a request with another host. In development
// the reason is often a server in front, such as Vite, that replaces the Host.
func (a *app) wrongHost(w *response, r *http.Request) error {
	p := problem.WrongHost.WithCause(fmt.Errorf("the Host is %.80q", r.Host))
	public, requested := url.URL{Host: a.host}, url.URL{Host: r.Host}
	dev := loopback.IsHost(public.Hostname())
	if dev && r.Method == http.MethodGet && a.wantsPage(r) {
		w.page = addressPage
	}
	if dev || loopback.IsHost(requested.Hostname()) {
		p = p.WithDetail("If a development server such as Vite forwards requests to Cloakroom, set changeOrigin to " +
			"false in its proxy settings. Otherwise, open the address of server.public_url.")
	}
	return p
}

// ignoreUpgrade removes the header Upgrade of a request in HTTP/1 that does not
// ask for a WebSocket: the request is served without (RFC 9110, section 7.8).
// What follows one that does was not checked (see NewListener), so the
// connection is closed unless the protocol is switched.
func (a *app) ignoreUpgrade(w *response, r *http.Request) {
	switch upgrade := r.Header["Upgrade"]; {
	case len(upgrade) == 0:
	case strings.Contains(strings.ToLower(strings.Join(upgrade, ",")), "websocket"):
		w.Header()["Connection"] = []string{"close"}
	default:
		delete(r.Header, "Upgrade")
	}
}

// hostAllowed reports whether the request is for the host of the public URL, as
// its sender or a trusted proxy names it.
func (a *app) hostAllowed(r *http.Request) bool {
	hosts := a.forwardedHosts(r)
	if hosts == nil {
		return a.isPublicHost(r.Host)
	}
	return !slices.ContainsFunc(hosts, func(host string) bool { return !a.isPublicHost(host) })
}

// isPublicHost compares a host with that of the public URL, without regard to
// case and the default port. A trailing dot counts: it is another origin.
func (a *app) isPublicHost(host string) bool {
	if host = strings.ToLower(host); host == a.host {
		return true
	}
	if strings.LastIndexByte(a.host, ':') > strings.LastIndexByte(a.host, ']') { // its port is not the default one
		return false
	}
	if strings.HasPrefix(a.origin, "https:") {
		return host == a.host+":443"
	}
	return host == a.host+":80"
}

func (a *app) trusts(ip netip.Addr) bool {
	return slices.ContainsFunc(a.proxies, func(p netip.Prefix) bool { return p.Contains(ip.Unmap()) })
}

// requestID returns the ID of a request, and the trace-id of the trace that it
// is part of (W3C Trace Context, section 3.2), or "". The ID is that of a
// trusted proxy, in X-Request-Id or as the trace-id. Otherwise it is random: a
// client must not choose by which ID its requests are found.
func (a *app) requestID(r *http.Request) (id, trace string, given bool) {
	if parent := r.Header["Traceparent"]; len(parent) == 1 {
		if id, ok := traceID(parent[0]); ok {
			trace = id
		}
	}
	ids := r.Header["X-Request-Id"]
	if (len(ids) > 0 || trace != "") && a.trustsPeer(r) {
		switch {
		case len(ids) == 1 && isRequestID(ids[0]):
			return ids[0], trace, true
		case trace != "":
			return trace, trace, false
		}
	}
	var random [8]byte
	rand.Read(random[:])
	return hex.EncodeToString(random[:]), trace, false
}

// trustsPeer reports whether a request has come from a trusted proxy.
func (a *app) trustsPeer(r *http.Request) bool {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && a.trusts(peer.Addr())
}

// isRequestID reports whether a text can be the ID of a request: up to 128
// characters of UUIDs, base64 and names. No header or page has to escape them.
func isRequestID(text string) bool {
	return text != "" && len(text) <= 128 && strings.Trim(text, requestIDChars) == ""
}

const requestIDChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~+/=:@"

// traceID returns the trace-id of a traceparent header, which has the form
// version-trace-parent-flags. The trace-id has 32 hexadecimal digits that are
// not all zero.
func traceID(parent string) (string, bool) {
	parts := strings.SplitN(parent, "-", 5)
	if len(parts) < 4 || len(parts[0]) != 2 || parts[0] == "ff" || parts[0] == "00" && len(parts) > 4 {
		return "", false
	}
	if len(parts[1]) != 32 || len(parts[2]) != 16 || len(parts[3]) != 2 {
		return "", false
	}
	digits := strings.Join(parts[:4], "")
	notHex := func(c rune) bool { return (c < '0' || c > '9') && (c < 'a' || c > 'f') }
	hexadecimal := !strings.ContainsFunc(digits, notHex)
	return parts[1], hexadecimal && strings.Trim(parts[1], "0") != "" && strings.Trim(parts[2], "0") != ""
}
