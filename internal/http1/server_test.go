package http1

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// twins are two servers with one handler: net/http behind ServerConn, and
// Server in front of that.
type twins struct {
	other, plain string // addresses
	handled      atomic.Int64
	handedOver   atomic.Int64
	server       *Server
}

func startTwins(tb testing.TB, handler http.HandlerFunc, edit ...func(*http.Server)) *twins {
	tb.Helper()
	s := new(twins)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.handled.Add(1)
		handler(w, r)
	})
	newHTTP := func() *http.Server {
		server := &http.Server{
			Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute,
			ErrorLog: log.New(io.Discard, "", 0),
		}
		for _, edit := range edit {
			edit(server)
		}
		return server
	}
	check := func(c net.Conn) net.Conn { return ServerConn(c, 64<<10, nil, nil) }
	l := listen(tb)
	s.other = l.Addr().String()
	go newHTTP().Serve(&connListener{Listener: l, wrap: check})
	l = listen(tb)
	s.plain = l.Addr().String()
	rest := &connListener{Listener: l, conns: make(chan net.Conn)}
	s.server = &Server{
		HTTP: newHTTP(), MaxHead: 64 << 10, Check: check, Requested: func(net.Conn) {},
		HandOver: func(c net.Conn) {
			s.handedOver.Add(1)
			rest.conns <- c
		},
	}
	go s.server.HTTP.Serve(rest)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go s.server.Serve(c)
		}
	}()
	return s
}

// dial returns a connection to the plain server.
func (s *twins) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", s.plain)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// wantText reads a response whose body is to be text.
func wantText(t *testing.T, r *bufio.Reader, text string) {
	t.Helper()
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	if got, err := io.ReadAll(resp.Body); string(got) != text || err != nil {
		t.Fatalf("got %.40q and %v, want %q", got, err, text)
	}
}

func listen(tb testing.TB) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { l.Close() })
	return l
}

// connListener accepts from conns, or wraps what it accepts.
type connListener struct {
	net.Listener
	wrap  func(net.Conn) net.Conn
	conns chan net.Conn
}

func (l *connListener) Accept() (net.Conn, error) {
	if l.conns != nil {
		return <-l.conns, nil
	}
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.wrap(c), nil
}

// exchange sends parts of what a client sends, then closes its direction, and
// returns all that the server sends.
func exchangeRaw(tb testing.TB, addr string, parts ...string) string {
	tb.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	for i, part := range parts {
		if i > 0 {
			time.Sleep(2 * time.Millisecond)
		}
		io.WriteString(c, part)
	}
	c.(*net.TCPConn).CloseWrite()
	all, err := io.ReadAll(c)
	if err != nil && len(all) == 0 {
		return "reset"
	}
	return string(all)
}

// normal returns responses with their fields sorted, without Date, and with the
// length of the body instead of its framing. Whether a body is chunked may
// differ.
func normal(tb testing.TB, text string, methods []string) string {
	tb.Helper()
	var out strings.Builder
	r := bufio.NewReader(strings.NewReader(text))
	for i := 0; ; i++ {
		if _, err := r.Peek(1); err != nil {
			return out.String()
		}
		method := "GET"
		if i < len(methods) {
			method = methods[i]
		}
		resp, err := http.ReadResponse(r, &http.Request{Method: method})
		if err != nil {
			rest, _ := io.ReadAll(r)
			fmt.Fprintf(&out, "no response: %q", rest)
			return out.String()
		}
		if resp.StatusCode < 200 {
			i--
		}
		body, err := io.ReadAll(resp.Body)
		resp.Header.Del("Date")
		if method != "HEAD" {
			resp.Header.Del("Content-Length")
		}
		fmt.Fprintf(&out, "%s %q %v %v %q %v\n", resp.Status, resp.Header, resp.Close, resp.Trailer, body, err)
	}
}

// behave is a handler that does what the query of the request says.
func behave(w http.ResponseWriter, r *http.Request) {
	c := http.NewResponseController(w)
	fmt.Fprintf(io.Discard, "%v", r.Context().Value(http.LocalAddrContextKey))
	for step := range strings.SplitSeq(r.URL.RawQuery, ",") {
		name, value, _ := strings.Cut(step, ":")
		switch name {
		case "read":
			body, err := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%s %q %v;", r.Method, body, err)
		case "dump":
			names := make([]string, 0, len(r.Header))
			for name, values := range r.Header {
				names = append(names, fmt.Sprintf("%s=%q", name, values))
			}
			slices.Sort(names)
			fmt.Fprintf(w, "%s %s %s %q %d %v %s %q;", r.Method, r.URL, r.RequestURI, r.Host, r.ContentLength, r.Close,
				r.Proto, names)
		case "write":
			io.WriteString(w, value)
		case "big":
			w.Write(bytes.Repeat([]byte("b"), 1500))
		case "huge":
			for range 10 {
				w.Write(bytes.Repeat([]byte("h"), 32<<10))
			}
		case "flush":
			c.Flush()
		case "status":
			var status int
			fmt.Sscan(value, &status)
			w.WriteHeader(status)
		case "set":
			name, value, _ := strings.Cut(value, "=")
			w.Header().Set(name, value)
		case "untyped":
			w.Header()["Content-Type"] = nil
		case "undated":
			w.Header()["Date"] = nil
		case "trailer":
			w.Header().Set(http.TrailerPrefix+"Checksum", "17")
		case "panic":
			panic(http.ErrAbortHandler)
		case "hijack":
			conn, rw, err := c.Hijack()
			if err != nil {
				panic(err)
			}
			defer conn.Close()
			rest, _ := io.ReadAll(rw)
			fmt.Fprintf(conn, "hijacked with %q", rest)
			return
		}
	}
}

func plainRequest(method, query, more string) string {
	return method + " /a%20b/c?" + query + " HTTP/1.1\r\nHost: example.com\r\n" + more
}

// twinRequests are what clients send, each on a connection of its own.
func twinRequests() []string {
	const end = "\r\n"
	all := []string{
		plainRequest("GET", "dump", end),
		plainRequest("GET", "dump", "user-agent: x\r\nX-Csrf:1\r\nX-CSRF: 1\r\nCookie: a=b\r\ncookie: c=d\r\n"+end),
		plainRequest("GET", "dump", "Pragma: no-cache\r\n"+end),
		plainRequest("GET", "dump", "Pragma: no-cache\r\nCache-Control: x\r\n"+end),
		plainRequest("GET", "dump", "Connection: close\r\n"+end),
		plainRequest("GET", "dump", "Connection: keep-alive\r\n"+end),
		plainRequest("GET", "dump", "Connection: x, close\r\n"+end),
		plainRequest("GET", "dump", "Connection: TE\r\nTE: trailers\r\n"+end),
		plainRequest("GET", "dump", "Content-Length: 0\r\n"+end),
		plainRequest("POST", "dump", end),
		plainRequest("OPTIONS", "dump", end),
		plainRequest("PURGE", "dump", end),
		"GET //host/path?dump HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET http://x/path?dump HTTP/1.1\r\nHost: y\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
		"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /%zz?dump HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /?dump HTTP/1.0\r\nHost: x\r\n\r\n",
		"GET /?dump HTTP/1.0\r\n\r\n",
		"GET /?dump HTTP/1.1\r\n\r\n",
		"GET /?dump HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
		"GET /?dump HTTP/1.1\r\nHost: a b\r\n\r\n",
		"GET /?dump HTTP/1.1\r\nHost:\r\n\r\n",
		"GET /?dump HTTP/1.1\r\nHost: x\n\n",
		"GET /?dump HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n",
		"GET /?dump HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
		"GET /?dump HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n",
		"GET  /?dump HTTP/1.1\r\nHost: x\r\n\r\n",
		"\r\nGET /?dump HTTP/1.1\r\nHost: x\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"GET /?dump HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("x", 9<<10) + "\r\n\r\n",
		"GET /?dump HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: x\r\n", 200) + "\r\n",
		plainRequest("POST", "read", "Content-Length: 3\r\n"+end+"abc"),
		plainRequest("POST", "read", "Content-Length: 3\r\n"+end+"ab"),
		plainRequest("POST", "write:x", "Content-Length: 3\r\n"+end+"abc"),
		plainRequest("POST", "write:x,flush,read", "Content-Length: 3\r\n"+end+"abc") +
			plainRequest("GET", "dump", end),
		plainRequest("POST", "read", "Content-Length: 3\r\nContent-Length: 3\r\n"+end+"abc"),
		plainRequest("POST", "read", "Content-Length: +3\r\n"+end+"abc"),
		plainRequest("POST", "read", "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n"+end+"0\r\n\r\n"),
		plainRequest("POST", "read", "Transfer-Encoding: chunked\r\n"+end+"3\r\nabc\r\n0\r\n\r\n"),
		plainRequest("POST", "read", "Expect: 100-continue\r\nContent-Length: 3\r\n"+end+"abc"),
		plainRequest("POST", "read", "Content-Length: 300000\r\n"+end+strings.Repeat("x", 300000)),
		plainRequest("POST", "read", "Content-Length: 3\r\n"+end+"abc") + plainRequest("GET", "dump", end),
		plainRequest("POST", "write:x", "Content-Length: 3\r\n"+end+"abc") + plainRequest("GET", "dump", end),
		plainRequest("GET", "dump", end) + plainRequest("HEAD", "write:x", end) + plainRequest("GET", "big", end),
		plainRequest("GET", "dump", end) + "bad",
		plainRequest("GET", "dump", end) +
			plainRequest("POST", "read", "Transfer-Encoding: chunked\r\n"+end+"0\r\n\r\n") +
			plainRequest("GET", "dump", end),
		plainRequest("GET", "panic", end) + plainRequest("GET", "dump", end),
		plainRequest("GET", "write:x,flush,panic", end),
		plainRequest("GET", "hijack", end) + "rest",
	}
	for _, method := range []string{"GET", "HEAD", "POST"} {
		for _, query := range []string{
			"", "write:x", "write:<html>", "write:%7B,write:x", "flush", "flush,write:x", "write:x,flush,write:y",
			"write:x,flush,flush,write:y,flush", "big,flush,big", "huge", "huge,flush,huge", "status:204", "status:304",
			"status:304,set:ETag=x", "status:204,write:x", "status:404", "status:404,write:x", "status:299,write:x",
			"set:Content-Length=3,write:abc", "set:Content-Length=3,write:ab", "set:Content-Length=3,write:abcd",
			"set:Content-Length=3,write:a,flush,write:bc", "set:Content-Length=0", "set:Content-Length=x,write:abc",
			"set:Content-Length=3,status:304", "set:Content-Length=3,status:204",
			"untyped,write:x", "undated,write:x", "set:Content-Encoding=gzip,write:x", "set:Content-Type=a/b,write:x",
			"set:Connection=close,write:x", "set:X=a%0d%0ab,write:x", "set:B%20d=x,write:x", "set:X=a,write:x,set:X=b",
			"trailer,write:x", "write:x,flush,trailer", "set:Trailer=Checksum,write:x,set:Checksum=1",
			"trailer,status:204", "set:X=1,status:103,write:x", "status:103,status:404,write:x",
			"status:200,status:404,write:x",
			"status:205", "set:Content-Type=,write:x",
		} {
			all = append(all, plainRequest(method, query, end)+plainRequest("GET", "write:second", end))
		}
	}
	return all
}

var methodOf = regexp.MustCompile(`(\S+) \S+ HTTP/`)

// differs reports whether the response to a request is another one than that of
// net/http, for a reason.
func differs(request string) bool {
	switch {
	case strings.HasSuffix(request, "Content-Length: 3\r\n\r\nab"): // Connection: close, since the rest is missing
	case strings.HasPrefix(request, "HEAD /a%20b/c?huge"): // the length is known
	case strings.HasPrefix(request, "HEAD /a%20b/c?set:Content-Length=x"): // net/http begins a body
	case strings.HasSuffix(request, "\r\n\r\nbad"): // net/http responds to four bytes or more
	default:
		return false
	}
	return true
}

// A handler's response is that of net/http, and so is what follows on the
// connection, whether a request arrives at once or in two parts.
func TestRespondsLikeNetHTTP(t *testing.T) {
	t.Parallel()
	s := startTwins(t, behave)
	for _, request := range twinRequests() {
		if differs(request) {
			continue
		}
		var methods []string
		for _, m := range methodOf.FindAllStringSubmatch(request, -1) {
			methods = append(methods, m[1])
		}
		want := normal(t, exchangeRaw(t, s.other, request), methods)
		for _, parts := range [][]string{{request}, {request[:len(request)/2], request[len(request)/2:]}} {
			if got := normal(t, exchangeRaw(t, s.plain, parts...), methods); got != want {
				t.Errorf("%.200q in %d parts:\ngot  %.600q\nwant %.600q", request, len(parts), got, want)
			}
		}
	}
	t.Logf("%d connections were handed over", s.handedOver.Load())
}

// A handler learns that its client has left.
func TestContextEndsWithTheClient(t *testing.T) {
	t.Parallel()
	began, ended := make(chan bool, 1), make(chan error, 1)
	s := startTwins(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		began <- true
		<-r.Context().Done()
		ended <- context.Cause(r.Context())
	})
	for _, request := range []string{
		plainRequest("GET", "", "\r\n"), plainRequest("POST", "", "Content-Length: 3\r\n\r\nabc"),
	} {
		c, err := net.Dial("tcp", s.plain)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, request)
		<-began
		c.Close()
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Fatal("the context has not ended 20 s after its client has left")
		}
	}
}

// What a client sends during a long request is its next request.
func TestPipelinedDuringALongRequest(t *testing.T) {
	t.Parallel()
	s := startTwins(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery == "long" {
			time.Sleep(4 * sweepInterval)
		}
		io.WriteString(w, r.URL.RawQuery)
	})
	c := s.dial(t)
	io.WriteString(c, plainRequest("GET", "long", "\r\n"))
	time.Sleep(2 * sweepInterval)
	second := plainRequest("GET", "second", "\r\n")
	io.WriteString(c, second[:10])
	r := bufio.NewReader(c)
	for i, want := range []string{"long", "second", "third"} {
		wantText(t, r, want)
		if i == 0 {
			io.WriteString(c, second[10:]+plainRequest("GET", "third", "\r\n"))
		}
	}
}

// Idle connections are closed: new ones after ReadHeaderTimeout, others after
// IdleTimeout.
func TestIdleConnectionsOfClientsAreClosed(t *testing.T) {
	t.Parallel()
	s := startTwins(t, behave, func(s *http.Server) {
		s.ReadHeaderTimeout, s.IdleTimeout = 200*time.Millisecond, 400*time.Millisecond
	})
	for _, sent := range []string{"", "GET / HT", plainRequest("GET", "write:x", "\r\n")} {
		c, err := net.Dial("tcp", s.plain)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		io.WriteString(c, sent)
		if _, err := io.ReadAll(c); err != nil {
			t.Errorf("after %q: %v, want the end", sent, err)
		}
		c.Close()
	}
}

// CloseIdle closes no connection with a request.
func TestCloseIdle(t *testing.T) {
	t.Parallel()
	began, proceed := make(chan bool), make(chan bool)
	s := startTwins(t, func(w http.ResponseWriter, r *http.Request) {
		began <- true
		<-proceed
		io.WriteString(w, "done")
	})
	idle, err := net.Dial("tcp", s.plain)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	var busy sync.WaitGroup
	busy.Go(func() {
		if got := exchangeRaw(t, s.plain, plainRequest("GET", "", "\r\n")); !strings.HasSuffix(got, "done") {
			t.Errorf("got %q, want a response", got)
		}
	})
	<-began
	for deadline := time.Now().Add(20 * time.Second); ; {
		s.server.mu.Lock()
		n := len(s.server.conns)
		s.server.mu.Unlock()
		if n == 2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d connections, want 2", n)
		}
	}
	if open := s.server.CloseIdle(0); open != 1 {
		t.Errorf("got %d open connections, want 1", open)
	}
	idle.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := idle.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the idle connection: %v, want EOF", err)
	}
	close(proceed)
	busy.Wait()
}

// FuzzPlainRequest checks that what parsePlain accepts is what net/http reads.
func FuzzPlainRequest(f *testing.F) {
	for _, request := range twinRequests() {
		f.Add([]byte(request))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got := new(http.Request)
		n := parsePlain(got, b)
		if n <= 0 {
			return
		}
		var checked framing
		checked.maxHead = 64 << 10
		if good := checked.parse(b[:n]); good < n {
			t.Fatalf("the framing of %q is not accepted", b[:n])
		}
		want, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b[:n])))
		if err != nil {
			t.Fatalf("net/http rejects %q: %v", b[:n], err)
		}
		describe := func(r *http.Request) string {
			return fmt.Sprintf("%s %#v %s %s %d %d %q %q %d %v %v", r.Method, r.URL, r.RequestURI, r.Proto,
				r.ProtoMajor, r.ProtoMinor, r.Header, r.Host, r.ContentLength, r.Close, r.TransferEncoding)
		}
		if g, w := describe(got), describe(want); g != w {
			t.Errorf("%q:\ngot  %s\nwant %s", b[:n], g, w)
		}
	})
}

// FuzzServer checks that a client gets the same responses as from net/http,
// whatever it sends.
func FuzzServer(f *testing.F) {
	for _, request := range twinRequests() {
		if !differs(request) {
			f.Add(request)
		}
	}
	s := startTwins(f, behave)
	// What may differ is whether a response says that the connection is closed
	// because the rest of a body is missing, whether a short response has its
	// trailer, whether that to HEAD has a Content-Length, whether there is a
	// response to the beginning of another request, and what a handler gets of
	// a body that it reads after it has begun to respond.
	const beginning = `400 Bad Request map["Content-Type":["text/plain; charset=utf-8"]] "400 Bad Request" <nil>`
	// net/http writes a body in its response to HEAD if the handler has set an
	// invalid Content-Length, goes on after some lists with close, and sends
	// chunks after an invalid Trailer. methodOf does not know if 0HEAD is a
	// method, or HEAD after a body.
	skipped := regexp.MustCompile(`(?i)(flush|huge|big)\S*read|HEAD \S*Content-Length|[^\n]HEAD \S+ HTTP/|` +
		`set:(connection|trailer|transfer-encoding)`)
	may := regexp.MustCompile(`"Content-Length":\["\d+"\] ?| (true|false) map\[\S*\]`)
	f.Fuzz(func(t *testing.T, request string) {
		if len(request) > 4<<10 || skipped.MatchString(request) {
			return
		}
		var methods []string
		for _, m := range methodOf.FindAllStringSubmatch(request, -1) {
			methods = append(methods, m[1])
		}
		responses := func(addr string) string {
			text := normal(t, exchangeRaw(t, addr, request), methods)
			return may.ReplaceAllString(text, "")
		}
		want, got := responses(s.other), responses(s.plain)
		if got != want && got != want+beginning+"\n" {
			t.Errorf("%q:\ngot  %.600s\nwant %.600s", request, got, want)
		}
	})
}
