package bff_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
)

// The length of these bodies is unknown at their start.
func TestConnectionAfterATooLargeBody(t *testing.T) {
	t.Parallel()
	a, _ := newRoutedApp(t, bff.Route{Path: "/small/", Token: "none", MaxBody: 10})
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(a.url, "http://"))
	head := func(method string) string {
		return fmt.Sprintf("%s /small/x HTTP/1.1\r\nHost: localhost:%s\r\nX-CSRF: 1\r\n", method, port)
	}
	const chunk, last = "14\r\nxxxxxxxxxxxxxxxxxxxx\r\n", "0\r\n\r\n"
	for _, parts := range [][]string{
		{chunk + last}, {chunk, last}, {chunk, chunk + last}, {chunk, chunk, last},
		{strings.Repeat(chunk, 1000), last}, {strings.Repeat(chunk, 20_000), last},
	} {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		io.WriteString(c, head("POST")+"Transfer-Encoding: chunked\r\n\r\n")
		for _, p := range parts {
			io.WriteString(c, p)
			time.Sleep(20 * time.Millisecond) // so that they arrive separately
		}
		r := bufio.NewReader(c)
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		if resp.StatusCode != 413 {
			t.Errorf("%d bytes: got %d, want 413", len(strings.Join(parts, "")), resp.StatusCode)
		}
		if resp.Close {
			continue
		}
		io.WriteString(c, head("GET")+"\r\n")
		switch next, err := http.ReadResponse(r, nil); {
		case err != nil:
			t.Errorf("%d bytes: error: got %v, want none", len(strings.Join(parts, "")), err)
		case next.StatusCode != 200:
			t.Errorf("%d bytes: status: got %d, want 200", len(strings.Join(parts, "")), next.StatusCode)
		}
	}
}
