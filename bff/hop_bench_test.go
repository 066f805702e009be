package bff_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
)

// BenchmarkHop measures an API call in a session, with the headers of a
// browser, from the client's write to the end of the response. It is for
// profiles: the figures of docs/performance.md come from make bench. With 32
// connections, -mutexprofile and -blockprofile show where calls wait for each
// other.
//
//	go test ./bff -run '^$' -bench Hop -benchmem -cpu 1,2
func BenchmarkHop(b *testing.B) {
	upstream := newConstantUpstream(b)
	server := bfftest.NewServer(b, func(cfg *bff.Config) {
		cfg.Routes = []bff.Route{{Path: "/api/", Upstream: []string{"http://" + upstream}, Token: bff.TokenUser}}
		cfg.Logger = slog.New(slog.NewJSONHandler(io.Discard, nil))
	})
	browser := bfftest.NewBrowser(b, server.URL)
	if resp := browser.SignIn("alice", ""); resp.StatusCode != http.StatusSeeOther {
		b.Fatalf("sign in: got %d, want 303", resp.StatusCode)
	}
	var cookies []string
	for _, c := range browser.Cookies() {
		cookies = append(cookies, c.Name+"="+c.Value)
	}
	host := strings.TrimPrefix(server.URL, "http://")
	request := fmt.Appendf(nil, "GET /api/x HTTP/1.1\r\nHost: %s\r\nUser-Agent: Mozilla/5.0\r\n"+
		"Accept: application/json\r\n"+
		"Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-US,en;q=0.9\r\n"+
		"Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n"+
		"Referer: %s/orders\r\nX-CSRF: 1\r\nCookie: %s\r\n\r\n",
		host, server.URL, strings.Join(cookies, "; "))
	b.Run("1 connection", func(b *testing.B) {
		b.ReportAllocs()
		hop(b, host, request, b.Loop)
	})
	b.Run("32 connections", func(b *testing.B) {
		b.SetParallelism(32 / runtime.GOMAXPROCS(0))
		b.RunParallel(func(pb *testing.PB) { hop(b, host, request, pb.Next) })
	})
}

// hop sends a request on a connection again and again, while next reports true.
func hop(b *testing.B, host string, request []byte, next func() bool) {
	c, err := net.Dial("tcp", host)
	if err != nil {
		b.Error(err)
		return
	}
	defer c.Close()
	r := bufio.NewReader(c)
	for next() {
		if _, err := c.Write(request); err != nil {
			b.Error(err)
			return
		}
		if err := skipResponse(r); err != nil {
			b.Error(err)
			return
		}
	}
}

// skipResponse reads a response with a length. The error is not nil if it is
// not one of 200 with a body.
func skipResponse(r *bufio.Reader) error {
	ok, length := false, 0
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) == 2 {
			break
		}
		ok = ok || bytes.HasPrefix(line, []byte("HTTP/1.1 200 "))
		if value, found := bytes.CutPrefix(line, []byte("Content-Length: ")); found {
			length, _ = strconv.Atoi(string(bytes.TrimSpace(value)))
		}
	}
	if !ok || length == 0 {
		return fmt.Errorf("got 200 %v, %d bytes, want 200 with a body", ok, length)
	}
	_, err := r.Discard(length)
	return err
}
