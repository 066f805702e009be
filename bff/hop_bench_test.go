package bff_test

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
)

// BenchmarkHop measures an API call in a session, with the headers of a
// browser, from the client's write to the end of the response. It is for
// profiles: the figures of docs/performance.md come from make bench.
//
//	go test ./bff -run '^$' -bench Hop -benchmem
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
	request := fmt.Sprintf("GET /api/x HTTP/1.1\r\nHost: %s\r\nUser-Agent: Mozilla/5.0\r\nAccept: application/json\r\n"+
		"Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-US,en;q=0.9\r\n"+
		"Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n"+
		"Referer: %s/orders\r\nX-CSRF: 1\r\nCookie: %s\r\n\r\n",
		host, server.URL, strings.Join(cookies, "; "))
	c, err := net.Dial("tcp", host)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	r := bufio.NewReader(c)
	io.WriteString(c, request)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		b.Fatalf("got %v, %v, want 200", resp, err)
	}
	length, _ := io.Copy(io.Discard, resp.Body)
	out := []byte(request)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Write(out); err != nil {
			b.Fatal(err)
		}
		for {
			line, err := r.ReadSlice('\n')
			if err != nil {
				b.Fatal(err)
			}
			if len(line) == 2 {
				break
			}
		}
		if _, err := r.Discard(int(length)); err != nil {
			b.Fatal(err)
		}
	}
}
