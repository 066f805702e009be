package bff_test

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/session"
)

// writes counts the records that are created in a store.
type writes struct {
	session.Store
	n atomic.Int64
}

func (s *writes) Create(ctx context.Context, key string, value []byte, ttl time.Duration) (bool, error) {
	s.n.Add(1)
	return s.Store.Create(ctx, key, value, ttl)
}

// newLimitedApp starts a broker that allows burst logins. The limit does not
// recover during the test.
func newLimitedApp(t *testing.T, burst int, edit func(*app, *bff.Config)) (*app, *writes) {
	var w *writes
	a := newApp(t, func(a *app, cfg *bff.Config) {
		w = &writes{Store: a.store.Store}
		a.store.Store = w
		cfg.Limits.Logins = bff.RateLimit{Rate: 1.0 / 3600, Burst: burst}
		cfg.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		if edit != nil {
			edit(a, cfg)
		}
	})
	return a, w
}

// wantTooMany checks for the error page of a rate limit.
func wantTooMany(t *testing.T, resp *bfftest.Response) {
	t.Helper()
	wantPage(t, resp, 429, "too_many_requests")
	switch seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); {
	case err != nil:
		t.Errorf("Retry-After: error: got %v, want none", err)
	case seconds < 1:
		t.Errorf("Retry-After: seconds: got %v, want at least 1", seconds)
	case seconds > 3600:
		t.Errorf("Retry-After: seconds: got %v, want at most 3600", seconds)
	}
	if len(resp.Cookies()) > 0 {
		t.Errorf("cookies: got %v, want none", resp.Cookies())
	}
}

func TestReloadDoesNotFillTheBudgetOfLogins(t *testing.T) {
	t.Parallel()
	var cfg bff.Config
	a, _ := newLimitedApp(t, 2, func(_ *app, c *bff.Config) { cfg = *c })
	for i := range 2 {
		if got := a.browser().Navigate("/bff/login").StatusCode; got != 302 {
			t.Errorf("login %d: got %d, want 302", i+1, got)
		}
	}
	if err := reload(t, a.server, cfg); err != nil {
		t.Fatal(err)
	}
	wantTooMany(t, a.browser().Navigate("/bff/login"))
	cfg.Limits.Logins.Burst = 3
	if err := reload(t, a.server, cfg); err != nil {
		t.Fatal(err)
	}
	if got := a.browser().Navigate("/bff/login").StatusCode; got != 302 {
		t.Errorf("login with another limit: got %d, want 302", got)
	}
}

func TestLoginsPerAddressAreLimited(t *testing.T) {
	t.Parallel()
	a, w := newLimitedApp(t, 3, nil)
	c := a.recordCalls(devidp.Hooks{})
	from := func(b *bfftest.Browser, path, address string, header ...string) *bfftest.Response {
		return b.Navigate(path, append([]string{"X-Forwarded-For", address}, header...)...)
	}
	for range 10 { // these start no login
		from(a.browser(), "/bff/login?prompt=evil", "203.0.113.7")
		a.browser().Do("HEAD", "/bff/login", "", "X-Forwarded-For", "203.0.113.7")
		from(a.browser(), "/bff/login", "203.0.113.7", "Sec-Purpose", "prefetch")
		from(a.browser(), "/bff/callback?state=x&code=y", "203.0.113.7")
	}
	for i, address := range []string{"203.0.113.7", "::ffff:203.0.113.7", "203.0.113.7"} {
		if got := from(a.browser(), "/bff/login", address).StatusCode; got != 302 {
			t.Errorf("login %d: got %d, want 302", i+1, got)
		}
	}
	for range 20 {
		wantTooMany(t, from(a.browser(), "/bff/login?return_to=/x", "203.0.113.7"))
		wantTooMany(t, from(a.browser(), "/bff/login", "::ffff:cb00:7107"))
	}
	silent := from(a.browser(), "/bff/silent-login", "203.0.113.7", inFrame...)
	if silent.StatusCode != 429 || silent.Header.Get("Retry-After") == "" ||
		!strings.Contains(silent.Text, `data-authenticated="false"`) {
		t.Errorf("a silent login: got %d %v\n%s", silent.StatusCode, silent.Header, silent.Text)
	}
	if n := len(c.to("/par")); n != 3 {
		t.Errorf("%d requests to the provider, want 3", n)
	}
	// Other addresses are not affected.
	for _, address := range []string{"203.0.113.8", "2001:db8:1:2::1", "2001:db8:1:2:ffff::1", "2001:db8:1:2::1"} {
		if got := from(a.browser(), "/bff/login", address).StatusCode; got != 302 {
			t.Errorf("%s: got %d, want 302", address, got)
		}
	}
	wantTooMany(t, from(a.browser(), "/bff/login", "2001:db8:1:2::77"))
	if got := from(a.browser(), "/bff/login", "2001:db8:1:3::1").StatusCode; got != 302 {
		t.Errorf("the next network: got %d, want 302", got)
	}
	if n := w.n.Load(); n > 0 {
		t.Errorf("anonymous logins wrote %d records, want none", n)
	}
	lines := 0
	for _, l := range a.logs.lines(t, "request") {
		if l["status"] == float64(429) {
			lines++
			if err := fmt.Sprint(l["err"]); !strings.Contains(err, "server.limits.logins") || l["client"] == nil {
				t.Errorf("log line: got %v, want the key of the limit and the client", l)
			}
		}
	}
	if lines != 42 {
		t.Errorf("%d log lines, want one for each of 42 refusals", lines)
	}
}

// A callback that restarts the login counts as a login.
func TestRestartedLoginCountsAgainstTheLimit(t *testing.T) {
	t.Parallel()
	a, _ := newLimitedApp(t, 2, nil)
	c := a.recordCalls(devidp.Hooks{})
	u := a.browser().AuthResponse("alice", "").Location(t).String()
	if got := a.browser().Navigate(u).StatusCode; got != 302 {
		t.Errorf("once: got %d, want 302", got)
	}
	for range 10 {
		wantTooMany(t, a.browser().Navigate(u))
	}
	if n := len(c.to("/par")); n != 2 {
		t.Errorf("%d requests to the provider, want 2", n)
	}
}

func TestFailedCodeExchangesAreLimited(t *testing.T) {
	t.Parallel()
	a, w := newLimitedApp(t, 3, unpushed)
	logins := 0
	anonymous := func(address string) *bfftest.Response {
		logins++ // each from another address
		b := a.browser()
		state := b.Navigate("/bff/login",
			"X-Forwarded-For", fmt.Sprintf("198.51.100.%d", logins)).Location(t).Query().Get("state")
		return b.Navigate("/bff/callback?"+url.Values{
			"state": {state},
			"code":  {"junk"},
			"iss":   {a.provider.Issuer},
		}.Encode(), "X-Forwarded-For", address)
	}
	good := a.browser()
	u := good.AuthResponse("alice", "").Location(t).String()
	before := a.provider.TokenRequests()
	for range 3 {
		wantPage(t, anonymous("203.0.113.7"), 502, "login_refused")
	}
	if n := a.provider.TokenRequests() - before; n != 3 {
		t.Errorf("%d token requests, want 3", n)
	}
	if n := a.store.Store.(*writes).Store.(interface{ Len() int }).Len(); n > 0 {
		t.Errorf("%d records in the store, want none", n)
	}
	written := w.n.Load()
	for range 5 {
		wantTooMany(t, good.Navigate(u, "X-Forwarded-For", "203.0.113.7"))
	}
	if n := a.provider.TokenRequests() - before; n != 3 || w.n.Load() != written {
		t.Errorf("beyond the limit: %d token requests, %d writes, want none", n-3, w.n.Load()-written)
	}
	// The attempt is kept.
	if resp := good.Navigate(u, "X-Forwarded-For", "203.0.113.9"); resp.StatusCode != 303 {
		t.Errorf("from another address: got %d, want 303", resp.StatusCode)
	}
	a.wantSession(good, "alice")
}

// Neither an outage of the provider nor successful logins count.
func TestOnlyClientFailuresCountAgainstTheExchangeLimit(t *testing.T) {
	t.Parallel()
	a, _ := newLimitedApp(t, 12, nil)
	b := a.browser()
	u := b.AuthResponse("alice", "").Location(t).String()
	a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, "/token") {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		next.ServeHTTP(w, r)
	}})
	wantPage(t, b.Navigate(u), 503, "provider_unavailable")
	a.provider.Behave()
	for range 11 {
		if got := a.browser().SignIn("alice", "").StatusCode; got != 303 {
			t.Errorf("got %d, want 303", got)
		}
	}
}

func TestCallbacksWithoutAnAttemptAreNotLimited(t *testing.T) {
	t.Parallel()
	a, w := newLimitedApp(t, 1000, nil)
	before := a.provider.TokenRequests()
	for i := range 20 {
		for _, query := range []string{
			"state=x&code=junk", fmt.Sprintf("state=%s&code=junk", strings.Repeat("A", 1000*i)),
			"state=x&error=y", "code=junk", "state=" + strings.Repeat("%01", 5000) + "&code=junk",
		} {
			wantPage(t, a.browser().Navigate("/bff/callback?"+query), 400, "bad_callback")
		}
	}
	if w.n.Load() > 0 || a.provider.TokenRequests() != before {
		t.Errorf("%d writes, %d token requests", w.n.Load(), a.provider.TokenRequests()-before)
	}
}

func TestForcedRefreshesPerSessionAreLimited(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b, other := a.signedIn(), a.signedIn()
	for i := range 5 {
		if got := b.Fetch("POST", "/bff/session/refresh").StatusCode; got != 200 {
			t.Errorf("refresh %d: got %d, want 200", i+1, got)
		}
	}
	refreshes := a.provider.Refreshes()
	refused := 0
	for range 20 {
		if resp := b.Fetch("POST", "/bff/session/refresh"); resp.StatusCode == 429 {
			refused++
			wantProblem(t, resp, 429, "too_many_requests")
			if got := resp.Header.Get("Retry-After"); got != "1" && got != "2" {
				t.Errorf("Retry-After: got %q, want 1 to 3600", got)
			}
		}
	}
	if n := a.provider.Refreshes() - refreshes; n != 20-refused || refused < 10 {
		t.Errorf("of 20 refreshes %d were refused and %d reached the provider", refused, n)
	}
	wantOK(t, other.Fetch("POST", "/bff/session/refresh"))
	wantOK(t, b.Fetch("GET", "/bff/session"))
	wantOK(t, b.Fetch("GET", "/api/x"))
	wantProblem(t, a.browser().Fetch("POST", "/bff/session/refresh"), 401, "not_signed_in")
	waitFor(t, "another one is allowed later", func() bool {
		return b.Fetch("POST", "/bff/session/refresh").StatusCode == 200
	})
}

func TestInvalidLimits(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		limit bff.RateLimit
		want  string
	}{
		{bff.RateLimit{Rate: -1}, "Limits.Logins.Rate: -1"},
		{bff.RateLimit{Rate: 1e-6}, "Limits.Logins.Rate: 1e-06"},
		{bff.RateLimit{Rate: math.NaN()}, "Limits.Logins.Rate: NaN"},
		{bff.RateLimit{Rate: math.Inf(1)}, "Limits.Logins.Rate: +Inf"},
		{bff.RateLimit{Burst: -3}, "Limits.Logins.Burst: -3"},
		{bff.RateLimit{Burst: 1e9}, "Limits.Logins.Burst: 1000000000"},
	} {
		_, err := bff.New(bff.Config{Limits: bff.Limits{Logins: test.limit}})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: got %v", test.limit, err)
		}
	}
}
