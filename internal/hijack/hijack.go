// Package hijack takes the connections of long responses over from net/http.
// Such a response keeps neither the handler's goroutine nor the buffers that a
// server has for each request. An idle event stream then costs little.
package hijack

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Response is a response whose length is not known when it begins, on a
// connection of its own. Its methods must not be called at the same time,
// except for Close, SetWriteDeadline and WaitForClient.
type Response struct {
	conn   net.Conn
	header http.Header
	broken bool // a part of a write is missing
}

// Take takes a connection over. It changes the header of w so that it fits the
// response. It returns nil, and has done nothing, if that is not possible: with
// HTTP/2, which keeps less, or if there is a body to read.
func Take(w http.ResponseWriter, c *http.ResponseController, r *http.Request) *Response {
	if r.ProtoMajor != 1 || r.ProtoMinor != 1 || r.Method != http.MethodGet || r.Body != http.NoBody {
		return nil
	}
	conn, _, err := c.Hijack()
	if err != nil {
		return nil
	}
	conn.SetDeadline(time.Time{}) // net/http has set one
	h := w.Header()
	h["Connection"], h["Transfer-Encoding"] = []string{"close"}, []string{"chunked"}
	if len(h["Date"]) == 0 { // RFC 9110, section 6.6.1
		h.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	}
	return &Response{conn: conn, header: h}
}

// WriteHeader writes the status line and the header. It is called first, once.
func (r *Response) WriteHeader(status int) error {
	head := bytes.NewBuffer(fmt.Appendf(nil, "HTTP/1.1 %03d %s\r\n", status, http.StatusText(status)))
	r.header.Write(head) // to memory: it does not fail
	r.header = nil
	head.WriteString("\r\n")
	return r.write(head.Bytes())
}

var buffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// Write writes the data as a chunk (RFC 9112, section 7.1), or as several if
// there is much.
func (r *Response) Write(p []byte) (int, error) {
	buf := buffers.Get().(*[32 << 10]byte)
	defer buffers.Put(buf)
	const room = len(buf) - 16
	for written := 0; written < len(p); {
		part := p[written:min(len(p), written+room)]
		b := strconv.AppendInt(buf[:0], int64(len(part)), 16)
		b = append(b, "\r\n"...)
		b = append(b, part...)
		b = append(b, "\r\n"...)
		if err := r.write(b); err != nil {
			return written, err
		}
		written += len(part)
	}
	return len(p), nil
}

func (r *Response) write(b []byte) error {
	_, err := r.conn.Write(b)
	r.broken = r.broken || err != nil
	return err
}

// Finish writes the last chunk, unless a write has failed. Then the response is
// complete. Without it, a client takes the response for one that was cut off,
// and some proxies do not tell their client of the end at all.
func (r *Response) Finish() {
	if !r.broken {
		r.write([]byte("0\r\n\r\n"))
	}
}

// SetWriteDeadline limits how long a write may wait for the client.
func (r *Response) SetWriteDeadline(t time.Time) error { return r.conn.SetWriteDeadline(t) }

// Close closes the connection.
func (r *Response) Close() { r.conn.Close() }

// Reset closes a connection that was taken over so that its client sees that
// something is missing: neither TCP nor TLS ends in order.
func Reset(c net.Conn) {
	for {
		outer, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		c = outer.NetConn()
	}
	if tcp, ok := c.(interface{ SetLinger(seconds int) error }); ok {
		tcp.SetLinger(0)
	}
	c.Close()
}

// WaitForClient waits until the client leaves, or the connection is closed.
// What the client sends is ignored, up to maxIgnored: no client of a stream
// sends much. Besides, an http1.ServerConn yields letters without end instead
// of a head that is too large, and no longer notices that the client leaves.
func (r *Response) WaitForClient() {
	var b [16]byte
	for ignored := 0; ignored <= maxIgnored; {
		n, err := r.conn.Read(b[:])
		if ignored += n; err != nil {
			return
		}
	}
}

const maxIgnored = 64 << 10

var _ io.Writer = (*Response)(nil)
