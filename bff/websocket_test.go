package bff_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// switched switches an upstream's connection to another protocol.
func switched(rw http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		return nil, nil, err
	}
	conn.SetDeadline(time.Now().Add(patience))
	_, err = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
	return conn, buffered, err
}

// openSocket asks for a WebSocket.
func (w *way) openSocket(t *testing.T, target string) (*net.TCPConn, *bufio.Reader, *http.Response) {
	t.Helper()
	c, r := w.dial(t)
	io.WriteString(c, w.head("GET", target)+"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nOrigin: "+w.url+"\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c, r, resp
}

// eachSocket runs a test for every kind of upstream: a browser opens its WebSockets over HTTP/1.1.
func eachSocket(t *testing.T, test func(t *testing.T, w *way)) {
	t.Helper()
	eachWayOf(t, 1, test)
}

// socketFrame is a frame as a browser sends it (RFC 6455 5.2).
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

func TestFramesOfEverySizePassBothWaysOnAWebSocket(t *testing.T) {
	eachSocket(t, func(t *testing.T, w *way) {
		w.answers(func(rw http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Sec-WebSocket-Key") == "" || r.Header.Get("Connection") != "Upgrade" || r.Header.Get("Authorization") == "" || r.Header.Get("Cookie") != "" {
				t.Errorf("the upstream got %v", r.Header)
			}
			conn, buffered, err := switched(rw)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			io.Copy(conn, buffered)
		})
		c, r, resp := w.openSocket(t, "x")
		if resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "websocket" || resp.Header.Get("Connection") != "Upgrade" || resp.Header.Get("Sec-WebSocket-Accept") == "" {
			t.Fatalf("got %d %v", resp.StatusCode, resp.Header)
		}
		var all bytes.Buffer
		for _, size := range []int{0, 1, 125, 126, 1<<16 - 1, 1 << 16, 1 << 20} {
			f := socketFrame(bytes.Repeat(block[:1<<18], size>>18+1)[:size])
			all.Write(f)
			if size <= 126 { // one at a time: none waits for the next
				c.Write(f)
				wantBytes(t, fmt.Sprintf("a frame of %d bytes", size), r, string(f))
				all.Reset()
			}
		}
		sent := all.Bytes()
		go func() {
			c.Write(sent)
			c.CloseWrite()
		}()
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, sent) {
			t.Errorf("%d bytes came back of %d, %v", len(got), len(sent), err)
		}
	})
}

func TestAWebSocketIsClosedHalfFromEitherSide(t *testing.T) {
	eachSocket(t, func(t *testing.T, w *way) {
		got := make(chan string, 1)
		w.answers(func(rw http.ResponseWriter, r *http.Request) {
			conn, buffered, err := switched(rw)
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
				t.Fatalf("got %d", resp.StatusCode)
			}
			if target == "first" {
				wantBytes(t, "before the upstream's end", r, "goodbye")
				wantEnd(t, "the upstream's side", r)
			}
			io.WriteString(c, "still here")
			c.CloseWrite()
			if text := await(t, target+": the upstream sees the end", got); text != "still here <nil>" {
				t.Errorf("%s: the upstream got %q", target, text)
			}
			if target == "second" {
				wantBytes(t, "after the client's end", r, "goodbye")
			}
			wantEnd(t, target, r)
		}
	})
}

func TestAnAnswerToAnUpgradeThatIsNoneIsAnAnswer(t *testing.T) {
	eachSocket(t, func(t *testing.T, w *way) {
		for _, status := range []int{200, 403, 426} {
			w.answers(func(rw http.ResponseWriter, r *http.Request) {
				rw.Header().Set("X-Reason", "full")
				rw.WriteHeader(status)
				io.WriteString(rw, "no WebSocket")
			})
			c, r, resp := w.openSocket(t, "x")
			text, err := io.ReadAll(resp.Body)
			if resp.StatusCode != status || string(text) != "no WebSocket" || err != nil || resp.Header.Get("X-Reason") != "full" || resp.Header.Get("Upgrade") != "" || !resp.Close {
				t.Errorf("%d: got %d %v %q, %v", status, resp.StatusCode, resp.Header, text, err)
			}
			before := w.calls.Load()
			io.WriteString(c, w.head("GET", "x?behind")+"\r\n") // what is behind was not looked at
			if rest, _ := io.ReadAll(r); len(rest) > 0 || w.calls.Load() > before {
				t.Errorf("%d: behind it came %q", status, rest)
			}
		}
	})
}

func TestAnUpgradeThatIsRefusedDialsNobody(t *testing.T) {
	eachSocket(t, func(t *testing.T, w *way) {
		w.answers(echoNonce)
		for name, test := range map[string]struct {
			old, new string
			status   int
		}{
			"another origin":       {"Origin: " + w.url, "Origin: https://evil.example", 403},
			"the origin null":      {"Origin: " + w.url, "Origin: null", 403},
			"no origin":            {"Origin: " + w.url, "X-Origin: none", 403},
			"two origins":          {"Origin: " + w.url, "Origin: " + w.url + "\r\nOrigin: https://evil.example", 403},
			"from another site":    {"Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site", 403},
			"HTTP/1.0":             {" HTTP/1.1\r\n", " HTTP/1.0\r\n", 400},
			"a POST":               {"GET ", "POST ", 400},
			"nobody is signed in":  {"Cookie: cloakroom", "X-Cookie: none", 401},
			"two protocols":        {"Upgrade: websocket", "Upgrade: websocket\r\nUpgrade: h2c", 400},
			"two protocols in one": {"Upgrade: websocket", "Upgrade: h2c, websocket", 400},
		} {
			c, r := w.dial(t)
			request := w.head("GET", "x") + "Connection: Upgrade\r\nUpgrade: websocket\r\nOrigin: " + w.url + "\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
			if !strings.Contains(request, test.old) {
				t.Fatalf("%s: there is no %q to replace", name, test.old)
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
				t.Errorf("%s: then came %q", name, rest)
			}
		}
		if n := w.conns.Load(); n > 0 {
			t.Errorf("the upstream was dialled %d times", n)
		}
	})
}
