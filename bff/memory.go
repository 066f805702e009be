package bff

import (
	"log/slog"
	"math"
	"runtime"
	runtimemetrics "runtime/metrics"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/monotonic"
)

// memory detects that the process is about to use up its memory limit. Its
// zero value is ready.
type memory struct {
	sampled atomic.Int64 // when isScarce measured last, as monotonic.Now says
	scarce  atomic.Bool

	unlimited  atomic.Int64 // until when there is no limit, as monotonic.Now says
	collecting atomic.Bool  // measure has started the garbage collector

	mu       sync.Mutex // guards all below
	measured int64      // when admitRead measured last, as monotonic.Now says
	plenty   bool       // less than three quarters of the limit were in use then
	left     int64      // how much memory reads may need until it measures again

	refused refusals // connections and requests
}

const (
	// memoryInterval is the minimum time between two measurements of isScarce.
	memoryInterval = 100 * time.Millisecond
	// memoryPerConnection is how much of the memory limit a connection may
	// need. It is what one with a request of ordinary size needs in the worst
	// case: a header of 8 KiB, and slow bodies.
	memoryPerConnection = 128 << 10

	// readInterval is the minimum time between two measurements of admitRead.
	readInterval = 10 * time.Millisecond
	// memoryPerRead is how much the heap can grow by one read: in HTTP/2, the
	// buffer of a header that is not complete doubles.
	memoryPerRead = 160 << 10
	// memoryPerByte is how much more each byte of it can add: in HTTP/2, a
	// request of 100 bytes needs 7 KiB even if it is refused.
	memoryPerByte = 64
	// mostRead is up to how many bytes of a read count: a TLS record, and a
	// frame of HTTP/2. Longer reads are of bodies in HTTP/1.1.
	mostRead = 16 << 10
	// memoryOfMostRead is the most that a read can need.
	memoryOfMostRead = memoryPerRead + mostRead*memoryPerByte
	// readWait is how long a connection waits for memory before it is closed.
	readWait = time.Second
)

// memoryLimit returns the memory limit of the process (GOMEMLIMIT) in bytes. It
// is math.MaxInt64 without a limit.
func memoryLimit() uint64 { return readMetrics("/gc/gomemlimit:bytes")[0] }

// readMetrics returns the values of metrics of the runtime.
func readMetrics(names ...string) []uint64 {
	samples := make([]runtimemetrics.Sample, len(names))
	for i, name := range names {
		samples[i].Name = name
	}
	runtimemetrics.Read(samples)
	values := make([]uint64, len(names))
	for i, sample := range samples {
		values[i] = sample.Value.Uint64()
	}
	return values
}

// isScarce reports whether more than half of the memory limit is in use. The
// rest is for what grows in open connections. It does not count garbage, which
// the garbage collector removes before the limit is reached.
func (m *memory) isScarce() bool {
	now, last := monotonic.Now(), m.sampled.Load()
	if now-last < int64(memoryInterval) || !m.sampled.CompareAndSwap(last, now) {
		return m.scarce.Load()
	}
	limit := memoryLimit()
	if limit == math.MaxInt64 {
		return false
	}
	used := readMetrics("/gc/heap/live:bytes", "/memory/classes/heap/stacks:bytes")
	scarce := used[0]+used[1] > limit/2
	if scarce {
		// The heap is measured by the collector, which might not run while all
		// is refused. The goroutine ends with the collection.
		go runtime.GC()
	}
	m.scarce.Store(scarce)
	return scarce
}

// awaitRead waits until there is memory for the n bytes that a connection has
// read. It reports false if there is none within readWait.
func (m *memory) awaitRead(n int) bool {
	if m.admitRead(n) {
		return true
	}
	for begun := time.Now(); time.Since(begun) < readWait; {
		time.Sleep(readInterval)
		if m.admitRead(n) {
			return true
		}
	}
	return false
}

// admitRead reports whether there is memory for n bytes that a connection has
// read. Clients can send faster than the garbage collector and the refusals of
// isScarce free memory. So the reads between two measurements may need no more
// than half of what was left of the limit, garbage included. The other half is
// for reads whose memory the measurement did not see yet.
func (m *memory) admitRead(n int) bool {
	now := monotonic.Now()
	if now < m.unlimited.Load() {
		return true
	}
	need := memoryPerRead + int64(min(n, mostRead))*memoryPerByte
	m.mu.Lock()
	defer m.mu.Unlock()
	if now-m.measured >= int64(readInterval) || m.plenty && m.left < need {
		m.measure(now)
	}
	if m.left < need {
		return false
	}
	m.left -= need
	return true
}

// measure sets how much memory reads may need from now on. It is called with mu
// held.
func (m *memory) measure(now int64) {
	m.measured = now
	limit := memoryLimit()
	if limit == math.MaxInt64 {
		m.left = math.MaxInt64
		m.unlimited.Store(now + int64(readInterval))
		return
	}
	v := readMetrics("/memory/classes/total:bytes", "/memory/classes/heap/released:bytes",
		"/memory/classes/heap/free:bytes")
	used := v[0] - v[1] - v[2]
	m.plenty = used < limit/4*3
	m.left = (int64(limit) - int64(used)) / 2
	if m.left < memoryOfMostRead && m.collecting.CompareAndSwap(false, true) {
		// Without reads, nothing else starts the collector. The goroutine ends
		// with the collection.
		go func() {
			runtime.GC()
			m.collecting.Store(false)
		}()
	}
}

// refuse counts a connection or request for which there is no memory.
func (m *memory) refuse(log *slog.Logger, client string) {
	m.refused.add(func(count uint64) {
		log.Warn("connections and requests refused without memory (GOMEMLIMIT)",
			"count", count, "limit_bytes", memoryLimit(), "client", client)
	})
}
