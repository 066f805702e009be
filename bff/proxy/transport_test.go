package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/internal/http1"
)

// A connection that is too old finishes what it has begun, and takes nothing
// new.
func TestAnHTTP2ConnectionThatIsTooOldTakesNoRequest(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	var opened atomic.Int32
	closed := make(chan struct{}, 10)
	s := &http.Server{Protocols: new(http.Protocols), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	s.Protocols.SetUnencryptedHTTP2(true)
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/long" {
			http.NewResponseController(w).Flush()
			<-release
		}
		io.WriteString(w, "ok")
	})
	s.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			opened.Add(1)
		case http.StateClosed:
			closed <- struct{}{}
		}
	}
	go s.Serve(l) // until Close
	t.Cleanup(func() { s.Close() })
	transport := &http2Transport{connect: func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
	}}
	t.Cleanup(transport.CloseIdle)
	get := func(path string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+l.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := transport.RoundTrip(req, new(http1.Fields), false)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	read := func(resp *http.Response) {
		t.Helper()
		defer resp.Body.Close()
		if text, err := io.ReadAll(resp.Body); string(text) != "ok" || err != nil {
			t.Errorf("got %q, %v", text, err)
		}
	}
	grow := func() { transport.current.Load().until = time.Now() }
	read(get("/"))
	read(get("/"))
	if n := opened.Load(); n != 1 {
		t.Fatalf("%d connections", n)
	}
	grow()
	read(get("/"))
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		t.Error("an idle connection that is too old stays open")
	}
	long := get("/long")
	grow()
	read(get("/"))
	if n := opened.Load(); n != 3 {
		t.Errorf("%d connections, want one each time the last was too old", n)
	}
	close(release)
	read(long)
}

// The frames say where a response ends. A client in HTTP/1.1 must not get a
// length that contradicts them.
func TestAmbiguousLengthsInHTTP2AreDropped(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, lengths := range [][]string{{"5", "6"}, {"6", "5"}, {"5", "x"}, {"x"}, {"-1"}, {"5, 5"}, {"5"}} {
		go func() { // until the connection is closed
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			io.ReadFull(c, make([]byte, len(http2.ClientPreface)))
			framer := http2.NewFramer(c, c)
			framer.WriteSettings()
			for {
				frame, err := framer.ReadFrame()
				if err != nil {
					return
				}
				head, ok := frame.(*http2.HeadersFrame)
				if !ok {
					continue
				}
				var block bytes.Buffer
				encoder := hpack.NewEncoder(&block)
				encoder.WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
				for _, length := range lengths {
					encoder.WriteField(hpack.HeaderField{Name: "content-length", Value: length})
				}
				framer.WriteHeaders(http2.HeadersFrameParam{
					StreamID: head.StreamID, BlockFragment: block.Bytes(), EndHeaders: true,
				})
				framer.WriteData(head.StreamID, true, []byte("hello"))
			}
		}()
		transport := &http2Transport{connect: func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
		}}
		t.Cleanup(transport.CloseIdle)
		req, err := http.NewRequestWithContext(t.Context(), "GET", "http://api.internal/", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := transport.RoundTrip(req, new(http1.Fields), false)
		if err != nil {
			t.Fatalf("%q: %v", lengths, err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(text) != "hello" || err != nil {
			t.Errorf("%q: got %q and %v", lengths, text, err)
		}
		var want []string
		if len(lengths) == 1 && lengths[0] == "5" {
			want = lengths
		}
		if got := resp.Header["Content-Length"]; !slices.Equal(got, want) {
			t.Errorf("%q: got the lengths %q, want %q", lengths, got, want)
		}
	}
}

// A PING goes neither into a frame nor into a header block.
func TestPINGIsSentBetweenFrames(t *testing.T) {
	t.Parallel()
	var all bytes.Buffer
	all.WriteString(http2.ClientPreface)
	framer := http2.NewFramer(&all, nil)
	framer.WriteSettings()
	framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte("a")})
	begun := all.Len()
	framer.WriteContinuation(1, true, []byte("b"))
	c := newCheckedConn(&discardConn{})
	for _, test := range []struct {
		write []byte
		sent  bool
	}{
		{all.Bytes()[:len(http2.ClientPreface)], false}, // SETTINGS comes first
		{all.Bytes()[len(http2.ClientPreface) : begun-1], false},
		{all.Bytes()[begun-1 : begun], false}, // a frame is complete, its header block is not
		{all.Bytes()[begun : all.Len()-1], false},
		{all.Bytes()[all.Len()-1:], true},
	} {
		c.Write(test.write)
		if got := c.sendPing(); got != test.sent {
			t.Errorf("after %q: sent a PING: %v, want %v", test.write, got, test.sent)
		}
	}
	c.Close()
}

// discardConn is a connection that discards what is written.
type discardConn struct{ net.Conn }

func (*discardConn) Write(p []byte) (int, error)      { return len(p), nil }
func (*discardConn) SetWriteDeadline(time.Time) error { return nil }
func (*discardConn) Close() error                     { return nil }

// A response whose header is too large is refused, as in HTTP/1.1.
func TestTheHeaderOfAnHTTP2ResponseIsLimited(t *testing.T) {
	t.Parallel()
	upstream := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		size, _ := strconv.Atoi(r.URL.Query().Get("size"))
		w.Header().Set("X-Large", strings.Repeat("a", size))
	}))
	upstream.Config.Protocols = new(http.Protocols)
	upstream.Config.Protocols.SetUnencryptedHTTP2(true)
	upstream.Start()
	t.Cleanup(upstream.Close)
	p, err := New(Upstream{URLs: []string{"h2c://" + upstream.Listener.Addr().String()}, Path: "/"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	for size, refused := range map[int]bool{200 << 10: false, 300 << 10: true} {
		r := httptest.NewRequest("GET", fmt.Sprintf("http://app.example/?size=%d", size), nil)
		err := p.Forward(httptest.NewRecorder(), r, Options{})
		var failed *problem.Problem
		if errors.As(err, &failed) != refused || refused && failed.Code != problem.UpstreamFailed.Code {
			t.Errorf("%d bytes: got %v, refused %v", size, err, refused)
		}
	}
}
