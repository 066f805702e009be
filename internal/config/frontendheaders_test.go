package config

import (
	"encoding/pem"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// frontendBase is a configuration without the frontend.
const frontendBase = "server: {public_url: 'https://app.example.com'}\n" +
	"oidc: {issuer: 'https://id.example.com', client_id: app, client_secret: confidential1}\n"

// frontendHeader returns the header of the app's page with the settings in
// text, and in the environment.
func frontendHeader(t *testing.T, text string, env map[string]string) http.Header {
	t.Helper()
	dir := filepath.Dir(writeFile(t, "index.html", "<!doctype html>"))
	handler, err := mustLoad(t, frontendBase+"frontend:\n  dir: "+dir+"\n"+text, env).NewFrontend(nil)
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	return w.Header()
}

func TestFrontendHeadersAreConfigured(t *testing.T) {
	t.Parallel()
	const csp, hsts, permissions = "Content-Security-Policy", "Strict-Transport-Security", "Permissions-Policy"
	for _, test := range []struct {
		text          string
		variable      string // of the environment
		header, value string // a part of the header; empty: it is not sent
	}{
		{"", "", csp, "frame-src 'self' https://id.example.com;"},
		{"", "", csp, "form-action 'self' https://id.example.com;"},
		{"  csp: {img-src: [https://cdn.example.com], script-src: [\"'wasm-unsafe-eval'\"]}", "",
			csp, "img-src 'self' data: blob: https://cdn.example.com;"},
		{"  csp: {img-src: https://cdn.example.com}", "", csp, "img-src 'self' data: blob: https://cdn.example.com;"},
		{"  csp: {frame-src: [https://maps.example.com]}", "",
			csp, "frame-src 'self' https://id.example.com https://maps.example.com;"},
		{"", "CSP={script-src: [\"'wasm-unsafe-eval'\"]}", csp, "script-src 'self' 'wasm-unsafe-eval';"},
		{"  csp_report_only: true", "", csp, ""},
		{"  csp_report_only: true", "", csp + "-Report-Only", "script-src 'self'"},
		{"", "CSP_REPORT_ONLY=true", csp, ""},
		{"  permissions_policy: {geolocation: [self]}", "", permissions, "geolocation=(self)"},
		{"  permissions_policy: {geolocation: self}", "", permissions, "geolocation=(self)"},
		{"", "PERMISSIONS_POLICY={camera: [self, 'https://meet.example.com']}",
			permissions, `camera=(self "https://meet.example.com")`},
		{"  referrer_policy: same-origin", "", "Referrer-Policy", "same-origin"},
		{"", "OPENER_POLICY=unsafe-none", "Cross-Origin-Opener-Policy", "unsafe-none"},
		{"", "", hsts, "max-age=31536000; includeSubDomains"},
		{"  hsts: off", "", hsts, ""},
		{"  hsts: false", "", hsts, ""}, // as Helm writes it
		{"  hsts: {max_age: 24h, include_subdomains: false}", "", hsts, "max-age=86400"},
		{"  hsts: {max_age: 0s}", "", hsts, "max-age=0; includeSubDomains"},
		{"  hsts: {include_subdomains: false}", "", hsts, "max-age=31536000"},
		{"", "HSTS=off", hsts, ""},
		{"", "HSTS={max_age: 48h}", hsts, "max-age=172800; includeSubDomains"},
		{"  hsts: off", "HSTS_MAX_AGE=1h", hsts, "max-age=3600; includeSubDomains"},
		{"", "HSTS_INCLUDE_SUBDOMAINS=false", hsts, "max-age=31536000"},
	} {
		env := make(map[string]string)
		if name, value, ok := strings.Cut(test.variable, "="); ok {
			env["CLOAKROOM_FRONTEND_"+name] = value
		}
		got := frontendHeader(t, test.text, env).Get(test.header)
		switch exact := test.header == hsts; {
		case test.value == "" && got != "", exact && got != test.value, !strings.Contains(got+";", test.value):
			t.Errorf("%s %s: got %s %q, want %q", test.text, test.variable, test.header, got, test.value)
		}
	}
}

// A scheme and a host may have capital letters (RFC 3986, section 3.1).
func TestSchemesAreReadInAnyLetters(t *testing.T) {
	t.Parallel()
	env := map[string]string{"CLOAKROOM_SERVER_PUBLIC_URL": "HTTPS://App.example.com"}
	if got := frontendHeader(t, "", env).Get("Strict-Transport-Security"); got == "" {
		t.Error("HTTPS: got no Strict-Transport-Security")
	}
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	ca := writeFile(t, "ca.pem", string(pem.EncodeToMemory(
		&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	c := mustLoad(t, "server: {public_url: 'HTTP://LOCALHOST:8080', admin_listen: 'LOCALHOST:9090'}\n"+
		"oidc: {issuer: 'HTTP://LOCALHOST:5556', client_id: app, client_secret: confidential1}\n"+
		"routes: [{path: /api/, token: user, upstream: 'HTTPS://api.example.com', "+
		"upstream_tls: {ca_file: '"+ca+"'}}]\n", nil)
	if err := c.Validate(slog.New(slog.DiscardHandler)); err != nil {
		t.Errorf("got %v, want no error", err)
	}
}

func TestFrontendMistakesNameTheirKeys(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"csp: {img: [https://a.example]}":                        "frontend.csp.img: ",
		"csp: {img-src: ['https://a.example; script-src *']}":    "frontend.csp.img-src: ",
		"csp: {script-src: [\"'unsafe-inline'\"]}":               "frontend.csp.script-src: ",
		"csp: {report_only: true}":                               "frontend.csp.report_only: ",
		"csp: [img-src]":                                         "frontend.csp: ",
		"csp: {connect-src: ['https://user:hunter2@a.example']}": "frontend.csp.connect-src: ",
		"csp: {report-uri: ['https://user:hunter2@a.example']}":  "frontend.csp.report-uri: ",
		"permissions_policy: {telepathy: [self]}":                "frontend.permissions_policy.telepathy: ",
		"referrer_policy: never":                                 "frontend.referrer_policy: ",
		"opener_policy: never":                                   "frontend.opener_policy: ",
		"hsts: on":                                               "frontend.hsts: ",
		"hsts: {max_age: -1h}":                                   "frontend.hsts.max_age: ",
		"hsts: {preload: true}":                                  "frontend.hsts.preload: ",
		"hsts: {max_age: 10ms}":                                  "frontend.hsts.max_age: ",
		"csp: {? [img-src] : ['https:']}":                        "frontend.csp: ",
		"config: {? [a, b] : 1}":                                 "frontend.config: ",
		"config: {a: !!bool maybe}":                              "frontend.config.a: ",
		"permissions_policy: {camera: ['https://*.com']}":        "frontend.permissions_policy.camera: ",
		"permissions_policy: {camera: ['https://a.example:*']}":  "frontend.permissions_policy.camera: ",
		"source_maps: sometimes":                                 "frontend.source_maps: ",
		"config: [a]":                                            "frontend.config: ",
		"config: {a: .nan}":                                      "frontend.config.a: ",
		"config: {a: &a [*a]}":                                   "frontend.config.a: ",
		"config: {a: {b: 1, b: 2}}":                              "frontend.config.a: ",
		"config: {a: {secrets: ['x confidential1']}}":            "frontend.config.a: ",
		"config: {a: '" + strings.Repeat("x", 70_000) + "'}":     "frontend.config: ",
	} {
		c, err := load(t, frontendBase+"frontend: {"+text+"}\n", nil)
		if err == nil {
			err = build(c)
		}
		var lines []string
		if err != nil {
			lines = strings.Split(err.Error(), "\n")
		}
		if len(lines) != 1 || !strings.Contains(lines[0], want) {
			t.Errorf("%.80s: got %.300q, want one mistake of %s", text, lines, want)
		}
		if slices.ContainsFunc(lines, func(line string) bool {
			return strings.Contains(line, "hunter2") || strings.Contains(line, "confidential1")
		}) {
			t.Errorf("%.80s: a secret was printed: %q", text, lines)
		}
	}
}

func TestFrontendWarnings(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"csp: {script-src: ['https://js.example.com']}":                  "",
		"csp: {script-src: [\"'unsafe-eval'\"]}":                         "frontend.csp.script-src: ",
		"csp_report_only: true":                                          "frontend.csp_report_only: ",
		"referrer_policy: unsafe-url":                                    "frontend.referrer_policy: ",
		"opener_policy: unsafe-none":                                     "frontend.opener_policy: ",
		"config: {api_base: /api/, feature: true, n: [1, null]}":         "",
		"config: {sentry_dsn: 'https://abc@o1.example.com/1'}":           "",
		"config: {client_secret: x}":                                     "frontend.config.client_secret: ",
		"config: {maps: {accessToken: x}}":                               "frontend.config.maps.accessToken: ",
		"config: {key: '-----BEGIN EC PRIVATE KEY-----'}":                "frontend.config.key: ",
		"config: {list: [a, 'https://user:hunter2@db.example.com/']}":    "frontend.config.list[1]: ",
		"config: {jwt: eyJhbGciOiJub25lIn0.eyJzdWIiOiJodW50ZXIyIn0.sig}": "frontend.config.jwt: ",
	} {
		got := mustLoad(t, frontendBase+"frontend: {"+text+"}\n", nil).Warnings().Lines()
		switch {
		case want == "" && len(got) > 0:
			t.Errorf("%s: got %q, want no warning", text, got)
		case want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], want)):
			t.Errorf("%s: got %q, want one of %s", text, got, want)
		}
		for _, line := range got {
			if strings.Contains(line, "hunter2") || strings.Contains(line, "eyJ") {
				t.Errorf("%s: a secret was printed: %s", text, line)
			}
		}
	}
}

func TestPublicSettingsKeepTheirTypes(t *testing.T) {
	t.Parallel()
	c := mustLoad(t, "x-urls: &urls {api: /api/}\nfrontend:\n  config:\n    <<: *urls\n    beta: false\n    max: 3\n"+
		"    ratio: 0.5\n    none: null\n    version: '1.10'\n    day: 2026-01-02\n    list: [a, {b: yes}]\n", nil)
	var problems Errors
	const want = `{"api":"/api/","beta":false,"day":"2026-01-02","list":["a",{"b":"yes"}],"max":3,"none":null,` +
		`"ratio":0.5,"version":"1.10"}`
	if got := string(c.publicSettings(&problems)); got != want || len(problems) > 0 {
		t.Errorf("got %s, %v, want %s", got, problems, want)
	}
}
