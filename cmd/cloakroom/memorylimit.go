package main

import (
	"log/slog"
	"math"
	"os"
	"path"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
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
