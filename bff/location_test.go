package bff_test

import (
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
)

func TestReferencesOfAnUpstreamAreRewritten(t *testing.T) {
	t.Parallel()
	var say atomic.Pointer[func(h http.Header)]
	api := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		(*say.Load())(w.Header())
		w.WriteHeader(303)
	})
	// An upstream with a host name and the default port needs another kind of
	// listener: a Unix socket is localhost.
	socket := filepath.Join(t.TempDir(), "api.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	unix := &http.Server{Handler: api}
	go unix.Serve(l) // until Close
	defer unix.Close()
	tcp := brokertest.NewEcho(t)
	tcp.Handler = api.ServeHTTP
	internal := strings.TrimPrefix(tcp.URL, "http://")
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Routes = []bff.Route{
			{Path: "/plain/", Token: "none", Upstream: []string{tcp.URL}},
			{Path: "/stripped/", Token: "none", Upstream: []string{tcp.URL}, StripPrefix: true},
			{Path: "/based/", Token: "none", Upstream: []string{tcp.URL + "/v1"}, StripPrefix: true},
			{Path: "/unix/", Token: "none", Upstream: []string{"unix:" + socket}, StripPrefix: true},
		}
	})
	public, b := a.url, a.browser()
	host := strings.TrimPrefix(public, "http://")
	for _, test := range []struct{ route, value, want string }{
		{"/stripped/", public + "/orders/1?x=%2F#f", "/stripped/orders/1?x=%2F#f"},
		{"/stripped/", "//" + host + "/orders/1", "/stripped/orders/1"},
		{"/stripped/", strings.ToUpper(public) + "/orders/1", "/stripped/orders/1"},
		{"/stripped/", strings.Replace(public, "localhost", "localhost.", 1) + "/orders/1", "/stripped/orders/1"},
		{"/stripped/", public, "/stripped/"},
		// from an upstream that honours X-Forwarded-Prefix
		{"/stripped/", public + "/stripped/orders/1", "/stripped/orders/1"},
		{"/stripped/", "/stripped/orders/1", "/stripped/orders/1"},
		// from one that ignores it
		{"/stripped/", tcp.URL + "/stripped/orders/1", "/stripped/stripped/orders/1"},
		{"/stripped/", "/orders/1", "/stripped/orders/1"},
		{"/stripped/", "/strippedx/1", "/stripped/strippedx/1"},
		{"/stripped/", "orders/1?x", "orders/1?x"},
		{"/stripped/", "?x=1", "?x=1"},
		{"/stripped/", "https://elsewhere.example/orders/1", "https://elsewhere.example/orders/1"},
		{"/stripped/", "http://user:secret@" + internal + "/x", "/stripped/x"},
		{"/stripped/", "mailto:x@example.com", "mailto:x@example.com"},
		{
			"/stripped/", strings.Replace(public, "http:", "https:", 1) + "/x",
			strings.Replace(public, "http:", "https:", 1) + "/x",
		},
		{"/plain/", public + "/plain/1", "/plain/1"},
		{"/plain/", "http://" + strings.Replace(internal, "127.0.0.1", "127.0.0.1.", 1) + "/plain/1", "/plain/1"},
		{"/plain/", "//" + internal + "/plain/1", "/plain/1"},
		{"/based/", public + "/v1/1", "/based/1"},
		{"/based/", public + "/based/1", "/based/1"},
		{"/unix/", "http://localhost/x", "/unix/x"},
		{"/unix/", "http://localhost:80/x", "/unix/x"},
		{"/unix/", "http://localhost.:80/x", "/unix/x"},
		{"/unix/", "http://LOCALHOST.:/x", "/unix/x"},
		{"/unix/", "//localhost:80/x", "/unix/x"},
		{"/unix/", "http://localhost:443/x", "http://localhost:443/x"},
		{"/unix/", "http://localhost:8080/x", "http://localhost:8080/x"},
		{"/unix/", "http://localhost.example/x", "http://localhost.example/x"},
	} {
		for _, header := range []string{"Location", "Content-Location"} {
			set := func(h http.Header) { h.Set(header, test.value) }
			say.Store(&set)
			if got := b.Fetch("GET", test.route+"a").Header.Get(header); got != test.want {
				t.Errorf("%s, %s %s: got %s, want %s", test.route, header, test.value, got, test.want)
			}
		}
	}
	link := func(h http.Header) {
		h.Add("Link", `<http://`+internal+`/orders?page=2>; rel="next"; title="a <b> c", </orders?page=9>; rel=last`)
		h.Add("Link", `<https://docs.example/x>; rel=help`)
	}
	say.Store(&link)
	got := strings.Join(b.Fetch("GET", "/stripped/a").Header.Values("Link"), "|")
	const want = `</stripped/orders?page=2>; rel="next"; title="a <b> c", </stripped/orders?page=9>; rel=last` +
		`|<https://docs.example/x>; rel=help`
	if got != want {
		t.Errorf("Link: got %s, want %s", got, want)
	}
}

func TestStrippedPrefixIsSentAsForwardedPrefix(t *testing.T) {
	t.Parallel()
	echo := brokertest.NewEcho(t)
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Routes = []bff.Route{
			{Path: "/plain/", Token: "none", Upstream: []string{echo.URL}},
			{Path: "/stripped/", Token: "none", Upstream: []string{echo.URL}, StripPrefix: true},
			{Path: "/a/é", Token: "none", Upstream: []string{echo.URL}, StripPrefix: true},
			{Path: "/", Token: "none", Upstream: []string{echo.URL}, StripPrefix: true},
		}
	})
	for path, want := range map[string]string{
		"/plain/x":    "",
		"/stripped/x": "/stripped",
		"/a/%C3%A9/x": "/a/%C3%A9",
		"/other":      "",
	} {
		got := echoed(t,
			a.browser().Fetch("GET", path, "X-Forwarded-Prefix", "/forged",
				"Connection", "X-Forwarded-Prefix")).Header["X-Forwarded-Prefix"]
		if strings.Join(got, "|") != want {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
}
