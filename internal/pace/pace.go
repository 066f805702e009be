// Package pace ends HTTP bodies that move too slowly.
package pace

import (
	"errors"
	"fmt"
	"math/bits"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Why a body was ended.
var (
	ErrSlowSender   = errors.New("the client sends its body too slowly")
	ErrSlowReader   = errors.New("the client reads the response too slowly")
	ErrSlowUpload   = errors.New("the upstream reads the request's body too slowly")
	ErrSlowDownload = errors.New("the upstream sends its response too slowly")
)

// The default limit: bytes a second, and the time over which they are measured.
const (
	DefaultRate   = 240
	DefaultWindow = 30 * time.Second
)

// Limit is the rate that a body has to keep.
type Limit struct {
	Rate   int64         // bytes a second; zero or less: any rate
	Window time.Duration // over which the rate is measured
}

// Explain returns cause, one of the errors above, with the limit in its text.
func (l Limit) Explain(cause error) error {
	return fmt.Errorf("%w: less than %d bytes/s over %v", cause, l.Rate, l.Window)
}

// LimitWrites bounds how long it takes to send the rest of a response, which
// the server does after the handler has returned. The server removes the
// deadline then. A server with a WriteTimeout keeps that.
func (l Limit) LimitWrites(w *http.ResponseController, r *http.Request) {
	if l.Rate <= 0 {
		return
	}
	server, ok := r.Context().Value(http.ServerContextKey).(*http.Server)
	if !ok || server.WriteTimeout <= 0 {
		w.SetWriteDeadline(time.Now().Add(l.Window))
	}
}

// Monitor watches one body, in one direction. It checks the rate a few times in
// each window, so moving a part of the body costs an addition. The zero value
// watches nothing.
type Monitor struct {
	moved atomic.Int64 // bytes, since the last check

	mu      sync.Mutex // guards all below
	timer   *time.Timer
	due     time.Time // of the next check
	stopped bool
	checks  int   // in this window
	bytes   int64 // in this window
	quiet   int   // checks in a row that have seen nothing move
	client  uint8 // a bit for each of the last checks: the body waited for the client
}

// checksPerWindow is how often a Monitor checks the rate in each window.
const checksPerWindow = 5

// Add counts n bytes that have moved.
func (m *Monitor) Add(n int) { m.moved.Add(int64(n)) }

// Start begins to watch, or begins anew. onClient reports whether the body
// waits for the client at this moment. Start calls tooSlow at most once, and
// not after Stop: with true if most of the last checks found that the body
// waited for the client.
func (m *Monitor) Start(limit Limit, onClient func() bool, tooSlow func(client bool)) {
	if limit.Rate <= 0 {
		return
	}
	need := max(limit.Rate*int64(limit.Window)/int64(time.Second), 1)
	interval := limit.Window / checksPerWindow
	m.mu.Lock()
	defer m.mu.Unlock()
	m.moved.Store(0)
	m.stopped, m.due = false, time.Now().Add(interval)
	m.checks, m.bytes, m.quiet, m.client = 0, 0, 0, 0
	if m.timer != nil {
		m.timer.Reset(interval)
		return
	}
	m.timer = time.AfterFunc(interval, func() { // until Stop
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.stopped || time.Now().Before(m.due) { // Start was called again
			return
		}
		m.client <<= 1
		if onClient() {
			m.client |= 1
		}
		if m.check(need) {
			m.due = time.Now().Add(interval)
			m.timer.Reset(interval)
			return
		}
		m.stopped = true
		last := m.client & (1<<checksPerWindow - 1)
		tooSlow(bits.OnesCount8(last) > checksPerWindow/2)
	})
}

// check reports whether the body moves fast enough: need bytes in each window,
// and something in any period of that length.
func (m *Monitor) check(need int64) bool {
	n := m.moved.Swap(0)
	if m.quiet++; n > 0 {
		m.quiet = 0
	}
	m.bytes += n
	if m.checks++; m.checks < checksPerWindow {
		return m.quiet < checksPerWindow
	}
	enough := m.bytes >= need
	m.checks, m.bytes = 0, 0
	return enough
}

// Stop ends the watching. It waits for a tooSlow that is running.
func (m *Monitor) Stop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stopped = true
	if m.timer != nil {
		m.timer.Stop()
	}
}

// IsStream reports whether a response is a stream of messages, which may be
// idle for any time.
func IsStream(contentType string) bool {
	return strings.HasPrefix(contentType, "text/event-stream") || strings.HasPrefix(contentType, "application/grpc")
}
