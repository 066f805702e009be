package bff

import (
	"sync"
	"sync/atomic"
	"time"
)

// Refusal is a limit that clients have exceeded.
type Refusal string

// The refusals.
const (
	// RefusalConnections: a new connection was closed, because as many as
	// Limits.Connections were open.
	RefusalConnections Refusal = "connections"
	// RefusalDescriptors: a new connection was closed or not accepted, because
	// the process has no file descriptors left for connections.
	RefusalDescriptors Refusal = "descriptors"
	// RefusalWaiting: a connection that had not sent a request was closed, so
	// that a new one could be served.
	RefusalWaiting Refusal = "waiting"
	// RefusalHeader: a request had a header larger than Limits.HeaderBytes.
	RefusalHeader Refusal = "header"
	// RefusalRequests: a request in HTTP/2 got 503, because as many as
	// Limits.Connections were in flight.
	RefusalRequests Refusal = "requests"
	// RefusalMemory: a new connection or a request was refused, because most of
	// the memory limit of the process (GOMEMLIMIT) was in use.
	RefusalMemory Refusal = "memory"
)

// Refused returns how many connections and requests the listeners of Run have
// refused because of a limit. An unknown Refusal has none.
func (s *Server) Refused(limit Refusal) uint64 {
	switch limit {
	case RefusalConnections:
		return s.conns.full.total.Load()
	case RefusalDescriptors:
		return s.conns.exhausted.total.Load()
	case RefusalWaiting:
		return s.conns.replaced.total.Load()
	case RefusalHeader:
		return s.checks.largeHeaders.total.Load()
	case RefusalRequests:
		return s.conns.manyStreams.total.Load()
	case RefusalMemory:
		return s.memory.refused.total.Load()
	}
	return 0
}

// refusals counts refusals of one kind, and logs them at most once a second.
type refusals struct {
	total atomic.Uint64

	mu       sync.Mutex // guards all below
	unlogged uint64
	paused   bool // until a second after the last line
}

// refusalInterval is the minimum time between two lines about refusals of one
// kind.
const refusalInterval = time.Second

// add counts a refusal. log writes a line about count refusals: this one, or
// all in the second after a line.
func (r *refusals) add(log func(count uint64)) {
	r.total.Add(1)
	r.mu.Lock()
	r.unlogged++
	paused := r.paused
	r.paused = true
	r.mu.Unlock()
	if !paused {
		r.flush(log)
	}
}

// flush logs the refusals that were not logged, and pauses.
func (r *refusals) flush(log func(count uint64)) {
	r.mu.Lock()
	count := r.unlogged
	r.unlogged, r.paused = 0, count > 0
	r.mu.Unlock()
	if count > 0 {
		log(count)
		time.AfterFunc(refusalInterval, func() { r.flush(log) }) // until a second without refusals
	}
}
