package bff

import (
	"runtime"
	"runtime/debug"
	"testing"
)

// usedMemory returns what the memory limit counts, in bytes.
func usedMemory() uint64 {
	v := readMetrics("/memory/classes/total:bytes", "/memory/classes/heap/released:bytes",
		"/memory/classes/heap/free:bytes")
	return v[0] - v[1] - v[2]
}

// It is not parallel: it sets the memory limit of the process.
func TestReadsEndBeforeTheMemoryLimit(t *testing.T) {
	runtime.GC()
	limit := usedMemory() + 64<<20
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(int64(limit)))
	var m memory
	var needed [][]byte
	for m.admitRead(mostRead) {
		needed = append(needed, make([]byte, memoryOfMostRead))
	}
	if used := usedMemory(); used > limit {
		t.Errorf("after %d reads: got %d MiB in use, want at most %d MiB", len(needed), used>>20, limit>>20)
	}
	if len(needed) < 10 {
		t.Errorf("got %d reads, want at least 10", len(needed))
	}
	runtime.KeepAlive(needed)
}
