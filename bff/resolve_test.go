package bff_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// nameServer responds to every query for an IPv4 address with its records.
type nameServer struct {
	conn    net.PacketConn
	records atomic.Pointer[[]string]
}

func newNameServer(t *testing.T, records ...string) *nameServer {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	n := &nameServer{conn: conn}
	n.set(records...)
	go func() { // until the test ends
		for b := make([]byte, 512); ; {
			size, peer, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			if reply := n.reply(b[:size]); reply != nil {
				conn.WriteTo(reply, peer)
			}
		}
	}()
	return n
}

func (n *nameServer) set(records ...string) { n.records.Store(&records) }

// reply returns the response to a query (RFC 1035 4.1), nil if there are no
// records, as if the server were down.
func (n *nameServer) reply(query []byte) []byte {
	records := *n.records.Load()
	const header = 12
	end := header
	for end < len(query) && query[end] != 0 {
		end += 1 + int(query[end])
	}
	end += 5
	if end > len(query) || len(records) == 0 {
		return nil
	}
	kind := binary.BigEndian.Uint16(query[end-4:])
	b := append([]byte(nil), query[:2]...)
	b = append(b, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0)
	b = append(b, query[header:end]...)
	if kind != 1 {
		return b
	}
	for _, r := range records {
		b = append(b, 0xc0, header, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4)
		b = append(b, net.ParseIP(r).To4()...)
	}
	binary.BigEndian.PutUint16(b[6:], uint16(len(records)))
	return b
}

func (n *nameServer) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", n.conn.LocalAddr().String())
	}}
}

// host is a server at one address of a name. Its responses identify it.
type host struct {
	ip    string
	open  atomic.Int32 // connections
	calls atomic.Int32
	stop  func()
}

// newHosts starts servers on the same port of several addresses.
func newHosts(t *testing.T, kind string, ips ...string) (hosts []*host, port string, trust *tls.Config) {
	t.Helper()
	cert, trust := serverCertificate(t)
	port = "0"
	if !slices.Contains(ips, "127.0.0.1") {
		port = reservePort(t)
	}
	for _, ip := range ips {
		l, err := net.Listen("tcp", net.JoinHostPort(ip, port))
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ = net.SplitHostPort(l.Addr().String())
		h := &host{ip: ip}
		s := &http.Server{ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0), Protocols: new(http.Protocols)}
		s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h.calls.Add(1)
			io.Copy(io.Discard, r.Body)
			io.WriteString(w, ip)
		})
		s.ConnState = func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				h.open.Add(1)
			case http.StateClosed, http.StateHijacked:
				h.open.Add(-1)
			}
		}
		s.Protocols.SetHTTP1(kind != "h2c")
		s.Protocols.SetHTTP2(true)
		s.Protocols.SetUnencryptedHTTP2(kind == "h2c")
		if kind == "https" {
			s.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}}
			go s.ServeTLS(l, "", "") // until stop
		} else {
			go s.Serve(l)
		}
		h.stop = func() { s.Close() }
		t.Cleanup(h.stop)
		hosts = append(hosts, h)
	}
	return hosts, port, trust
}

// reservePort returns a port of 127.0.0.1 that refuses connections until the
// test ends. Otherwise the server of another test might get it.
func reservePort(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	address, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(address.(*syscall.SockaddrInet4).Port)
}

// newNamedApp starts a broker with a route to a host name.
func newNamedApp(t *testing.T, n *nameServer, kind, port string, trust *tls.Config) (*app, *bfftest.Browser) {
	t.Helper()
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Routes = append(cfg.Routes, bff.Route{
			Path: "/named/", Token: "none", Upstream: []string{kind + "://upstream.test:" + port}, TLS: trust,
			Timeouts: bff.Timeouts{Connect: 2 * time.Second},
		})
	})
	a.server.SetResolver(n.resolver())
	return a, a.browser()
}

func TestAllAddressesOfANameAreUsedAndFollowed(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	for _, kind := range []string{"http", "h2c", "https"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			hosts, port, trust := newHosts(t, kind, "127.0.0.1", "127.0.0.2", "127.0.0.3")
			n := newNameServer(t, "127.0.0.1", "127.0.0.2")
			a, b := newNamedApp(t, n, kind, port, trust)
			get := func(i int) string {
				t.Helper()
				resp := b.Fetch([]string{"GET", "POST"}[i%2], "/named/x")
				if resp.StatusCode != 200 {
					t.Fatalf("got %d %s, want 200\n%s", resp.StatusCode, resp.Text, a.logs)
				}
				return resp.Text
			}
			for i := range 20 {
				get(i)
			}
			if one, two := hosts[0].calls.Load(), hosts[1].calls.Load(); one < 5 || two < 5 {
				t.Errorf("of 20 requests the addresses got %d and %d", one, two)
			}
			n.set("127.0.0.3")
			moved := 0
			for deadline := time.Now().Add(30 * time.Second); moved < 10; time.Sleep(20 * time.Millisecond) {
				if get(0) == "127.0.0.3" {
					moved++
				} else if moved = 0; time.Now().After(deadline) {
					t.Fatal("requests do not follow the name")
				}
			}
			for _, h := range hosts[:2] {
				for deadline := time.Now().Add(20 * time.Second); h.open.Load() > 0; time.Sleep(20 * time.Millisecond) {
					if time.Now().After(deadline) {
						t.Fatalf("%d connections to %s stay open", h.open.Load(), h.ip)
					}
				}
			}
			n.set() // an outage of the name service
			for until := time.Now().Add(7 * time.Second); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
				get(0)
			}
			n.set("127.0.0.2", "127.0.0.1")
			hosts[2].stop() // the old address fails immediately, and the name has another one
			resp := b.Fetch("GET", "/named/x")
			if resp.StatusCode != 200 {
				t.Errorf("after the name changed and its address failed: got %d %s, want 200",
					resp.StatusCode, resp.Text)
			}
		})
	}
}

func TestUnreachableResolvedAddressFailsNoRequest(t *testing.T) {
	t.Parallel()
	hosts, port, trust := newHosts(t, "http", "127.0.0.1", "127.0.0.2", "127.0.0.3")
	n := newNameServer(t, "127.0.0.1", "127.0.0.2", "127.0.0.3")
	a, b := newNamedApp(t, n, "http", port, trust)
	hosts[1].stop()
	for range 30 {
		if resp := b.Fetch("POST", "/named/x"); resp.StatusCode != 200 {
			t.Fatalf("got %d %s, want 200\n%s", resp.StatusCode, resp.Text, a.logs)
		}
	}
	if hosts[0].calls.Load() < 5 || hosts[2].calls.Load() < 5 {
		t.Errorf("%d and %d requests", hosts[0].calls.Load(), hosts[2].calls.Load())
	}
	hosts[0].stop()
	hosts[2].stop()
	wantProblem(t, b.Fetch("POST", "/named/x"), 502, "upstream_failed") // one URL, whatever addresses the name has
}

func TestFailedResolutionIsRetried(t *testing.T) {
	t.Parallel()
	_, port, trust := newHosts(t, "http", "127.0.0.1")
	n := newNameServer(t, "169.254.169.254")
	a, b := newNamedApp(t, n, "http", port, trust)
	resp := b.Fetch("GET", "/named/x")
	wantProblem(t, resp, 502, "upstream_failed")
	if !strings.Contains(a.logs.String(), "link-local") {
		t.Errorf("the log does not name the cause:\n%s", a.logs)
	}
	n.set("127.0.0.1")
	deadline := time.Now().Add(20 * time.Second)
	for ; b.Fetch("GET", "/named/x").StatusCode != 200; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("an address that stays unreachable")
		}
	}
}

func TestLocalhostWorksWithEitherFamily(t *testing.T) {
	t.Parallel()
	for _, ip := range []string{"127.0.0.1", "::1"} {
		for _, kind := range []string{"http", "h2c", "https"} {
			t.Run(fmt.Sprint(kind, " at ", ip), func(t *testing.T) {
				t.Parallel()
				_, port, trust := newHosts(t, kind, ip)
				a, b := newRoutedApp(t, bff.Route{
					Path: "/local/", Token: "none", Upstream: []string{kind + "://localhost:" + port}, TLS: trust,
				})
				for i := range 10 {
					resp := b.Fetch([]string{"POST", "GET"}[i%2], "/local/x")
					if resp.StatusCode != 200 || resp.Text != ip {
						t.Errorf("got %d %s\n%s", resp.StatusCode, resp.Text, a.logs)
					}
				}
			})
		}
	}
}
