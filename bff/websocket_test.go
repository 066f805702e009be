package bff_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

// switchProtocols accepts a WebSocket at the upstream. It returns the
// connection and what was read from it already.
func switchProtocols(rw http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		return nil, nil, err
	}
	conn.SetDeadline(time.Now().Add(testTimeout))
	_, err = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"+
		"Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
	return conn, buffered, err
}

// upgradeHead returns the request to open a WebSocket, with a Connection
// header.
func (w *protocolPair) upgradeHead(target, connection string) string {
	return w.head("GET", target) + "Connection: " + connection + "\r\nUpgrade: websocket\r\n" +
		"Origin: " + w.url + "\r\nSec-WebSocket-Version: 13\r\n" +
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
}

// openSocket requests a WebSocket, and returns its connection and the response.
func (w *protocolPair) openSocket(t *testing.T, target string) (*net.TCPConn, *bufio.Reader, *http.Response) {
	t.Helper()
	c, r := w.dial(t)
	io.WriteString(c, w.upgradeHead(target, "keep-alive, Upgrade"))
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c, r, resp
}

// socketFrame returns a masked binary frame (RFC 6455, section 5.2).
func socketFrame(payload []byte) []byte {
	b := []byte{0x82}
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	mask := []byte{1, 2, 3, 4}
	b = append(b, mask...)
	for i, c := range payload {
		b = append(b, c^mask[i%4])
	}
	return b
}

func TestWebSocketFramesOfEverySize(t *testing.T) {
	eachUpstreamProtocol(t, 1, func(t *testing.T, w *protocolPair) {
		w.handle(func(rw http.ResponseWriter, r *http.Request) {
			for _, name := range []string{"Sec-WebSocket-Key", "Authorization"} {
				if r.Header.Get(name) == "" {
					t.Errorf("%s at the upstream: got none", name)
				}
			}
			for name, want := range map[string]string{"Connection": "Upgrade", "Cookie": ""} {
				if got := r.Header.Get(name); got != want {
					t.Errorf("%s at the upstream: got %q, want %q", name, got, want)
				}
			}
			conn, buffered, err := switchProtocols(rw)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			io.Copy(conn, buffered)
		})
		c, r, resp := w.openSocket(t, "x")
		if resp.StatusCode != 101 {
			t.Fatalf("got %d, want 101", resp.StatusCode)
		}
		wantHeader(t, "response", resp, "Upgrade", "websocket")
		wantHeader(t, "response", resp, "Connection", "Upgrade")
		wantHeader(t, "response", resp, "Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
		var all bytes.Buffer
		for _, size := range []int{0, 1, 125, 126, 1<<16 - 1, 1 << 16, 1 << 20} {
			f := socketFrame(bytes.Repeat(block[:1<<18], size>>18+1)[:size])
			all.Write(f)
			if size <= 126 { // none waits for the next one
				c.Write(f)
				wantBytes(t, fmt.Sprintf("frame of %d bytes", size), r, string(f))
				all.Reset()
			}
		}
		sent := all.Bytes()
		go func() { // until all is written
			c.Write(sent)
			c.CloseWrite()
		}()
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, sent) {
			t.Errorf("got %d bytes, %v, want the %d bytes that were sent", len(got), err, len(sent))
		}
	})
}

func TestWebSocketHalfClose(t *testing.T) {
	eachUpstreamProtocol(t, 1, func(t *testing.T, w *protocolPair) {
		got := make(chan string, 1)
		w.handle(func(rw http.ResponseWriter, r *http.Request) {
			conn, buffered, err := switchProtocols(rw)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			if strings.HasSuffix(r.URL.Path, "/first") {
				io.WriteString(conn, "goodbye")
				conn.(interface{ CloseWrite() error }).CloseWrite()
			}
			text, err := io.ReadAll(buffered)
			got <- fmt.Sprintf("%s %v", text, err)
			if strings.HasSuffix(r.URL.Path, "/second") {
				io.WriteString(conn, "goodbye")
			}
		})
		for _, target := range []string{"first", "second"} {
			c, r, resp := w.openSocket(t, target)
			if resp.StatusCode != 101 {
				t.Fatalf("%s: got %d, want 101", target, resp.StatusCode)
			}
			if target == "first" {
				wantBytes(t, "before the upstream closes", r, "goodbye")
				wantEnd(t, "after the upstream has closed", r)
			}
			io.WriteString(c, "still here")
			c.CloseWrite()
			if text := await(t, target+": the upstream reads EOF", got); text != "still here <nil>" {
				t.Errorf("%s: got %q at the upstream, want %q", target, text, "still here <nil>")
			}
			if target == "second" {
				wantBytes(t, "after the client has closed", r, "goodbye")
			}
			wantEnd(t, target, r)
		}
	})
}

// A client whose network fails sends no end. An upstream that only waits for it
// would keep the connection, and Cloakroom too.
func TestWebSocketEndsWithAReset(t *testing.T) {
	eachUpstreamProtocol(t, 1, func(t *testing.T, w *protocolPair) {
		begun, ended := make(chan net.Conn, 1), make(chan struct{})
		w.handle(func(rw http.ResponseWriter, r *http.Request) {
			conn, buffered, err := switchProtocols(rw)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			begun <- conn
			io.Copy(io.Discard, buffered)
			ended <- struct{}{}
		})
		for _, end := range []string{"client", "upstream"} {
			c, r, resp := w.openSocket(t, "x")
			if resp.StatusCode != 101 {
				t.Fatalf("got %d, want 101", resp.StatusCode)
			}
			upstream := await(t, "the WebSocket at the upstream", begun)
			if end == "client" {
				c.SetLinger(0)
				c.Close()
			} else {
				if secure, ok := upstream.(*tls.Conn); ok {
					upstream = secure.NetConn()
				}
				upstream.(*net.TCPConn).SetLinger(0)
				upstream.Close()
				if _, err := r.ReadByte(); err == nil {
					t.Error("the client reads data, want the end")
				}
			}
			await(t, "the end at the upstream after a reset by the "+end, ended)
		}
	})
}

func TestUpgradeDeclinedByTheUpstream(t *testing.T) {
	eachUpstreamProtocol(t, 1, func(t *testing.T, w *protocolPair) {
		for _, status := range []int{200, 403, 426} {
			w.handle(func(rw http.ResponseWriter, r *http.Request) {
				rw.Header().Set("X-Reason", "full")
				rw.WriteHeader(status)
				io.WriteString(rw, "no WebSocket")
			})
			c, r, resp := w.openSocket(t, "x")
			if resp.StatusCode != status {
				t.Errorf("got %d, want %d", resp.StatusCode, status)
			}
			name := strconv.Itoa(status)
			wantHeader(t, name, resp, "X-Reason", "full")
			wantHeader(t, name, resp, "Upgrade", "")
			if !resp.Close {
				t.Errorf("%s: got no Connection: close", name)
			}
			text, err := io.ReadAll(resp.Body)
			if string(text) != "no WebSocket" || err != nil {
				t.Errorf("%s: got %q, %v, want %q", name, text, err, "no WebSocket")
			}
			// What follows on the connection could not be validated.
			before := w.calls.Load()
			io.WriteString(c, w.head("GET", "x?behind")+"\r\n")
			if rest, _ := io.ReadAll(r); len(rest) > 0 {
				t.Errorf("%s: got %q after the response, want nothing", name, rest)
			}
			if got := w.calls.Load() - before; got > 0 {
				t.Errorf("%s: got %d more calls of the upstream, want 0", name, got)
			}
		}
	})
}

func TestRefusedUpgradeDialsNoUpstream(t *testing.T) {
	eachUpstreamProtocol(t, 1, func(t *testing.T, w *protocolPair) {
		w.handle(echoNonce)
		for name, test := range map[string]struct {
			old, new string
			status   int
		}{
			"another origin":       {"Origin: " + w.url, "Origin: https://evil.example", 403},
			"origin null":          {"Origin: " + w.url, "Origin: null", 403},
			"no origin":            {"Origin: " + w.url, "X-Origin: none", 403},
			"two origins":          {"Origin: " + w.url, "Origin: " + w.url + "\r\nOrigin: https://evil.example", 403},
			"cross-site":           {"Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site", 403},
			"HTTP/1.0":             {" HTTP/1.1\r\n", " HTTP/1.0\r\n", 400},
			"a POST":               {"GET ", "POST ", 400},
			"no session":           {"Cookie: cloakroom", "X-Cookie: none", 401},
			"two protocols":        {"Upgrade: websocket", "Upgrade: websocket\r\nUpgrade: h2c", 400},
			"two protocols in one": {"Upgrade: websocket", "Upgrade: h2c, websocket", 400},
		} {
			c, r := w.dial(t)
			request := w.upgradeHead("x", "Upgrade")
			if !strings.Contains(request, test.old) {
				t.Fatalf("%s: the request does not contain %q", name, test.old)
			}
			io.WriteString(c, strings.Replace(request, test.old, test.new, 1))
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if resp.StatusCode != test.status {
				t.Errorf("%s: got %d, want %d", name, resp.StatusCode, test.status)
			}
			io.Copy(io.Discard, resp.Body)
			if rest, _ := io.ReadAll(r); len(rest) > 0 {
				t.Errorf("%s: got %q after the response, want nothing", name, rest)
			}
		}
		if got := w.conns.Load(); got > 0 {
			t.Errorf("connections to the upstream: got %d, want 0", got)
		}
	})
}
