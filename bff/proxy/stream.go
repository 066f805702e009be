package proxy

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"
)

// stream hijacks the connection and returns the handler's goroutine and buffers
// to the server: an idle event stream then costs two small goroutines. The
// connection is closed after the stream. stream returns false, and has done
// nothing, if that is not possible: with HTTP/2, which keeps less, or if there
// is a body to read.
func (x *exchange) stream(ctx context.Context) bool {
	r := x.r
	http11 := r.ProtoMajor == 1 && r.ProtoMinor == 1
	if !http11 || r.Method != http.MethodGet || r.Body != http.NoBody || x.resp.ContentLength >= 0 {
		return false
	}
	client, _, err := x.conn.Load().Hijack()
	if err != nil {
		return false
	}
	client.SetDeadline(time.Time{}) // net/http has set one
	h := x.w.Header()
	h["Connection"], h["Transfer-Encoding"] = []string{"close"}, []string{"chunked"}
	if len(h["Date"]) == 0 { // RFC 9110, section 6.6.1
		h.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	}
	x.freeHeader()
	x.clientLeft() // net/http does not watch the connection any more
	done := func(Record) {}
	if detach := x.p.group.Detach; detach != nil {
		done = detach(x.w)
	}
	record := *x.record
	record.Status = x.resp.StatusCode
	x.record, x.detached = &record, true
	x.w, x.r, x.credential, x.opts = nil, nil, nil, Options{RequestID: x.opts.RequestID}
	x.releaseConn()
	x.p.group.detached.Go(func() { x.pump(ctx, client, h, done) }) // until either side, the session or the server ends
	return true
}

// pump sends the header of a stream, and then its events as they arrive.
func (x *exchange) pump(ctx context.Context, client net.Conn, h http.Header, done func(Record)) {
	defer func() {
		if cause := recover(); cause != nil {
			x.p.group.logPanic(x.opts.RequestID, cause)
		}
		client.Close()
		x.endSpan(ctx, nil)
		x.end()
		done(*x.record)
	}()
	if err := writeHead(client, x.record.Status, h); err != nil {
		return // the client has left
	}
	context.AfterFunc(ctx, func() { client.Close() })
	go func() { // until the client leaves, or the stream ends; what the client sends is ignored
		var b [16]byte
		for {
			if _, err := client.Read(b[:]); err != nil {
				x.cancel(context.Canceled)
				return
			}
		}
	}()
	if err := x.copyBody(ctx, &countingWriter{chunks{client}, x.record}); err != nil {
		x.recordAbort(ctx, err)
		return
	}
	io.WriteString(client, "0\r\n\r\n")
}

// logPanic logs a panic of an exchange that continues after its handler.
func (g *Group) logPanic(requestID string, cause any) {
	log := g.Logger
	if log == nil {
		log = slog.Default()
	}
	log.Error("panic", "request", requestID, "cause", cause, "stack", string(debug.Stack()))
}

// writeHead writes the status line and the header of a response.
func writeHead(w io.Writer, status int, h http.Header) error {
	head := bytes.NewBuffer(fmt.Appendf(nil, "HTTP/1.1 %03d %s\r\n", status, http.StatusText(status)))
	h.Write(head) // to memory: it does not fail
	head.WriteString("\r\n")
	_, err := head.WriteTo(w)
	return err
}

// chunks writes the data of each Write as a chunk (RFC 9112, section 7.1).
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
