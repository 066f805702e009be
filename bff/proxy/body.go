package proxy

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/internal/pace"
)

// requestBody is a request's body on its way to the upstream, which may take
// more than one attempt. A nil one is empty.
type requestBody struct {
	x      *exchange
	upload pace.Monitor

	mu      sync.Mutex // guards all below
	waiting *sync.Cond // signals that reading has ended
	attempt int        // its reader gets the body; those of earlier attempts get no more
	reading bool       // from the client
	replay  []byte     // the beginning of the body, while that is all that was read
	lost    bool       // too much was read to keep it, or memory was scarce
	at      int64      // how much of the body this attempt has read
	read    int64      // how much was read from the client
	failed  error      // why there is no more of it; io.EOF for its end
}

// maxReplayBody is how much of a body is kept for another attempt.
const maxReplayBody = 64 << 10

// newRequestBody returns nil if there is no body. In HTTP/2 only the length
// shows that: net/http has the value for an empty body in HTTP/1.1 only.
func newRequestBody(x *exchange) *requestBody {
	if x.r.ContentLength == 0 || x.r.Body == nil || x.r.Body == http.NoBody {
		return nil
	}
	x.conn.Load().EnableFullDuplex() // an upstream may respond before it has the whole body
	b := &requestBody{x: x}
	b.waiting = sync.NewCond(&b.mu)
	return b
}

// reader returns the body from its beginning, for a new attempt. It returns
// false if the beginning is lost. The new reader also gets what an earlier one
// is reading from the client.
func (b *requestBody) reader() (io.ReadCloser, bool) {
	if b == nil {
		return http.NoBody, true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lost {
		return nil, false
	}
	b.attempt++
	b.at = 0
	b.waiting.Broadcast() // to the readers of earlier attempts
	return &bodyReader{requestBody: b, attempt: b.attempt}, true
}

// stopPace ends the watching of the body on its way to the upstream.
func (b *requestBody) stopPace() {
	if b != nil {
		b.upload.Stop()
	}
}

// tooSlow aborts an exchange whose request body moves too slowly. client
// reports whether it waited for the client.
func (b *requestBody) tooSlow(client bool) {
	if client {
		b.x.abort(pace.ErrSlowSender)
	} else {
		b.x.abort(pace.ErrSlowUpload)
	}
}

// isReading reports whether the client is waited for.
func (b *requestBody) isReading() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.reading
}

// getBody is http.Request.GetBody, with which http.Transport repeats what the
// server has refused or not processed.
func (b *requestBody) getBody() (io.ReadCloser, error) {
	reader, ok := b.reader()
	if !ok {
		return nil, errNotKept
	}
	return reader, nil
}

// rewindable reports whether reader would return one now.
func (b *requestBody) rewindable() bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.lost
}

// bodyReader reads a body for one attempt.
type bodyReader struct {
	*requestBody
	attempt int
	watched bool // by upload; only Read uses it
}

var (
	errLateReader = errors.New("the body is being read for another attempt")
	errNotKept    = fmt.Errorf("the body is longer than %d bytes and cannot be sent again", maxReplayBody)
)

// Read returns what was kept, then what the client sends.
func (r *bodyReader) Read(p []byte) (int, error) {
	b := r.requestBody
	if !r.watched {
		r.watched = true
		b.upload.Start(b.x.p.group.pace(), b.isReading, b.tooSlow)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.reading && b.attempt == r.attempt && b.at >= int64(len(b.replay)) {
		b.waiting.Wait() // for the reader of an earlier attempt
	}
	switch {
	case b.attempt != r.attempt:
		return 0, errLateReader
	case b.at < int64(len(b.replay)):
		n := copy(p, b.replay[b.at:])
		b.at += int64(n)
		return n, nil
	case b.failed != nil:
		return 0, b.failed
	case b.at < b.read: // an earlier attempt has read too much
		return 0, errNotKept
	}
	n, err := b.readClient(p)
	b.waiting.Broadcast()
	if b.attempt != r.attempt {
		return 0, errLateReader
	}
	b.at += int64(n)
	return n, err
}

// readClient reads a part of the body from the client and keeps it for another
// attempt. The caller holds mu, which is released while the client is waited
// for.
func (b *requestBody) readClient(p []byte) (int, error) {
	b.reading = true
	b.mu.Unlock()
	n, err := b.x.r.Body.Read(p)
	b.upload.Add(n)
	if b.x.idle != nil {
		b.x.idle.Reset(b.x.p.Timeouts.Idle)
	}
	b.mu.Lock()
	b.reading = false
	b.read += int64(n)
	if limit := b.x.p.MaxBody; limit > 0 && b.read > limit {
		n, err = 0, problem.BodyTooLarge.WithCause(fmt.Errorf("the body has more than %d bytes", limit))
	} else if err != nil && err != io.EOF {
		err = problem.BadBody.WithCause(err)
	}
	b.failed = err
	b.lost = b.lost || len(b.replay)+n > maxReplayBody || b.x.r.ContentLength > maxReplayBody ||
		b.x.p.group.overloaded()
	if b.lost {
		b.replay = nil
	} else {
		b.replay = append(b.replay, p[:n]...)
	}
	return n, err
}

// Close means that the upstream has the body, or gets no more of it. It does
// not end the reading: the transport does not decide whether there is another
// attempt.
func (r *bodyReader) Close() error {
	r.mu.Lock()
	current := r.requestBody.attempt == r.attempt
	r.mu.Unlock()
	if current {
		r.upload.Stop()
	}
	return nil
}

// err returns why the body could not be read; nil if it could, or was not read.
func (b *requestBody) err() error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failed == io.EOF {
		return nil
	}
	return b.failed
}

// complete reports whether the whole body was read. A body whose rest is not
// wanted is not complete: net/http looks for its end when the handler has
// returned, and in full duplex cannot use the connection after that.
func (b *requestBody) complete() bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failed == io.EOF
}

// end stops the reading of the body: the upstream has responded without it.
// When it returns, nothing waits for the client. If a reader found the end of
// the body while net/http ends the request or gives the connection away,
// net/http would wait until the client sends more or leaves.
func (b *requestBody) end() {
	b.stopPace()
	if b.complete() {
		return
	}
	unsupported := b.x.conn.Load().SetReadDeadline(time.Now())
	b.mu.Lock()
	defer b.mu.Unlock()
	b.attempt++ // no reader is of it
	b.waiting.Broadcast()
	for unsupported == nil && b.reading {
		b.waiting.Wait()
	}
}
