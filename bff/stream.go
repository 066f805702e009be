package bff

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// stream lets an event stream go on without the handler and without what a server keeps for a request, for most of its life nothing moves in it: two small
// goroutines remain, where there were two large ones and their buffers. It returns false, and has done nothing, where that cannot be done: on HTTP/2, which
// keeps less. The connection is closed after the stream.
func (x *exchange) stream(ctx context.Context) bool {
	r := x.r
	if r.ProtoMajor != 1 || r.ProtoMinor != 1 || r.Method != http.MethodGet || r.Body != http.NoBody || x.resp.ContentLength >= 0 {
		return false
	}
	client, _, err := x.writer.Load().Hijack()
	if err != nil {
		return false
	}
	client.SetDeadline(time.Time{}) // the server's
	w := &response{
		began: x.w.began, requestID: x.w.requestID, client: x.w.client, method: x.w.method, path: x.w.path, session: x.w.session, status: x.resp.StatusCode,
	}
	h := x.w.Header()
	h["Connection"], h["Transfer-Encoding"] = []string{"close"}, []string{"chunked"}
	if len(h["Date"]) == 0 { // RFC 9110, section 6.6.1
		h.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	}
	x.freeHeader()
	x.clientLeft() // the server does not look any more
	x.w.streams = true
	x.w, x.r, x.current = w, nil, nil
	x.forgetWriter()
	x.s.streams.Go(func() { x.pump(ctx, client, h) }) // until either side, the session or the server ends
	return true
}

// pump writes a stream's header, and then what comes.
func (x *exchange) pump(ctx context.Context, client net.Conn, h http.Header) {
	defer func() {
		if cause := recover(); cause != nil {
			x.s.logPanic(x.w, cause)
		}
		client.Close()
		x.end()
		x.s.logRequest(x.w)
	}()
	if err := writeHead(client, x.w.status, h); err != nil {
		return // the client has left
	}
	context.AfterFunc(ctx, func() { client.Close() })
	go func() { // until the client leaves, or the stream ends; what it says is not for us
		var b [16]byte
		for {
			if _, err := client.Read(b[:]); err != nil {
				x.cancel(context.Canceled)
				return
			}
		}
	}()
	if err := x.moveAnswer(ctx, &counted{chunks{client}, x.w}); err != nil {
		x.brokeOff(ctx, err)
		return
	}
	io.WriteString(client, "0\r\n\r\n")
}

// writeHead writes the head of an answer.
func writeHead(w io.Writer, status int, h http.Header) error {
	head := bytes.NewBuffer(fmt.Appendf(nil, "HTTP/1.1 %03d %s\r\n", status, http.StatusText(status)))
	h.Write(head) // into memory: it does not fail
	head.WriteString("\r\n")
	_, err := head.WriteTo(w)
	return err
}

// chunks writes each write as a chunk (RFC 9112 7.1).
type chunks struct{ w io.Writer }

func (c chunks) Write(p []byte) (int, error) {
	buf := largeBuffers.Get().(*[largeBuffer]byte)
	defer largeBuffers.Put(buf)
	const room = largeBuffer - 16
	for written := 0; written < len(p); {
		part := p[written:min(len(p), written+room)]
		b := strconv.AppendInt(buf[:0], int64(len(part)), 16)
		b = append(b, "\r\n"...)
		b = append(b, part...)
		b = append(b, "\r\n"...)
		if _, err := c.w.Write(b); err != nil {
			return written, err
		}
		written += len(part)
	}
	return len(p), nil
}
