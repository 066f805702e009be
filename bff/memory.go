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
	sampled atomic.Int64 // when it was measured last, in Unix nanoseconds
	scarce  atomic.Bool

	refused refusals // connections and requests
}

const (
	// memoryInterval is the minimum time between two measurements.
	memoryInterval = 100 * time.Millisecond
	// memoryPerConnection is how much of the memory limit a connection may
	// need. It is what one with a request of ordinary size needs in the worst
	// case: a header of 8 KiB, and slow bodies.
	memoryPerConnection = 128 << 10
)

// memoryLimit returns the memory limit of the process (GOMEMLIMIT) in bytes. It
// is math.MaxInt64 without a limit.
func memoryLimit() uint64 {
	limit := []runtimemetrics.Sample{{Name: "/gc/gomemlimit:bytes"}}
	runtimemetrics.Read(limit)
	return limit[0].Value.Uint64()
}

// isScarce reports whether more than three quarters of the memory limit are in
// use. The rest is for what grows in open connections. It does not count
// garbage, which the garbage collector removes before the limit is reached.
func (m *memory) isScarce() bool {
	now, last := time.Now().UnixNano(), m.sampled.Load()
	if now-last < int64(memoryInterval) || !m.sampled.CompareAndSwap(last, now) {
		return m.scarce.Load()
	}
	limit := memoryLimit()
	if limit == math.MaxInt64 {
		return false
	}
	used := []runtimemetrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}
	runtimemetrics.Read(used)
	scarce := used[0].Value.Uint64()+used[1].Value.Uint64() > limit/2
	if scarce {
		// The heap is measured by the collector, which might not run while all
		// is refused. The goroutine ends with the collection.
		go runtime.GC()
	}
	m.scarce.Store(scarce)
	return scarce
}

// refuse counts a connection or request for which there is no memory.
func (m *memory) refuse(log *slog.Logger, client string) {
	m.refused.add(func(count uint64) {
		log.Warn("connections and requests refused without memory (GOMEMLIMIT)",
			"count", count, "limit_bytes", memoryLimit(), "client", client)
	})
}
