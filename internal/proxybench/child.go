//go:build unix

package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
)

// child runs this program in a process of its own: "upstream ADDRESS",
// "goupstream ADDRESS" or "reverseproxy ADDRESS UPSTREAM GOUPSTREAM
// NGINXUPSTREAM". It reports whether args name one of these.
func child(args []string) bool {
	if len(args) < 2 || strings.HasPrefix(args[0], "-") {
		return false
	}
	l, err := net.Listen("tcp", args[1])
	if err != nil {
		log.Fatal(err)
	}
	switch args[0] {
	case "upstream":
		serveUpstream(l)
	case "goupstream":
		log.Fatal(http.Serve(l, http.HandlerFunc(serveGo)))
	case "reverseproxy":
		log.Fatal(http.Serve(l, newReverseProxy(args[2], args[3], args[4], os.Getenv(authorizationEnv))))
	default:
		log.Fatalf("no child %s", args[0])
	}
	return true
}

// authorizationEnv holds the Authorization header that the reverse proxy sends.
const authorizationEnv = "PROXYBENCH_AUTHORIZATION"

// newReverseProxy returns what an engineer would write who needs no sessions:
// it keeps as many connections as it uses, and sends the headers that Cloakroom
// sends.
func newReverseProxy(upstream, goUpstream, nginxUpstream, authorization string) http.Handler {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost = 0, 512 // the default of 2 dials for most requests
	transport.DisableCompression = true
	return &httputil.ReverseProxy{
		Transport: transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			to := upstream
			switch {
			case strings.HasPrefix(r.In.URL.Path, goPath):
				to = goUpstream
			case strings.HasPrefix(r.In.URL.Path, nginxPath):
				to = nginxUpstream
			}
			r.SetURL(&url.URL{Scheme: "http", Host: to})
			r.SetXForwarded()
			r.Out.Header.Del("X-Csrf")
			r.Out.Header.Set("Authorization", authorization)
			r.Out.Header.Set("Via", "1.1 reverseproxy")
			var id [8]byte
			rand.Read(id[:])
			r.Out.Header.Set("X-Request-Id", hex.EncodeToString(id[:]))
		},
		ModifyResponse: func(resp *http.Response) error {
			resp.Header.Del("Server")
			resp.Header.Set("Cache-Control", "private, no-store")
			return nil
		},
	}
}

// goPath begins the paths that go to the upstream that is written with
// net/http, nginxPath those that go to nginx.
const goPath, nginxPath = "/go/", "/nginx/"

// serveGo is an upstream as it is written in Go: the response to /go/N has
// N bytes.
func serveGo(w http.ResponseWriter, r *http.Request) {
	n, _ := strconv.Atoi(path.Base(r.URL.Path))
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(n))
	h.Set("ETag", `"abcdef"`)
	w.Write(bytes.Repeat([]byte("x"), n))
}

// serveUpstream is an upstream that costs as little as it can. The response to
// /api/N has N bytes, whatever is uploaded, that to /api/chunked/N has them in
// chunks, and that to /api/head has the head of the request. /events sends one
// event and then nothing more, eventsPath sends more. socketPath is a
// WebSocket.
func serveUpstream(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			defer c.Close()
			respondAll(c, bufio.NewReaderSize(c, 64<<10))
		}()
	}
}

func respondAll(c net.Conn, r *bufio.Reader) {
	responses := make(map[string][]byte)
	for {
		head, err := readHead(r)
		if err != nil {
			return
		}
		switch head.second {
		case eventsPath:
			serveEvents(c)
			return
		case socketPath:
			serveSocket(c, r, head.field("Sec-WebSocket-Key"))
			return
		case "/events":
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"+
				"Transfer-Encoding: chunked\r\n\r\nf\r\ndata: an event\n\r\n")
			io.Copy(io.Discard, r) // until the other side closes
			return
		}
		if _, err := head.readBody(r); err != nil {
			return
		}
		response := responses[head.second]
		switch {
		case head.second == "/api/head":
			response = withLength([]byte(head.fields.String()))
		case response == nil:
			n, _ := strconv.Atoi(path.Base(head.second))
			body := bytes.Repeat([]byte("x"), n)
			if response = withLength(body); strings.HasPrefix(head.second, "/api/chunked/") {
				response = inChunks(body)
			}
			responses[head.second] = response
		}
		if _, err := c.Write(response); err != nil {
			return
		}
	}
}

const responseHead = "HTTP/1.1 200 OK\r\nServer: upstream\r\nDate: Mon, 23 Nov 2026 12:00:00 GMT\r\n" +
	"Content-Type: application/json\r\nETag: \"abcdef\"\r\n"

func withLength(body []byte) []byte {
	return fmt.Appendf(nil, responseHead+"Content-Length: %d\r\n\r\n%s", len(body), body)
}

// inChunks returns a response whose body is in chunks of 4 KB.
func inChunks(body []byte) []byte {
	b := []byte(responseHead + "Transfer-Encoding: chunked\r\n\r\n")
	for chunk := range slices.Chunk(body, 4<<10) {
		b = fmt.Appendf(b, "%x\r\n%s\r\n", len(chunk), chunk)
	}
	return append(b, "0\r\n\r\n"...)
}

// head is a head that was read, of a request or of a response.
type head struct {
	second string // word of its first line
	length int    // of its body; -1: chunked
	fields strings.Builder
}

// field returns the value of a field of fields.
func (h *head) field(name string) string {
	for line := range strings.Lines(h.fields.String()) {
		if field, value, _ := strings.Cut(line, ":"); strings.EqualFold(field, name) {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func readHead(r *bufio.Reader) (*head, error) {
	h := new(head)
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return nil, err
		}
		if first {
			_, rest, _ := strings.Cut(string(line), " ")
			h.second, _, _ = strings.Cut(strings.TrimSpace(rest), " ")
			continue
		}
		if len(line) <= 2 {
			return h, nil
		}
		if h.second == "/api/head" || h.second == socketPath {
			h.fields.Write(line)
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch value = bytes.TrimSpace(value); {
		case len(name) == len("Content-Length") && bytes.EqualFold(name, []byte("Content-Length")):
			if h.length, err = strconv.Atoi(string(value)); err != nil {
				return nil, err
			}
		case len(name) == len("Transfer-Encoding") && bytes.EqualFold(name, []byte("Transfer-Encoding")):
			h.length = -1
		}
	}
}

// readBody reads what is behind the head, and returns how many bytes that is.
func (h *head) readBody(r *bufio.Reader) (int, error) {
	if h.length >= 0 {
		return r.Discard(h.length)
	}
	for all := 0; ; {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return all, err
		}
		n, err := strconv.ParseInt(string(bytes.TrimSpace(line)), 16, 32)
		if err != nil {
			return all, err
		}
		if _, err := r.Discard(int(n) + 2); err != nil {
			return all, err
		}
		if all += int(n); n == 0 {
			return all, nil
		}
	}
}
