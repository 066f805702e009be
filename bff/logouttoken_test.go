package bff_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

const logoutEvent = "http://schemas.openid.net/event/backchannel-logout"

// logoutToken returns a logout token that the hooks modify.
func (a *app) logoutToken(sub, sid string, hooks devidp.Hooks) string {
	a.t.Helper()
	a.provider.SetHooks(hooks)
	defer a.provider.SetHooks(devidp.Hooks{})
	token, err := a.provider.LogoutToken(a.provider.Client.ID, sub, sid)
	if err != nil {
		a.t.Fatal(err)
	}
	return token
}

// sendLogoutToken calls the back-channel endpoint as the provider does: without
// cookies, and with another Host.
func (a *app) sendLogoutToken(form url.Values) *bfftest.Response {
	return a.browser().Do("POST", "/bff/backchannel-logout", form.Encode(),
		"Content-Type", "application/x-www-form-urlencoded", "Host", "cloakroom.internal:8080")
}

// signedInWithSID returns a browser in which alice is signed in, and the sid of
// the session at the provider.
func (a *app) signedInWithSID() (*bfftest.Browser, string) {
	a.t.Helper()
	var sid string
	a.provider.SetHooks(devidp.Hooks{EditIDToken: func(_, claims map[string]any) { sid, _ = claims["sid"].(string) }})
	defer a.provider.SetHooks(devidp.Hooks{})
	b := a.signedIn()
	if sid == "" {
		a.t.Fatal("the ID token has no sid")
	}
	return b, sid
}

func TestBackchannelLogoutEndsTheSessionsItNames(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		sub      string
		bySID    bool
		wantLeft string // of first and second, both alice's, and bob
	}{
		"sid":                   {"", true, "second, bob"},
		"sub":                   {"alice", false, "bob"},
		"both":                  {"alice", true, "second, bob"},
		"sid of another's":      {"bob", true, "first, second, bob"},
		"a user without any":    {"carol", false, "first, second, bob"},
		"both, and unknown sub": {"carol", true, "first, second, bob"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newApp(t, nil)
			first, sid := a.signedInWithSID()
			second := a.signedIn()
			bob := a.browser()
			bob.SignIn("bob", "")
			if !test.bySID {
				sid = ""
			}
			resp := a.sendLogoutToken(url.Values{
				"logout_token": {a.logoutToken(test.sub, sid, devidp.Hooks{})},
				"extra":        {"ignored"},
			})
			if resp.StatusCode != 200 || resp.Text != "" || resp.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("got %d %s, %q, want 200, no-store and an empty body", resp.StatusCode,
					resp.Header.Get("Cache-Control"), resp.Text)
			}
			var left []string
			for name, b := range map[string]*bfftest.Browser{"first": first, "second": second, "bob": bob} {
				switch got := b.Fetch("GET", "/api/x").StatusCode; got {
				case 200:
					left = append(left, name)
				case 401:
				default:
					t.Errorf("%s: got %d", name, got)
				}
			}
			if len(left) != len(strings.Split(test.wantLeft, ", ")) {
				t.Errorf("remaining sessions: got %s, want %s", left, test.wantLeft)
			}
			for _, name := range left {
				if !strings.Contains(test.wantLeft, name) {
					t.Errorf("remaining sessions: got %s, want %s", left, test.wantLeft)
				}
			}
			if n := a.provider.Refreshes(); n != 0 {
				t.Errorf("%d refreshes after the logout", n)
			}
		})
	}
}

// wantRefused checks for an error response to the provider.
func wantRefused(t *testing.T, name string, resp *bfftest.Response, code string) {
	t.Helper()
	var body struct{ Error, Code string }
	resp.Decode(t, &body)
	if resp.StatusCode != 400 {
		t.Errorf("%s: status: got %d, want 400:\n%s", name, resp.StatusCode, resp.Text)
	}
	if body.Error != "invalid_request" {
		t.Errorf("%s: body.Error: got %v, want invalid_request", name, body.Error)
	}
	if body.Code != code {
		t.Errorf("%s: body.Code: got %v, want %v", name, body.Code, code)
	}
	if resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%s: Content-Type: got %q, want application/json", name, resp.Header.Get("Content-Type"))
	}
	if resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("%s: Cache-Control: got %q, want no-store", name, resp.Header.Get("Cache-Control"))
	}
}

func TestInvalidLogoutTokensAreRejected(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b, sid := a.signedInWithSID()
	edited := func(edit func(header, claims map[string]any)) url.Values {
		return url.Values{"logout_token": {a.logoutToken("alice", sid, devidp.Hooks{EditLogoutToken: edit})}}
	}
	claim := func(name string, value any) url.Values {
		return edited(func(_, claims map[string]any) {
			if claims[name] = value; value == nil {
				delete(claims, name)
			}
		})
	}
	ago := func(d time.Duration) int64 { return time.Now().Add(-d).Unix() }
	for name, form := range map[string]url.Values{
		"none": {},
		"two": {
			"logout_token": {a.logoutToken("alice", sid, devidp.Hooks{}), a.logoutToken("alice", sid, devidp.Hooks{})},
		},
		"not a JWT": {"logout_token": {"x"}},
		"alg none": {
			"logout_token": {
				"eyJhbGciOiJub25lIn0." + strings.Split(a.logoutToken("alice", sid, devidp.Hooks{}), ".")[1] + ".",
			},
		},
		"another's signature": {
			"logout_token": {a.logoutToken("alice", sid, devidp.Hooks{SignLogoutToken: brokertest.SignWithForeignKey})},
		},
		"iss of another":          claim("iss", "https://other.example"),
		"no iss":                  claim("iss", nil),
		"aud of another":          claim("aud", "another"),
		"aud with another client": claim("aud", []string{a.provider.Client.ID, "another"}),
		"no aud":                  claim("aud", nil),
		"no iat":                  claim("iat", nil),
		"iat a while ago":         claim("iat", ago(10*time.Minute)),
		"iat ahead":               claim("iat", ago(-10*time.Minute)),
		"iat not a date":          claim("iat", "now"),
		"no exp":                  claim("exp", nil),
		"exp past":                claim("exp", ago(5*time.Minute)),
		"neither sub nor sid": edited(func(_, claims map[string]any) {
			delete(claims, "sub")
			delete(claims, "sid")
		}),
		"sub not a string":     claim("sub", 7),
		"sub empty":            claim("sub", ""),
		"sid empty":            claim("sid", ""),
		"no events":            claim("events", nil),
		"events not an object": claim("events", logoutEvent),
		"another event": claim("events", map[string]any{
			"http://schemas.openid.net/event/other": map[string]any{},
		}),
		"event not an object":    claim("events", map[string]any{logoutEvent: "yes"}),
		"event null":             claim("events", map[string]any{logoutEvent: nil}),
		"nonce":                  claim("nonce", "n"),
		"nonce null":             edited(func(_, claims map[string]any) { claims["nonce"] = nil }),
		"no jti":                 claim("jti", nil),
		"typ of an access token": edited(func(header, _ map[string]any) { header["typ"] = "at+jwt" }),
		"typ of an ID token":     edited(func(header, _ map[string]any) { header["typ"] = "id_token+jwt" }),
	} {
		wantRefused(t, name, a.sendLogoutToken(form), "bad_logout_token")
		if got := b.Fetch("GET", "/api/x").StatusCode; got != 200 {
			t.Fatalf("%s: the session has ended: got %d, want 200", name, got)
		}
	}
	good := url.Values{"logout_token": {a.logoutToken("alice", sid, devidp.Hooks{})}}
	for name, request := range map[string]func() *bfftest.Response{
		"in the query": func() *bfftest.Response {
			return a.browser().Do("POST", "/bff/backchannel-logout?"+good.Encode(), "",
				"Content-Type", "application/x-www-form-urlencoded")
		},
		"as JSON": func() *bfftest.Response {
			return a.browser().Do("POST", "/bff/backchannel-logout", good.Encode(), "Content-Type", "application/json")
		},
		"too long": func() *bfftest.Response {
			return a.sendLogoutToken(url.Values{
				"logout_token": good["logout_token"],
				"x":            {strings.Repeat("x", 100<<10)},
			})
		},
	} {
		if resp := request(); resp.StatusCode != 400 {
			t.Errorf("%s: got %d, want 400", name, resp.StatusCode)
		}
	}
	if got := a.browser().Navigate("/bff/backchannel-logout?" + good.Encode()).StatusCode; got != 405 {
		t.Errorf("GET: got %d, want 405", got)
	}
	if got := b.Fetch("GET", "/api/x").StatusCode; got != 200 {
		t.Fatalf("the session has been ended: got %d, want 200", got)
	}
}

func TestUnusualButValidLogoutTokensAreAccepted(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(header, claims map[string]any){
		"no typ":      func(header, _ map[string]any) { delete(header, "typ") },
		"typ JWT":     func(header, _ map[string]any) { header["typ"] = "JWT" },
		"typ in full": func(header, _ map[string]any) { header["typ"] = "application/logout+jwt" },
		"aud a list":  func(_, claims map[string]any) { claims["aud"] = []any{claims["aud"]} },
		"more in the event": func(_, claims map[string]any) {
			claims["events"] = map[string]any{logoutEvent: map[string]any{"x": 1}}
		},
		"another event besides": func(_, claims map[string]any) {
			claims["events"].(map[string]any)["urn:x"] = map[string]any{}
		},
		"a clock a minute ahead": func(_, claims map[string]any) { claims["iat"] = time.Now().Add(time.Minute).Unix() },
		"a clock a minute slow": func(_, claims map[string]any) {
			claims["iat"], claims["exp"] = time.Now().Add(-61*time.Second).Unix(), time.Now().Add(-time.Second).Unix()
		},
	} {
		a := newApp(t, nil)
		b, sid := a.signedInWithSID()
		resp := a.sendLogoutToken(url.Values{
			"logout_token": {a.logoutToken("", sid, devidp.Hooks{EditLogoutToken: edit})},
		})
		if resp.StatusCode != 200 {
			t.Errorf("%s: got %d %s, want 200\n%s", name, resp.StatusCode, resp.Text, a.logs)
		}
		wantProblem(t, b.Fetch("GET", "/api/x"), 401, "not_signed_in")
	}
}

// Back-Channel Logout 2.6 (2, 3), 2.7, and RFC 8725 3.12: other JWTs of the
// same keys are no logout tokens.
func TestOtherJWTsAreNoLogoutTokens(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	var idToken, accessToken string
	a.recordCalls(devidp.Hooks{EditTokenResponse: func(_ string, _ int, body map[string]any) {
		idToken, accessToken = fmt.Sprint(body["id_token"]), fmt.Sprint(body["access_token"])
	}})
	b, sid := a.signedInWithSIDAs(&idToken, &accessToken)
	ec := ecKey(t)
	for name, token := range map[string]string{
		"an ID token":     idToken,
		"an access token": accessToken,
		"HS256 with the client's secret": a.logoutToken("alice", sid, devidp.Hooks{
			SignLogoutToken: signedByHMAC([]byte(a.provider.Client.Secret)),
		}),
		"an algorithm that is not listed": a.logoutToken("alice", sid,
			devidp.Hooks{SignLogoutToken: func(_, claims map[string]any) (string, error) {
				return signJWT(jose.ES256, ec, "k", claims)
			}}),
		"an ID token with the event": a.logoutToken("alice", sid,
			devidp.Hooks{EditLogoutToken: func(header, claims map[string]any) {
				header["typ"], claims["nonce"] = "JWT", "n"
			}}),
	} {
		wantRefused(t, name, a.sendLogoutToken(url.Values{"logout_token": {token}}), "bad_logout_token")
		a.wantSession(b, "alice")
	}
	// The second has its own jti and finds no session to end.
	for _, of := range []string{"first", "second"} {
		resp := a.sendLogoutToken(url.Values{"logout_token": {a.logoutToken("", sid, devidp.Hooks{})}})
		if resp.StatusCode != 200 {
			t.Errorf("%s logout token: got %d, want 200", of, resp.StatusCode)
		}
		a.wantSession(b, "")
	}
	resp := a.sendLogoutToken(url.Values{"logout_token": {a.logoutToken("", "unknown", devidp.Hooks{})}})
	if resp.StatusCode != 200 {
		t.Errorf("unknown sid: got %d, want 200", resp.StatusCode)
	}
}

// signedInWithSIDAs is signedInWithSID that also stores the tokens.
func (a *app) signedInWithSIDAs(idToken, accessToken *string) (*bfftest.Browser, string) {
	a.t.Helper()
	var sid string
	a.recordCalls(devidp.Hooks{
		EditIDToken: func(_, claims map[string]any) { sid, _ = claims["sid"].(string) },
		EditTokenResponse: func(_ string, _ int, body map[string]any) {
			*idToken, *accessToken = fmt.Sprint(body["id_token"]), fmt.Sprint(body["access_token"])
		},
	})
	defer a.provider.Behave()
	return a.signedIn(), sid
}

func TestLogoutTokenCannotBeReplayed(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	_, sid := a.signedInWithSID()
	form := url.Values{"logout_token": {a.logoutToken("", sid, devidp.Hooks{})}}
	a.store.setDown(errors.New("connection refused"))
	wantRefused(t, "while the store is down", a.sendLogoutToken(form), "store_unavailable")
	a.store.setDown(nil)
	if resp := a.sendLogoutToken(form); resp.StatusCode != 200 {
		t.Errorf("retry after a failure: got %d %s, want 200", resp.StatusCode, resp.Text)
	}
	wantRefused(t, "retry after a success", a.sendLogoutToken(form), "bad_logout_token")
}

// Its jti is remembered for as long as its iat is recent, however far exp is
// ahead.
func TestLogoutTokenThatExpiresInCenturiesCannotBeReplayed(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	_, sid := a.signedInWithSID()
	form := url.Values{"logout_token": {a.logoutToken("", sid, devidp.Hooks{
		EditLogoutToken: func(_, claims map[string]any) { claims["exp"] = 32503680000 }, // in the year 3000
	})}}
	if resp := a.sendLogoutToken(form); resp.StatusCode != 200 {
		t.Fatalf("got %d %s, want 200", resp.StatusCode, resp.Text)
	}
	wantRefused(t, "the replay", a.sendLogoutToken(form), "bad_logout_token")
}

// Back-Channel Logout 2.8: a logout token whose processing failed can be sent
// again.
func TestFailedLogoutTokenCanBeRetried(t *testing.T) {
	t.Parallel()
	store := &forgetfulStore{Memory: new(tokenstore.Memory)}
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Sessions.Store = store })
	b, sid := a.signedInWithSID()
	form := url.Values{"logout_token": {a.logoutToken("", sid, devidp.Hooks{})}}
	store.down.Store(true)
	wantRefused(t, "while the index is down", a.sendLogoutToken(form), "store_unavailable")
	a.wantSession(b, "alice")
	store.down.Store(false)
	if resp := a.sendLogoutToken(form); resp.StatusCode != 200 {
		t.Errorf("retry: got %d %s, want 200", resp.StatusCode, resp.Text)
	}
	a.wantSession(b, "")
}

// forgetfulStore fails to list the sessions of a user while it is down.
type forgetfulStore struct {
	*tokenstore.Memory
	down atomic.Bool
}

func (s *forgetfulStore) Members(ctx context.Context, keys ...string) ([]string, error) {
	if s.down.Load() {
		return nil, errors.New("LOADING")
	}
	return s.Memory.Members(ctx, keys...)
}

// The user closes the window, the provider does not wait: the sessions end all
// the same.
func TestSessionsEndAlsoIfTheClientIsGone(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Sessions.Store = obedientStore{new(tokenstore.Memory)}
		cfg.Sessions.CacheMaxAge = 1 // every read is of the store
	})
	gone, leave := context.WithCancel(t.Context())
	leave()
	for name, test := range map[string]struct {
		method, path string
		header       []string
		other        bool // the session that ends is not the request's
	}{
		"logout":          {"POST", "/bff/logout", []string{"X-CSRF", "1"}, false},
		"the one session": {"DELETE", "/bff/sessions/{id}", []string{"X-CSRF", "1"}, true},
		"the others":      {"DELETE", "/bff/sessions", []string{"X-CSRF", "1"}, true},
		"front channel": {"GET", "/bff/frontchannel-logout?iss=" + url.QueryEscape(a.provider.Issuer) + "&sid={sid}",
			[]string{"Sec-Fetch-Site", "same-site"}, false},
		"back channel": {"POST", "/bff/backchannel-logout",
			[]string{"Content-Type", "application/x-www-form-urlencoded"}, false},
	} {
		victim, sid := a.signedInWithSID()
		sender, body := victim, ""
		if test.other {
			sender = a.signedIn()
		}
		if name == "back channel" {
			body = url.Values{"logout_token": {a.logoutToken("", sid, devidp.Hooks{})}}.Encode()
		}
		path := strings.NewReplacer("{id}", a.sessionID(victim), "{sid}", sid).Replace(test.path)
		r := httptest.NewRequestWithContext(gone, test.method, path, strings.NewReader(body))
		r.Host = strings.TrimPrefix(a.url, "http://")
		for i := 0; i < len(test.header); i += 2 {
			r.Header.Set(test.header[i], test.header[i+1])
		}
		for _, c := range sender.Cookies() {
			r.AddCookie(c)
		}
		w := httptest.NewRecorder()
		func() {
			defer func() { // as net/http does
				if cause := recover(); cause != nil && cause != http.ErrAbortHandler {
					t.Errorf("%s: panic: %v", name, cause)
				}
			}()
			a.server.ServeHTTP(w, r)
		}()
		if resp := victim.Fetch("GET", "/api/x"); resp.StatusCode != 401 {
			t.Errorf("%s: the session goes on: got %d, want 401; the response was %d %s", name, resp.StatusCode,
				w.Code, w.Body)
		}
	}
}

// obedientStore does nothing for a context that has ended, as a store behind a
// network.
type obedientStore struct{ *tokenstore.Memory }

func (s obedientStore) Get(ctx context.Context, key string) ([]byte, time.Duration, bool, error) {
	if err := ctx.Err(); err != nil {
		return nil, 0, false, err
	}
	return s.Memory.Get(ctx, key)
}

func (s obedientStore) Members(ctx context.Context, keys ...string) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return s.Memory.Members(ctx, keys...)
}

func (s obedientStore) Delete(ctx context.Context, keys ...string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.Memory.Delete(ctx, keys...)
}

func TestLogoutBeforeTheCallbackWins(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	callback := b.AuthResponse("alice", "").Location(t).String()
	other := a.signedIn() // started and finished before the logout
	resp := a.sendLogoutToken(url.Values{"logout_token": {a.logoutToken("alice", "", devidp.Hooks{})}})
	if resp.StatusCode != 200 {
		t.Fatalf("the logout: got %d, want 200", resp.StatusCode)
	}
	wantPage(t, b.Navigate(callback), 403, "signed_out_meanwhile")
	a.wantSession(b, "")
	a.wantSession(other, "")
	// those of the two sessions, whose records cannot be opened any more
	waitFor(t, "the late tokens are revoked", func() bool {
		return a.provider.LiveRefreshTokens() == 2
	})
	a.signedIn()
}

// Junk logout tokens must not keep logins from fetching the provider's new
// keys.
func TestJunkLogoutTokensDoNotBlockLogins(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.expired()
	for range 10 {
		a.sendLogoutToken(url.Values{
			"logout_token": {a.logoutToken("alice", "", devidp.Hooks{SignLogoutToken: brokertest.SignWithForeignKey})},
		})
	}
	if err := a.provider.RotateKeys(); err != nil {
		t.Fatal(err)
	}
	if got := b.Fetch("GET", "/api/x").StatusCode; got != 200 {
		t.Errorf("a refresh: got %d, want 200", got)
	}
	a.signedIn()
}

// Junk tokens must not cause a request to the provider each time.
func TestJunkLogoutTokensCauseFewKeyFetches(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	a.signedIn()
	before, began := a.provider.JWKSFetches(), time.Now()
	for range 30 {
		token := a.logoutToken("alice", "", devidp.Hooks{
			EditLogoutToken: func(header, _ map[string]any) { header["kid"] = rand.Text() },
		})
		if got := a.sendLogoutToken(url.Values{"logout_token": {token}}).StatusCode; got != 400 {
			t.Fatalf("junk logout token: got %d, want 400", got)
		}
	}
	n, took := a.provider.JWKSFetches()-before, time.Since(began)
	if most := 4 + int(took/(700*time.Millisecond)); n > most { // three at once, then one per 0.7 s
		t.Errorf("30 unknown key ids caused %d fetches of the key set in %v, want at most %d", n, took, most)
	}
}

func TestWebSocketEndsWithItsSession(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	a.echo.Handler = func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		io.WriteString(rw, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
		fmt.Fprintf(rw, "%s %v %q\n", scheme, a.provider.Issued(brokertest.Digest(token)), r.Header.Get("Cookie"))
		rw.Flush()
		io.Copy(conn, rw) // each byte is echoed
	}
	b := a.signedIn()
	conn, err := net.Dial("tcp", strings.TrimPrefix(a.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	cookie := b.Cookies()[0]
	fmt.Fprintf(conn, "GET /stream/x HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Origin: %s\r\nCookie: %s=%s\r\n\r\n",
		strings.TrimPrefix(a.url, "http://"), a.url, cookie.Name, cookie.Value)
	lines := bufio.NewReader(conn)
	line := func() string {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(line)
	}
	if got := line(); !strings.HasPrefix(got, "HTTP/1.1 101 ") {
		t.Fatalf("got %s", got)
	}
	for line() != "" {
	}
	if got, want := line(), `Bearer true ""`; got != want {
		t.Errorf("the upstream got %s, want %s: the token and no cookie", got, want)
	}
	for i := range 20 {
		fmt.Fprintf(conn, "message %d\n", i)
		if got, want := line(), fmt.Sprint("message ", i); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if got := b.Submit("/bff/logout", nil).StatusCode; got != 303 {
		t.Fatalf("logout: got %d, want 303", got)
	}
	ended := time.Now()
	if rest, err := io.ReadAll(lines); len(rest) > 0 {
		t.Errorf("after the logout: got %q, %v, want the end of the connection", rest, err)
	}
	if took := time.Since(ended); took > time.Second {
		t.Errorf("the connection ended %v after the logout", took)
	}
}

func TestStreamsEndWithTheirSession(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(a *app, b *bfftest.Browser, sid string){
		"logout": func(_ *app, b *bfftest.Browser, _ string) { b.Submit("/bff/logout", nil) },
		"back-channel logout": func(a *app, _ *bfftest.Browser, sid string) {
			a.sendLogoutToken(url.Values{"logout_token": {a.logoutToken("", sid, devidp.Hooks{})}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newApp(t, nil)
			left := make(chan struct{})
			a.echo.Handler = func(w http.ResponseWriter, r *http.Request) {
				defer close(left)
				w.Header().Set("Content-Type", "text/event-stream")
				for i := 0; r.Context().Err() == nil; i++ {
					fmt.Fprintf(w, "data: %d\n\n", i)
					w.(http.Flusher).Flush()
					time.Sleep(10 * time.Millisecond)
				}
			}
			b, sid := a.signedInWithSID()
			resp := b.Open("/stream/x")
			defer resp.Body.Close()
			lines := bufio.NewReader(resp.Body)
			for range 140 { // longer than the delay until the stream is watched
				if _, err := lines.ReadString('\n'); err != nil {
					t.Fatal(err)
				}
			}
			end(a, b, sid)
			ended := time.Now()
			io.Copy(io.Discard, lines)
			if took := time.Since(ended); took > time.Second {
				t.Errorf("the stream continued for %v", took)
			}
			select {
			case <-left:
			case <-time.After(5 * time.Second):
				t.Error("the upstream request was not cancelled")
			}
		})
	}
}
