package bff_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// BenchmarkRefusals compares the cost of refusals that any client can cause
// with that of a 404. Each must stay within a small multiple of it.
//
//	go test ./bff -run '^$' -bench Refusals
func BenchmarkRefusals(b *testing.B) {
	provider := brokertest.NewProvider(b, "https://app.example")
	start := func(logins bff.RateLimit) *bff.Server {
		server, err := bff.New(bff.Config{
			PublicURL: "https://app.example",
			Provider: bff.ProviderConfig{
				Issuer: provider.Issuer, ClientID: provider.Client.ID,
				ClientSecret: session.Secret(provider.Client.Secret), PushedRequests: "never",
			},
			Sessions: session.Config{Store: new(tokenstore.Memory), Keys: [][]byte{bytes.Repeat([]byte("k"), 32)}},
			Limits:   bff.Limits{Logins: logins},
			Logger:   slog.New(slog.NewJSONHandler(io.Discard, nil)),
		})
		if err != nil {
			b.Fatal(err)
		}
		run(b, server)
		if err := server.WaitForProvider(b.Context()); err != nil {
			b.Fatal(err)
		}
		return server
	}
	strict, generous := start(bff.RateLimit{Rate: 1.0 / 3600, Burst: 1}), start(bff.RateLimit{Rate: 1e6, Burst: 1e6})
	var cookies strings.Builder
	for i := range 2700 {
		fmt.Fprintf(&cookies, "__Host-Http-cloakroom-login-%d=x; ", i)
	}
	navigation := http.Header{"Accept": {"text/html"}, "Sec-Fetch-Mode": {"navigate"}, "Sec-Fetch-Dest": {"document"}}
	withCookies := navigation.Clone()
	withCookies.Set("Cookie", cookies.String())
	form := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
	for _, bench := range []struct {
		name, method, target string
		header               http.Header
		body                 string
		want                 int
		server               *bff.Server
	}{
		{"not found", "GET", "/bff/nothing", navigation, "", 404, strict},
		{"a login", "GET", "/bff/login?return_to=/x", navigation, "", 302, generous},
		{"a login beyond the budget", "GET", "/bff/login?return_to=/x", navigation, "", 429, strict},
		{
			"a silent login beyond the budget", "GET", "/bff/silent-login",
			http.Header{"Sec-Fetch-Dest": {"iframe"}}, "", 429, strict,
		},
		{"a junk callback", "GET", "/bff/callback?state=junk&code=junk", navigation, "", 400, strict},
		{
			"a callback with a long state", "GET",
			"/bff/callback?code=junk&state=" + strings.Repeat("A", 50<<10), navigation, "", 400,
			strict,
		},
		{
			"a callback with thousands of attempts", "GET", "/bff/callback?state=junk&code=junk",
			withCookies, "", 400, strict,
		},
		{"a login with thousands of attempts", "GET", "/bff/login", withCookies, "", 302, generous},
		{
			"a logout token of 54 kB", "POST", "/bff/backchannel-logout", form,
			url.Values{"logout_token": {strings.Repeat("A", 54<<10)}}.Encode(), 400, strict,
		},
		{
			"a logout token of 8 kB", "POST", "/bff/backchannel-logout", form,
			url.Values{"logout_token": {"e30." + strings.Repeat("A", 8<<10) + ".A"}}.Encode(), 400,
			strict,
		},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			first := httptest.NewRequest(bench.method, bench.target, strings.NewReader(bench.body))
			first.Host, first.Header = "app.example", bench.header
			serve := func() int {
				r := *first
				r.Body = io.NopCloser(strings.NewReader(bench.body))
				w := httptest.NewRecorder()
				bench.server.ServeHTTP(w, &r)
				if size := w.Body.Len() + headerSize(w.Header()); size > 10<<10 {
					b.Fatalf("the response has %d bytes", size)
				}
				return w.Code
			}
			serve() // reaches the limit
			for b.Loop() {
				if got := serve(); got != bench.want {
					b.Fatalf("got %d, want %d", got, bench.want)
				}
			}
		})
	}
}

func headerSize(h http.Header) int {
	var b bytes.Buffer
	h.Write(&b)
	return b.Len()
}
