package bff

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/bff/proxy"
	"github.com/cloakroom-bff/cloakroom/internal/hijack"
	"github.com/cloakroom-bff/cloakroom/session"
)

const (
	// maxSessionStreams is how many event streams one session may have open on
	// one replica.
	maxSessionStreams = 100
	// streamHeartbeat is how often a stream sends something, so that proxies on
	// the way keep its connection.
	streamHeartbeat = 20 * time.Second
	// streamWriteTimeout is how long a client may take to read what is sent. It
	// is little, and a socket's buffer takes it at once.
	streamWriteTimeout = 10 * time.Second
	// defaultWarning is how long before its end a session is said to expire.
	defaultWarning = time.Minute
	maxWarning     = time.Hour
)

// The events of a stream. The browser client and apps depend on the names and
// the data. docs/browser.md describes them.
const (
	sessionRefreshed = "session-refreshed"
	sessionChanged   = "session-changed"
	sessionExpiring  = "session-expiring"
	sessionEnded     = "session-ended"
)

// sessionStreams are the open streams of session events.
type sessionStreams struct {
	running sync.WaitGroup // streams that continue after their handler

	mu         sync.Mutex // guards all below
	ended      bool       // end was called
	open       map[*sessionStream]struct{}
	perSession map[string]int // :: Session.ID → how many of open
}

// add adds a stream, until remove. It returns false if the session has too
// many.
func (g *sessionStreams) add(s *sessionStream) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.perSession[s.id] >= maxSessionStreams {
		return false
	}
	if g.open == nil {
		g.open, g.perSession = make(map[*sessionStream]struct{}), make(map[string]int)
	}
	g.open[s] = struct{}{}
	g.perSession[s.id]++
	if g.ended {
		s.close(len(g.open))
	}
	return true
}

func (g *sessionStreams) remove(s *sessionStream) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.open, s)
	if g.perSession[s.id]--; g.perSession[s.id] == 0 {
		delete(g.perSession, s.id)
	}
}

// end ends all streams, also those that begin later. Their clients reconnect.
func (g *sessionStreams) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ended = true
	for s := range g.open {
		s.close(len(g.open))
	}
}

func (g *sessionStreams) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.open)
}

// sessionStream is one stream of session events.
type sessionStream struct {
	app     *app
	id      string        // Session.ID
	warning time.Duration // how long before the end a session is said to expire
	wake    chan struct{} // receives when what mu guards has changed

	mu     sync.Mutex // guards all below
	latest *session.Session
	over   bool           // nothing follows but the end
	reason session.Reason // why the session ended; empty: it may exist
	retry  time.Duration  // until the client should reconnect; zero: as it was told

	// Of run alone:
	session   *session.Session // as of the last update
	told      [2]time.Time     // IdleExpiresAt and ExpiresAt that the client knows
	warned    time.Time        // the end that session-expiring was about; zero: none
	heartbeat time.Time        // when something has to be sent
}

// streamSessionEvents tells a page what happens to its session, until the page
// closes the stream or the session ends. It does not extend the session.
func (a *app) streamSessionEvents(w *response, r *http.Request) error {
	seconds, err := intParameter(r, "warn", 1, int(maxWarning/time.Second), int(defaultWarning/time.Second))
	if err != nil {
		return err
	}
	current, err := a.findSession(r)
	if err != nil {
		return err
	}
	a.renewCookie(r.Context(), w, r, current)
	w.setSession(current)
	h := w.Header()
	if r.Method == http.MethodHead {
		h.Set("Content-Type", "text/event-stream")
		w.WriteHeader(http.StatusOK)
		return nil
	}
	s := &sessionStream{
		app: a, id: current.ID, warning: time.Duration(seconds) * time.Second, wake: make(chan struct{}, 1),
		latest: current,
	}
	if !a.streams.add(s) {
		return problem.TooManyStreams
	}
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no") // nginx would wait for more
	stop := a.sessions.Follow(current, s.setSession, s.setEnd)
	finish := func() {
		stop()
		a.streams.remove(s)
	}
	w.exchange.Stream = true // it has no duration in the metrics
	if client := hijack.Take(w, http.NewResponseController(w), r); client != nil {
		done := a.detach(w)
		id := w.requestID
		a.streams.running.Go(func() { s.serveDetached(client, id, finish, done) }) // until the stream ends
		return nil
	}
	defer finish()
	w.WriteHeader(http.StatusOK)
	s.run(httpStream{w, http.NewResponseController(w)}, r.Context().Done())
	return nil
}

// serveDetached runs a stream on a connection of its own.
func (s *sessionStream) serveDetached(
	client *hijack.Response, requestID string, finish func(), done func(proxy.Record),
) {
	record := proxy.Record{Stream: true, Status: http.StatusOK}
	defer func() {
		if cause := recover(); cause != nil {
			s.app.log.Error("panic", "request", requestID, "cause", cause, "stack", string(debug.Stack()))
		}
		client.Close()
		finish()
		done(record)
	}()
	if client.WriteHeader(http.StatusOK) != nil {
		return // the client has left
	}
	left := make(chan struct{})
	go func() { // until the client leaves, or the stream ends
		client.WaitForClient()
		close(left)
	}()
	out := &countedStream{Response: client}
	s.run(out, left)
	record.Bytes = out.bytes
	client.SetWriteDeadline(time.Now().Add(streamWriteTimeout))
	client.Finish()
}

// eventWriter is what a stream is written to.
type eventWriter interface {
	io.Writer
	SetWriteDeadline(t time.Time) error
}

// countedStream is a stream on a connection of its own.
type countedStream struct {
	*hijack.Response
	bytes int64
}

func (c *countedStream) Write(p []byte) (int, error) {
	n, err := c.Response.Write(p)
	c.bytes += int64(n)
	return n, err
}

// httpStream is a stream that net/http writes: with HTTP/2, for example. There,
// a write deadline that passes resets the stream, also if nothing is written.
// So it is removed after each write.
type httpStream struct {
	w *response
	*http.ResponseController
}

func (h httpStream) Write(p []byte) (int, error) {
	n, err := h.w.Write(p)
	if err == nil {
		err = h.Flush()
	}
	h.SetWriteDeadline(time.Time{}) // not every server has one
	return n, err
}

// setSession is told of a new state of the session.
func (s *sessionStream) setSession(latest *session.Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.latest = latest
	s.signal()
}

// setEnd is told that the session has ended for a reason.
func (s *sessionStream) setEnd(reason session.Reason) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		s.over, s.reason = true, reason
		s.signal()
	}
}

// close ends the stream although the session may exist. The client reconnects,
// not at the same time as those of the other open streams.
func (s *sessionStream) close(open int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		s.over, s.retry = true, reconnectDelay(open)
		s.signal()
	}
}

func (s *sessionStream) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// reconnectDelay returns when one of many clients should reconnect: 1 to 5
// seconds, and beyond 2000 streams at about 500 a second, up to half a minute.
func reconnectDelay(open int) time.Duration {
	spread := min(max(4*time.Second, time.Duration(open)*2*time.Millisecond), 30*time.Second)
	return time.Second + rand.N(spread)
}

// run writes the stream until the client has left, the session has ended, or
// the stream is closed.
func (s *sessionStream) run(out eventWriter, left <-chan struct{}) {
	var text bytes.Buffer
	fmt.Fprintf(&text, "retry: %d\n\n", reconnectDelay(0).Milliseconds())
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		over := s.write(&text, time.Now())
		if text.Len() > 0 {
			out.SetWriteDeadline(time.Now().Add(streamWriteTimeout))
			if _, err := out.Write(text.Bytes()); err != nil {
				return
			}
			text = bytes.Buffer{} // most of the time nothing is sent
			s.heartbeat = time.Now().Add(streamHeartbeat)
		}
		if over {
			return
		}
		timer.Reset(time.Until(s.next()))
		select {
		case <-left:
			return
		case <-s.wake:
		case <-timer.C:
		}
	}
}

// write writes the events that are due, or a heartbeat, and reports whether the
// stream is over.
func (s *sessionStream) write(text *bytes.Buffer, now time.Time) (over bool) {
	s.mu.Lock()
	latest, over, reason, retry := s.latest, s.over, s.reason, s.retry
	s.mu.Unlock()
	if over {
		if reason != "" {
			writeEvent(text, sessionEnded, map[string]session.Reason{"reason": reason})
		} else if retry > 0 {
			fmt.Fprintf(text, "retry: %d\n\n", retry.Milliseconds())
		}
		return true
	}
	if kind := s.update(latest); kind != "" {
		body, err := s.app.sessionBodyOf(latest)
		if err != nil {
			s.app.log.Error("session event not sent", "session", s.id, "err", err)
			return true
		}
		writeEvent(text, kind, body)
	}
	if end, reason := s.nextEnd(); !now.Before(s.warnAt()) && !s.same(s.warned, end) {
		s.warned = end
		left := max(0, math.Round(end.Sub(now).Seconds()))
		writeEvent(text, sessionExpiring, struct {
			SecondsLeft int            `json:"seconds_left"`
			Reason      session.Reason `json:"reason"`
		}{int(left), reason})
	}
	if text.Len() == 0 && !now.Before(s.heartbeat) {
		text.WriteString(":\n\n")
	}
	return false
}

// update takes over the latest state of the session. It returns the event that
// tells of the difference; empty if there is none that matters.
func (s *sessionStream) update(latest *session.Session) (event string) {
	before := s.session
	s.session = latest
	switch {
	case before == nil:
		event = sessionChanged // the client learns the state first
	case latest.Tokens.Access != before.Tokens.Access,
		latest.Tokens.Issued.UnixMilli() != before.Tokens.Issued.UnixMilli():
		event = sessionRefreshed
	case !s.same(latest.IdleExpiresAt, s.told[0]), latest.ExpiresAt.Sub(s.told[1]).Abs() >= time.Second,
		!bytes.Equal(latest.Claims, before.Claims):
		event = sessionChanged
	}
	if event != "" {
		s.told = [2]time.Time{latest.IdleExpiresAt, latest.ExpiresAt}
	}
	return event
}

// same reports whether two ends of the session are the same. IdleExpiresAt is
// read as a time to live, so that it is not exact. Activity moves it by a
// sixtieth of the idle timeout at least.
func (s *sessionStream) same(a, b time.Time) bool {
	return a.Sub(b).Abs() < max(time.Second, s.app.idleTimeout/120)
}

// nextEnd returns when the session ends unless something moves its end, and the
// reason that it has then.
func (s *sessionStream) nextEnd() (time.Time, session.Reason) {
	if s.session.ExpiresAt.Sub(s.session.IdleExpiresAt) < time.Second { // which is not exact
		return s.session.ExpiresAt, session.ReasonLifetime
	}
	return s.session.IdleExpiresAt, session.ReasonIdle
}

// warnAt returns when the client is warned of the next end. That is in the
// second half of the idle timeout or the lifetime in any case.
func (s *sessionStream) warnAt() time.Time {
	end, reason := s.nextEnd()
	whole := s.app.idleTimeout
	if reason == session.ReasonLifetime {
		whole = end.Sub(s.session.CreatedAt)
	}
	return end.Add(-min(s.warning, whole/2))
}

// next returns when something has to be sent, unless the session changes.
func (s *sessionStream) next() time.Time {
	end, _ := s.nextEnd()
	if at := s.warnAt(); !s.same(s.warned, end) && at.Before(s.heartbeat) {
		return at
	}
	return s.heartbeat
}

// writeEvent writes an event whose data is JSON, and so one line.
func writeEvent(text *bytes.Buffer, event string, data any) {
	fmt.Fprintf(text, "event: %s\ndata: ", event)
	json.NewEncoder(text).Encode(data) // to memory, of types that have a form in JSON
	text.WriteByte('\n')
}
