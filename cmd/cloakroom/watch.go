package main

import (
	"context"
	"io/fs"
	"maps"
	"os"
	"time"
)

// filesInterval is how often the files of the configuration are examined for a
// change.
const filesInterval = 2 * time.Second

// watchFiles reloads the configuration when one of its files has changed, until
// ctx ends. It follows symbolic links, such as those of a mounted ConfigMap. It
// waits until the files have not changed for an interval, because they may be
// being written.
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
		}
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
