package http1

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/cancel"
)

// exchange is one request and its response.
type exchange struct {
	client *Client
	conn   *conn
	ctx    context.Context
	method string
	stop   cancel.Registration // keeps ctx from closing the connection
	upload *upload             // nil if the request has no body
	sent   bool                // completely: HeaderTimeout has started
}

// end returns the connection to the idle ones, or closes it if it cannot be
// reused.
func (x *exchange) end(reusable bool) {
	if x.conn == nil {
		return
	}
	cn := x.conn
	x.conn = nil
	open := x.stop.Stop() // false: the context is closing it, perhaps during the next request
	// Data after a response must not be taken for the response to the next
	// request.
	if open && reusable && (x.upload == nil || x.upload.complete()) && cn.r.Buffered() == 0 {
		x.client.push(cn)
		return
	}
	cn.Close()
}

// receive waits for the head of the final response.
func (x *exchange) receive() (*http.Response, error) {
	for interim := 0; ; {
		head, err := x.readHead(&interim)
		switch {
		case err != nil:
			return nil, err
		case head.StatusCode == http.StatusSwitchingProtocols:
			x.conn.setDeadline(time.Time{})
			head.Body = &tunnel{x: x}
			return head, nil
		case head.StatusCode >= 200:
			return head, x.body(head)
		case head.StatusCode == http.StatusContinue && x.upload != nil:
			x.upload.proceed()
		}
	}
}

// readHead waits for the head of a response and adds its length to read. The
// sum is limited, because an upstream can send any number of interim responses.
func (x *exchange) readHead(read *int) (*http.Response, error) {
	err := x.await()
	if err == nil {
		var resp *http.Response
		if resp, err = readHead(x.conn.r, read); err == nil {
			return resp, nil
		}
	} else if !errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("%w: %w", ErrConnClosed, err)
	}
	if x.upload != nil && x.upload.finished() && x.upload.readErr != nil { // the cause of the missing response
		return nil, bodyReadError{x.upload.readErr}
	}
	return nil, err
}

// await waits for the first byte of a response. HeaderTimeout starts when the
// whole request has been sent. An interim response does not start it again.
func (x *exchange) await() error {
	for {
		uploading := x.upload != nil && !x.upload.finished()
		if !x.sent {
			x.client.limitReads(x.conn, time.Now())
		}
		x.sent = !uploading
		_, err := x.conn.r.Peek(1)
		switch {
		case err == errUnsent:
			if err = x.conn.writeUnsent(); err != nil {
				return err
			}
			x.sent = false
		case err == nil || !uploading || !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		}
	}
}

// send writes the head of the request and starts to send its body.
func (x *exchange) send(req *http.Request, fields *Fields, head []byte) error {
	if x.conn.sendsOnRead(hasBody(req)) {
		x.conn.unsent = head
		return nil
	}
	if _, err := x.conn.Write(head); err != nil {
		return fmt.Errorf("%w: %w", ErrConnClosed, err)
	}
	if hasBody(req) {
		x.upload = startUpload(x, req, fields.expectsContinue())
	}
	return nil
}

// upload sends the body of a request while the response is read: an upstream
// may respond before it has received the whole body.
type upload struct {
	proceed func() // called when the upstream asks for the body
	done    chan struct{}
	// Set before done is closed:
	readErr error // why the body could not be read
	sent    bool  // completely
}

// startUpload sends the body on a goroutine and then closes it. The goroutine
// ends with the body, with an error of its reader, or when the connection is
// closed.
func startUpload(x *exchange, req *http.Request, expectsContinue bool) *upload {
	u := &upload{done: make(chan struct{}), proceed: func() {}}
	wanted := make(chan struct{})
	if expectsContinue {
		u.proceed = sync.OnceFunc(func() { close(wanted) })
	} else {
		close(wanted)
	}
	cn, body, length := x.conn, req.Body, req.ContentLength // the caller may change the request once it has a response
	go func() {
		select {
		case <-wanted:
		case <-time.After(continueTimeout):
		case <-x.ctx.Done():
		}
		err := sendBody(cn, body, length)
		u.sent = err == nil
		if unread := (bodyReadError{}); errors.As(err, &unread) {
			u.readErr = unread.error
		}
		body.Close()
		close(u.done)
		if u.readErr != nil {
			cn.Close() // the upstream must not take a part for the whole body
		}
	}()
	return u
}

// finished reports whether the goroutine has ended.
func (u *upload) finished() bool {
	select {
	case <-u.done:
		return true
	default:
		return false
	}
}

// complete reports whether the whole body was sent.
func (u *upload) complete() bool { return u.finished() && u.sent }

// bodyReadError is an error from reading the body of a request.
type bodyReadError struct{ error }

// sendBody writes the body of a request. If length is negative, it is sent in
// chunks (RFC 9112, section 7.1).
func sendBody(w io.Writer, body io.Reader, length int64) error {
	pool := &smallBuffers
	held := pool.Get().(*[]byte)
	defer func() { pool.Put(held) }()
	const size, end = 8, 2 // of the lines around a chunk: four hexadecimal digits hold its length
	chunked := length < 0
	var sent int64
	for {
		buf := *held
		n, err := body.Read(buf[size : len(buf)-end])
		sent += int64(n)
		switch {
		case n > 0 && chunked:
			line := strconv.AppendInt(buf[:0:size], int64(n), 16)
			start := size - len(line) - 2
			copy(buf[start:], line)
			copy(buf[size-2:], "\r\n")
			copy(buf[size+n:], "\r\n")
			if _, err := w.Write(buf[start : size+n+end]); err != nil {
				return err
			}
		case n > 0 && sent > length:
			return bodyReadError{errors.New("the body is longer than its Content-Length")}
		case n > 0:
			if _, err := w.Write(buf[size : size+n]); err != nil {
				return err
			}
		}
		switch {
		case err != nil && err != io.EOF:
			return bodyReadError{err}
		case err == io.EOF && chunked:
			_, err := io.WriteString(w, "0\r\n\r\n")
			return err
		case err == io.EOF && sent < length:
			return bodyReadError{io.ErrUnexpectedEOF}
		case err == io.EOF:
			return nil
		}
		if next := bufferFor(n); next != pool {
			pool.Put(held)
			pool, held = next, next.Get().(*[]byte)
		}
	}
}

// bufferFor returns the pool of the buffer for the next read, after one of n
// bytes.
func bufferFor(n int) *sync.Pool {
	if n > 1<<10 {
		return &largeBuffers
	}
	return &smallBuffers
}

// Buffers of bodies. A body has a small one while the client is slow: many may
// be on their way at once.
var (
	smallBuffers = sync.Pool{New: func() any { return new(make([]byte, 2<<10)) }}
	largeBuffers = sync.Pool{New: func() any { return new(make([]byte, 64<<10)) }}
)
