package bff_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
)

// requestHTTP2 sends an HTTP/2 request with exactly these header fields. It
// returns the status of the response, 0 if the stream was reset.
func requestHTTP2(t *testing.T, addr string, fields ...string) int {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	var block bytes.Buffer // HPACK: literals without indexing and without Huffman coding (RFC 7541, section 6.2.2)
	for i := 0; i+1 < len(fields); i += 2 {
		block.WriteByte(0)
		for _, text := range fields[i : i+2] {
			block.WriteByte(byte(len(text)))
			block.WriteString(text)
		}
	}
	frame := func(kind, flags byte, stream uint32, payload []byte) []byte {
		head := []byte{0, byte(len(payload) >> 8), byte(len(payload)), kind, flags, 0, 0, 0, 0}
		binary.BigEndian.PutUint32(head[5:], stream)
		return append(head, payload...)
	}
	io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	c.Write(append(frame(4, 0, 0, nil), frame(1, 5, 1, block.Bytes())...))
	for {
		head := make([]byte, 9)
		if _, err := io.ReadFull(c, head); err != nil {
			return 0
		}
		payload := make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
		if _, err := io.ReadFull(c, payload); err != nil {
			return 0
		}
		switch head[3] {
		case 1: // HEADERS begins with :status
			if status, ok := map[byte]int{0x88: 200, 0x89: 204, 0x8b: 304, 0x8c: 400, 0x8d: 404}[payload[0]]; ok {
				return status
			}
			return -1 // another status
		case 3, 7: // RST_STREAM, GOAWAY
			return 0
		}
	}
}

func TestHTTP2AuthorityAndHostMustAgree(t *testing.T) {
	t.Parallel()
	upstream := newStrictUpstream(t)
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Routes = []bff.Route{{Path: "/x/", Upstream: []string{upstream.url}, Token: "none"}}
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: a.server, Protocols: new(http.Protocols)}
	s.Protocols.SetUnencryptedHTTP2(true)
	go s.Serve(l) // until Close
	defer s.Close()
	host := strings.TrimPrefix(a.url, "http://")
	for name, test := range map[string]struct {
		fields []string
		status int
	}{
		"authority alone":     {[]string{":authority", host}, 200},
		"both the same":       {[]string{":authority", host, "host", host}, 200},
		"in another case":     {[]string{":authority", host, "host", strings.ToUpper(host)}, 200},
		"host alone":          {[]string{"host", host}, 200},
		"different":           {[]string{":authority", host, "host", "evil.example"}, 400},
		"another port":        {[]string{":authority", host, "host", "localhost"}, 400},
		"two hosts":           {[]string{":authority", host, "host", host, "host", "evil.example"}, 400},
		"the same host twice": {[]string{":authority", host, "host", host, "host", host}, 400},
		"an empty host":       {[]string{":authority", host, "host", ""}, 400},
		"two hosts alone":     {[]string{"host", host, "host", "evil.example"}, 400},
	} {
		var fields []string // pseudo-header fields come first
		all := append([]string{":method", "GET", ":scheme", "http", ":path", "/x/y"}, test.fields...)
		all = append(all, "x-csrf", "1")
		for _, pseudo := range []bool{true, false} {
			for i := 0; i+1 < len(all); i += 2 {
				if strings.HasPrefix(all[i], ":") == pseudo {
					fields = append(fields, all[i], all[i+1])
				}
			}
		}
		if got := requestHTTP2(t, l.Addr().String(), fields...); got != test.status {
			t.Errorf("%s: got %d, want %d", name, got, test.status)
		}
		requests, wrong := upstream.take()
		for _, r := range requests {
			if strings.Count(strings.ToLower(r), "\r\nhost: ") != 1 || strings.Contains(r, "evil") {
				t.Errorf("%s: the upstream got %q", name, r)
			}
		}
		if len(wrong) > 0 || (len(requests) == 1) != (test.status == 200) {
			t.Errorf("%s: the upstream got %q and %q", name, requests, wrong)
		}
	}
	for _, line := range a.logs.lines(t, "request") {
		if line["status"] == 400.0 && !strings.HasPrefix(fmt.Sprint(line["err"]), "ambiguous_host: authority ") {
			t.Errorf("the log line does not name the cause: %v", line)
		}
	}
}

func TestRequestsForOtherHostsAreRefused(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	for host, want := range map[string]int{
		w.host: 200, strings.ToUpper(w.host): 200, "user@" + w.host: 400,
		"user:secret@" + w.host: 400, strings.Replace(w.host, ":", ".:", 1): 421, "localhost": 421,
		"localhost:80": 421, w.host + "0": 421, w.host + ":80": 421,
		"": 421, " ": 421, w.host + ", " + w.host: 400, w.host + "/x": 400, w.host + "#": 400,
		"[::1]": 421, "evil." + w.host: 421, w.host + ".": 421,
	} {
		got, _ := w.send(1,
			"GET /api/x HTTP/1.1\r\n"+strings.Replace(w.header, "Host: "+w.host, "Host: "+host, 1)+"\r\n")
		if len(got) != 1 || got[0] != want && (want == 200 || got[0] != 400 && got[0] != 421) {
			t.Errorf("%q: got %v, want %d", host, got, want)
		}
		if requests, _ := w.upstream.take(); len(requests) > 0 != (want == 200) {
			t.Errorf("%q: the upstream got %q", host, requests)
		}
	}
	for name, request := range map[string]string{
		"an empty Host in HTTP/1.0": "GET /api/x HTTP/1.0\r\n" + strings.Replace(w.header,
			"Host: "+w.host, "Host:", 1) + "\r\n",
		"no Host in HTTP/1.0": "GET /api/x HTTP/1.0\r\n" + strings.Replace(w.header,
			"Host: "+w.host+"\r\n", "", 1) + "\r\n",
	} {
		if got, _ := w.send(1, request); len(got) != 1 || got[0] != 421 {
			t.Errorf("%s: got %v, want 421", name, got)
		}
	}
}
