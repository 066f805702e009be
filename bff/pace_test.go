package bff_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// The minimum rate of bodies in these tests, and the window that it is measured
// over.
const (
	testRate    = 10_000
	shortWindow = 200 * time.Millisecond // if it does not matter which side is slow first
	testWindow  = time.Second            // if nothing must be fast
	longWindow  = 4 * time.Second        // if a body must be fast enough on a busy machine
)

// paced runs a test for every way through a broker that aborts slow bodies. The
// developer's loop has one for HTTP/1.1 and one for HTTP/2.
func paced(t *testing.T, window time.Duration, test func(t *testing.T, w *protocolPair)) {
	t.Helper()
	f := newProtocolServer(t, func(_ *protocolServer, cfg *bff.Config) { cfg.BodyMinRate = testRate })
	f.server.SetPaceWindow(window)
	pairs := f.pairs
	if !testenv.All() {
		pairs = []*protocolPair{f.pairs[0], f.pairs[len(f.pairs)-1]}
	}
	t.Run("all", func(t *testing.T) {
		for _, w := range pairs {
			t.Run(w.name, func(t *testing.T) {
				t.Parallel()
				test(t, w)
			})
		}
	})
}

// slowRequest is request with a longer timeout.
func (w *protocolPair) slowRequest(t *testing.T, method, target string, body io.Reader,
	header ...string) *http.Request {
	return w.request(t, method, target, body, header...).WithContext(t.Context())
}

// slowDo sends a request that may fail with an error.
func (w *protocolPair) slowDo(req *http.Request) (status int, text string, err error) {
	resp, err := w.client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// wantLogged waits for the log line of the request for a path, and checks that
// there is one and that it names the cause.
func (w *protocolPair) wantLogged(t *testing.T, target, cause string) {
	t.Helper()
	var lines []string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		lines = nil
		for line := range strings.Lines(w.logs.String()) {
			if strings.Contains(line, `"`+w.path+target+`"`) {
				lines = append(lines, line)
			}
		}
		if len(lines) > 0 {
			break
		}
	}
	if len(lines) != 1 || !strings.Contains(lines[0], cause) {
		t.Errorf("log lines: got %q, want one that names %q", lines, cause)
	}
}

// trickle is a body that arrives in pieces, one every 20 ms, until the context
// ends.
type trickle struct {
	ctx    context.Context
	piece  int
	pieces int // -1 for an endless body
}

func (s *trickle) Read(p []byte) (int, error) {
	if s.pieces == 0 {
		return 0, io.EOF
	}
	s.pieces--
	select {
	case <-time.After(20 * time.Millisecond):
		return copy(p, bytes.Repeat([]byte("x"), s.piece)), nil
	case <-s.ctx.Done():
		return 0, s.ctx.Err()
	}
}

func TestSlowUploadIsAborted(t *testing.T) {
	t.Parallel()
	testenv.Slow(t)
	paced(t, longWindow/2, func(t *testing.T, w *protocolPair) {
		ended := make(chan error, 10)
		w.handle(func(_ http.ResponseWriter, r *http.Request) {
			_, err := io.Copy(io.Discard, r.Body)
			ended <- err
		})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var calls sync.WaitGroup
		for _, name := range []string{"stops", "crawls"} {
			for _, length := range []int64{-1, 1 << 20} {
				target := fmt.Sprint(name, length)
				var body io.Reader = &trickle{ctx, 10, -1}
				if name == "stops" {
					from, to := io.Pipe() // the client closes it on its timeout
					go io.WriteString(to, "four")
					body = from
				}
				req := w.slowRequest(t, "POST", target, body)
				req.ContentLength = length
				calls.Go(func() {
					status, text, err := w.slowDo(req)
					if status != 408 || !strings.Contains(text, `"body_too_slow"`) || err != nil {
						t.Errorf("%s: got %d %s, %v", target, status, text, err)
					}
					w.wantLogged(t, target, "the client sends its body too slowly: less than 10000 bytes/s")
				})
			}
		}
		calls.Wait()
		for range 4 {
			if err := await(t, "an upstream request is cancelled", ended); err == nil {
				t.Error("the upstream read a complete body, want an aborted one")
			}
		}
	})
}

func TestUpstreamThatStopsReadingAnUploadTimesOut(t *testing.T) {
	t.Parallel()
	testenv.Slow(t)
	paced(t, longWindow/2, func(t *testing.T, w *protocolPair) {
		w.handle(func(_ http.ResponseWriter, r *http.Request) {
			io.ReadFull(r.Body, make([]byte, 1000))
			select {
			case <-r.Context().Done():
			case <-t.Context().Done():
			}
		})
		for _, length := range []int64{-1, flood} {
			target := fmt.Sprint("upload", length)
			req := w.slowRequest(t, "PUT", target, io.NopCloser(newSource(flood)))
			req.ContentLength = length
			status, text, err := w.slowDo(req)
			// The connection of a client that continues to send may be reset.
			if err == nil && (status != 504 || !strings.Contains(text, `"upstream_timeout"`)) {
				t.Errorf("%s: got %d %s, %v", target, status, text, err)
			}
			w.wantLogged(t, target, "the upstream reads the request's body too slowly: less than")
		}
	})
}

func TestSlowResponseIsAborted(t *testing.T) {
	t.Parallel()
	testenv.Slow(t)
	paced(t, longWindow/2, func(t *testing.T, w *protocolPair) {
		left := make(chan struct{}, 10)
		w.handle(func(rw http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			if strings.HasSuffix(r.URL.Path, "length") {
				rw.Header().Set("Content-Length", "100")
			}
			if !strings.Contains(r.URL.Path, "nothing") {
				io.WriteString(rw, "four")
			}
			flush(rw)
			for strings.Contains(r.URL.Path, "crawls") && r.Context().Err() == nil {
				io.WriteString(rw, "x")
				flush(rw)
				time.Sleep(20 * time.Millisecond)
			}
			<-r.Context().Done()
			left <- struct{}{}
		})
		var calls sync.WaitGroup
		for _, target := range []string{"stops-length", "stops", "nothing-length", "nothing", "crawls"} {
			for _, method := range []string{"GET", "POST"} {
				at := strings.ToLower(method) + target
				req := w.slowRequest(t, method, at, strings.NewReader("body"))
				calls.Go(func() {
					status, text, err := w.slowDo(req)
					if status != 200 && !strings.HasPrefix(target, "nothing") || err == nil {
						t.Errorf("%s: got %d %q, %v, want an error", at, status, text, err)
					}
					w.wantLogged(t, at, "upstream_failed: the upstream sends its response too slowly: less than")
				})
			}
		}
		calls.Wait()
		for range 10 {
			await(t, "an upstream's call is cancelled", left)
		}
	})
}

func TestSlowReaderIsAborted(t *testing.T) {
	t.Parallel()
	testenv.Slow(t)
	paced(t, longWindow/2, func(t *testing.T, w *protocolPair) {
		left := make(chan struct{}, 10)
		w.handle(func(rw http.ResponseWriter, r *http.Request) {
			io.CopyBuffer(struct{ io.Writer }{rw}, newSource(1<<40), make([]byte, 32<<10))
			left <- struct{}{}
		})
		resp, err := w.client.Do(w.slowRequest(t, "GET", "download", nil))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { // one byte at a time
			for b := make([]byte, 1); ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
				if _, err := resp.Body.Read(b); err != nil {
					return
				}
			}
		}()
		select {
		case <-left:
		case <-time.After(20 * time.Second):
			t.Error("the upstream can still send although the client does not read")
		}
		w.wantLogged(t, "download", "body_too_slow: the client reads the response too slowly: less than")
	})
}

func TestFastBodiesAndQuietStreamsContinue(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	const long = 3 * longWindow
	paced(t, longWindow, func(t *testing.T, w *protocolPair) {
		w.handle(func(rw http.ResponseWriter, r *http.Request) {
			switch what := r.URL.Path[len(w.path):]; what {
			case "upload":
				n, err := io.Copy(io.Discard, r.Body)
				time.Sleep(long) // the body has arrived, the response takes this long
				fmt.Fprint(rw, n, err)
			case "poll":
				time.Sleep(long)
				io.WriteString(rw, "news")
			case "download":
				io.Copy(flushing{rw}, &trickle{r.Context(), 2000, int(long / (20 * time.Millisecond))})
			default:
				rw.Header().Set("Content-Type", what[1:])
				io.WriteString(rw, "begun")
				flush(rw)
				time.Sleep(long)
				io.WriteString(rw, "ended")
			}
		})
		pieces := int(long / (20 * time.Millisecond))
		var all sync.WaitGroup
		for target, want := range map[string]string{
			"upload": fmt.Sprint(pieces*2000, " <nil>"), "poll": "news", "download": strings.Repeat("x", pieces*2000),
			"/text/event-stream": "begunended", "/text/event-stream; charset=utf-8": "begunended",
			"/application/grpc-web+proto": "begunended",
		} {
			var body io.Reader
			method := "GET"
			if target == "upload" {
				method, body = "POST", &trickle{t.Context(), 2000, pieces}
			}
			req := w.slowRequest(t, method, "x", body)
			req.URL.Path = w.path + target
			if strings.HasPrefix(target, "/") {
				req.URL.Path = w.path + "-" + target[1:] // an empty path segment would be refused
			}
			all.Go(func() {
				if status, text, err := w.slowDo(req); status != 200 || text != want || err != nil {
					t.Errorf("%s: got %d with %d bytes, %v, want %d bytes", target, status, len(text), err, len(want))
				}
			})
		}
		all.Wait()
	})
}

type flushing struct{ http.ResponseWriter }

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.ResponseWriter.Write(p)
	flush(f.ResponseWriter)
	return n, err
}

func TestWebSocketMayBeQuiet(t *testing.T) {
	f := newProtocolServer(t, func(_ *protocolServer, cfg *bff.Config) { cfg.BodyMinRate = testRate })
	f.server.SetPaceWindow(testWindow / 4)
	w := f.pairs[0]
	w.handle(func(rw http.ResponseWriter, r *http.Request) {
		c, buffered, err := switchProtocols(rw)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		line, _ := buffered.ReadString('\n')
		io.WriteString(c, line)
	})
	c, r, _ := w.openSocket(t, "x")
	time.Sleep(testWindow) // nothing must happen, so there is no event to wait for
	io.WriteString(c, "hello\n")
	if line, err := r.ReadString('\n'); line != "hello\n" {
		t.Errorf("got %q, %v", line, err)
	}
}

func TestFrontendResponseToAStalledReaderIsAborted(t *testing.T) {
	ended := make(chan error, 2)
	f := newProtocolServer(t, func(_ *protocolServer, cfg *bff.Config) {
		cfg.BodyMinRate = testRate
		cfg.Frontend = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			_, err := io.Copy(rw, newSource(1<<40))
			ended <- err
		})
	})
	f.server.SetPaceWindow(shortWindow)
	for _, w := range []*protocolPair{f.pairs[0], f.pairs[4]} {
		req := w.slowRequest(t, "GET", "x", nil)
		req.URL.Path = "/app.js"
		resp, err := w.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		select {
		case err := <-ended:
			if err == nil {
				t.Error("the whole response was sent")
			}
		case <-time.After(20 * time.Second):
			t.Error("the response is still being sent")
		}
	}
	const cause = "body_too_slow: the client reads the response too slowly"
	deadline := time.Now().Add(10 * time.Second)
	for ; strings.Count(f.logs.String(), cause) != 2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the log does not name the cause twice:\n%s", f.logs)
		}
	}
}

// The client is fast enough, but the whole body takes longer than the window.
func TestFrontendMayWriteALargeBodyAtOnce(t *testing.T) {
	t.Parallel()
	testenv.Slow(t)
	const size = 40 << 20 // the buffers of loopback take megabytes
	f := newProtocolServer(t, func(_ *protocolServer, cfg *bff.Config) {
		cfg.BodyMinRate = testRate
		cfg.Frontend = http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { rw.Write(make([]byte, size)) })
	})
	f.server.SetPaceWindow(longWindow)
	var calls sync.WaitGroup
	for _, w := range []*protocolPair{f.pairs[0], f.pairs[4]} {
		calls.Go(func() {
			req := w.slowRequest(t, "GET", "x", nil)
			req.URL.Path = "/app.js"
			resp, err := w.client.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			n, err := io.CopyBuffer(slowWriter{}, struct{ io.Reader }{resp.Body}, make([]byte, 64<<10))
			if n != size || err != nil {
				t.Errorf("%s: got %d bytes, %v, want %d", w.name, n, err, size)
			}
		})
	}
	calls.Wait()
}

// slowWriter takes three megabytes a second.
type slowWriter struct{}

func (slowWriter) Write(p []byte) (int, error) {
	time.Sleep(time.Duration(len(p)) * time.Second / (3 << 20))
	return len(p), nil
}

func TestWithoutAMinimumRateBodiesMayStall(t *testing.T) {
	f := newProtocolServer(t, func(_ *protocolServer, cfg *bff.Config) { cfg.BodyMinRate = -1 })
	f.server.SetPaceWindow(testWindow / 10)
	w := f.pairs[0]
	w.handle(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Length", "9")
		io.WriteString(rw, "four")
		flush(rw)
		time.Sleep(testWindow)
		io.WriteString(rw, " five")
	})
	if _, text, err := w.slowDo(w.slowRequest(t, "GET", "x", nil)); text != "four five" || err != nil {
		t.Errorf("got %q, %v", text, errors.Unwrap(err))
	}
}

// Responses that fit into a buffer are sent after their handlers have returned.
func TestStalledReaderOfPipelinedResponsesIsAborted(t *testing.T) {
	t.Parallel()
	testenv.Slow(t)
	f := newProtocolServer(t, func(_ *protocolServer, cfg *bff.Config) {
		cfg.BodyMinRate = testRate
		cfg.Frontend = http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { rw.Write(make([]byte, 2000)) })
	})
	f.server.SetPaceWindow(longWindow / 2)
	w := f.pairs[0]
	w.handle(func(rw http.ResponseWriter, _ *http.Request) { rw.Write(make([]byte, 1500)) })
	for name, path := range map[string]string{
		"the upstream": w.path + "x",
		"the app":      "/index.html",
		"own endpoint": "/bff/nothing",
	} {
		head := strings.Replace(w.head("GET", "x"), w.path+"x", path, 1)
		c, _ := w.dial(t)
		c.SetDeadline(time.Now().Add(5 * time.Minute)) // the buffers of loopback take megabytes
		sent := 0
		for ; sent < 1_000_000; sent++ { // until the broker closes the connection
			if _, err := io.WriteString(c, head+"\r\n"); err != nil {
				var timeout interface{ Timeout() bool }
				if errors.As(err, &timeout) && timeout.Timeout() {
					t.Errorf("%s: still waiting for a client that reads nothing, after %d requests", name, sent)
				}
				break
			}
		}
	}
	// The deadline of one request does not apply to the next one on its
	// connection.
	w.handle(func(rw http.ResponseWriter, r *http.Request) {
		io.WriteString(rw, "begun")
		flush(rw)
		io.Copy(flushing{rw}, &trickle{r.Context(), 2000, 150})
	})
	for range 2 {
		status, text, err := w.slowDo(w.slowRequest(t, "GET", "x", nil))
		if status != 200 || len(text) != 300_005 || err != nil {
			t.Errorf("got %d with %d bytes, %v", status, len(text), err)
		}
	}
}
