package bff_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
)

// withDevTools adds tools: POST /bff/dev/expire and /bff/dev/end act on the
// session, and every other request gets the path.
func withDevTools(a *app, c *bff.Config) {
	c.DevTools = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		act := map[string]func(*http.Request) error{
			"POST /bff/dev/expire": a.server.ExpireTokens, "POST /bff/dev/end": a.server.EndSession,
		}[r.Method+" "+r.URL.Path]
		if act == nil {
			io.WriteString(w, r.Method+" "+r.URL.Path)
		} else if err := act(r); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
		}
	})
}

func TestDevToolsServeOnlyTheirPaths(t *testing.T) {
	t.Parallel()
	b := newApp(t, withDevTools).browser()
	for path, want := range map[string]int{"/bff/dev": 200, "/bff/dev/x/y": 200, "/bff/device": 404, "/bff/devx": 404} {
		if got := b.Navigate(path).StatusCode; got != want {
			t.Errorf("%s: got %d, want %d", path, got, want)
		}
	}
	without := newApp(t, nil).browser()
	for _, path := range []string{"/bff/dev", "/bff/dev/sign-in"} {
		if got := without.Navigate(path).StatusCode; got != 404 {
			t.Errorf("%s without DevTools: got %d, want 404", path, got)
		}
	}
}

func TestDevToolsRefuseOtherSites(t *testing.T) {
	t.Parallel()
	a := newApp(t, withDevTools)
	b := a.browser()
	for name, header := range map[string][]string{
		"a cross-site form": {"Sec-Fetch-Site", "cross-site", "Origin", "https://evil.example"},
		"another port":      {"Sec-Fetch-Site", "same-site", "Origin", "http://localhost:1"},
		"no proof":          {},
		"an old browser":    {"Origin", "https://evil.example"},
	} {
		if got := b.Do("POST", "/bff/dev/x", "", header...).StatusCode; got != 403 {
			t.Errorf("%s: got %d, want 403", name, got)
		}
	}
	for name, header := range map[string][]string{
		"a form of this origin": {"Sec-Fetch-Site", "same-origin", "Origin", a.url},
		"a script":              {"X-CSRF", "1"},
	} {
		if got := b.Do("POST", "/bff/dev/x", "", header...).StatusCode; got != 200 {
			t.Errorf("%s: got %d, want 200", name, got)
		}
	}
	for _, host := range []string{"evil.example", "evil.example:80", "127.0.0.1", ""} { // DNS rebinding
		req, err := http.NewRequest("GET", a.url+"/bff/dev", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		if host == "" {
			req.Host = "localhost"
		}
		resp, err := httpClient.Transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 421 {
			t.Errorf("Host %q: got %d, want 421", host, resp.StatusCode)
		}
	}
}

func TestDevToolsNeedALoopbackHost(t *testing.T) {
	t.Parallel()
	_, err := bff.New(bff.Config{PublicURL: "https://app.example.com", DevTools: http.NotFoundHandler()})
	if err == nil || !strings.Contains(fmt.Sprint(err), "DevTools: ") {
		t.Errorf("got %v, want an error for DevTools", err)
	}
}

func TestExpiredTokensAreRefreshedOnce(t *testing.T) {
	t.Parallel()
	a := newApp(t, withDevTools)
	b := a.signInUser("alice")
	wantCall(t, b, 200)
	for i := range 3 {
		if got := b.Fetch("POST", "/bff/dev/expire"); got.StatusCode != 200 {
			t.Fatalf("expire: got %d, want 200: %s", got.StatusCode, got.Text)
		}
		wantCall(t, b, 200)
		wantCall(t, b, 200)
		if got := a.provider.Refreshes(); got != i+1 {
			t.Errorf("refreshes: got %d, want %d", got, i+1)
		}
	}
	if got := b.Fetch("POST", "/bff/dev/end").StatusCode; got != 200 {
		t.Errorf("end: got %d, want 200", got)
	}
	wantCall(t, b, 401)
	for _, path := range []string{"/bff/dev/expire", "/bff/dev/end"} {
		if got := b.Fetch("POST", path).StatusCode; got != 409 {
			t.Errorf("%s without a session: got %d, want 409", path, got)
		}
	}
}
