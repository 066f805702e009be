package bff_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// strictUpstream is an upstream that accepts only requests in the exact form of
// RFC 9112. It records every byte that it gets.
type strictUpstream struct {
	url string

	mu       sync.Mutex // guards all below
	requests []string   // heads and bodies
	wrong    []string   // what violates the form
}

func newStrictUpstream(t *testing.T) *strictUpstream {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := &strictUpstream{url: "http://" + l.Addr().String()}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go u.serve(c)
		}
	}()
	return u
}

var (
	strictRequestLine = regexp.MustCompile(`^[!#$%&'*+.^_|~0-9A-Za-z` + "`" + `-]+ /[!-~]* HTTP/1\.1$`)
	strictField       = regexp.MustCompile(`^[!#$%&'*+.^_|~0-9A-Za-z` + "`" + `-]+: ?[^\x00-\x08\x0a-\x1f\x7f]*$`)
	strictChunk       = regexp.MustCompile(`^[0-9a-f]+$`)
)

func (u *strictUpstream) serve(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	for {
		var all strings.Builder
		line := func() (string, bool) {
			text, err := r.ReadString('\n')
			all.WriteString(text)
			return strings.TrimSuffix(text, "\r\n"),
				err == nil && strings.HasSuffix(text, "\r\n") && !strings.Contains(text[:len(text)-2], "\r")
		}
		refuse := func(why string) {
			u.mu.Lock()
			defer u.mu.Unlock()
			u.wrong = append(u.wrong, why+": "+all.String())
		}
		first, ok := line()
		if !ok {
			if all.Len() > 0 {
				refuse("request line")
			}
			return
		}
		if !strictRequestLine.MatchString(first) {
			refuse("request line")
			return
		}
		length, chunked := 0, false
		for {
			text, ok := line()
			if !ok {
				refuse("header") // or the broker has aborted the request
				return
			}
			if text == "" {
				break
			}
			if !strictField.MatchString(text) {
				refuse("field")
				return
			}
			name, value, _ := strings.Cut(text, ":")
			switch strings.ToLower(name) {
			case "content-length":
				length, _ = strconv.Atoi(strings.TrimSpace(value))
			case "transfer-encoding":
				chunked = true
			case "expect":
				io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
			}
		}
		body := make([]byte, length)
		if _, err := io.ReadFull(r, body); err != nil {
			return // the client has not sent all of it, so the upstream must not respond
		}
		all.Write(body)
		for chunked {
			text, ok := line()
			if !ok {
				return
			}
			size, err := strconv.ParseInt(text, 16, 32)
			if !strictChunk.MatchString(text) || err != nil {
				refuse("chunk")
				return
			}
			chunk := make([]byte, size+2)
			if _, err := io.ReadFull(r, chunk); err != nil {
				return
			}
			if all.Write(chunk); !bytes.HasSuffix(chunk, []byte("\r\n")) {
				refuse("chunk")
				return
			}
			chunked = size > 0
		}
		u.mu.Lock()
		u.requests = append(u.requests, all.String())
		u.mu.Unlock()
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	}
}

func (u *strictUpstream) take() (requests, wrong []string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	requests, wrong, u.requests, u.wrong = u.requests, u.wrong, nil, nil
	return requests, wrong
}

// wire is a broker that a test sends raw bytes to.
type wire struct {
	t        *testing.T
	addr     string
	host     string
	upstream *strictUpstream
	header   string // of an accepted request with alice's session
}

func newWire(t *testing.T) *wire {
	t.Helper()
	w := &wire{t: t, upstream: newStrictUpstream(t)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr = l.Addr().String()
	_, port, _ := net.SplitHostPort(w.addr)
	w.host = "localhost:" + port
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Routes = []bff.Route{{Path: "/api/", Upstream: []string{w.upstream.url}, Token: "user"}}
		cfg.Frontend = nil
	})
	// Another listener of the same server. Its Host is that of the public URL.
	s := &http.Server{
		Handler: a.server, ReadHeaderTimeout: 2 * time.Second, MaxHeaderBytes: 64 << 10,
		DisableGeneralOptionsHandler: true, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0),
	}
	go s.Serve(bff.NewListener(l, nil, slog.New(slog.DiscardHandler)))
	t.Cleanup(func() { s.Close() })
	u, err := url.Parse(a.url)
	if err != nil {
		t.Fatal(err)
	}
	w.host = u.Host
	b := a.signedIn()
	for _, c := range b.Cookies() {
		if c.Name == a.cookieName() {
			w.header = "Host: " + w.host + "\r\nX-CSRF: 1\r\nCookie: " + c.Name + "=" + c.Value + "\r\n"
		}
	}
	return w
}

// untilClosed makes send wait until the connection is closed.
const untilClosed = math.MaxInt

// send sends bytes on a new connection. It returns the statuses of the
// responses and reports whether the connection was closed after them. It waits
// long for want responses, then briefly for more.
func (w *wire) send(want int, parts ...string) (statuses []int, closed bool) {
	w.t.Helper()
	c, err := net.Dial("tcp", w.addr)
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	for _, part := range parts {
		if _, err := io.WriteString(c, part); err != nil {
			break // the broker has closed the connection
		}
	}
	r := bufio.NewReader(c)
	for {
		patience := 10 * time.Second
		if len(statuses) >= want {
			patience = 500 * time.Millisecond
		}
		c.SetReadDeadline(time.Now().Add(patience))
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			timeout, ok := err.(net.Error)
			return statuses, !ok || !timeout.Timeout()
		}
		_, err = io.Copy(io.Discard, resp.Body)
		if statuses = append(statuses, resp.StatusCode); err != nil {
			return statuses, true
		}
	}
}

func TestAmbiguousFramingIsRefused(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	get := func(target, header string) string { return "GET " + target + " HTTP/1.1\r\n" + header + "\r\n" }
	post := func(header, body string) string {
		return "POST /api/x HTTP/1.1\r\n" + w.header + header + "\r\n" + body
	}
	for name, request := range map[string]string{
		"length and chunks": post("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\nG"),
		"chunks and length": post("Transfer-Encoding: chunked\r\nContent-Length: 6\r\n", "0\r\n\r\nG"),
		"chunked twice": post("Transfer-Encoding: chunked\r\n"+
			"Transfer-Encoding: chunked\r\n", "0\r\n\r\n"),
		"chunked twice in one": post("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n"),
		"chunked, then identity": post("Transfer-Encoding: chunked\r\n"+
			"Transfer-Encoding: identity\r\n", "0\r\n\r\n"),
		"another coding":               post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
		"a coding with a vertical tab": post("Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n"),
		"gzip, chunked":                post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"),
		"chunks in HTTP/1.0": "POST /api/x HTTP/1.0\r\n" + w.header +
			"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"two lengths":                    post("Content-Length: 3\r\nContent-Length: 5\r\n", "abcde"),
		"one length twice":               post("Content-Length: 3\r\nContent-Length: 3\r\n", "abc"),
		"a list of lengths":              post("Content-Length: 3, 3\r\n", "abc"),
		"a length with a sign":           post("Content-Length: +3\r\n", "abc"),
		"a negative length":              post("Content-Length: -3\r\n", "abc"),
		"a hexadecimal length":           post("Content-Length: 0x3\r\n", "abc"),
		"an empty length":                post("Content-Length: \r\n", "abc"),
		"an endless length":              post("Content-Length: 99999999999999999999\r\n", "abc"),
		"space before the colon":         get("/api/x", w.header+"A : b\r\n"),
		"tab before the colon":           get("/api/x", w.header+"A\t: b\r\n"),
		"space before Transfer-Encoding": post("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
		"no name":                        get("/api/x", w.header+": b\r\n"),
		"no colon":                       get("/api/x", w.header+"A\r\n"),
		"a name with a parenthesis":      get("/api/x", w.header+"A(: b\r\n"),
		"a name that is not ASCII":       get("/api/x", w.header+"\xc4: b\r\n"),
		"a carriage return in a value":   get("/api/x", w.header+"A: b\rC: d\r\n"),
		"a NUL in a value":               get("/api/x", w.header+"A: b\x00\r\n"),
		"a control character in a value": get("/api/x", w.header+"A: b\x01\r\n"),
		"a folded line":                  get("/api/x", w.header+"A: b\r\n c\r\n"),
		"a folded line with a tab":       get("/api/x", w.header+"A: b\r\n\tc\r\n"),
		"a folded first line":            get("/api/x", " A: b\r\n"+w.header),
		"a folded coding":                post("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n"),
		"a line feed alone, first":       "GET /api/x HTTP/1.1\n" + w.header + "\r\n",
		"a line feed alone, in between":  get("/api/x", w.header+"A: b\n"),
		"a line feed alone, last":        "GET /api/x HTTP/1.1\r\n" + w.header + "\n",
		"a carriage return alone":        "GET /api/x HTTP/1.1\r" + w.header + "\r\n",
		"two Hosts":                      get("/api/x", w.header+"Host: "+w.host+"\r\n"),
		"two different Hosts":            get("/api/x", "Host: evil.example\r\n"+w.header),
		"no Host":                        get("/api/x", strings.Replace(w.header, "Host: "+w.host+"\r\n", "", 1)),
		"an absolute target":             get("http://"+w.host+"/api/x", w.header),
		"an absolute target elsewhere":   get("http://evil.example/api/x", w.header),
		"an absolute target, Host elsewhere": get("http://"+w.host+"/api/x",
			strings.Replace(w.header, w.host, "evil.example", 1)),
		"an absolute target without a host":     get("http:/api/x", w.header),
		"an absolute target with an empty host": get("http:///api/x", w.header),
		"an absolute target of another scheme":  get("foo:/api/x", w.header),
		"a target with a space":                 get("/api/x y", w.header),
		"a target with a tab":                   get("/api/x\ty", w.header),
		"a target with a fragment":              get("/api/x\x00", w.header),
		"the asterisk":                          "OPTIONS * HTTP/1.1\r\n" + w.header + "\r\n",
		"another version":                       "GET /api/x HTTP/1.2\r\n" + w.header + "\r\n",
		"HTTP/2 in the request line":            "GET /api/x HTTP/2.0\r\n" + w.header + "\r\n",
		"a version in small letters":            "GET /api/x http/1.1\r\n" + w.header + "\r\n",
		"no version":                            "GET /api/x\r\n\r\n",
		"the preface of HTTP/2":                 "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
		"an empty line first":                   "\r\n" + get("/api/x", w.header),
		"two spaces":                            "GET  /api/x HTTP/1.1\r\n" + w.header + "\r\n",
		"a size with 0x":                        post("Transfer-Encoding: chunked\r\n", "0x3\r\nabc\r\n0\r\n\r\n"),
		"a size with a sign":                    post("Transfer-Encoding: chunked\r\n", "+3\r\nabc\r\n0\r\n\r\n"),
		"a size with a space":                   post("Transfer-Encoding: chunked\r\n", " 3\r\nabc\r\n0\r\n\r\n"),
		"no size":                               post("Transfer-Encoding: chunked\r\n", "\r\nabc\r\n0\r\n\r\n"),
		"an endless size": post("Transfer-Encoding: chunked\r\n",
			"fffffffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
		"an extension's line feed": post("Transfer-Encoding: chunked\r\n", "3;a\nb\r\nabc\r\n0\r\n\r\n"),
		"a longer chunk":           post("Transfer-Encoding: chunked\r\n", "3\r\nabcd\r\n0\r\n\r\n"),
		"a chunk with a line feed": post("Transfer-Encoding: chunked\r\n", "3\nabc\r\n0\r\n\r\n"),
		"a folded trailer":         post("Transfer-Encoding: chunked\r\n", "0\r\nA: b\r\n c\r\n\r\n"),
		"an upgrade with a body": post("Connection: Upgrade\r\nUpgrade: websocket\r\n"+
			"Origin: http://"+w.host+"\r\nContent-Length: 3\r\n", "abc"),
	} {
		want := untilClosed
		if name == "the asterisk" || strings.HasPrefix(name, "an absolute") {
			want = 1 // read to its end, so that nothing is left that looks like another request
		}
		statuses, closed := w.send(want, request)
		if len(statuses) != 1 || statuses[0] != 400 && statuses[0] != 501 && statuses[0] != 421 {
			t.Errorf("%s: got %v, want 400", name, statuses)
		}
		if !closed && want == untilClosed {
			t.Errorf("%s: the connection stays open", name)
		}
		requests, _ := w.upstream.take()
		if len(requests) > 0 && !strings.Contains(name, "chunk") && !strings.Contains(name, "size") {
			t.Errorf("%s: the upstream got\n%q", name, requests)
		}
		// After a valid request it is refused too.
		statuses, _ = w.send(2, get("/api/good", w.header), request)
		if len(statuses) != 2 || statuses[0] != 200 || statuses[1] == 200 {
			t.Errorf("%s behind a good request: got %v, want 200 and 400", name, statuses)
		}
		w.upstream.take()
	}
}

// What follows a request to switch to a WebSocket was not checked, and net/http
// would accept it.
func TestConnectionEndsWithARefusedUpgrade(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	behind := strings.ReplaceAll("GET /api/behind HTTP/1.1\r\n"+w.header+"\r\n", "\r\n", "\n")
	for line, want := range map[string]int{
		"GET /api/x": 200, "GET /nothing": 404, "GET foo:/api/x": 400, "GET http://" + w.host + "/api/x": 400,
		"OPTIONS *": 400, "TRACE /api/x": 405, "trace /api/x": 405, "CONNECT " + w.host: 405,
	} {
		upgrade := line + " HTTP/1.1\r\n" + w.header + "Connection: Upgrade\r\nUpgrade: websocket\r\n" +
			"Origin: http://" + w.host + "\r\n\r\n"
		statuses, closed := w.send(untilClosed, upgrade+behind)
		if len(statuses) != 1 || statuses[0] != want || !closed {
			t.Errorf("%s: got %v, closed %v, want %d and the end", line, statuses, closed, want)
		}
	}
}

func TestUnambiguousFramingIsAccepted(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	get := "GET /api/x HTTP/1.1\r\n" + w.header
	post := "POST /api/x HTTP/1.1\r\n" + w.header
	slow := strings.Split(get+"\r\n", "")
	for name, test := range map[string]struct {
		parts []string
		want  []int
	}{
		"plain": {[]string{get + "\r\n"}, []int{200}},
		"h2c": {
			[]string{
				get + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n" +
					"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n" + get + "\r\n",
			},
			[]int{200, 200},
		},
		"h2c with a body": {
			[]string{
				post + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n" +
					"HTTP2-Settings: AAMAAABk\r\nContent-Length: 3\r\n\r\nabc" + get + "\r\n",
			},
			[]int{200, 200},
		},
		"another protocol": {
			[]string{get + "Connection: Upgrade\r\nUpgrade: TLS/1.0, foo\r\n\r\n" + get + "\r\n"},
			[]int{200, 200},
		},
		// a request after a WebSocket request is not served
		"a list of protocols": {
			[]string{get + "Connection: Upgrade\r\nUpgrade: h2c, websocket\r\n\r\n" + get + "\r\n"},
			[]int{400},
		},
		"tabs in values":     {[]string{get + "A:\tb\tc\t\r\n\r\n"}, []int{200}},
		"bytes beyond ASCII": {[]string{get + "A: caf\xc3\xa9\r\n\r\n"}, []int{200}},
		"many headers":       {[]string{get + strings.Repeat("A: b\r\n", 500) + "\r\n"}, []int{200}},
		"too many fields":    {[]string{get + strings.Repeat("A: b\r\n", 1001) + "\r\n"}, []int{431}},
		"too many": {
			[]string{get + strings.Repeat("A: "+strings.Repeat("b", 1000)+"\r\n", 100) + "\r\n"},
			[]int{431},
		},
		"byte by byte": {slow, []int{200}},
		"pipelined":    {[]string{get + "\r\n" + get + "\r\n" + get + "\r\n"}, []int{200, 200, 200}},
		"a body": {
			[]string{post + "Content-Length: 3\r\n\r\n", "a", "bc", get + "\r\n"},
			[]int{200, 200},
		},
		"chunks": {
			[]string{post + "Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n", "0\r\n\r\n" + get + "\r\n"},
			[]int{200, 200},
		},
		"a trailer": {
			[]string{
				post + "Transfer-Encoding: chunked\r\n\r\n" +
					"0\r\nAuthorization: Bearer x\r\nContent-Length: 5\r\n\r\n" + get + "\r\n",
			},
			[]int{200, 200},
		},
		"expecting 100": {
			[]string{post + "Expect: 100-continue\r\nContent-Length: 3\r\n\r\nabc"},
			[]int{100, 200},
		},
		"HTTP/1.0": {[]string{"GET /api/x HTTP/1.0\r\n" + w.header + "\r\n"}, []int{200}},
		"an unread body": {
			[]string{strings.Replace(post, "X-CSRF: 1\r\n", "", 1) + "Content-Length: 3\r\n\r\nabc" + get + "\r\n"},
			[]int{403, 200},
		},
		"a method in any case": {[]string{strings.Replace(get, "GET", "gEt", 1) + "\r\n"}, []int{200}},
	} {
		if got, _ := w.send(len(test.want), test.parts...); fmt.Sprint(got) != fmt.Sprint(test.want) {
			t.Errorf("%s: got %v, want %v", name, got, test.want)
		}
		requests, wrong := w.upstream.take()
		if len(wrong) > 0 {
			t.Errorf("%s: the upstream rejects %q", name, wrong)
		}
		for _, r := range requests {
			w.check(name, r)
		}
	}
}

var ourCookieSent = regexp.MustCompile(`(?i)\r\ncookie:([^\r]*;)? *cloakroom(-\d+)?=`)

// check checks every request that reaches the upstream.
func (w *wire) check(name, request string) {
	w.t.Helper()
	head, _, _ := strings.Cut(request, "\r\n\r\n")
	lower := strings.ToLower(head)
	if strings.Count(lower, "\r\nauthorization: bearer ") != 1 {
		w.t.Errorf("%s: occurrences of \"\\r\\nauthorization: bearer \": got %d, want 1", name,
			strings.Count(lower, "\r\nauthorization: bearer "))
	}
	if strings.Count(lower, "\r\nauthorization:") != 1 {
		w.t.Errorf("%s: occurrences of \"\\r\\nauthorization:\": got %d, want 1", name,
			strings.Count(lower, "\r\nauthorization:"))
	}
	if strings.Count(lower, "\r\nhost: ") != 1 {
		w.t.Errorf("%s: occurrences of \"\\r\\nhost: \": got %d, want 1", name, strings.Count(lower, "\r\nhost: "))
	}
	switch _, target, _ := strings.Cut(head, " "); {
	case !strings.HasPrefix(target, "/api/"):
		w.t.Errorf("%s: target: got %q, want prefix /api/", name, target)
	case ourCookieSent.MatchString(head):
		w.t.Errorf("%s: the broker's cookie was forwarded: %q", name, head)
	}
}

// Whatever a client sends, the upstream parses only requests that the broker
// authorized, each with the user's token.
func TestNothingIsSmuggledToTheUpstream(t *testing.T) {
	w := newWire(t)
	const smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer evil\r\n\r\n"
	const cookie = "COOKIE" // for the parts that are not mutated
	start, value, _ := strings.Cut(strings.TrimSuffix(w.header, "\r\n"), "Cookie: ")
	name, value, _ := strings.Cut(value, "=")
	header := start + "Cookie: " + name + "=" + cookie + "\r\n"
	get, post := "GET /api/x HTTP/1.1\r\n"+header, "POST /api/x HTTP/1.1\r\n"+header
	corpus := []string{
		get + "\r\n",
		post + "Content-Length: 3\r\n\r\nabc",
		post + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		post + fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n%s",
			5+len(smuggled), smuggled),
		post + fmt.Sprintf("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n"+
			"%x\r\n%s\r\n0\r\n\r\n", len(smuggled), smuggled),
		post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n" + smuggled,
		post + fmt.Sprintf("Content-Length: %d\r\nContent-Length: 0\r\n\r\n%s", len(smuggled), smuggled),
		post + "Content-Length: 0\r\nX: y\r\n\t\r\n\r\n" + smuggled,
		get + "X: y\r\n\r\n" + smuggled,
		get + "X: y\n\nGET /smuggled HTTP/1.1\r\n\r\n",
		get + "Connection: Upgrade\r\nUpgrade: websocket\r\nOrigin: http://" + w.host +
			"\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n" + smuggled,
		"GET /api/x?" + url.QueryEscape(" HTTP/1.1\r\n\r\n"+smuggled) + " HTTP/1.1\r\n" + header + "\r\n",
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	mutate := func(random *rand.Rand, text string) string {
		b := []byte(text)
		for range 1 + random.IntN(3) {
			at := random.IntN(len(b))
			switch random.IntN(5) {
			case 0:
				b = append(b[:at], b[min(at+1+random.IntN(4), len(b)):]...)
			case 1:
				b = append(b[:at:at], append([]byte{"\r\n\t :,;\x000a"[random.IntN(10)]}, b[at:]...)...)
			case 2:
				b[at] = byte(random.IntN(256))
			case 3: // a duplicated line
				if end := bytes.IndexByte(b[at:], '\n'); end >= 0 {
					start := bytes.LastIndexByte(b[:at], '\n') + 1
					b = append(b[:start:start], append(bytes.Clone(b[start:at+end+1]), b[start:]...)...)
				}
			case 4:
				b = append(b[:at:at],
					append([]byte([]string{
						"\r\n", "Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n",
						"\r\n\r\n", "0\r\n\r\n",
					}[random.IntN(5)]), b[at:]...)...)
			}
			if len(b) == 0 {
				return text
			}
		}
		return string(b)
	}
	var accepted, sent atomic.Int64 // with 200, of all requests on all connections
	one := func(request string) {
		c, err := net.Dial("tcp", w.addr)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		io.WriteString(c, strings.ReplaceAll(request, cookie, value))
		// the rest of the request is missing, not a new one
		c.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
		responses, _ := io.ReadAll(c)
		sent.Add(1)
		accepted.Add(int64(bytes.Count(responses, []byte("HTTP/1.1 200 OK")) +
			bytes.Count(responses, []byte("HTTP/1.0 200 OK"))))
	}
	for _, request := range corpus {
		one(request)
	}
	var all sync.WaitGroup
	ends := time.Now().Add(4 * time.Second)
	for i := range 16 {
		all.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(i)))
			for range 150 {
				if request := mutate(random, corpus[random.IntN(len(corpus))]); time.Now().Before(ends) {
					one(request)
				}
			}
		})
	}
	all.Wait()
	requests, wrong := w.upstream.take()
	for _, r := range requests {
		w.check("one of them", r)
	}
	if len(wrong) > 0 || accepted.Load() > int64(len(requests)) {
		t.Errorf("%d responses with 200; the upstream accepted %d requests and rejected %q", accepted.Load(),
			len(requests), wrong)
	}
	t.Logf("%d sent, the upstream took %d", sent.Load(), len(requests))
	if sent.Load() < 200 {
		t.Errorf("sent: got %d, want at least 200", sent.Load())
	}
	if len(requests) < 50 {
		t.Errorf("len(requests): got %d, want at least 50", len(requests))
	}
}

// The upstream of the authorized route gets the request, with exactly the
// authorized path.
func TestAuthorizedRouteIsTheRouteSent(t *testing.T) {
	paths := []string{"/", "/a/", "/a/b/", "/a/b", "/a", "/ab/", "/a/b/c/", "/%61"}
	upstreams := make(map[string]*brokertest.Echo) // :: path of the route
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Frontend, cfg.Routes = nil, nil
		for _, path := range []string{"/a/", "/a/b/", "/ab/", "/a/b/c", "/é/"} {
			upstreams[path] = brokertest.NewEcho(t)
			cfg.Routes = append(cfg.Routes, bff.Route{
				Path:     path,
				Upstream: []string{upstreams[path].URL},
				Token:    "none",
			})
		}
	})
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	pieces := []string{
		"a", "b", "c", "ab", "/", "/", "/", ".", "..", "%2e", "%2E%2e", "%2f", "%5c", "\\", ";",
		";x=y", "%61", "%62", "%C3%A9", "é", "%20", "+", "~", "%00", "%25", "%252e", "*", "@", ":",
		"?x=/a/b/", "?", "%3f", "%23", "//", "%c3", "&", "'",
	}
	underPath := func(path, prefix string) bool {
		return strings.HasSuffix(prefix, "/") && strings.HasPrefix(path, prefix) ||
			path == prefix || strings.HasPrefix(path, prefix+"/")
	}
	host := strings.TrimPrefix(a.url, "http://")
	calls := func() (n int) {
		for _, u := range upstreams {
			n += u.Calls()
		}
		return n
	}
	reached := 0
	for range 3000 {
		target := paths[random.IntN(len(paths))]
		for range random.IntN(6) {
			target += pieces[random.IntN(len(pieces))]
		}
		method := []string{"GET", "POST", "PUT", "DELETE", "OPTIONS", "QUERY", "get"}[random.IntN(7)]
		before := calls()
		c, err := net.Dial("tcp", host)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: %s\r\nX-CSRF: 1\r\nConnection: close\r\n\r\n", method, target, host)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("%s %s: %v", method, target, err)
		}
		text, _ := io.ReadAll(resp.Body)
		c.Close()
		sent := calls() - before
		if resp.StatusCode != 200 {
			if sent > 0 || resp.StatusCode != 400 && resp.StatusCode != 404 {
				t.Fatalf("%s %s: got %d %s and %d forwarded requests", method, target, resp.StatusCode, text, sent)
			}
			continue
		}
		reached++
		escaped, _, _ := strings.Cut(target, "?")
		decoded, err := url.PathUnescape(escaped)
		if err != nil {
			t.Fatalf("%s %s was forwarded", method, target)
		}
		want := ""
		for path := range upstreams {
			if underPath(decoded, path) && len(path) > len(want) {
				want = path
			}
		}
		var got brokertest.Echoed
		(&bfftest.Response{Response: &http.Response{}, Text: string(text)}).Decode(t, &got)
		if want == "" {
			t.Fatalf("%s %s: no route for a forwarded request", method, target)
		}
		if got.Host != strings.TrimPrefix(upstreams[want].URL, "http://") {
			t.Fatalf("%s %s: Host: got %v, want %v", method, target, got.Host,
				strings.TrimPrefix(upstreams[want].URL, "http://"))
		}
		if got.Method != method {
			t.Fatalf("%s %s: Method: got %v, want %v", method, target, got.Method, method)
		}
		if sent != 1 {
			t.Fatalf("%s %s: sent: got %v, want 1", method, target, sent)
		}
		if got.URI != target {
			t.Fatalf("%s %s arrives as %s", method, target, got.URI)
		}
		for segment := range strings.SplitSeq(decoded, "/") {
			switch name, _, _ := strings.Cut(segment, ";"); {
			case name == ".":
				t.Fatalf("name: got %v, want another value", name)
			case name == "..":
				t.Fatalf("name: got %v, want another value", name)
			}
		}
	}
	t.Logf("%d of 3000 reached an upstream", reached)
	if reached < 300 {
		t.Errorf("only %d of 3000 paths reached an upstream, too few to be meaningful", reached)
	}
}

// No header that impersonates the broker is forwarded, in any spelling. The
// broker's own headers always are.
func FuzzRequestHeader(f *testing.F) {
	for _, name := range []string{
		"Authorization", "authorization", "Proxy-Authorization", "DPoP", "Forwarded",
		"X-Forwarded-For", "X-Forwarded-Anything", "X_Forwarded_For", "X-Forwarded_Host",
		"X-Real-IP", "X-Original-URL", "X-Rewrite-URL", "X-HTTP-Method-Override", "X-User",
		"X_User", "Connection", "Cookie", "Host", "Te", "Trailer", "Upgrade", "Via", "X-Request-Id",
	} {
		f.Add(name, "X-User, Authorization, X-Forwarded-Host, Via")
		f.Add(name, "cloakroom=x; other=y; CLOAKROOM=z")
	}
	echo := brokertest.NewEcho(f)
	server, err := bff.New(bff.Config{
		PublicURL: "http://localhost:1",
		Provider:  bff.ProviderConfig{Issuer: "http://127.0.0.1:1", ClientID: "x", ClientSecret: "y"},
		Sessions:  session.Config{Store: new(tokenstore.Memory), Keys: [][]byte{bytes.Repeat([]byte("k"), 32)}},
		Routes:    []bff.Route{{Path: "/", Upstream: []string{echo.URL}, Token: "none"}},
		Logger:    slog.New(slog.DiscardHandler),
	})
	if err != nil {
		f.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	host := l.Addr().String()
	s := &http.Server{Handler: server, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	go s.Serve(bff.NewListener(l, nil, slog.New(slog.DiscardHandler)))
	f.Cleanup(func() { s.Close() })
	f.Fuzz(func(t *testing.T, name, value string) {
		c, err := net.Dial("tcp", host)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		fmt.Fprintf(c,
			"GET /x HTTP/1.1\r\nHost: localhost:1\r\nX-CSRF: 1\r\n%s: %s\r\nConnection: close\r\n\r\n", name, value)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != 200 {
			return
		}
		text, _ := io.ReadAll(resp.Body)
		var got brokertest.Echoed
		(&bfftest.Response{Response: resp, Text: string(text)}).Decode(t, &got)
		for name, values := range got.Header {
			lower := strings.ToLower(name)
			own := map[string]string{
				"X-Forwarded-For":   "127.0.0.1",
				"X-Forwarded-Host":  "localhost:1",
				"X-Forwarded-Proto": "http",
			}[name]
			switch {
			case own != "" && len(values) == 1 && values[0] == own, name == "X-Request-Id" && len(values) == 1:
			case strings.Contains(name, "_"),
				strings.HasPrefix(lower, "x-forwarded"),
				strings.HasPrefix(lower, "x-original-"),
				strings.HasSuffix(lower, "-method-override"),
				slices.Contains([]string{
					"authorization", "proxy-authorization", "dpop", "forwarded", "x-real-ip", "x-rewrite-url",
					"method-override", "te", "upgrade", "connection", "x-request-id",
				}, lower):
				t.Errorf("header %s was forwarded: %q", name, values)
			case lower == "cookie" && strings.Contains(strings.ToLower(strings.Join(values, ";")), "cloakroom="):
				for _, line := range values {
					for pair := range strings.SplitSeq(line, ";") {
						n, _, _ := strings.Cut(strings.TrimSpace(pair), "=")
						if strings.EqualFold(strings.TrimSpace(n), "cloakroom") {
							t.Errorf("the broker's cookie was forwarded: %q", values)
						}
					}
				}
			}
		}
		if got.Header.Get("X-Forwarded-Host") != "localhost:1" ||
			got.Header.Get("X-Forwarded-For") != "127.0.0.1" ||
			!strings.HasSuffix(got.Header.Get("Via"), "1.1 cloakroom") &&
				len(got.Header["Via"]) < 2 || got.Host != strings.TrimPrefix(echo.URL, "http://") {
			t.Errorf("the broker's headers are missing: %v, Host %s", got.Header, got.Host)
		}
	})
}

// The unread rest of a body must not be parsed as the next request.
func TestConnectionIsClosedAfterAnEarlyResponse(t *testing.T) {
	a := newApp(t, nil)
	a.echo.Handler = func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		w.Header().Set("Connection", "close") // net/http cannot reuse the connection after this
		w.WriteHeader(http.StatusRequestEntityTooLarge)
	}
	host := strings.TrimPrefix(a.url, "http://")
	c, err := net.Dial("tcp", host)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	smuggled := "GET /public/smuggled HTTP/1.1\r\nHost: " + host + "\r\nX-CSRF: 1\r\n\r\n"
	fmt.Fprintf(c, "POST /public/x HTTP/1.1\r\nHost: %s\r\nX-CSRF: 1\r\nContent-Length: %d\r\n\r\n",
		host, len(smuggled))
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusRequestEntityTooLarge || !resp.Close {
		t.Errorf("got %d, and the connection stays open: %v", resp.StatusCode, !resp.Close)
	}
	io.WriteString(c, smuggled)
	if rest, _ := io.ReadAll(io.MultiReader(resp.Body, r)); len(rest) > 0 || a.echo.Calls() != 1 {
		t.Errorf("after it: got %q and %d requests to the upstream", rest, a.echo.Calls())
	}
}

// A client that has closed its sending side only must not get an empty
// response.
func TestDisconnectedClientGetsNoResponse(t *testing.T) {
	a := newApp(t, nil)
	arrived := make(chan struct{})
	a.echo.Handler = func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
	}
	host := strings.TrimPrefix(a.url, "http://")
	c, err := net.Dial("tcp", host)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(c, "GET /public/x HTTP/1.1\r\nHost: %s\r\nX-CSRF: 1\r\n\r\n", host)
	<-arrived
	c.(*net.TCPConn).CloseWrite()
	if resp, err := io.ReadAll(c); len(resp) > 0 || err != nil {
		t.Errorf("got %q, %v", resp, err)
	}
	waitFor(t, "it is logged", func() bool {
		lines := a.logs.lines(t, "request")
		return len(lines) == 1 && lines[0]["status"] == 499.0
	})
}
