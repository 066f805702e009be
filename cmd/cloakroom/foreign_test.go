package main

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/redistest"
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

// startSite starts a broker with a provider of its own, unless edit sets one.
func startSite(t *testing.T, redis *redistest.Server, edit func(s *site)) *site {
	t.Helper()
	listen, origin := freeOrigin(t)
	s := &site{t: t, url: origin, echo: brokertest.NewEcho(t)}
	s.settings = map[string]string{
		"SERVER_LISTEN": listen, "SERVER_ADMIN_LISTEN": "127.0.0.1:0", "SERVER_PUBLIC_URL": s.url,
		"OIDC_CLIENT_ID": "spa", "STORE_URL": redis.URL(), "SESSION_KEYS": goodKey,
		"ROUTES": "[{path: /api/, upstream: " + s.echo.URL + ", token: user, require: {claims: {sub: alice}}}]",
	}
	edit(s)
	if s.provider == nil {
		s.provider = brokertest.NewProvider(t, s.url)
	}
	s.settings["OIDC_ISSUER"] = s.provider.Issuer
	s.settings["OIDC_CLIENT_SECRET"] = s.provider.Client.Secret
	s.replica = startReplica(t, s.provider, s.settings)
	s.replica.waitReady(t)
	return s
}

func (s *site) browser() *bfftest.Browser { return bfftest.NewBrowser(s.t, s.url) }

// rejected returns the number of cookies of other apps that the site has
// logged.
func (s *site) rejected() int {
	return strings.Count(s.replica.stderr.String(), `"event":"cookie.foreign"`)
}

// Two brokers share session keys, Redis and prefix, and differ in one of the
// things that a session is bound to. Neither accepts sessions of the other.
func TestSessionOfAnotherAppIsRejected(t *testing.T) {
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
			redis := redistest.Start(t)
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

			// The access token has expired: a broker that accepts the session
			// refreshes it first.
			first.provider.SetHooks(devidp.Hooks{
				EditTokenResponse: func(_ string, _ int, body map[string]any) { body["expires_in"] = 1 },
			})
			b := first.browser()
			signIn(t, b, "")
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
			send := func(method, path string, want int, header ...string) *bfftest.Response {
				t.Helper()
				requests++
				got := stranger.Fetch(method, path, append([]string{
					"Host", host, "Cookie", cookie, "Sec-Fetch-Mode", "", "Sec-Fetch-Dest", "",
				}, header...)...)
				if set := got.Header.Get("Set-Cookie"); strings.Contains(set, "Max-Age=0") {
					t.Errorf("Set-Cookie of %s %s: got %s, want the cookie not to be deleted", method, path, set)
				}
				if got.StatusCode != want {
					t.Errorf("%s %s: got %d %s, want %d", method, path, got.StatusCode, got.Text, want)
				}
				return got
			}
			for _, path := range []string{"/api/x", "/api/y"} {
				if got := send("GET", path, 401).Code(); got != "not_signed_in" {
					t.Errorf("GET %s: got the problem %q, want not_signed_in", path, got)
				}
			}
			if got := send("GET", "/bff/session", 200).Text; strings.TrimSpace(got) != `{"authenticated":false}` {
				t.Errorf("GET /bff/session: got %s, want authenticated false", got)
			}
			send("POST", "/bff/session/refresh", 401)
			send("GET", "/bff/silent-login", 302, "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe")
			send("POST", "/bff/logout", 200)
			if got := second.echo.Calls(); got != 0 {
				t.Errorf("requests at the upstream: got %d, want 0", got)
			}
			if got := len(second.provider.Stats().Tokens); second.provider != first.provider && got != tokens {
				t.Errorf("token requests at the second provider: got %v, want none", second.provider.Stats().Tokens)
			}
			eventually(t, 10*time.Second, "each request is logged", func() bool {
				return second.rejected() >= requests
			})
			if got := second.rejected(); got != requests {
				t.Errorf("log lines about cookies of other apps: got %d, want %d", got, requests)
			}
			if got := redis.Do("DBSIZE"); got != keys {
				t.Errorf("keys in Redis: got %s, want %s as before", got, keys)
			}
			wantStatus(t, b, "/api/x", 200)

			// The same with the state of a login and of a logout at the first
			// app.
			victim := first.browser()
			back := victim.AuthResponse("bob", "return_to=/x").Location(t)
			before := second.provider.TokenRequests()
			var attempt *http.Cookie
			for _, c := range victim.Cookies() {
				attempt = c
			}
			_, tag, _ := strings.Cut(attempt.Name, "-login-")
			got := stranger.Navigate("/bff/callback?"+back.RawQuery, "Host", host,
				"Cookie", cookieNameAt(second, host)+"-login-"+tag+"="+attempt.Value)
			if got.StatusCode != 400 {
				t.Errorf("callback of a login at the first app: got %d, want 400", got.StatusCode)
			}
			if set := got.Header["Set-Cookie"]; len(set) > 0 {
				t.Errorf("Set-Cookie of the callback: got %v, want none", set)
			}
			if got := second.provider.TokenRequests() - before; got != 0 {
				t.Errorf("token requests for the code of the first app: got %d, want 0", got)
			}
			eventually(t, 10*time.Second, "the attempt is logged", func() bool {
				return second.rejected() == requests+1
			})
			logout := victim.Submit("/bff/logout", url.Values{"return_to": {"/bye"}}).Location(t)
			state := logout.Query().Get("state")
			if state == "" {
				t.Fatalf("Location of a logout at the first app: got %s, want a state", logout)
			}
			got = stranger.Navigate("/bff/logout/callback?state="+url.QueryEscape(state), "Host", host)
			if got := got.Header.Get("Location"); got != "/" {
				t.Errorf("Location for the state of a logout at the first app: got %s, want /", got)
			}
		})
	}
}

// cookieNameAt returns the name of a site's session cookie for a Host.
func cookieNameAt(s *site, host string) string {
	set := s.browser().Fetch("POST", "/bff/logout", "Host", host).Header.Get("Set-Cookie")
	name, _, _ := strings.Cut(set, "=")
	return name
}

// Back-channel logout ends the sessions of its own client only. The jti of a
// logout token has no meaning for another client.
func TestLogoutOfOneAppKeepsSessionsOfAnother(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	edit := func(s *site) {
		s.provider = brokertest.StartProvider(t, s.url, func(c *devidp.Config) {
			c.Clients[0].BackchannelLogoutURI = s.url + "/bff/backchannel-logout"
		})
	}
	first := startSite(t, redis, edit)
	second := startSite(t, redis, edit)
	atFirst, atSecond, other := first.browser(), second.browser(), first.browser()
	signIn(t, atFirst, "")
	signIn(t, atSecond, "")
	other.SignIn("alice", "") // another session, which ends
	location := other.Submit("/bff/logout", nil).Location(t)
	other.Follow(other.Navigate(location.String()), first.url)
	wantStatus(t, atSecond, "/api/x", 200)
	wantStatus(t, atFirst, "/api/x", 200)
}

// After a reload with another issuer, sessions of the old one are rejected.
func TestReloadWithAnotherIssuerRejectsOldSessions(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	file := writeFile(t, "cloakroom.yaml", "")
	configure := func(p *brokertest.Provider) {
		overwrite(t, file, fmt.Sprintf("oidc: {issuer: %q, client_id: spa, client_secret: %q}\n",
			p.Issuer, p.Client.Secret))
	}
	listen, origin := freeOrigin(t)
	s := &site{t: t, url: origin, echo: brokertest.NewEcho(t)}
	before, after := brokertest.NewProvider(t, s.url), brokertest.NewProvider(t, s.url)
	configure(before)
	s.replica = startReplica(t, before, map[string]string{
		"SERVER_LISTEN": listen, "SERVER_ADMIN_LISTEN": "127.0.0.1:0", "SERVER_PUBLIC_URL": s.url,
		"STORE_URL": redis.URL(), "SESSION_KEYS": goodKey,
		"ROUTES": "[{path: /api/, upstream: " + s.echo.URL + ", token: user}]",
	}, "--config", file)
	s.replica.waitReady(t)
	b := s.browser()
	signIn(t, b, "")
	wantStatus(t, b, "/api/x", 200)
	configure(after)
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
	if got := after.Refreshes(); got != 0 {
		t.Errorf("refresh requests at the new provider: got %d, want 0", got)
	}
	if got := s.echo.Calls(); got != 1 {
		t.Errorf("requests at the upstream: got %d, want 1 before the reload", got)
	}
	eventually(t, 10*time.Second, "both requests are logged", func() bool { return s.rejected() == 2 })
	if got := b.SignIn("bob", ""); got.StatusCode != 303 {
		t.Fatalf("callback at the new provider: got %d, want 303\n%s", got.StatusCode, got.Text)
	}
	wantStatus(t, b, "/api/x", 200)
}
