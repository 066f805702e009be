package web

import (
	"io/fs"
	"runtime"
	"sync"
	"time"
)

// digests caches values computed from the names and the content of files, so
// that a request for one byte, or one with a 304 response, does not cost a hash
// of the file.
// An entry is valid as long as the file is unchanged.
type digests struct {
	slots chan struct{} // one element for each digest that takes much memory or time to compute

	mu  sync.Mutex // guards all below
	all map[string]digest
}

func newDigests() *digests {
	return &digests{slots: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))} // API calls need CPUs too
}

// wait returns when the digest of a large file may be computed. done is called
// afterwards.
func (d *digests) wait() (done func()) {
	d.slots <- struct{}{}
	return func() { <-d.slots }
}

// digest holds values computed from a file's name and content.
type digest struct {
	version  fileVersion
	etag     string
	policy   string // Content-Security-Policy of a page
	hashed   bool   // the name has a hash of the content
	relative bool   // it is a page that works at some URLs only, see hasRelativeURL
}

// fileVersion identifies a content of a file without reading it. The
// modification time is not sufficient: reproducible builds give all files the
// same.
type fileVersion struct {
	device, inode    uint64
	size             int64
	modified, change time.Time // change: of content or metadata
}

// maxDigests is the maximum number of entries, far above the number of files in
// a build.
const maxDigests = 10_000

// settled is the age of a change after which the file cannot change again
// within the resolution of its times.
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

// put stores a digest of a file that had info before it was read.
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
