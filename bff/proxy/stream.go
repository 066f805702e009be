package proxy

import (
	"context"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/cancel"
	"github.com/cloakroom-bff/cloakroom/internal/hijack"
)

// stream hijacks the connection and returns the handler's goroutine and buffers
// to the server: an idle event stream then costs two small goroutines. The
// connection is closed after the stream. stream returns false, and has done
// nothing, if that is not possible (see hijack.Take).
func (x *exchange) stream(ctx context.Context) bool {
	if x.resp.ContentLength >= 0 {
		return false
	}
	client := hijack.Take(x.w, x.conn.Load(), x.r)
	if client == nil {
		return false
	}
	x.freeFields()
	x.clientLeft.Stop() // net/http does not watch the connection any more
	done := func(Record) {}
	if detach := x.p.group.Detach; detach != nil {
		done = detach(x.w)
	}
	record := *x.record
	record.Status = x.resp.StatusCode
	x.record, x.detached = &record, true
	x.w, x.r, x.credential, x.opts = nil, nil, nil, Options{RequestID: x.opts.RequestID}
	x.releaseConn()
	x.p.group.detached.Go(func() { x.pump(ctx, client, done) }) // until either side, the session or the server ends
	return true
}

// pump sends the header of a stream, and then its events as they arrive.
func (x *exchange) pump(ctx context.Context, client *hijack.Response, done func(Record)) {
	defer func() {
		if cause := recover(); cause != nil {
			x.p.group.logPanic(x.opts.RequestID, cause)
		}
		client.Close()
		x.endSpan(ctx, nil)
		x.end()
		done(*x.record)
	}()
	if err := client.WriteHeader(x.record.Status); err != nil {
		return // the client has left
	}
	cancel.AfterFunc(ctx, func() {
		if endsEvents(context.Cause(ctx)) {
			client.SetWriteDeadline(time.Now().Add(abortGrace)) // for the last chunk
		} else {
			client.Close()
		}
	})
	go func() { // until the client leaves, or the stream ends
		client.WaitForClient()
		x.ctx.Cancel(context.Canceled)
	}()
	if err := x.copyBody(ctx, &countingWriter{client, x.record}); err != nil && !endsEvents(context.Cause(ctx)) {
		x.recordAbort(ctx, err)
		return
	}
	client.Finish()
}

// endsEvents reports whether an event stream that is aborted for a cause is
// complete nevertheless: the session has ended, or the server shuts down. A
// client drops an event that has not arrived as a whole.
func endsEvents(cause error) bool { return cause == ErrEnded || cause == errShutdown }

// logPanic logs a panic of an exchange that continues after its handler.
func (g *Group) logPanic(requestID string, cause any) {
	log := g.Logger
	if log == nil {
		log = slog.Default()
	}
	log.Error("panic", "request", requestID, "cause", cause, "stack", string(debug.Stack()))
}
