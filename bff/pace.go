package bff

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// defaultBodyRate is Config.BodyMinRate where that is zero, in bytes a second.
	defaultBodyRate = 240
	// paceWindow is the time over which the rate is measured.
	paceWindow = 30 * time.Second
)

// Why a body was ended. The problem names the rate.
var (
	errSlowSender   = errors.New("the client sends its body too slowly")
	errSlowReader   = errors.New("the client reads the response too slowly")
	errSlowUpload   = errors.New("the upstream reads the request's body too slowly")
	errSlowDownload = errors.New("the upstream sends its response too slowly")
)

// pace ends a body that moves too slowly, in either direction. It looks a few
// times in each window, so moving costs an addition. The zero value watches
// nothing.
type pace struct {
	moved atomic.Int64 // bytes, since the last look

	mu      sync.Mutex // guards all below
	timer   *time.Timer
	due     time.Time // of the next look
	stopped bool
	looks   int   // in this window
	bytes   int64 // in this window
	quiet   int   // how many looks in a row have seen nothing
}

// looksPerWindow is how often pace looks in each window.
const looksPerWindow = 5

// start begins to watch, also again. tooSlow is called at most once, and not after stop.
func (s *Server) start(p *pace, tooSlow func()) {
	if s.bodyRate <= 0 {
		return
	}
	need := max(s.bodyRate*int64(s.paceWindow)/int64(time.Second), 1)
	interval := s.paceWindow / looksPerWindow
	p.mu.Lock()
	defer p.mu.Unlock()
	p.moved.Store(0)
	p.stopped, p.due, p.looks, p.bytes, p.quiet = false, time.Now().Add(interval), 0, 0, 0
	if p.timer != nil {
		p.timer.Reset(interval)
		return
	}
	p.timer = time.AfterFunc(interval, func() { // until stop
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.stopped || time.Now().Before(p.due) { // it was started again
			return
		}
		if p.look(need) {
			p.due = time.Now().Add(interval)
			p.timer.Reset(interval)
			return
		}
		p.stopped = true
		tooSlow()
	})
}

// look reports whether the body moves fast enough: need bytes in each window,
// and something in any time that is as long.
func (p *pace) look(need int64) bool {
	n := p.moved.Swap(0)
	if p.quiet++; n > 0 {
		p.quiet = 0
	}
	p.bytes += n
	if p.looks++; p.looks < looksPerWindow {
		return p.quiet < looksPerWindow
	}
	enough := p.bytes >= need
	p.looks, p.bytes = 0, 0
	return enough
}

// stop ends the watching. It waits for a tooSlow that is running.
func (p *pace) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
	if p.timer != nil {
		p.timer.Stop()
	}
}

// tooSlow returns the problem of a body that was ended for cause.
func (s *Server) tooSlow(p *problem, cause error) *problem {
	return p.because(fmt.Errorf("%w: less than %d bytes/s over %v", cause, s.bodyRate, s.paceWindow))
}

// isStream reports whether a response is a stream of messages, which may be
// quiet for as long as there is none.
func isStream(contentType string) bool {
	return strings.HasPrefix(contentType, "text/event-stream") || strings.HasPrefix(contentType, "application/grpc")
}
