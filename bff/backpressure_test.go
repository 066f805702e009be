package bff_test

import (
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net/http"
	"runtime"
	"runtime/metrics"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// block is repeated in long bodies. Its length differs from that of any buffer,
// so that a part in the wrong place changes the checksum.
var block = func() []byte {
	b := make([]byte, 1<<20-3)
	random := rand.NewChaCha8([32]byte{})
	random.Read(b)
	return b
}()

// source is a long body that counts and checksums what was read of it.
type source struct {
	left int64
	at   int // in block
	read atomic.Int64
	sum  hash.Hash32
}

func newSource(n int64) *source { return &source{left: n, sum: crc32.New(castagnoli)} }

func (s *source) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(int64(len(p)), s.left)], block[s.at:])
	s.at = (s.at + n) % len(block)
	s.left -= int64(n)
	s.sum.Write(p[:n])
	s.read.Add(int64(n))
	return n, nil
}

// checksum reads a body to its end, and returns its length and checksum as
// text.
func checksum(r io.Reader) (string, error) {
	sum := crc32.New(castagnoli)
	n, err := io.CopyBuffer(struct{ io.Writer }{sum}, struct{ io.Reader }{r}, make([]byte, 32<<10))
	return fmt.Sprintf("%d bytes %08x", n, sum.Sum32()), err
}

// checksum returns the same for what was read of the source.
func (s *source) checksum() string { return fmt.Sprintf("%d bytes %08x", s.read.Load(), s.sum.Sum32()) }

// peakOfHeap returns the maximum growth of the heap during run, in bytes.
func peakOfHeap(run func()) (peak uint64) {
	read := func() uint64 {
		sample := []metrics.Sample{
			{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"},
		}
		metrics.Read(sample) // does not stop the world, unlike ReadMemStats
		return sample[0].Value.Uint64() + sample[1].Value.Uint64()
	}
	runtime.GC()
	before := read()
	done := make(chan struct{})
	go func() { // until run returns
		defer close(done)
		run()
	}()
	for {
		select {
		case <-done:
			return peak
		case <-time.After(2 * time.Millisecond):
			if now := read(); now > before {
				peak = max(peak, now-before)
			}
		}
	}
}

func TestLargeBodiesUseLittleMemory(t *testing.T) {
	testenv.Slow(t)
	const allowed = 32 << 20
	eachProtocolPair(t, func(t *testing.T, w *protocolPair) {
		size := int64(1 << 30)
		if raceDetector {
			size = 128 << 20
		}
		if w.browser != 1 || w.protocol.scheme != "http" {
			size /= 8 // the full size for one pair is enough
		}
		down := make(chan *source, 1)
		w.handle(func(rw http.ResponseWriter, r *http.Request) {
			if r.Method == "GET" {
				src := newSource(size)
				if r.URL.RawQuery == "sized" {
					rw.Header().Set("Content-Length", strconv.FormatInt(size, 10))
				}
				io.CopyBuffer(struct{ io.Writer }{rw}, src, make([]byte, 32<<10))
				down <- src
				return
			}
			got, err := checksum(r.Body)
			fmt.Fprint(rw, got, " ", err)
		})
		for _, query := range []string{"sized", "chunked"} {
			if query == "chunked" {
				size /= 4
			}
			peak := peakOfHeap(func() {
				src := newSource(size)
				req := w.request(t, "POST", "x?"+query, io.NopCloser(src))
				if query == "sized" {
					req.ContentLength = size
				}
				resp, err := w.client.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				if got, _ := io.ReadAll(resp.Body); string(got) != src.checksum()+" <nil>" {
					t.Errorf("%s: got %s at the upstream, want %s", query, got, src.checksum())
				}
				if src.left > 0 {
					t.Errorf("%s: got %d bytes unsent, want 0", query, src.left)
				}
			})
			if peak > allowed {
				t.Errorf("%s: got a heap of %d MB for an upload of %d MB, want at most %d MB",
					query, peak>>20, size>>20, allowed>>20)
			}
			peak = peakOfHeap(func() {
				resp, err := w.client.Do(w.request(t, "GET", "x?"+query, nil))
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				got, err := checksum(resp.Body)
				if err != nil {
					t.Error(err)
					return
				}
				src := <-down
				if got != src.checksum() {
					t.Errorf("%s: got %s at the client, want %s", query, got, src.checksum())
				}
				if src.left > 0 {
					t.Errorf("%s: got %d bytes unsent, want 0", query, src.left)
				}
			})
			if peak > allowed {
				t.Errorf("%s: got a heap of %d MB for a download of %d MB, want at most %d MB",
					query, peak>>20, size>>20, allowed>>20)
			}
		}
	})
}

// waitUntilStalled waits until no more of a body is read, and returns how much
// was.
func waitUntilStalled(t *testing.T, s *source) int64 {
	t.Helper()
	deadline := time.Now().Add(testTimeout)
	for last := int64(-1); time.Now().Before(deadline); time.Sleep(60 * time.Millisecond) {
		now := s.read.Load()
		if now == last && now > 0 {
			return now
		}
		last = now
	}
	t.Fatalf("the body is still read after %v", testTimeout)
	return 0
}

// The buffers and flow-control windows of both connections together hold less
// than bound. A body of the size flood is well above.
const bound, flood = 24 << 20, 32 << 20

func TestUpstreamThatDoesNotReadStopsTheClient(t *testing.T) {
	eachProtocolPair(t, func(t *testing.T, w *protocolPair) {
		read := make(chan struct{})
		w.handle(func(rw http.ResponseWriter, r *http.Request) {
			select {
			case <-read:
			case <-r.Context().Done():
			}
			got, err := checksum(r.Body)
			fmt.Fprint(rw, got, " ", err)
		})
		src := newSource(flood)
		responses := make(chan string, 1)
		req := w.request(t, "POST", "x", io.NopCloser(src))
		go func() {
			resp, err := w.client.Do(req)
			if err != nil {
				responses <- err.Error()
				return
			}
			defer resp.Body.Close()
			text, _ := io.ReadAll(resp.Body)
			responses <- string(text)
		}()
		if n := waitUntilStalled(t, src); n > bound {
			t.Errorf("sent to an upstream that does not read: got %d MB, want at most %d MB", n>>20, bound>>20)
		}
		close(read)
		if got, want := await(t, "response", responses), src.checksum()+" <nil>"; got != want {
			t.Errorf("got %s at the upstream, want %s", got, want)
		}
		if got := src.read.Load(); got != flood {
			t.Errorf("sent: got %d bytes, want %d", got, flood)
		}
	})
}

func TestClientThatDoesNotReadStopsTheUpstream(t *testing.T) {
	eachProtocolPair(t, func(t *testing.T, w *protocolPair) {
		src := newSource(flood)
		w.handle(func(rw http.ResponseWriter, r *http.Request) {
			io.CopyBuffer(struct{ io.Writer }{rw}, src, make([]byte, 32<<10))
		})
		resp := w.do(t, w.request(t, "GET", "x", nil))
		if n := waitUntilStalled(t, src); n > bound {
			t.Errorf("sent to a client that does not read: got %d MB, want at most %d MB", n>>20, bound>>20)
		}
		got, err := checksum(resp.Body)
		if err != nil || got != src.checksum() {
			t.Errorf("got %s, %v at the client, want %s", got, err, src.checksum())
		}
		if got := src.read.Load(); got != flood {
			t.Errorf("sent: got %d bytes, want %d", got, flood)
		}
	})
}
