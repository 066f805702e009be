package main

import (
	"context"
	"io/fs"
	"maps"
	"os"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/config"
)

// filesInterval is how often the files of the configuration are examined for a
// change.
const filesInterval = 2 * time.Second

// watchFiles reloads the configuration when one of its files has changed, until
// ctx ends. It follows symbolic links, such as those of a mounted ConfigMap. It
// waits until the files have not changed for an interval, because they may be
// being written. It repeats a reload that had a transient error.
func (b *broker) watchFiles(ctx context.Context) {
	seen := b.source.states()
	tick := time.NewTicker(filesInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := b.source.states()
		settled := maps.Equal(now, seen)
		seen = now
		if settled && !maps.Equal(now, b.lastRead()) {
			b.reload(ctx)
		} else {
			b.repeatReload(ctx)
		}
	}
}

// repeatedReload is when a reload that had a transient error is repeated. The
// zero value is never.
type repeatedReload struct {
	logged string // the error, which is logged once
	at     time.Time
	pause  time.Duration // before at
}

const (
	minReloadPause = 2 * time.Second
	maxReloadPause = time.Minute
)

// schedule sets the time of the next attempt after one that returned err. It
// reports whether err was returned before, too.
func (r *repeatedReload) schedule(err error, now time.Time) (known bool) {
	if !config.IsTransient(err) {
		*r = repeatedReload{}
		return false
	}
	known = err.Error() == r.logged
	pause := min(max(2*r.pause, minReloadPause), maxReloadPause)
	*r = repeatedReload{logged: err.Error(), at: now.Add(pause), pause: pause}
	return known
}

// repeatReload repeats a reload that had a transient error, if it is time.
func (b *broker) repeatReload(ctx context.Context) {
	if !b.reloading.TryLock() {
		return // another reload has begun
	}
	defer b.reloading.Unlock()
	if at := b.repeated.at; !at.IsZero() && !time.Now().Before(at) {
		b.loadAndApply(ctx)
	}
}

// fileState changes with the content of a file. It is obtained without reading
// the file.
type fileState struct {
	modified time.Time
	changed  time.Time // unlike modified, no program can set it; zero where it is unknown
	size     int64
	inode    uint64 // of the file that a link leads to
	mode     fs.FileMode
	missing  bool
}

func stateOf(name string) fileState {
	info, err := os.Stat(name)
	if err != nil {
		return fileState{missing: true}
	}
	return fileState{
		modified: info.ModTime(), changed: changeTime(info), size: info.Size(), inode: inode(info), mode: info.Mode(),
	}
}

// states returns the states of the files, by name.
func (s *source) states() map[string]fileState {
	states := make(map[string]fileState)
	for _, name := range s.files() {
		states[name] = stateOf(name)
	}
	return states
}
