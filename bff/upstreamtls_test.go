package bff_test

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"

	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"github.com/cloakroom-bff/cloakroom/bff"
	"math/big"
	"net"
	"testing"
	"time"
)

// serverCertificate returns a certificate for loopback addresses and localhost,
// and a client configuration that trusts it.
func serverCertificate(t *testing.T) (tls.Certificate, *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		DNSNames:    []string{"localhost", "upstream.test"},
		IsCA:        true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, &tls.Config{RootCAs: roots}
}

// handshakes serves with TLS and counts handshakes.
type handshakes struct {
	addr    string
	trust   *tls.Config
	all     atomic.Int32
	resumed atomic.Int32
	server  *httptest.Server
	offers  atomic.Pointer[[]string] // protocols
}

func newHandshakes(t *testing.T, h http.HandlerFunc, protocols ...string) *handshakes {
	t.Helper()
	cert, trust := serverCertificate(t)
	s := &handshakes{trust: trust}
	s.offers.Store(&protocols)
	s.server = httptest.NewUnstartedServer(h)
	s.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	s.server.EnableHTTP2 = true
	s.server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, Certificates: []tls.Certificate{cert}}
	count := func(state tls.ConnectionState) error {
		s.all.Add(1)
		if state.DidResume {
			s.resumed.Add(1)
		}
		return nil
	}
	base := s.server.TLS
	base.VerifyConnection = count
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		cfg := base.Clone() // with the same session ticket keys
		cfg.NextProtos = *s.offers.Load()
		return cfg, nil
	}
	base.SetSessionTicketKeys([][32]byte{{1}})
	s.server.StartTLS()
	t.Cleanup(s.server.Close)
	s.addr = s.server.Listener.Addr().String()
	return s
}

// take returns the number of handshakes since the last call, and how many of
// them were resumptions.
func (s *handshakes) take() (all, resumed int32) { return s.all.Swap(0), s.resumed.Swap(0) }

func shownCertificate(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	if strings.HasSuffix(r.URL.Path, "/hangup") {
		panic(http.ErrAbortHandler)
	}
	shown := "none"
	if certs := r.TLS.PeerCertificates; len(certs) > 0 {
		shown = certs[0].SerialNumber.String()
	}
	fmt.Fprint(w, r.Proto, " ", shown)
}

func TestTLSSessionsWithUpstreamsAreResumed(t *testing.T) {
	t.Parallel()
	for _, protocol := range []string{"h2", "http/1.1"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			s := newHandshakes(t, shownCertificate, protocol)
			a, b := newRoutedApp(t, bff.Route{
				Path:     "/tls/",
				Token:    "none",
				Upstream: []string{"https://" + s.addr},
				TLS:      s.trust,
			})
			for i := range 5 {
				if resp := b.Fetch("GET", "/tls/x"); resp.StatusCode != 200 {
					t.Fatalf("got %d %s, want 200\n%s", resp.StatusCode, resp.Text, a.logs)
				}
				all, resumed := s.take()
				if all != 1 || resumed != min(int32(i), 1) {
					t.Errorf("request %d: %d handshakes with %d resumptions", i, all, resumed)
				}
				s.server.CloseClientConnections()
			}
		})
	}
}

func TestFailedRequestCausesNoExtraHandshake(t *testing.T) {
	t.Parallel()
	for _, protocol := range []string{"h2", "http/1.1"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			s := newHandshakes(t, shownCertificate, protocol)
			_, b := newRoutedApp(t, bff.Route{
				Path:     "/tls/",
				Token:    "none",
				Upstream: []string{"https://" + s.addr},
				TLS:      s.trust,
			})
			b.Fetch("GET", "/tls/x")
			s.take()
			const requests = 5
			for range requests {
				if resp := b.Fetch("POST", "/tls/hangup"); resp.StatusCode != 502 {
					t.Errorf("got %d, want 502", resp.StatusCode)
				}
				if resp := b.Fetch("GET", "/tls/x"); resp.StatusCode != 200 {
					t.Errorf("the next request: got %d, want 200", resp.StatusCode)
				}
			}
			want := int32(requests) // HTTP/1.1: closes the connection
			if protocol == "h2" {
				want = 0 // HTTP/2: resets the stream
			}
			if all, _ := s.take(); all != want {
				t.Errorf("%d handshakes, want %d", all, want)
			}
		})
	}
}

func TestProtocolChangeOfAnUpstreamIsFollowed(t *testing.T) {
	t.Parallel()
	s := newHandshakes(t, shownCertificate, "h2", "http/1.1")
	a, b := newRoutedApp(t, bff.Route{
		Path:     "/tls/",
		Token:    "none",
		Upstream: []string{"https://" + s.addr},
		TLS:      s.trust,
	})
	for _, protocols := range [][]string{{"h2", "http/1.1"}, {"http/1.1"}, {"h2"}, nil, {"h2", "http/1.1"}} {
		s.offers.Store(&protocols)
		s.server.CloseClientConnections()
		want := "HTTP/1.1"
		if slices.Contains(protocols, "h2") {
			want = "HTTP/2.0"
		}
		for i := range 3 {
			body := strings.Repeat("x", 100)
			method := []string{"GET", "PUT", "DELETE"}[i]
			resp := b.Do(method, "/tls/x", body, "X-CSRF", "1")
			if resp.StatusCode != 200 || !strings.HasPrefix(resp.Text, want) {
				t.Errorf("%v, %s: got %d %s\n%s", protocols, method, resp.StatusCode, resp.Text, a.logs)
			}
		}
	}
}

// The server would resume a session for any client with the ticket.
func TestTLSSessionIsNotResumedWithOtherCertificates(t *testing.T) {
	t.Parallel()
	for _, protocol := range []string{"h2", "http/1.1"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			s := newHandshakes(t, shownCertificate, protocol)
			one, two := certificate(t, ecKey(t)), certificate(t, rsaKey(t, 2048))
			_, elsewhere := serverCertificate(t)
			routes := map[string]*tls.Config{
				"one":  {RootCAs: s.trust.RootCAs, Certificates: []tls.Certificate{*one}},
				"two":  {RootCAs: s.trust.RootCAs, Certificates: []tls.Certificate{*two}},
				"none": {RootCAs: s.trust.RootCAs},
			}
			shown := make(map[string][]byte)
			s.server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				for _, c := range r.TLS.PeerCertificates {
					w.Write(c.Raw)
				}
			})
			a := newApp(t, func(_ *app, cfg *bff.Config) {
				add := func(name string, trust *tls.Config) {
					cfg.Routes = append(cfg.Routes, bff.Route{
						Path: "/" + name + "/", Token: "none", Upstream: []string{"https://" + s.addr}, TLS: trust,
					})
				}
				for name, trust := range routes {
					add(name, trust)
				}
				add("mistrusts", elsewhere)
			})
			shown["one"], shown["two"] = one.Certificate[0], two.Certificate[0]
			b := a.browser()
			for range 4 {
				for name := range routes {
					resp := b.Fetch("GET", "/"+name+"/x")
					if resp.StatusCode != 200 || resp.Text != string(shown[name]) {
						t.Errorf("%s: got %d, and a certificate of %d bytes", name, resp.StatusCode, len(resp.Text))
					}
				}
				wantProblem(t, b.Fetch("GET", "/mistrusts/x"), 502, "upstream_failed")
				s.server.CloseClientConnections()
			}
			if _, resumed := s.take(); resumed == 0 {
				t.Error("no TLS session was resumed")
			}
		})
	}
}
