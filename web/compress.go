package web

import (
	"bytes"
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"sync"
	"time"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/cloakroom-bff/cloakroom/internal/flight"
)

const (
	// maxCompressed bounds the memory of compressed content, in bytes.
	maxCompressed = 32 << 20
	// compressWait is how long a request waits for compressed content. Then its
	// response is not compressed, and that of the next request is.
	compressWait = 3 * time.Second
	// compressLimit bounds how long a compression waits for others.
	compressLimit = time.Minute
)

// The levels are those from which on each further byte costs much time. A
// bundle of 1 MB takes about 50 ms of CPU for br, 13 ms for zstd and 10 ms for
// gzip, once. The next level of br takes 30 % longer and saves 1 %, that of
// zstd takes five times as long and saves 6 %, that of gzip twice as long and 2
// %. The highest level of br saves 10 % and takes 2.5 s: a build that writes
// siblings can afford it.
const (
	brotliLevel = 5
	zstdLevel   = zstd.SpeedBetterCompression
	gzipLevel   = 6
)

// zstdWindow is the size of the zstd window in bytes. Browsers refuse more than
// 8 MB (RFC 9659).
const zstdWindow = 4 << 20

// compressor compresses files, once for each content and coding, and caches the
// results. It is safe for concurrent use.
type compressor struct {
	calls flight.Group[variant, *encoded]
	slots chan struct{} // one element for each compression that runs
	limit int64         // of size; at least maxDigested

	mu      sync.Mutex                // guards the fields below
	entries map[variant]*list.Element // :: with the entries of recent
	recent  list.List                 // of *encoded, most recently used first
	size    int64                     // of all entries
}

// variant is some content in one content coding.
type variant struct {
	etag   string // hash of the content without a coding
	coding string
}

// encoded is content in a content coding.
type encoded struct {
	variant variant
	etag    string // hash of data
	data    []byte
}

func newCompressor() *compressor {
	return &compressor{
		slots:   make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)), // API calls need CPUs too
		limit:   maxCompressed,
		entries: make(map[variant]*list.Element),
	}
}

// compress returns the content of a file in a content coding. ok is false if
// the file has changed since its ETag was computed, cannot be read, or takes
// too long. Its ETag is a hash of the encoded content: strong, and the same on
// all replicas of one version.
func (c *compressor) compress(ctx context.Context, files fs.FS, name string, v variant) (content, bool) {
	found := c.get(v)
	if found == nil {
		ctx, cancel := context.WithTimeout(ctx, compressWait)
		defer cancel()
		var err error
		found, err = c.calls.Do(ctx, v, compressLimit, func(ctx context.Context) (*encoded, error) {
			return c.encode(ctx, files, name, v)
		})
		if err != nil {
			return content{}, false
		}
	}
	return content{bytes.NewReader(found.data), int64(len(found.data)), found.etag, v.coding}, true
}

// encode compresses a file and caches the result.
func (c *compressor) encode(ctx context.Context, files fs.FS, name string, v variant) (*encoded, error) {
	if found := c.get(v); found != nil { // another call has just ended
		return found, nil
	}
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	f, info, err := open(files, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, min(info.Size(), maxDigested)))
	if err != nil {
		return nil, err
	}
	if etagOf(b) != v.etag {
		return nil, errChanged
	}
	data, err := encodeBytes(v.coding, b)
	if err != nil {
		return nil, fmt.Errorf("compress %q: %w", name, err)
	}
	e := &encoded{variant: v, etag: etagOf(data), data: data}
	c.put(e)
	return e, nil
}

var errChanged = errors.New("the file has changed")

func encodeBytes(coding string, b []byte) ([]byte, error) {
	var buf bytes.Buffer
	var w io.WriteCloser
	var err error
	switch coding {
	case "br":
		w = brotli.NewWriterLevel(&buf, brotliLevel)
	case "zstd":
		w, err = zstd.NewWriter(&buf, zstd.WithEncoderLevel(zstdLevel), zstd.WithWindowSize(zstdWindow),
			zstd.WithEncoderConcurrency(1))
	default:
		w, err = gzip.NewWriterLevel(&buf, gzipLevel)
	}
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(b); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return bytes.Clone(buf.Bytes()), nil // without the buffer's spare capacity
}

// get returns encoded content; nil if it is not in the cache.
func (c *compressor) get(v variant) *encoded {
	c.mu.Lock()
	defer c.mu.Unlock()
	element, ok := c.entries[v]
	if !ok {
		return nil
	}
	c.recent.MoveToFront(element)
	return element.Value.(*encoded)
}

// put adds encoded content, and removes what was not used for the longest time.
func (c *compressor) put(e *encoded) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries[e.variant] = c.recent.PushFront(e)
	c.size += int64(len(e.data))
	for c.size > c.limit {
		oldest := c.recent.Remove(c.recent.Back()).(*encoded)
		delete(c.entries, oldest.variant)
		c.size -= int64(len(oldest.data))
	}
}
