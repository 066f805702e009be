package http1

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// Ready must not report that more is there if the next part would have to be
// waited for: a proxy would keep what it has.
func TestReadyIsExact(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
	long := strings.Repeat("x", 512) // exactly the buffer below
	type body struct {
		raw  string
		data string // of raw
	}
	for _, test := range []body{
		{"3\r\nabc\r\n10;name=value\r\n0123456789abcdef\r\n0\r\nTrailer: x\r\n\r\n", "abc0123456789abcdef"},
		{"200\r\n" + long + "\r\n200\r\n" + long + "\r\n0\r\n\r\n", long + long},
	} {
		for split := 1; split < len(test.raw); split++ {
			first := decodeChunks(t, test.raw[:split])
			proceed := make(chan struct{})
			u := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
				http.ReadRequest(r)
				io.WriteString(c, head+test.raw[:split])
				<-proceed
				io.WriteString(c, test.raw[split:])
				r.ReadByte() // until the client closes the connection
			})
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			resp, err := u.roundTrip(request(t, "GET", "").WithContext(ctx))
			if err != nil {
				t.Fatal(err)
			}
			b := resp.Body.(interface {
				ReadPart(p []byte) (int, error)
				Ready() bool
			})
			var all []byte
			sent := 0 // what a proxy has passed on
			for proceeded := false; ; {
				if sent == len(first) && !proceeded {
					proceeded = true
					close(proceed)
				}
				part := make([]byte, 512)
				n, err := b.ReadPart(part)
				all = append(all, part[:n]...)
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatalf("%.40q in two parts at %d: %v after %d bytes, of which %d were sent; want %d sent",
						test.raw, split, err, len(all), sent, len(first))
				}
				if !b.Ready() {
					sent = len(all)
				}
			}
			if string(all) != test.data {
				t.Errorf("%.40q in two parts at %d: got %.60q, want %.60q", test.raw, split, all, test.data)
			}
			cancel()
			u.CloseIdle()
		}
	}
}

// The deadline of the response's head does not make a body look ready.
func TestReadyAfterTheHeaderTimeout(t *testing.T) {
	t.Parallel()
	u := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
		http.ReadRequest(r)
		io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
		r.ReadByte() // until the client closes the connection
	})
	u.HeaderTimeout = 5 * time.Second
	resp, err := u.roundTrip(request(t, "GET", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b := resp.Body.(*body)
	b.x.conn.setDeadline(time.Now()) // as if HeaderTimeout had passed
	for got := ""; got != "abc"; {
		part := make([]byte, 512)
		n, err := b.ReadPart(part)
		if err != nil {
			t.Fatal(err)
		}
		got += string(part[:n])
	}
	b.x.conn.setDeadline(time.Now())
	if b.Ready() {
		t.Error("the body is ready, although the upstream has sent nothing more")
	}
}

// lateConn returns the deadline's error beside the data, as TLS 1.2 can.
type lateConn struct{ net.Conn }

func (c lateConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if bytes.HasPrefix(p[:n], []byte("abc")) {
		err = os.ErrDeadlineExceeded
	}
	return n, err
}

func TestBodyKeepsWhatWasReadAtTheHeaderTimeout(t *testing.T) {
	t.Parallel()
	headRead := make(chan struct{})
	u := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
		http.ReadRequest(r)
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		<-headRead
		io.WriteString(c, "abc")
		time.Sleep(20 * time.Millisecond)
		io.WriteString(c, "def")
	})
	dial := u.Dial
	u.Dial = func(ctx context.Context) (net.Conn, error) {
		c, err := dial(ctx)
		return lateConn{c}, err
	}
	u.HeaderTimeout = 20 * time.Second
	resp, err := u.roundTrip(request(t, "GET", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	close(headRead)
	var got []byte
	for part := make([]byte, 2*readBuffer); err == nil; { // which is not read into the connection's buffer first
		var n int
		n, err = resp.Body.Read(part)
		got = append(got, part[:n]...)
	}
	if string(got) != "abcdef" || err != io.EOF {
		t.Errorf("got %q and %v", got, err)
	}
}

// decodeChunks returns the data in the beginning of a chunked body.
func decodeChunks(t *testing.T, raw string) []byte {
	t.Helper()
	var c chunks
	var data bytes.Buffer
	for b := []byte(raw); len(b) > 0; {
		n, isData := c.next(b)
		if n < 0 {
			t.Fatalf("invalid: %q", raw)
		}
		if isData {
			data.Write(b[:n])
		}
		b = b[n:]
	}
	return data.Bytes()
}

// What follows the end of a chunked body belongs to no response.
func TestMoreThanAChunkedBody(t *testing.T) {
	u := newResponder(t, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"+
		"HTTP/1.1 200 OK\r\n\r\n")
	for range 2 {
		resp, err := u.roundTrip(request(t, "GET", ""))
		if err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(resp.Body); string(text) != "x" || err != nil {
			t.Errorf("got %q, %v, want x", text, err)
		}
	}
	if n := u.connections.Load(); n != 2 {
		t.Errorf("got %d connections, want one for each request", n)
	}
}

func TestMalformedChunks(t *testing.T) {
	for _, raw := range []string{
		"x\r\n", "\r\n", "-1\r\n", "+1\r\n", "0x1\r\n", "1\nx\n0\n\n", "1\r\nxx\r\n0\r\n\r\n", "1\r\nx0\r\n\r\n",
		"1;\x00\r\nx\r\n0\r\n\r\n", "ffffffffffffffff\r\n", "0\r\nno colon\r\n\r\n", "0\r\nName : x\r\n\r\n",
		"0\r\n folded: x\r\n\r\n", "0\r\nName: \x00\r\n\r\n",
		"1;" + strings.Repeat("x", 2*maxLine) + "\r\nx\r\n0\r\n\r\n",
		"0\r\n" + strings.Repeat("Name: x\r\n", maxLine/4) + "\r\n",
	} {
		u := newResponder(t, fmt.Sprintf("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%s", raw))
		resp, err := u.roundTrip(request(t, "GET", ""))
		if err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("%.40q: got %.40q, nil, want an error", raw, text)
		}
		resp.Body.Close()
	}
}
