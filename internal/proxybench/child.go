//go:build unix

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
)

// child is what this program is in a process of its own: "upstream ADDRESS" or "reverseproxy ADDRESS UPSTREAM".
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
	case "reverseproxy":
		u, err := url.Parse(args[2])
		if err != nil {
			log.Fatal(err)
		}
		log.Fatal(http.Serve(l, &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(u) }}))
	default:
		log.Fatalf("no child %s", args[0])
	}
	return true
}

// serveUpstream is an upstream that costs as little as it can: it answers /api/N with N bytes, whatever is uploaded, and /events with one event and then
// nothing more.
func serveUpstream(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			defer c.Close()
			answerAll(c, bufio.NewReaderSize(c, 64<<10))
		}()
	}
}

func answerAll(c net.Conn, r *bufio.Reader) {
	answers := make(map[string][]byte)
	for {
		path, length, err := readHead(r)
		if err != nil {
			return
		}
		if path == "/events" {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\nf\r\ndata: an event\n\r\n")
			io.Copy(io.Discard, r) // until the other side has had enough
			return
		}
		if _, err := r.Discard(length); err != nil {
			return
		}
		if answers[path] == nil {
			n, _ := strconv.Atoi(path[strings.LastIndexByte(path, '/')+1:])
			answers[path] = fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nServer: upstream\r\nDate: Mon, 23 Nov 2026 12:00:00 GMT\r\nContent-Type: application/json\r\nContent-Length: %d\r\nETag: \"abcdef\"\r\n\r\n%s", n, bytes.Repeat([]byte("x"), n))
		}
		if _, err := c.Write(answers[path]); err != nil {
			return
		}
	}
}

// readHead reads a head, of a request or an answer, and returns the second word of its first line and its Content-Length.
func readHead(r *bufio.Reader) (second string, length int, err error) {
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return "", 0, err
		}
		if first {
			_, rest, _ := strings.Cut(string(line), " ")
			second, _, _ = strings.Cut(strings.TrimSpace(rest), " ")
			continue
		}
		if len(line) <= 2 {
			return second, length, nil
		}
		if name, value, ok := bytes.Cut(line, []byte(":")); ok && len(name) == len("Content-Length") && bytes.EqualFold(name, []byte("Content-Length")) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return "", 0, err
			}
		}
	}
}
