package bff_test

import (
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
)

// What browsers send as Host for a public URL, or why it is invalid.
func TestThePublicURLIsWhatBrowsersSend(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"https://bücher.example":         "xn--bcher-kva.example",
		"https://BÜCHER.example:8443":    "xn--bcher-kva.example:8443",
		"https://bu\u0308cher.example":   "xn--bcher-kva.example",
		"https://例え.jp":                  "xn--r8jz45g.jp",
		"https://App.Example.COM":        "app.example.com",
		"https://app.example.com:443":    "app.example.com",
		"https://app.example.com:0443":   "app.example.com",
		"https://app.example.com:":       "app.example.com",
		"https://app.example.com:08443":  "app.example.com:8443",
		"https://my_app.example.com":     "my_app.example.com",
		"HTTPS://app.example.com/":       "app.example.com",
		"HTTP://LOCALHOST":               "localhost",
		"http://App.Localhost:8080":      "app.localhost:8080",
		"https://[2001:DB8:0:0:0:0:0:7]": "[2001:db8::7]",
		"https://[2001:db8::7]:8443":     "[2001:db8::7]:8443",
		"https://192.0.2.7":              "192.0.2.7",
		"http://[0:0:0:0:0:0:0:1]:8080":  "[::1]:8080",
	} {
		a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.PublicURL = raw })
		if got := a.browser().Do("GET", "/bff/session", "", "Host", want, "X-CSRF", "1"); got.StatusCode != 200 {
			t.Errorf("%s, Host %s: got %d, want 200", raw, want, got.StatusCode)
		}
	}
	for raw, want := range map[string]string{
		"https://app.example.com.":                        `write "app.example.com"`,
		"https://127.1":                                   "IPv4",
		"https://0x7f.0.0.1":                              "IPv4",
		"https://app.127":                                 "IPv4",
		"https://[fe80::1%25eth0]":                        "IPv6",
		"https://app..example.com":                        "not a host name",
		"https://.example.com":                            "not a host name",
		"https://*.example.com":                           "not a host name",
		"https://app example.com":                         "",
		"https://app%20x.example.com":                     "",
		"https://app,b.example.com":                       "not a host name",
		"https://-.\u200b.example":                        "not a host name",
		"https://app.example.com:0":                       "not a port",
		"https://app.example.com:99999":                   "not a port",
		"https://" + strings.Repeat("a", 64) + ".example": "not a host name",
		"https:///path":                                   "",
		"https://:443":                                    "",
	} {
		_, err := bff.New(bff.Config{PublicURL: raw})
		switch {
		case err == nil:
			t.Errorf("%s: error is missing", raw)
		case !strings.Contains(err.Error(), "PublicURL: "):
			t.Errorf("%s: err.Error(): got %q, want it to contain PublicURL: ", raw, err.Error())
		case !strings.Contains(err.Error(), want):
			t.Errorf("%s: err.Error(): got %q, want it to contain %q", raw, err.Error(), want)
		}
	}
}

// The resolver gets the A-label of an internationalized name (RFC 5890).
func TestUpstreamHostIsCaseInsensitive(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(a *app, cfg *bff.Config) {
		_, port, _ := strings.Cut(strings.TrimPrefix(a.echo.URL, "http://"), ":")
		cfg.Routes = append(cfg.Routes, bff.Route{
			Path:     "/idn/",
			Upstream: []string{"http://bücher.localhost:" + port},
			Token:    "none",
		})
	})
	a.browser().Fetch("GET", "/idn/x")
	if log := a.logs.String(); strings.Contains(log, "bücher") || !strings.Contains(log, "xn--bcher-kva.localhost") {
		t.Errorf("the resolved name is not the A-label: %.2000s", log)
	}
}

func TestWrongHostInDevelopmentNamesChangeOrigin(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	page := a.browser().Navigate("/orders", "Host", "127.0.0.1:5173")
	for _, want := range []string{"changeOrigin", `href="` + a.url + `/"`} {
		if page.StatusCode != 421 || !strings.Contains(page.Text, want) {
			t.Errorf("navigation: got %d, want 421 with %s:\n%s", page.StatusCode, want, page.Text)
		}
	}
	fetched := a.browser().Fetch("GET", "/bff/session", "Host", "cloakroom:8080")
	if fetched.Code() != "wrong_host" || !strings.Contains(fetched.Text, "changeOrigin") {
		t.Errorf("fetch: got %d %s, want wrong_host with changeOrigin", fetched.StatusCode, fetched.Text)
	}
	public := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.PublicURL, cfg.Provider.PushedRequests = "https://app.example.com", "never"
	})
	other := public.browser().Navigate("/", "Host", "evil.example")
	if other.Code() != "wrong_host" || strings.Contains(other.Text, "changeOrigin") {
		t.Errorf("in production: got %d %s, want wrong_host without changeOrigin", other.StatusCode, other.Text)
	}
	if strings.Contains(other.Text, "app.example.com") {
		t.Errorf("in production: the response names the app: %s", other.Text)
	}
}
