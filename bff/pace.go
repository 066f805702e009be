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

// pace ends a body that moves too slowly, in either direction. It looks once in
// each window, so moving costs an addition. The zero value watches nothing.
type pace struct {
	moved atomic.Int64 // bytes, in this window

	mu      sync.Mutex // guards all below
	timer   *time.Timer
	due     time.Time
	stopped bool
}

// start begins to watch, also again. tooSlow is called at most once, and not after stop.
func (s *Server) start(p *pace, tooSlow func()) {
	if s.bodyRate <= 0 {
		return
	}
	need := max(s.bodyRate*int64(s.paceWindow)/int64(time.Second), 1)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.moved.Store(0)
	p.stopped, p.due = false, time.Now().Add(s.paceWindow)
	if p.timer != nil {
		p.timer.Reset(s.paceWindow)
		return
	}
	p.timer = time.AfterFunc(s.paceWindow, func() { // until stop
		p.mu.Lock()
		defer p.mu.Unlock()
		switch {
		case p.stopped, time.Now().Before(p.due): // it was started again
		case p.moved.Swap(0) < need:
			p.stopped = true
			tooSlow()
		default:
			p.due = time.Now().Add(s.paceWindow)
			p.timer.Reset(s.paceWindow)
		}
	})
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
