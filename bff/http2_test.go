package bff_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

func TestConcurrentStreamsOfOneHTTP2Connection(t *testing.T) {
	eachUpstreamProtocol(t, 2, func(t *testing.T, w *protocolPair) {
		const streams, size = 50, 4 << 20
		var arrived atomic.Int32
		allArrived := make(chan struct{})
		handler := func(rw http.ResponseWriter, r *http.Request) {
			switch r.URL.RawQuery {
			case "download":
				io.Copy(rw, newSource(size))
			case "upload":
				got, err := checksum(r.Body)
				fmt.Fprint(rw, got, " ", err)
			case "canceled":
				rw.Header().Set("X-Begun", "1")
				flush(rw)
				<-r.Context().Done()
			default:
				if arrived.Add(1) == streams {
					close(allArrived)
				}
				select {
				case <-allArrived:
					echoNonce(rw, r)
				case <-r.Context().Done():
				}
			}
		}
		first := probe{method: "POST", nonce: "first"} // opens the connection
		w.handle(echoNonce)
		if err := first.send(t, w); err != nil {
			t.Fatal(err)
		}
		w.handle(handler)
		before := w.protocolServer.conns.Load()
		var all sync.WaitGroup
		for i := range streams {
			all.Go(func() {
				p := probe{method: "GET", nonce: fmt.Sprint("stream ", i), more: 100 * i}
				if err := p.send(t, w); err != nil {
					t.Error(err)
				}
			})
		}
		for _, query := range []string{"download", "upload", "canceled"} {
			all.Go(func() {
				src := newSource(size)
				req := w.request(t, "GET", "x?"+query, nil)
				ctx, cancel := context.WithCancel(req.Context())
				defer cancel()
				if query == "upload" {
					req.Method, req.Body = "POST", io.NopCloser(src)
					req.ContentLength = -1
				}
				resp, err := w.client.Do(req.WithContext(ctx))
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				if query == "canceled" { // resets this stream, which must not affect the others
					cancel()
					return
				}
				got, err := io.ReadAll(resp.Body)
				if err != nil {
					t.Errorf("%s: %v", query, err)
				}
				if want := src.checksum() + " <nil>"; query == "upload" && string(got) != want {
					t.Errorf("upload: got %.100q at the upstream, want %s", got, want)
				}
				if query == "download" && len(got) != size {
					t.Errorf("download: got %d bytes, want %d", len(got), size)
				}
			})
		}
		all.Wait()
		if got := w.protocolServer.conns.Load() - before; got > 0 {
			t.Errorf("further connections of the browser: got %d, want 0", got)
		}
	})
}

// requestHTTP2 sends an HTTP/2 request with exactly these header fields on a
// new connection, and returns the status of the response. The status is 0 if
// the stream or the connection is reset. A CONNECT request goes on after its
// header.
func requestHTTP2(t *testing.T, c net.Conn, fields ...string) (status int) {
	t.Helper()
	c.SetDeadline(time.Now().Add(testTimeout))
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for field := range slices.Chunk(fields, 2) {
		encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]})
	}
	io.WriteString(c, http2.ClientPreface)
	framer := http2.NewFramer(c, c)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	framer.WriteSettings()
	framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: !slices.Contains(fields, "CONNECT"),
	})
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			t.Fatalf("%v: %v", fields, err)
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			status, err = strconv.Atoi(frame.PseudoValue("status"))
			if err != nil {
				t.Fatalf("%v: %v", fields, err)
			}
			return status
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return 0
		}
	}
}

// A malformed request must not become a valid one at the upstream (RFC 9113,
// section 8.1.1).
func TestMalformedHTTP2RequestsAreNotForwarded(t *testing.T) {
	f := newProtocolServer(t, nil)
	host := strings.TrimPrefix(f.url, "http://")
	cookie := f.browser.Cookies()[0]
	for _, w := range f.pairs {
		if w.browser != 2 {
			continue
		}
		w.handle(func(rw http.ResponseWriter, r *http.Request) { io.Copy(rw, r.Body) })
		for name, test := range map[string]struct {
			target string
			length []string
			status int
		}{
			"no body":                 {"x", nil, 200},
			"a length of 0":           {"x", []string{"content-length", "0"}, 200},
			"a length without a body": {"x", []string{"content-length", "5"}, 400},
			"a sign":                  {"x", []string{"content-length", "+0"}, 400},
			"letters":                 {"x", []string{"content-length", "abc"}, 400},
			"an empty length":         {"x", []string{"content-length", ""}, 400},
			"a length too large":      {"x", []string{"content-length", "99999999999999999999"}, 400},
			"two lengths":             {"x", []string{"content-length", "0", "content-length", "0"}, 400},
			"a space in the path":     {"x HTTP/1.1", nil, 400},
			"a space in the query":    {"x?y HTTP/1.1", nil, 400},
		} {
			c := f.dialHTTP2(t)
			before := w.calls.Load()
			fields := []string{
				":method", "POST", ":scheme", "https", ":authority", host, ":path", w.path + test.target,
			}
			fields = append(fields, test.length...)
			fields = append(fields, "cookie", cookie.Name+"="+cookie.Value, "sec-fetch-site", "same-origin")
			if got := requestHTTP2(t, c, fields...); got != test.status {
				t.Errorf("%s: %s: got status %d, want %d", w.name, name, got, test.status)
			}
			if called := w.calls.Load() > before; called != (test.status == 200) {
				t.Errorf("%s: %s: got a call of the upstream %v, want %v", w.name, name, called, !called)
			}
		}
	}
}

// A proxy in front could take a whole URL in :path for another path than
// net/url does (RFC 9113, section 8.3.1).
func TestHTTP2PathHasNeitherSchemeNorHost(t *testing.T) {
	t.Parallel()
	f := newProtocolServer(t, nil)
	w := f.pairs[0]
	w.handle(func(http.ResponseWriter, *http.Request) {})
	host := strings.TrimPrefix(f.url, "http://")
	cookie := f.browser.Cookies()[0]
	for before, want := range map[string]int{
		"": 200, "https://" + host: 400, "https://evil.example": 400, "https://": 400, "https:": 400, "foo:": 400,
	} {
		got := requestHTTP2(t, f.dialHTTP2(t), ":method", "GET", ":scheme", "https", ":authority", host,
			":path", before+w.path+"x", "cookie", cookie.Name+"="+cookie.Value, "sec-fetch-site", "same-origin")
		if got != want {
			t.Errorf("%q before the path: got status %d, want %d", before, got, want)
		}
	}
}

// A request without a body arrives without one. Otherwise each GET would have a
// body in HTTP/2, and a Content-Length in HTTP/1.1.
func TestRequestWithoutABodyHasNoneAtTheUpstream(t *testing.T) {
	eachProtocolPair(t, func(t *testing.T, w *protocolPair) {
		w.handle(func(rw http.ResponseWriter, r *http.Request) {
			fmt.Fprint(rw, r.ContentLength, r.Header["Content-Length"], r.TransferEncoding)
		})
		for method, want := range map[string]string{"GET": "0 [] []", "DELETE": "0 [] []"} {
			wantBytes(t, method, w.do(t, w.request(t, method, "x", nil)).Body, want)
		}
	})
}

// CONNECT is refused. So is a WebSocket over HTTP/2 (RFC 8441), whose handshake
// would need the same checks as one over HTTP/1.1.
func TestCONNECTIsRefusedInHTTP2(t *testing.T) {
	f := newProtocolServer(t, nil)
	w := f.pairs[0]
	w.handle(func(http.ResponseWriter, *http.Request) {})
	host := strings.TrimPrefix(f.url, "http://")
	cookie := f.browser.Cookies()[0]
	common := []string{"cookie", cookie.Name + "=" + cookie.Value, "sec-fetch-site", "same-origin", "origin", f.url}
	target := []string{":scheme", "https", ":authority", host, ":path", w.path + "x"}
	for _, test := range []struct {
		name    string
		fields  []string
		refused bool
	}{
		{"GET", append([]string{":method", "GET"}, target...), false},
		{"WebSocket", append([]string{":method", "CONNECT", ":protocol", "websocket"}, target...), true},
		{"tunnel", []string{":method", "CONNECT", ":authority", host}, true},
		{"tunnel to the upstream", []string{
			":method", "CONNECT", ":authority", w.upstream.Listener.Addr().String(),
		}, true},
	} {
		before := w.calls.Load()
		c := f.dialHTTP2(t)
		if got := requestHTTP2(t, c, append(test.fields, common...)...); (got != 200) != test.refused {
			t.Errorf("%s: got status %d, want refused %v", test.name, got, test.refused)
		}
		if called := w.calls.Load() > before; called == test.refused {
			t.Errorf("%s: got a call of the upstream %v, want %v", test.name, called, !test.refused)
		}
	}
}
