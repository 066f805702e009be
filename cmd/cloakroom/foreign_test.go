package main

import (
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/tokenstore/storetest"
)

// site is one broker process with a public URL of its own.
type site struct {
	t        *testing.T
	url      string
	provider *brokertest.Provider
	echo     *brokertest.Echo
	settings map[string]string
	replica  *replica
}

// startSite starts a broker for a client of a provider. Both are the first's own unless they are given.
func startSite(t *testing.T, redis *storetest.Server, edit func(s *site), args ...string) *site {
	t.Helper()
	public := freeAddr(t)
	_, port, _ := net.SplitHostPort(public)
	s := &site{t: t, url: "http://localhost:" + port, echo: brokertest.NewEcho(t)}
	s.settings = map[string]string{
		"SERVER_LISTEN": public, "SERVER_ADMIN_LISTEN": "127.0.0.1:0", "SERVER_PUBLIC_URL": s.url,
		"OIDC_CLIENT_ID": "spa", "STORE_URL": redis.URL(), "SESSION_KEYS": goodKey,
		"ROUTES": "[{path: /api/, upstream: " + s.echo.URL + ", token: user, require: {claims: {sub: alice}}}]",
	}
	edit(s)
	if s.provider == nil {
		s.provider = brokertest.NewProvider(t, s.url)
	}
	maps.Copy(s.settings, map[string]string{"OIDC_ISSUER": s.provider.Issuer, "OIDC_CLIENT_SECRET": s.provider.Client.Secret})
	s.replica = startReplica(t, s.provider, s.settings, args...)
	s.replica.waitReady(t)
	return s
}

func (s *site) browser() *bfftest.Browser { return bfftest.NewBrowser(s.t, s.url) }

// refused returns how many foreign cookies the site has logged.
func (s *site) refused() int {
	return strings.Count(s.replica.stderr.String(), `"event":"cookie.foreign"`)
}

// Two brokers share session keys, Redis and prefix, and differ in one of what a session is bound to. They see nothing of each other.
func TestAnotherAppsSessionIsNoSession(t *testing.T) {
	t.Parallel()
	for name, other := range map[string]func(first, second *site){
		"another issuer": func(first, second *site) { second.provider = brokertest.NewProvider(t, first.url) },
		"another client": func(first, second *site) {
			second.provider, second.settings["OIDC_CLIENT_ID"] = first.provider, "other"
		},
		"another public URL": func(first, second *site) { second.provider = first.provider },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			redis := storetest.StartRedis(t)
			first := startSite(t, redis, func(s *site) {
				s.provider = brokertest.StartProvider(t, s.url, func(c *devidp.Config) {
					same := c.Clients[0]
					same.ID = "other"
					c.Clients = append(c.Clients, same)
				})
			})
			second := startSite(t, redis, func(s *site) {
				s.settings["OIDC_PUSHED_REQUESTS"] = "never"
				if other(first, s); name != "another public URL" { // all else is the same
					s.settings["SERVER_PUBLIC_URL"] = first.url
				}
			})

			// The access token has expired: whoever takes the session for its own refreshes it first.
			first.provider.SetHooks(devidp.Hooks{EditTokenResponse: func(_ string, _ int, body map[string]any) { body["expires_in"] = 1 }})
			b := first.browser()
			if got := b.SignIn("alice", ""); got.StatusCode != 303 {
				t.Fatalf("sign in: got %d\n%s", got.StatusCode, got.Text)
			}
			first.provider.Behave()
			time.Sleep(1100 * time.Millisecond)

			host := strings.TrimPrefix(second.settings["SERVER_PUBLIC_URL"], "http://")
			cookie := ""
			for _, c := range b.Cookies() {
				cookie = cookieNameAt(second, host) + "=" + c.Value
			}
			keys := redis.Do("DBSIZE")
			tokens := len(second.provider.Stats().Tokens)
			stranger := second.browser()
			requests := 0
			send := func(method, path string, header ...string) *bfftest.Response {
				t.Helper()
				requests++
				got := stranger.Do(method, path, "", append([]string{"Host", host, "Cookie", cookie, "X-CSRF", "1", "Accept", "application/json", "Sec-Fetch-Site", "same-origin"}, header...)...)
				if set := got.Header.Get("Set-Cookie"); strings.Contains(set, "Max-Age=0") {
					t.Errorf("%s %s: the other app's cookie is removed: %s", method, path, set)
				}
				return got
			}
			for _, path := range []string{"/api/x", "/api/y"} {
				if got := send("GET", path); got.StatusCode != 401 || got.Code() != "not_signed_in" {
					t.Errorf("GET %s: got %d %s, want 401 not_signed_in", path, got.StatusCode, got.Text)
				}
			}
			if got := send("GET", "/bff/session"); strings.TrimSpace(got.Text) != `{"authenticated":false}` {
				t.Errorf("/bff/session: got %s", got.Text)
			}
			if got := send("POST", "/bff/session/refresh"); got.StatusCode != 401 {
				t.Errorf("a forced refresh: got %d %s, want 401", got.StatusCode, got.Text)
			}
			if got := send("GET", "/bff/silent-login", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe"); got.StatusCode != 302 {
				t.Errorf("a silent login: got %d, want 302", got.StatusCode)
			}
			if got := send("POST", "/bff/logout"); got.StatusCode != 200 {
				t.Errorf("logout: got %d %s, want 200", got.StatusCode, got.Text)
			}
			if n := second.echo.Calls(); n != 0 {
				t.Errorf("the second upstream got %d requests", n)
			}
			if n := len(second.provider.Stats().Tokens); second.provider != first.provider && n != tokens {
				t.Errorf("the second provider got token requests: %v", second.provider.Stats().Tokens)
			}
			eventually(t, 10*time.Second, "each request is logged once", func() bool { return second.refused() >= requests })
			if n := second.refused(); n != requests {
				t.Errorf("%d lines about foreign cookies for %d requests", n, requests)
			}
			if got := redis.Do("DBSIZE"); got != keys {
				t.Errorf("the store has %s keys, want %s as before", got, keys)
			}
			if got := b.Fetch("GET", "/api/x"); got.StatusCode != 200 {
				t.Errorf("the first app's session: got %d %s, want 200", got.StatusCode, got.Text)
			}

			// The same with a login that was begun at the first app, and with a logout's state.
			victim := first.browser()
			back := victim.AuthResponse("bob", "return_to=/x").Location(t)
			before := second.provider.TokenRequests()
			var attempt *http.Cookie
			for _, c := range victim.Cookies() {
				attempt = c
			}
			_, tag, _ := strings.Cut(attempt.Name, "-login-")
			got := stranger.Navigate("/bff/callback?"+back.RawQuery, "Host", host, "Cookie", cookieNameAt(second, host)+"-login-"+tag+"="+attempt.Value)
			if got.StatusCode != 400 || len(got.Header["Set-Cookie"]) > 0 {
				t.Errorf("the callback of a login at the first app: got %d %v, want 400 and no cookie", got.StatusCode, got.Header["Set-Cookie"])
			}
			if n := second.provider.TokenRequests() - before; n != 0 {
				t.Errorf("the second broker sent the first one's code in %d token requests", n)
			}
			eventually(t, 10*time.Second, "the attempt is logged", func() bool { return second.refused() == requests+1 })
			out, err := url.Parse(victim.Submit("/bff/logout", url.Values{"return_to": {"/bye"}}).Header.Get("Location"))
			if err != nil || out.Query().Get("state") == "" {
				t.Fatalf("logout at the first app leads to %v, %v", out, err)
			}
			got = stranger.Navigate("/bff/logout/callback?state="+url.QueryEscape(out.Query().Get("state")), "Host", host)
			if location := got.Header.Get("Location"); location != "/" {
				t.Errorf("the state of a logout at the first app leads to %s, want /", location)
			}
		})
	}
}

// cookieNameAt is what a site calls its session cookie for a Host.
func cookieNameAt(s *site, host string) string {
	line := s.browser().Do("POST", "/bff/logout", "", "Host", host, "X-CSRF", "1", "Accept", "application/json").Header.Get("Set-Cookie")
	name, _, _ := strings.Cut(line, "=")
	return name
}

// Back-channel logout ends the sessions of its own client alone. A token's jti means nothing to another client.
func TestALogoutOfOneAppLeavesAnothersSessionsAlone(t *testing.T) {
	t.Parallel()
	redis := storetest.StartRedis(t)
	edit := func(s *site) {
		s.provider = brokertest.StartProvider(t, s.url, func(c *devidp.Config) { c.Clients[0].BackchannelLogoutURI = s.url + "/bff/backchannel-logout" })
	}
	first := startSite(t, redis, edit)
	second := startSite(t, redis, edit)
	browsers := make(map[*site]*bfftest.Browser)
	for _, s := range []*site{first, second} {
		browsers[s] = s.browser()
		if got := browsers[s].SignIn("alice", ""); got.StatusCode != 303 {
			t.Fatalf("sign in: got %d\n%s", got.StatusCode, got.Text)
		}
	}
	out := first.browser() // in another browser alice signs in and out again
	out.SignIn("alice", "")
	location := out.Submit("/bff/logout", nil).Location(t)
	out.Follow(out.Navigate(location.String()), first.url)
	if got := browsers[second].Fetch("GET", "/api/x"); got.StatusCode != 200 {
		t.Errorf("after a logout at the first app a session at the second is gone: got %d", got.StatusCode)
	}
	if got := browsers[first].Fetch("GET", "/api/x"); got.StatusCode != 200 {
		t.Errorf("after a logout of another session this one is gone: got %d", got.StatusCode)
	}
}

// A broker that is reloaded with another issuer does not take sessions of the one before for its own.
func TestAReloadWithAnotherIssuerBeginsAnew(t *testing.T) {
	t.Parallel()
	redis := storetest.StartRedis(t)
	var file string
	write := func(s *site, p *brokertest.Provider) {
		text := fmt.Sprintf("oidc: {issuer: %q, client_id: spa, client_secret: %q}\n", p.Issuer, p.Client.Secret)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file = writeFile(t, "cloakroom.yaml", "")
	public := freeAddr(t)
	_, port, _ := net.SplitHostPort(public)
	s := &site{t: t, url: "http://localhost:" + port, echo: brokertest.NewEcho(t)}
	before, after := brokertest.NewProvider(t, s.url), brokertest.NewProvider(t, s.url)
	write(s, before)
	s.replica = startReplica(t, before, map[string]string{
		"SERVER_LISTEN": public, "SERVER_ADMIN_LISTEN": "127.0.0.1:0", "SERVER_PUBLIC_URL": s.url,
		"STORE_URL": redis.URL(), "SESSION_KEYS": goodKey, "ROUTES": "[{path: /api/, upstream: " + s.echo.URL + ", token: user}]",
	}, "--config", file)
	s.replica.waitReady(t)
	b := s.browser()
	if got := b.SignIn("alice", ""); got.StatusCode != 303 {
		t.Fatalf("sign in: got %d", got.StatusCode)
	}
	if got := b.Fetch("GET", "/api/x"); got.StatusCode != 200 {
		t.Fatalf("before the reload: got %d", got.StatusCode)
	}
	write(s, after)
	if err := s.replica.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the new configuration is in force", func() bool {
		return strings.Count(s.replica.stderr.String(), `"in_force"`) > 1
	})
	for _, call := range [][2]string{{"GET", "/api/x"}, {"POST", "/bff/session/refresh"}} {
		if got := b.Fetch(call[0], call[1]); got.StatusCode != 401 {
			t.Errorf("%s %s after the reload: got %d, want 401", call[0], call[1], got.StatusCode)
		}
	}
	if n := after.Refreshes(); n != 0 {
		t.Errorf("the new provider was sent %d refresh tokens of the old one", n)
	}
	if n := s.echo.Calls(); n != 1 {
		t.Errorf("the upstream got %d requests, want the one before the reload", n)
	}
	eventually(t, 10*time.Second, "both requests are logged", func() bool { return s.refused() == 2 })
	if got := b.SignIn("bob", ""); got.StatusCode != 303 {
		t.Fatalf("sign in at the new provider: got %d\n%s", got.StatusCode, got.Text)
	}
	if got := b.Fetch("GET", "/api/x"); got.StatusCode != 200 {
		t.Errorf("signed in at the new provider: got %d", got.StatusCode)
	}
}
