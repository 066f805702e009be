package proxy

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/net/idna"

	"github.com/cloakroom-bff/cloakroom/internal/descriptors"
	"github.com/cloakroom-bff/cloakroom/internal/dpop"
	"github.com/cloakroom-bff/cloakroom/internal/http1"
	"github.com/cloakroom-bff/cloakroom/internal/urlpath"
)

// server is one of the URLs of an upstream.
type server struct {
	index  int      // in Upstream.URLs
	at     string   // host:port as configured, or the path of a socket
	url    *url.URL // scheme and host as http.Transport wants them, and what goes before a request's path
	host   string   // of the Host header
	dialer *net.Dialer
	// newAddress returns a new address of the server: host:port, or the path of
	// a socket.
	newAddress func(at string) *address

	name  string // to be looked up; empty: the server has one address
	port  uint16
	group *Group // for its resolver

	addresses atomic.Pointer[[]*address] // nil: the name has not been resolved yet
	resolveAt atomic.Int64               // as monotonic.Now says
	resolving chan struct{}              // holds something while resolve runs
	resolved  time.Time                  // guarded by resolving

	proofNonce  atomic.Pointer[string]           // for the next DPoP proof
	certificate atomic.Pointer[x509.Certificate] // that was shown last; nil: none was
}

// nonce returns the nonce for the next DPoP proof (RFC 9449, section 9), or an
// empty string.
func (s *server) nonce() string {
	if n := s.proofNonce.Load(); n != nil {
		return *n
	}
	return ""
}

// learnNonce stores the nonce of a response, if it has one.
func (s *server) learnNonce(h http.Header) {
	if nonce := dpop.NonceOf(h); nonce != "" {
		s.proofNonce.Store(&nonce)
	}
}

// newServer returns the server with a URL. It does no I/O.
func newServer(raw string, cfg Upstream, g *Group) (*server, error) {
	s := &server{
		dialer:    &net.Dialer{Timeout: cmp.Or(cfg.Timeouts.Connect, connectTimeout), KeepAlive: 30 * time.Second},
		group:     g,
		resolving: make(chan struct{}, 1),
	}
	where, err := s.setURL(raw)
	if err != nil {
		return nil, err
	}
	s.at = where.at
	checkAddress := s.dialer.Control
	s.dialer.Control = func(network, address string, c syscall.RawConn) error {
		if checkAddress != nil {
			if err := checkAddress(network, address, c); err != nil {
				return err
			}
		}
		return descriptors.Control(network, address, c)
	}
	secure := cmp.Or(cfg.TLS, new(tls.Config)).Clone()
	secure.ServerName = cmp.Or(secure.ServerName, s.url.Hostname())
	// A session stays with the CAs and the certificate that it began with. So
	// the cache is this server's alone, and there is none if the certificate
	// may change.
	if secure.ClientSessionCache == nil && secure.GetClientCertificate == nil {
		secure.ClientSessionCache = tls.NewLRUClientSessionCache(0)
	}
	verify := secure.VerifyConnection
	secure.VerifyConnection = func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) > 0 {
			s.certificate.Store(state.PeerCertificates[0])
		}
		if verify != nil {
			return verify(state)
		}
		return nil
	}
	header := cmp.Or(cfg.Timeouts.ResponseHeader, headerTimeout)
	s.newAddress = func(at string) *address {
		a := &address{server: s, at: at}
		a.dial = func(ctx context.Context) (net.Conn, error) {
			c, err := s.dialer.DialContext(ctx, where.network, at)
			if err != nil {
				return nil, &dialError{err}
			}
			a.used.Store(true)
			return c, nil
		}
		switch plain := (&http1.Client{Dial: a.dial, HeaderTimeout: header, MaxAge: maxConnAge}); where.scheme {
		case "https":
			a.transport, a.upgrades = newSecureTransport(a.dial, secure, s.dialer.Timeout, header)
		case "h2c":
			a.transport, a.upgrades = &http2Transport{connect: a.dial, headerTimeout: header}, plain
		default:
			a.transport, a.upgrades = plain, plain
		}
		return a
	}
	if s.name == "" {
		s.addresses.Store(&[]*address{s.newAddress(where.at)})
	}
	return s, nil
}

// serverLocation is where a server's URL leads.
type serverLocation struct {
	scheme  string // http, https, h2c or unix
	network string // for net.Dialer
	at      string // host:port, or the path of a socket
}

// setURL parses the URL of the server.
func (s *server) setURL(raw string) (serverLocation, error) {
	wrong := fmt.Errorf("%q is not a URL such as http://orders.internal:8080 or unix:/run/orders.sock", raw)
	u, err := url.Parse(raw)
	if err != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.User != nil || u.Opaque != "" {
		return serverLocation{}, wrong
	}
	where := serverLocation{scheme: u.Scheme}
	switch u.Scheme {
	case "http", "https", "h2c":
		if u.Hostname() == "" || u.Path != "" && urlpath.Check(u.EscapedPath()) != nil {
			return serverLocation{}, wrong
		}
		if err := toASCII(u); err != nil {
			return serverLocation{}, fmt.Errorf("%q: %w", raw, err)
		}
		where.network = "tcp"
		if where.at, err = s.setHost(u); err != nil {
			return serverLocation{}, wrong
		}
		if u.Scheme == "h2c" {
			u.Scheme = "http"
		}
	case "unix":
		if u.Host != "" || !strings.HasPrefix(u.Path, "/") {
			return serverLocation{}, wrong
		}
		where.network, where.at = "unix", u.Path
		u = &url.URL{Scheme: "http", Host: "localhost"}
	default:
		return serverLocation{}, wrong
	}
	s.url, s.host = u, u.Host
	return where, nil
}

// toASCII replaces the host of a URL by its A-label, which DNS needs (RFC
// 5890).
func toASCII(u *url.URL) error {
	if isASCII(u.Host) {
		return nil
	}
	ascii, err := idna.Lookup.ToASCII(u.Hostname())
	if err == nil {
		u.Host = strings.Replace(u.Host, u.Hostname(), ascii, 1)
	}
	return err
}

// defaultPorts are the ports of URLs that name none.
var defaultPorts = map[string]string{"http": "80", "https": "443", "h2c": "80"}

// setHost sets the name to be looked up, if the host of u is one, and returns
// host:port.
func (s *server) setHost(u *url.URL) (at string, err error) {
	port := cmp.Or(u.Port(), defaultPorts[u.Scheme])
	ip, notIP := netip.ParseAddr(u.Hostname())
	if notIP != nil || !linkLocal(ip) {
		s.dialer.Control = refuseLinkLocal
	}
	if notIP != nil {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return "", err
		}
		s.name, s.port = u.Hostname(), uint16(n)
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}

// dialError means that no connection could be made: nothing was sent.
type dialError struct{ error }

func (e *dialError) Unwrap() error { return e.error }

// refuseLinkLocal refuses the addresses at which clouds give credentials to
// every caller. A name must not lead to them; an upstream that is there has to
// be configured as an address.
func refuseLinkLocal(_, addr string, _ syscall.RawConn) error {
	if at, err := netip.ParseAddrPort(addr); err != nil || linkLocal(at.Addr()) {
		return fmt.Errorf("the upstream's name leads to the link-local address %s", addr)
	}
	return nil
}

func linkLocal(ip netip.Addr) bool {
	ip = ip.Unmap()
	return ip.IsLinkLocalUnicast() || ip.IsMulticast() || ip.IsUnspecified() || ip.WithZone("") == ec2Metadata
}

var ec2Metadata = netip.MustParseAddr("fd00:ec2::254")

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(c rune) bool { return c >= utf8.RuneSelf }) < 0
}
