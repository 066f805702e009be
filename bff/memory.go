package bff

import (
	"log/slog"
	"math"
	"runtime"
	runtimemetrics "runtime/metrics"
	"sync/atomic"
	"time"
)

// memory detects that the process is about to use up its memory limit. Its
// zero value is ready.
type memory struct {
	sampled atomic.Int64 // when isScarce measured last, in Unix nanoseconds
	scarce  atomic.Bool

	measured atomic.Int64 // when admitRead measured last, in Unix nanoseconds
	reads    atomic.Int64 // how many reads are admitted until it measures again

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
	now, last := time.Now().UnixNano(), m.sampled.Load()
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

// awaitRead waits until there is memory for what a connection has read. It
// reports false if there is none within readWait.
func (m *memory) awaitRead() bool {
	if m.admitRead() {
		return true
	}
	for begun := time.Now(); time.Since(begun) < readWait; {
		time.Sleep(readInterval)
		if m.admitRead() {
			return true
		}
	}
	return false
}

// admitRead reports whether there is memory for one read of a connection.
// Clients can send faster than the garbage collector and the refusals of
// isScarce free memory. So beyond three quarters of the limit, garbage
// included, few reads are admitted between two measurements, and none beyond
// the limit.
func (m *memory) admitRead() bool {
	now, last := time.Now().UnixNano(), m.measured.Load()
	if now-last >= int64(readInterval) && m.measured.CompareAndSwap(last, now) {
		m.reads.Store(readsWithin(memoryLimit()))
	}
	left := m.reads.Load()
	return left == math.MaxInt64 || left > 0 && m.reads.Add(-1) >= 0
}

// readsWithin returns how many reads the memory limit admits at the moment. It
// is math.MaxInt64 for any number.
func readsWithin(limit uint64) int64 {
	if limit == math.MaxInt64 {
		return math.MaxInt64
	}
	m := readMetrics("/memory/classes/total:bytes", "/memory/classes/heap/released:bytes",
		"/memory/classes/heap/free:bytes")
	switch used := m[0] - m[1] - m[2]; {
	case used > limit:
		go runtime.GC() // without reads, nothing else starts it; ends with the collection
		return 0
	case used > limit/4*3:
		return max(1, int64(limit/16/memoryPerRead))
	}
	return math.MaxInt64
}

// refuse counts a connection or request for which there is no memory.
func (m *memory) refuse(log *slog.Logger, client string) {
	m.refused.add(func(count uint64) {
		log.Warn("connections and requests refused without memory (GOMEMLIMIT)",
			"count", count, "limit_bytes", memoryLimit(), "client", client)
	})
}
