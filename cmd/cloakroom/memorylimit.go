package main

import (
	"log/slog"
	"math"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
	"strconv"
	"strings"
	"sync"
)

// limitMemory sets the memory limit of the Go runtime to 90 % of that of the
// process's control group, unless GOMEMLIMIT has set one. The rest is for what
// Go does not count.
func limitMemory(log *slog.Logger) {
	limit := debug.SetMemoryLimit(-1)
	if group := groupMemory("/sys/fs/cgroup", "/proc/self/cgroup"); limit == math.MaxInt64 && group > 0 {
		limit = group / 10 * 9
		debug.SetMemoryLimit(limit)
	}
	if limit < math.MaxInt64 {
		log.Info("memory limit", "bytes", limit)
	}
}

// groupMemory returns the memory limit in bytes of the control group that the
// file self names, and of its ancestors, in the hierarchy (cgroup v2) mounted
// at root. It returns 0 if there is none.
func groupMemory(root, self string) (limit int64) {
	text, err := os.ReadFile(self)
	if err != nil {
		return 0 // another system
	}
	for line := range strings.Lines(string(text)) {
		group, found := strings.CutPrefix(strings.TrimSpace(line), "0::/")
		for ; found; group = path.Dir(group) {
			text, _ := os.ReadFile(filepath.Join(root, group, "memory.max"))
			n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
			if err == nil && n > 0 && (limit == 0 || n < limit) { // otherwise "max", or no file
				limit = n
			}
			if group == "" || group == "." {
				break
			}
		}
	}
	return limit
}

// maxGarbage is how much garbage a small heap may have before it is collected.
const maxGarbage = 32 << 20

// delayGC has the garbage collector run less often while the heap is small. By
// default it runs whenever the heap has doubled. A broker keeps a few megabytes
// and can allocate a hundred in a second, which would be many collections.
// There is no more garbage than an eighth of the memory limit. It does nothing
// if GOGC is set.
var delayGC = sync.OnceFunc(func() {
	if os.Getenv("GOGC") != "" {
		return
	}
	garbage := uint64(maxGarbage)
	if limit := debug.SetMemoryLimit(-1); limit < math.MaxInt64 {
		garbage = min(garbage, uint64(limit)/8)
	}
	setGCPercent(garbage)
})

// setGCPercent sets the growth after which the heap is collected, and does so
// again after each collection.
func setGCPercent(garbage uint64) {
	live := []runtimemetrics.Sample{{Name: "/gc/heap/live:bytes"}}
	runtimemetrics.Read(live)
	debug.SetGCPercent(int(max(100, garbage*100/max(1<<20, live[0].Value.Uint64()))))
	runtime.AddCleanup(new(collected), setGCPercent, garbage)
}

// collected is an object that the next collection finds unused. It must not be
// so small that the runtime puts it together with others.
type collected [32]byte
