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

// block is what long bodies repeat. Its length is none of a buffer, so that a part in the wrong place shows.
var block = func() []byte {
	b := make([]byte, 1<<20-3)
	random := rand.NewChaCha8([32]byte{})
	random.Read(b)
	return b
}()

// source is a long body. It counts and sums up what was read of it.
type source struct {
	left int64
	at   int
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

// summary reads a body to its end, and says how much it was and what.
func summary(r io.Reader) (string, error) {
	sum := crc32.New(castagnoli)
	n, err := io.CopyBuffer(struct{ io.Writer }{sum}, struct{ io.Reader }{r}, make([]byte, 32<<10))
	return fmt.Sprintf("%d bytes %08x", n, sum.Sum32()), err
}

func (s *source) summary() string { return fmt.Sprintf("%d bytes %08x", s.read.Load(), s.sum.Sum32()) }

// peakOfHeap returns how much more was in use on the heap at any time of run than before.
func peakOfHeap(run func()) (peak uint64) {
	read := func() uint64 {
		sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}}
		metrics.Read(sample)
		return sample[0].Value.Uint64() + sample[1].Value.Uint64() // HeapInuse, without stopping the world
	}
	runtime.GC()
	before := read()
	done := make(chan struct{})
	go func() {
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

func TestABodyOfAGigabytePassesInLittleMemory(t *testing.T) {
	testenv.Slow(t)
	const allowed = 32 << 20
	eachWay(t, func(t *testing.T, w *way) {
		size := int64(1 << 30)
		if raceDetector {
			size = 128 << 20
		}
		if w.browser != 1 || w.kind.scheme != "http" {
			size /= 8 // of all but the plainest way it is the shape that matters
		}
		down := make(chan *source, 1)
		w.answers(func(rw http.ResponseWriter, r *http.Request) {
			if r.Method == "GET" {
				src := newSource(size)
				if r.URL.RawQuery == "sized" {
					rw.Header().Set("Content-Length", strconv.FormatInt(size, 10))
				}
				io.CopyBuffer(struct{ io.Writer }{rw}, src, make([]byte, 32<<10))
				down <- src
				return
			}
			got, err := summary(r.Body)
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
				if got, _ := io.ReadAll(resp.Body); string(got) != src.summary()+" <nil>" || src.left > 0 {
					t.Errorf("%s: the upstream got %s, want %s", query, got, src.summary())
				}
			})
			if peak > allowed {
				t.Errorf("%s: %d MB went up with %d MB in memory", query, size>>20, peak>>20)
			}
			peak = peakOfHeap(func() {
				resp, err := w.client.Do(w.request(t, "GET", "x?"+query, nil))
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				got, err := summary(resp.Body)
				if err != nil {
					t.Error(err)
					return
				}
				if src := <-down; got != src.summary() || src.left > 0 {
					t.Errorf("%s: the client got %s, want %s", query, got, src.summary())
				}
			})
			if peak > allowed {
				t.Errorf("%s: %d MB came down with %d MB in memory", query, size>>20, peak>>20)
			}
		}
	})
}

// settled waits until a body does not move any more, and returns how much of it has been taken.
func settled(t *testing.T, s *source) int64 {
	t.Helper()
	deadline := time.Now().Add(patience)
	for last := int64(-1); time.Now().Before(deadline); time.Sleep(60 * time.Millisecond) {
		now := s.read.Load()
		if now == last && now > 0 {
			return now
		}
		last = now
	}
	t.Fatal("the body does not come to rest")
	return 0
}

// What sockets and windows hold, at the two connections together, is below bound; a whole body is well above.
const bound, flood = 24 << 20, 32 << 20

func TestAnUpstreamThatDoesNotReadStopsTheClient(t *testing.T) {
	eachWay(t, func(t *testing.T, w *way) {
		read := make(chan struct{})
		w.answers(func(rw http.ResponseWriter, r *http.Request) {
			select {
			case <-read:
			case <-r.Context().Done():
			}
			got, err := summary(r.Body)
			fmt.Fprint(rw, got, " ", err)
		})
		src := newSource(flood)
		answered := make(chan string, 1)
		req := w.request(t, "POST", "x", io.NopCloser(src))
		go func() {
			resp, err := w.client.Do(req)
			if err != nil {
				answered <- err.Error()
				return
			}
			defer resp.Body.Close()
			text, _ := io.ReadAll(resp.Body)
			answered <- string(text)
		}()
		if n := settled(t, src); n > bound {
			t.Errorf("the client sent %d MB to an upstream that reads nothing", n>>20)
		}
		close(read)
		if got, want := await(t, "the answer", answered), src.summary()+" <nil>"; got != want || src.read.Load() != flood {
			t.Errorf("the upstream got %s, want %s", got, want)
		}
	})
}

func TestAClientThatDoesNotReadStopsTheUpstream(t *testing.T) {
	eachWay(t, func(t *testing.T, w *way) {
		src := newSource(flood)
		w.answers(func(rw http.ResponseWriter, r *http.Request) {
			io.CopyBuffer(struct{ io.Writer }{rw}, src, make([]byte, 32<<10))
		})
		resp := w.do(t, w.request(t, "GET", "x", nil))
		if n := settled(t, src); n > bound {
			t.Errorf("the upstream sent %d MB to a client that reads nothing", n>>20)
		}
		got, err := summary(resp.Body)
		if err != nil || got != src.summary() || src.read.Load() != flood {
			t.Errorf("the client got %s, %v, want %s", got, err, src.summary())
		}
	})
}
