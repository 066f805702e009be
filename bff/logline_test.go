package bff_test

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"
)

// Log lines are short, whatever a client sends.
func TestLogLinesAreShort(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.browser()
	long := strings.Repeat("%01", 15_000)
	for _, path := range []string{
		"/" + long, "/api/" + long, "/bff/" + long, "/bff/login?return_to=/" + long, "/x?" + long,
		"/bff/callback?state=" + long + "&code=x", "/%2e%2e/" + long,
	} {
		b.Fetch("GET", path)
		b.Navigate(path)
	}
	b.Do(strings.Repeat("M", 20_000), "/x", "")
	b.Fetch("GET", "/api/x", "Traceparent", long, "Origin", "https://"+long, "Sec-Fetch-Site", long, "Accept", long)
	b.Fetch("GET", "/api/x", "Host", long[3:200]+"x", "X-Forwarded-For", long)
	for line := range strings.Lines(a.logs.String()) {
		if len(line) > 8192 {
			t.Errorf("length of a log line: got %d octets: %.300s", len(line), line)
		}
	}
}

func TestAccessLogNamesTheUpstream(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.browser()
	b.Fetch("GET", "/public/x")
	b.Fetch("GET", "/bff/session")
	echo, err := url.Parse(a.echo.URL)
	if err != nil {
		t.Fatal(err)
	}
	type line struct {
		Msg, Path, Upstream string
		UpstreamMS          *float64 `json:"upstream_ms"`
	}
	lines := make(map[string]line)
	logged := func() bool {
		for text := range strings.Lines(a.logs.String()) {
			var l line
			if json.Unmarshal([]byte(text), &l) == nil && l.Msg == "request" {
				lines[l.Path] = l
			}
		}
		return len(lines) == 2
	}
	waitFor(t, "both lines", logged)
	switch got := lines["/public/x"]; {
	case got.Upstream != echo.Host:
		t.Errorf("of a proxied request: Upstream: got %v, want %v", got.Upstream, echo.Host)
	case got.UpstreamMS == nil:
		t.Error("of a proxied request: UpstreamMS is missing")
	}
	switch got := lines["/bff/session"]; {
	case got.Upstream != "":
		t.Errorf("of an endpoint: Upstream: got %v, want none", got.Upstream)
	case got.UpstreamMS != nil:
		t.Errorf("of an endpoint: UpstreamMS: got %v, want none", got.UpstreamMS)
	}
}
