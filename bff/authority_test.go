package bff_test

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
)

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
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got := requestHTTP2(t, c, fields...); got != test.status {
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
