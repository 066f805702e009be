package http1

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

const (
	host     = "Host: a\r\n"
	testHead = 64 << 10 // maximum length of a head
)

// valid and invalid are examples of what a client sends on a connection.
var (
	valid = []string{
		"GET / HTTP/1.1\r\n" + host + "\r\n",
		"GET / HTTP/1.0\r\n\r\n",
		"GET /a?b=c HTTP/1.1\r\nhost:a\r\nA: \tb \r\n\r\n",
		"GET / HTTP/1.1\r\n" + host + "\r\nGET /2 HTTP/1.1\r\n" + host + "\r\n",
		"POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\n" + host + "\r\n",
		"POST / HTTP/1.1\r\n" + host + "Content-Length: 09\r\n\r\n012345678",
		"POST / HTTP/1.1\r\n" + host + "Content-Length: 4\r\n\r\n\r\n\r\n",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: Chunked\r\n\r\n" +
			"3\r\nabc\r\nA;x=\"y\"\r\n0123456789\r\nf\r\n0123456789abcde\r\n0\r\n\r\n" +
			"GET / HTTP/1.1\r\n" + host + "\r\n",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\nChecksum: 1\r\n\r\n",
		"POST / HTTP/1.1\r\n" + host + "Referer: http://a/websocket\r\nContent-Length: 3\r\n\r\nabc",
		"POST / HTTP/1.1\r\n" + host + "Expect: 100-Continue\r\nContent-Length: 3\r\n\r\nabc",
		"GET / HTTP/1.1\r\n" + host + "Expect:\r\nContent-Length: 0\r\n\r\n",
	}
	invalid = []string{
		"\r\nGET / HTTP/1.1\r\n" + host + "\r\n",
		"GET / HTTP/1.1\n" + host + "\r\n",
		"GET / HTTP/1.1\r\nHost: a\n\r\n",
		"GET / HTTP/1.1\r\n" + host + "\n",
		"GET / HTTP/1.1\r\n" + host + host + "\r\n",
		"GET / HTTP/1.1\r\n\r\n",
		"GET /  HTTP/1.1\r\n" + host + "\r\n",
		"GET /\tx HTTP/1.1\r\n" + host + "\r\n",
		"GET /\x7f HTTP/1.1\r\n" + host + "\r\n",
		"G(T / HTTP/1.1\r\n" + host + "\r\n",
		" / HTTP/1.1\r\n" + host + "\r\n",
		"GET / HTTP/1.2\r\n" + host + "\r\n",
		"GET / http/1.1\r\n" + host + "\r\n",
		"GET /\r\n",
		"G ET / HTTP/1.1\r\n" + host + "\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"GET / HTTP/1.1\r\n" + host + " folded: 1\r\n\r\n",
		"GET / HTTP/1.1\r\n" + host + "A: b\r\n\tc\r\n\r\n",
		"GET / HTTP/1.1\r\n" + host + "A : b\r\n\r\n",
		"GET / HTTP/1.1\r\n" + host + ": b\r\n\r\n",
		"GET / HTTP/1.1\r\n" + host + "no colon\r\n\r\n",
		"GET / HTTP/1.1\r\n" + host + "colonless\r\n\r\n",
		"GET / HTTP/1.1\r\n" + host + "A: b\rc\r\n\r\n",
		"GET / HTTP/1.1\r\n" + host + "A: b\x00c\r\n\r\n",
		"GET / HTTP/1.1\r\n" + host + "A: b\r\r\n\r\n",
		"POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
		"POST / HTTP/1.1\r\n" + host + "Content-Length: 3, 3\r\n\r\nabc",
		"POST / HTTP/1.1\r\n" + host + "Content-Length: +3\r\n\r\nabc",
		"POST / HTTP/1.1\r\n" + host + "Content-Length: 0x3\r\n\r\nabc",
		"POST / HTTP/1.1\r\n" + host + "Content-Length: a\r\n\r\n0123456789",
		"POST / HTTP/1.1\r\n" + host + "Content-Length:\r\n\r\nabc",
		"POST / HTTP/1.1\r\n" + host + "Content-Length: 99999999999999999999\r\n\r\nabc",
		"POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: identity\r\n\r\n",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chun\u212aed\r\n\r\n0\r\n\r\n", // folds to a k
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.0\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n\r\nabc\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3;a\nb\r\nabc\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\n0\r\n\r\n",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n folded: 1\r\n\r\n",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\ncolonless\r\n\r\n",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\nA: b\x00c\r\n\r\n",
		"GET / HTTP/1.1\r\n" + host + "Upgrade: websocket\r\nContent-Length: 3\r\n\r\nabc",
		"GET / HTTP/1.1\r\n" + host + "Referer: http://a/websocket\r\n\r\nGET / HTTP/1.1\n" + host + "\r\n",
	}
)

// follow parses b in pieces of the given size. It returns how much is valid.
func follow(f *framing, b string, size int) int {
	seen := 0
	for seen < len(b) {
		piece := b[seen:min(seen+size, len(b))]
		n := f.parse([]byte(piece))
		if seen += n; n < len(piece) {
			return seen
		}
	}
	return seen
}

func TestUnambiguousFramingPasses(t *testing.T) {
	for _, b := range valid {
		for _, size := range []int{1, 2, 7, 1 << 20} {
			f := framing{maxHead: testHead}
			if n := follow(&f, b, size); n < len(b) || f.state != nil || f.expectation {
				t.Errorf("in pieces of %d: rejected after %q of\n%q", size, b[:n], b)
			}
		}
	}
}

func TestAmbiguousFramingIsRejected(t *testing.T) {
	for _, b := range invalid {
		for _, size := range []int{1, 2, 7, 1 << 20} {
			f := framing{maxHead: testHead}
			if follow(&f, b, size) == len(b) {
				t.Errorf("in pieces of %d: accepted\n%q", size, b)
			}
		}
		for _, before := range valid[:8] { // anywhere on the connection
			f := framing{maxHead: testHead}
			if n := follow(&f, before+b, 1<<20); n == len(before+b) || n < len(before) {
				t.Errorf("%d bytes accepted of\n%q, then\n%q", n, before, b)
			}
		}
	}
}

func TestNothingIsCheckedAfterAnUpgrade(t *testing.T) {
	f := framing{maxHead: testHead}
	upgrade := "GET / HTTP/1.1\r\n" + host + "Upgrade: websocket\r\n\r\n"
	for _, b := range []string{upgrade, "\x00anything\n\n", "GET / HTTP/1.1\n"} {
		if n := follow(&f, b, 5); n < len(b) {
			t.Errorf("%q: %d bytes", b, n)
		}
	}
}

func TestLineLengthIsLimited(t *testing.T) {
	f := framing{maxHead: testHead}
	start := "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n1;"
	if n := follow(&f, start+strings.Repeat("x", 2*maxLine), 4096); n > len(start)+maxLine+4096 {
		t.Errorf("got %d bytes, want at most the limit", n)
	}
	if f.tooLarge {
		t.Error("the head is too large")
	}
}

func TestHeadSizeIsLimitedToTheByte(t *testing.T) {
	const request = "GET / HTTP/1.1\r\n" + host
	for name, head := range map[string]func(size int) string{
		"a long line": func(size int) string {
			return request + "A: " + strings.Repeat("b", size-len(request)-len("A: \r\n\r\n")) + "\r\n\r\n"
		},
		"many lines": func(size int) string {
			line := "A: " + strings.Repeat("b", 100) + "\r\n"
			lines := strings.Repeat(line, (size-len(request)-100)/len(line))
			rest := size - len(request) - len(lines) - len("A: \r\n\r\n")
			return request + lines + "A: " + strings.Repeat("b", rest) + "\r\n\r\n"
		},
		"a long target": func(size int) string {
			rest := "GET / HTTP/1.1\r\n" + host + "\r\n"
			return "GET /" + strings.Repeat("b", size-len(rest)) + " HTTP/1.1\r\n" + host + "\r\n"
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, piece := range []int{1, 4096, 1 << 20} {
				f := framing{maxHead: testHead}
				whole := head(testHead)
				if n := follow(&f, whole+whole, piece); n < 2*testHead {
					t.Errorf("two of the maximum size in pieces of %d: got %d bytes, want %d", piece, n, 2*testHead)
				}
				f = framing{maxHead: testHead}
				larger := head(testHead + 1)
				if n := follow(&f, larger, piece); n >= len(larger) {
					t.Errorf("a larger one in pieces of %d: got %d bytes, want fewer", piece, n)
				}
				if !f.tooLarge {
					t.Errorf("a larger one in pieces of %d: tooLarge: got false, want true", piece)
				}
			}
		})
	}
}

func TestNumberOfFieldsIsLimited(t *testing.T) {
	request := func(fields int) string {
		return "GET / HTTP/1.1\r\n" + host + strings.Repeat("A: b\r\n", fields-1) + "\r\n"
	}
	for _, piece := range []int{1, 4096} {
		f := framing{maxHead: testHead}
		most := request(MaxFields)
		if n := follow(&f, most+most, piece); n < 2*len(most) {
			t.Errorf("two with the maximum in pieces of %d: got %d bytes, want %d", piece, n, 2*len(most))
		}
		f = framing{maxHead: testHead}
		if follow(&f, request(MaxFields+1), piece); !f.tooLarge {
			t.Errorf("one more in pieces of %d: tooLarge: got false, want true", piece)
		}
	}
}

func TestALargeHeadIsClosedWhileOverloaded(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		size       int
		overloaded bool
		wantClosed bool
	}{
		"small and overloaded": {4 << 10, true, false},
		"large and overloaded": {16 << 10, true, true},
		"large":                {16 << 10, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, server := net.Pipe()
			defer client.Close()
			defer server.Close()
			go io.WriteString(client, "GET / HTTP/1.1\r\n"+host+"A: "+strings.Repeat("b", test.size)) // until Close
			refused := 0
			c := ServerConn(server, testHead, func() bool { return test.overloaded }, func(status int, _ string) {
				refused = status
			})
			_, err := io.ReadFull(c, make([]byte, test.size))
			if got := err != nil; got != test.wantClosed || got != (refused == http.StatusServiceUnavailable) {
				t.Errorf("got %v and status %d, want an error and 503: %v", err, refused, test.wantClosed)
			}
		})
	}
}

// The overload that begins after a large head does not end the upload.
func TestABodyIsReadWhileOverloaded(t *testing.T) {
	t.Parallel()
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	head := "POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\nA: " + strings.Repeat("b", 16<<10) + "\r\n\r\n"
	go io.WriteString(client, head+"abc") // until Close
	overloaded := false
	c := ServerConn(server, testHead, func() bool { return overloaded }, nil)
	if _, err := io.ReadFull(c, make([]byte, len(head))); err != nil {
		t.Fatal(err)
	}
	overloaded = true
	if _, err := io.ReadFull(c, make([]byte, 3)); err != nil {
		t.Errorf("body: %v", err)
	}
}

// checkedListener accepts connections of ServerConn.
type checkedListener struct{ net.Listener }

func (l checkedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return ServerConn(c, testHead, nil, nil), nil
}

// The connection is not reset before the client has read the response, although
// the server has not read all that the client has sent.
func TestAClientThatStillSendsReadsTheResponse(t *testing.T) {
	t.Parallel()
	for _, framing := range []string{"Transfer-Encoding: chunked", "Content-Length: 1000"} {
		t.Run(framing, func(t *testing.T) {
			t.Parallel()
			asked, sent := make(chan struct{}), make(chan struct{})
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				close(asked)
				<-sent
				http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0)) // as after an abort
				w.Header().Set("Connection", "close")
				w.WriteHeader(http.StatusRequestTimeout)
			}))
			server.Listener = checkedListener{server.Listener}
			server.Start()
			defer server.Close()
			c, err := net.Dial("tcp", server.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			io.WriteString(c, "POST / HTTP/1.1\r\n"+host+framing+"\r\n\r\n")
			<-asked
			io.WriteString(c, "5\r\nabcde\r\n")
			close(sent)
			response, err := io.ReadAll(c)
			if !bytes.HasPrefix(response, []byte("HTTP/1.1 408 ")) || err != nil {
				t.Errorf("got %.20q and then %v, want 408 and the end", response, err)
			}
		})
	}
}

// net/http must see the end of each accepted request where framing sees it.
func FuzzFramingAgreesWithTheServer(f *testing.F) {
	for _, b := range append(valid, invalid...) {
		f.Add([]byte(b))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		whole := framing{maxHead: testHead}
		if whole.parse(b) < len(b) || whole.state != nil {
			return
		}
		input := bytes.NewReader(b)
		r := bufio.NewReader(input)
		for {
			req, err := http.ReadRequest(r)
			if err != nil { // net/http is stricter
				return
			}
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				return
			}
			end := len(b) - input.Len() - r.Buffered()
			upTo := framing{maxHead: testHead}
			if upTo.parse(b[:end]); upTo.state != nil {
				t.Fatalf("net/http parses %q as a request", b[:end])
			}
		}
	})
}
