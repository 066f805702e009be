package bff

import (
	"slices"
	"strings"
	"testing"
)

func TestDeviceNameIsShort(t *testing.T) {
	t.Parallel()
	const webkit = "AppleWebKit/537.36 "
	for userAgent, want := range map[string]string{
		"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0":       "Firefox on Linux",
		"Mozilla/5.0 (X11; Linux x86_64) " + webkit + "Chrome/142.0.0.0 Safari/537.36": "Chrome on Linux",
		"Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) " + webkit +
			"Chrome/142.0.0.0 Safari/537.36": "Chrome on ChromeOS",
		"Mozilla/5.0 (Linux; Android 10; K) " + webkit +
			"Chrome/142.0.0.0 Mobile Safari/537.36": "Chrome on Android",
		"Mozilla/5.0 (Android 15; Mobile; rv:140.0) Gecko/140.0 Firefox/140.0":                 "Firefox on Android",
		"Mozilla/5.0 (Windows NT 10.0; Win64; x64) " + webkit + "Chrome/142 Safari Edg/142.0":  "Edge on Windows",
		"Mozilla/5.0 (Windows NT 10.0; Win64; x64) " + webkit + "Chrome/142 Safari OPR/120.0":  "Opera on Windows",
		"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) Version/26 Safari/60":                 "Safari on macOS",
		"Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) Mobile Safari/604.1":           "Safari on iPhone",
		"Mozilla/5.0 (iPad; CPU OS 18_6 like Mac OS X) CriOS/142.0 Mobile/15E148 Safari/604.1": "Chrome on iPad",
		"Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) FxiOS/145.0 Safari/605.1.15":   "Firefox on iPhone",
		"Mozilla/5.0 (X11; Linux x86_64) " + webkit + "HeadlessChrome/142.0.0.0 Safari/537.36": "Chrome on Linux",
		"curl/8.5.0":                "",
		"":                          "",
		"Some App (Windows NT 10)":  "Windows",
		"Firefox/1 from nowhere":    "Firefox",
		"<script>alert(1)</script>": "",
		"alice@example.com 192.0.2.1 2001:db8::1": "",
	} {
		if got := deviceName(userAgent); got != want {
			t.Errorf("%q: got %q, want %q", userAgent, got, want)
		}
	}
}

// FuzzDeviceName checks that nothing of the header gets into the name.
func FuzzDeviceName(f *testing.F) {
	var all []string
	for _, p := range slices.Concat(browsers, systems) {
		all = append(all, p.name)
		f.Add(p.mark + " 192.0.2.1 <b>\n")
	}
	f.Add(strings.Repeat("x", 1<<20) + "Firefox/1")
	f.Fuzz(func(t *testing.T, userAgent string) {
		got := deviceName(userAgent)
		if got == "" {
			return
		}
		for part := range strings.SplitSeq(got, " on ") {
			if !slices.Contains(all, part) {
				t.Errorf("%q: got %q, with other words than the names of products", userAgent, got)
			}
		}
		if len(got) > 40 {
			t.Errorf("%q: got %q, want at most 40 bytes", userAgent, got)
		}
	})
}
