package bff_test

import (
	"strings"
	"testing"
)

// A log line stays short, whatever a client sends.
func TestLogLinesAreShort(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.browser()
	long := strings.Repeat("%01", 15_000)
	for _, path := range []string{"/" + long, "/api/" + long, "/bff/" + long, "/bff/login?return_to=/" + long, "/x?" + long, "/bff/callback?state=" + long + "&code=x", "/%2e%2e/" + long} {
		b.Fetch("GET", path)
		b.Navigate(path)
	}
	b.Do(strings.Repeat("M", 20_000), "/x", "")
	b.Fetch("GET", "/api/x", "Traceparent", long, "Origin", "https://"+long, "Sec-Fetch-Site", long, "Accept", long)
	b.Fetch("GET", "/api/x", "Host", long[3:200]+"x", "X-Forwarded-For", long)
	for line := range strings.Lines(a.logs.String()) {
		if len(line) > 8192 {
			t.Errorf("a log line has %d octets: %.300s", len(line), line)
		}
	}
}
