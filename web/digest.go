package web

import (
	"io/fs"
	"sync"
	"time"
)

// digests remembers what was computed from the content of files: a request for
// one octet, or one that is answered with 304, must not cost the hash of all of
// it. An entry counts as long as the file is the same one, unchanged.
type digests struct {
	mu  sync.Mutex // guards all
	all map[string]digest
}

// digest is what was computed from a file's content.
type digest struct {
	version fileVersion
	etag    string
	policy  string // Content-Security-Policy of a page
}

// fileVersion tells two contents of a file apart without reading them. Its time
// of modification does not suffice: builds that can be reproduced give all files
// the same.
type fileVersion struct {
	device, inode    uint64
	size             int64
	modified, change time.Time // change: of the content or of what the file system says of it
}

// maxDigests bounds how many files are remembered, far above what a build has.
const maxDigests = 10_000

// settled is how old a change has to be for the file not to change within the
// resolution of its times.
const settled = 2 * time.Second

func (d *digests) get(name string, info fs.FileInfo) (digest, bool) {
	version, ok := versionOf(info)
	if !ok {
		return digest{}, false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	found, ok := d.all[name]
	return found, ok && found.version == version
}

// put remembers a digest of the content of a file that had info before it was
// read.
func (d *digests) put(name string, info fs.FileInfo, computed digest) {
	version, ok := versionOf(info)
	if !ok || time.Since(version.change) < settled {
		return
	}
	computed.version = version
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.all == nil || len(d.all) >= maxDigests {
		d.all = make(map[string]digest)
	}
	d.all[name] = computed
}
