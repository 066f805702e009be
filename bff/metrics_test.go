package bff_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/session"
)

// scrape returns the metrics of a server.
func scrape(t testing.TB, server *bff.Server) brokertest.Metrics {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(server)
	w := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("scrape: got %d, want 200:\n%s", w.Code, w.Body)
	}
	return brokertest.ParseMetrics(t, w.Body)
}

// wantRise waits until a sample has risen by n since before.
func (a *app) wantRise(t testing.TB, before brokertest.Metrics, sample string, n float64) {
	t.Helper()
	var now brokertest.Metrics
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		now = scrape(t, a.server)
		if _, ok := now[sample]; ok && now[sample]-before[sample] == n {
			return
		}
	}
	t.Errorf("%s: got a rise by %v within 60 s, want %v", sample, now.Rise(t, before, sample), n)
}

func TestRequestsAreCountedByRouteAndClass(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(a *app, cfg *bff.Config) {
		cfg.Routes = append(cfg.Routes,
			bff.Route{Path: "/down/", Upstream: []string{"http://127.0.0.1:1"}, Token: "none"},
			bff.Route{Path: "/handler/", Token: "none", Handler: http.HandlerFunc(
				func(http.ResponseWriter, *http.Request) { panic("broken") })})
		cfg.Frontend = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/moved" {
				http.Redirect(w, r, "/", http.StatusFound)
			}
		})
	})
	b, signedIn := a.browser(), a.signedIn()
	fetch := func(b *bfftest.Browser, path string) func() { return func() { b.Fetch("GET", path) } }
	for _, c := range []struct {
		what         string
		do           func()
		route, class string
	}{
		{"a call of an API", fetch(signedIn, "/api/x"), "/api/", "2xx"},
		{"another one", fetch(signedIn, "/api/y?z=1"), "/api/", "2xx"},
		{"a call without a session", fetch(b, "/api/x"), "/api/", "4xx"},
		{"an upstream that is down", fetch(b, "/down/x"), "/down/", "5xx"},
		{"a page of the app", func() { b.Navigate("/orders/17") }, "app", "2xx"},
		{"a redirect of the app", func() { b.Navigate("/moved") }, "app", "3xx"},
		{"an endpoint", fetch(b, "/bff/session"), "/bff/session", "2xx"},
		{"a login", func() { b.Navigate("/bff/login") }, "/bff/login", "3xx"},
		{"an unknown endpoint", fetch(b, "/bff/nothing"), "/bff/", "4xx"},
		{"an ambiguous path", fetch(b, "/api/%2e%2e/x"), "none", "4xx"},
		{"a handler that panics", func() { b.Abort("POST", "/handler/x", nil) }, "/handler/", "5xx"},
	} {
		t.Run(c.what, func(t *testing.T) {
			before := scrape(t, a.server)
			c.do()
			labels := fmt.Sprintf(`{class=%q,route=%q}`, c.class, c.route)
			a.wantRise(t, before, "cloakroom_requests_total"+labels, 1)
			a.wantRise(t, before, "cloakroom_request_duration_seconds_count"+labels, 1)
		})
	}
}

// A client that leaves is no error of the upstream or the broker.
func TestClientThatLeftCountsAsClientError(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	arrived := make(chan struct{})
	a.echo.Handler = func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
	}
	before := scrape(t, a.server)
	a.browser().Abort("GET", "/public/x", arrived)
	a.wantRise(t, before, `cloakroom_requests_total{class="4xx",route="/public/"}`, 1)
}

func TestTimeOfTheUpstreamIsApartFromTheAddedTime(t *testing.T) {
	t.Parallel()
	const slow = 200 * time.Millisecond
	a := newApp(t, nil)
	a.echo.Handler = func(http.ResponseWriter, *http.Request) { time.Sleep(slow) }
	before := scrape(t, a.server)
	a.browser().Fetch("GET", "/public/x")
	upstream := strings.TrimPrefix(a.echo.URL, "http://")
	labels := fmt.Sprintf(`{route="/public/",upstream=%q}`, upstream)
	a.wantRise(t, before, "cloakroom_upstream_duration_seconds_count"+labels, 1)
	a.wantRise(t, before, `cloakroom_added_duration_seconds_count{route="/public/"}`, 1)
	now := scrape(t, a.server)
	got := now["cloakroom_upstream_duration_seconds_sum"+labels]
	if got < slow.Seconds() {
		t.Errorf("time of the upstream: got %v s, want at least %v", got, slow.Seconds())
	}
	whole := now[`cloakroom_request_duration_seconds_sum{class="2xx",route="/public/"}`]
	if added := now[`cloakroom_added_duration_seconds_sum{route="/public/"}`]; added <= 0 || added > whole-got {
		t.Errorf("added time: got %v s of %v, of which the upstream took %v", added, whole, got)
	}
}

// A stream may last for days, which would tell nothing about durations.
func TestStreamIsCountedWithoutItsDuration(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	a.echo.Handler = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}
	b := a.signedIn()
	before := scrape(t, a.server)
	stream := b.Open("/stream/x")
	a.wantRise(t, before, "cloakroom_streams", 1)
	a.wantRise(t, before, "cloakroom_requests_in_flight", 1)
	stream.Body.Close()
	a.wantRise(t, before, `cloakroom_requests_total{class="2xx",route="/stream/"}`, 1)
	a.wantRise(t, before, "cloakroom_streams", 0)
	a.wantRise(t, before, "cloakroom_requests_in_flight", 0)
	duration := `cloakroom_request_duration_seconds_count{class="2xx",route="/stream/"}`
	if n, ok := scrape(t, a.server)[duration]; ok {
		t.Errorf("%s: got %v, want none", duration, n)
	}
}

func TestResponseThatEndsTooEarlyIsCounted(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	a.echo.Handler = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		io.WriteString(w, "not all")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	before := scrape(t, a.server)
	resp := a.browser().Open("/public/x?")
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	a.wantRise(t, before, `cloakroom_responses_aborted_total{route="/public/"}`, 1)
	a.wantRise(t, before, `cloakroom_requests_total{class="2xx",route="/public/"}`, 1)
}

func TestUpstreamIsDownWhenAllItsAddressesHaveFailed(t *testing.T) {
	t.Parallel()
	down := "127.0.0.1:1"
	a := newApp(t, func(a *app, cfg *bff.Config) {
		cfg.Routes = []bff.Route{{Path: "/down/", Upstream: []string{"http://" + down, a.echo.URL}, Token: "none"}}
	})
	up := func(upstream string) float64 {
		sample := fmt.Sprintf(`cloakroom_upstream_up{route="/down/",upstream=%q}`, upstream)
		return scrape(t, a.server).Rise(t, nil, sample)
	}
	if got := up(down); got != 1 {
		t.Errorf("before a request: got %v, want 1", got)
	}
	for range 4 {
		a.browser().Fetch("GET", "/down/x")
	}
	if got := up(down); got != 0 {
		t.Errorf("the one that is down: got %v, want 0", got)
	}
	if got := up(strings.TrimPrefix(a.echo.URL, "http://")); got != 1 {
		t.Errorf("the other one: got %v, want 1", got)
	}
}

// Clients choose paths, methods and hosts. They must not choose labels.
func TestClientsCannotAddSeries(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.browser()
	visit := func(i int) {
		for _, path := range []string{"/api/%d", "/public/%d", "/bff/%d", "/%d", "/api%%2f%d",
			"/bff/callback?state=%d"} {
			b.Do("GET", fmt.Sprintf(path, i), "", "X-CSRF", "1")
		}
		b.Do(fmt.Sprintf("METHOD%d", i), "/public/x", "", "X-CSRF", "1")
	}
	visit(0)
	before := len(scrape(t, a.server))
	for i := range 150 { // more than a thousand different requests
		visit(i + 1)
	}
	if got := len(scrape(t, a.server)); got != before {
		t.Errorf("samples after many paths: got %d, want %d as before", got, before)
	}
}

func TestCountersSurviveAReload(t *testing.T) {
	t.Parallel()
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) { cfg = *c })
	b := a.signedIn()
	b.Fetch("GET", "/api/x")
	b.Fetch("GET", "/api/x")
	requests := `cloakroom_requests_total{class="2xx",route="/api/"}`
	hits, misses := `cloakroom_session_cache_requests_total{result="hit"}`,
		`cloakroom_session_cache_requests_total{result="miss"}`
	a.wantRise(t, nil, requests, 2)
	before := scrape(t, a.server)
	if before[hits]+before[misses] < 2 {
		t.Errorf("look-ups in the cache: got %v and %v, want at least 2", before[hits], before[misses])
	}
	cfg.Routes = append(cfg.Routes, bff.Route{Path: "/new/", Upstream: []string{a.echo.URL}, Token: "none"})
	if err := reload(t, a.server, cfg); err != nil {
		t.Fatal(err)
	}
	b.Fetch("GET", "/api/x")
	b.Fetch("GET", "/new/x")
	a.wantRise(t, before, requests, 1)
	a.wantRise(t, nil, `cloakroom_requests_total{class="2xx",route="/new/"}`, 1)
	now := scrape(t, a.server)
	if now[hits]+now[misses] <= before[hits]+before[misses] {
		t.Errorf("look-ups in the cache after the reload: got %v and %v, want more than %v and %v",
			now[hits], now[misses], before[hits], before[misses])
	}
}

func TestMetricsFollowTheConventions(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	a.signedIn().Fetch("GET", "/api/x")
	problems, err := testutil.CollectAndLint(a.server)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// Each event is counted where it happens.
func TestEventsMoveTheirMetrics(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.AdminToken = "admin-token" })
	failRefresh := func(status int, code string) func() {
		return func() {
			b := a.signedIn()
			a.onRefresh(func(_ int, w http.ResponseWriter, _ *http.Request, _ http.Handler) { refuse(w, status, code) })
			b.Fetch("POST", "/bff/session/refresh")
			a.provider.Behave()
		}
	}
	silent := func() {
		b := a.browser()
		frame := []string{"Sec-Fetch-Dest", "iframe", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Site", "same-origin"}
		location := b.Navigate("/bff/silent-login", frame...).Location(t)
		b.Navigate(b.Navigate(location.String()).Location(t).String(), frame...)
	}
	form := []string{"Content-Type", "application/x-www-form-urlencoded"}
	for _, c := range []struct {
		sample string
		do     func()
	}{
		{`logins_total{result="started"}`, func() { a.browser().Navigate("/bff/login") }},
		{`logins_total{result="returned"}`, func() { a.signedIn() }},
		{`logins_total{result="completed"}`, func() { a.signedIn() }},
		{`logins_total{result="refused"}`, func() { a.browser().Navigate("/bff/callback?code=x&state=y") }},
		{`logins_refused_total{reason="bad_callback"}`,
			func() { a.browser().Navigate("/bff/callback?code=x&state=y") }},
		{`logins_refused_total{reason="bad_login_parameter"}`, func() { a.browser().Navigate("/bff/login?max_age=x") }},
		{`logins_total{result="not_signed_in"}`, silent},
		{`sessions_started_total`, func() { a.signedIn() }},
		{`sessions_ended_total{reason="logout"}`, func() { a.signedIn().Fetch("POST", "/bff/logout") }},
		{`sessions_ended_total{reason="replaced"}`, func() { a.signedIn().SignIn("alice", "") }},
		{`sessions_ended_total{reason="refused"}`, failRefresh(400, "invalid_grant")},
		{`refreshes_total{result="refused"}`, failRefresh(400, "invalid_grant")},
		{`refreshes_total{result="user_required"}`, failRefresh(400, "interaction_required")},
		{`refreshes_total{result="error"}`, failRefresh(500, "server_error")},
		{`refreshes_total{result="success"}`, func() { a.signedIn().Fetch("POST", "/bff/session/refresh") }},
		{`csrf_refused_total`, func() { a.browser().Do("POST", "/api/x", "") }},
		{`cookies_refused_total{kind="unopenable"}`, func() {
			a.browser().Fetch("GET", "/bff/session", "Cookie", a.cookieName()+"=x")
		}},
		{`cookies_refused_total{kind="duplicate"}`, func() {
			a.browser().Fetch("GET", "/bff/session", "Cookie", a.cookieName()+"=x; "+a.cookieName()+"=y")
		}},
		{`logouts_refused_total{reason="bad_logout_token"}`, func() {
			a.browser().Do("POST", "/bff/backchannel-logout", "logout_token=x", form...)
		}},
		{`admin_refused_total`, func() {
			a.server.Admin().ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/admin/sessions", nil))
		}},
	} {
		t.Run(c.sample, func(t *testing.T) {
			before := scrape(t, a.server)
			if _, ok := before["cloakroom_"+c.sample]; !ok {
				t.Errorf("before the event: got no sample, want 0 or more, so that the first event is a rise")
			}
			c.do()
			a.wantRise(t, before, "cloakroom_"+c.sample, 1)
		})
	}
}

// An attacker does not fill the log, but the counter shows the attack.
func TestEventsBeyondTheLimitOfTheLogAreCounted(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	const flood = 500
	for range flood {
		r := httptest.NewRequest("GET", "/bff/session", nil)
		r.Host = strings.TrimPrefix(a.url, "http://")
		a.server.ServeHTTP(httptest.NewRecorder(), r)
	}
	now := scrape(t, a.server)
	if got := now["cloakroom_csrf_refused_total"]; got != flood {
		t.Errorf("refusals: got %v, want %v", got, flood)
	}
	if got := now["cloakroom_events_unreported_total"]; got < 1 || got >= flood {
		t.Errorf("events that were not reported: got %v, want some of %v", got, flood)
	}
}

func TestWaitingForARefreshIsCounted(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Provider.Wait = 20 * time.Second })
	b := a.expired()
	release := make(chan struct{})
	arrived := a.provider.Hold(t, release)
	status := make(chan int, 1)
	go func() { status <- b.Fetch("GET", "/api/x").StatusCode }() // ends after release
	<-arrived
	a.wantRise(t, nil, "cloakroom_refreshes_in_flight", 1)
	a.wantRise(t, nil, "cloakroom_refresh_waiters", 1)
	close(release)
	if got := <-status; got != 200 {
		t.Errorf("after the refresh: got %d, want 200", got)
	}
	a.wantRise(t, nil, "cloakroom_refreshes_in_flight", 0)
	a.wantRise(t, nil, "cloakroom_refresh_waiters", 0)
	a.wantRise(t, nil, "cloakroom_refresh_wait_duration_seconds_count", 1)
}

func TestProviderIsNotUpInAnOutage(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	a.wantRise(t, nil, "cloakroom_provider_up", 1)
	a.wantRise(t, nil, `cloakroom_provider_breaker_state{state="closed"}`, 1)
	var down atomic.Bool
	down.Store(true)
	a.onRefresh(func(_ int, w http.ResponseWriter, r *http.Request, provider http.Handler) {
		if down.Load() {
			refuse(w, 503, "temporarily_unavailable")
			return
		}
		provider.ServeHTTP(w, r)
	})
	waitFor(t, "a provider that is not up", func() bool {
		b.Fetch("POST", "/bff/session/refresh")
		return scrape(t, a.server)["cloakroom_provider_up"] == 0
	})
	a.wantRise(t, nil, `cloakroom_provider_breaker_state{state="half-open"}`, 1)
	a.wantRise(t, nil, `cloakroom_provider_breaker_state{state="closed"}`, 0)
	down.Store(false)
	waitFor(t, "a provider that is up again", func() bool {
		b.Fetch("POST", "/bff/session/refresh")
		return scrape(t, a.server)["cloakroom_provider_up"] == 1
	})
	a.wantRise(t, nil, `cloakroom_provider_breaker_state{state="closed"}`, 1)
}

// refuseRefreshes makes the provider refuse refreshes with 503 while down is
// true.
func (a *app) refuseRefreshes() (down *atomic.Bool) {
	down = new(atomic.Bool)
	a.onRefresh(func(_ int, w http.ResponseWriter, r *http.Request, provider http.Handler) {
		if down.Load() {
			refuse(w, 503, "temporarily_unavailable")
			return
		}
		provider.ServeHTTP(w, r)
	})
	return down
}

// TestOutageOfTheProviderSaysWhoWaits lets four sessions wait for a provider.
func TestOutageOfTheProviderSaysWhoWaits(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	down := a.refuseRefreshes()
	first := a.signedIn()
	var waiting []*bfftest.Browser
	for range 4 {
		waiting = append(waiting, a.signedIn())
	}
	down.Store(true)
	waitFor(t, "a provider that is not up", func() bool {
		first.Fetch("POST", "/bff/session/refresh")
		return scrape(t, a.server)["cloakroom_provider_up"] == 0
	})
	var all sync.WaitGroup
	for _, b := range waiting {
		all.Go(func() { b.Fetch("POST", "/bff/session/refresh") })
	}
	waitFor(t, "sessions that wait", func() bool { return scrape(t, a.server)["cloakroom_refresh_waiters"] >= 3 })
	down.Store(false)
	all.Wait()
	lines := a.logs.lines(t, "provider recovered")
	if len(lines) != 1 {
		t.Fatalf("got %d lines of the recovery, want 1", len(lines))
	}
	if got, _ := lines[0]["waiting_sessions"].(float64); got < 1 || got > 4 {
		t.Errorf("waiting_sessions: got %v, want 1 to 4", got)
	}
	for _, line := range a.logs.lines(t, "provider unavailable; sessions are kept") {
		if got, ok := line["waiting_sessions"]; ok {
			t.Errorf("waiting_sessions at the start of the outage: got %v, want none", got)
		}
	}
}

func TestRequestsToTheProviderAreMeasured(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	down := a.refuseRefreshes()
	count := func(endpoint, class string) string {
		return fmt.Sprintf("cloakroom_provider_request_duration_seconds_count{class=%q,endpoint=%q}", class, endpoint)
	}
	b := a.signedIn()
	a.wantRise(t, nil, count("discovery", "2xx"), 1)
	a.wantRise(t, nil, count("token", "2xx"), 1)
	a.wantRise(t, nil, count("jwks", "2xx"), 1)
	down.Store(true)
	b.Fetch("POST", "/bff/session/refresh")
	a.wantRise(t, nil, count("token", "5xx"), 1)
	down.Store(false)
	b.Fetch("POST", "/bff/logout")
	a.wantRise(t, nil, count("revocation", "2xx"), 2) // of both tokens
}

func TestCallsOfTheStoreAreMeasured(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	methods := reflect.TypeFor[session.Store]()
	for i := range methods.NumMethod() {
		name := strings.ToLower(methods.Method(i).Name)
		if name == "watch" { // it does not end
			continue
		}
		sample := fmt.Sprintf(`cloakroom_store_errors_total{operation=%q}`, name)
		scrape(t, a.server).Rise(t, nil, sample) // fails if there is none
	}
	before := scrape(t, a.server)
	b := a.signedIn()
	b.Fetch("GET", "/bff/session")
	now := scrape(t, a.server)
	for _, operation := range []string{"get", "create", "add"} {
		if got := now.Rise(t, before, fmt.Sprintf(`cloakroom_store_duration_seconds_count{operation=%q}`,
			operation)); got < 1 {
			t.Errorf("%s at a login: got a rise by %v, want at least 1", operation, got)
		}
	}
	a.store.setDown(errors.New("down"))
	waitFor(t, "an error of the store", func() bool {
		b.Fetch("GET", "/bff/session") // until it is too old in the cache
		return scrape(t, a.server)[`cloakroom_store_errors_total{operation="get"}`] > 0
	})
}

// certifiedStore is a store that knows the certificate of its connections, as
// Redis does.
type certifiedStore struct {
	session.Store
	cert *x509.Certificate
}

func (s *certifiedStore) Certificates() (servers map[string]*x509.Certificate, client *x509.Certificate) {
	return map[string]*x509.Certificate{"redis": s.cert}, s.cert
}

func TestCertificatesHaveTheirTimeToExpiry(t *testing.T) {
	t.Parallel()
	cert := certificate(t, ecKey(t))
	upstream := newHandshakes(t, shownCertificate, "http/1.1")
	own, _ := serverCertificate(t)
	a := newAppWith(t, func(c *devidp.Config) {
		c.Clients[0].Certificate, c.Clients[0].Secret = cert.Leaf, ""
	}, func(a *app, cfg *bff.Config) {
		a.embedded = true // without TLS
		cfg.Provider.ClientSecret, cfg.Provider.ClientAuth = "", "self_signed_tls_client_auth"
		cfg.Provider.ClientCertificate, cfg.Provider.RootCAs = cert, a.provider.Roots
		cfg.TLS = &tls.Config{Certificates: []tls.Certificate{own}}
		cfg.Sessions.Store = &certifiedStore{cfg.Sessions.Store, own.Leaf}
		cfg.Routes = []bff.Route{
			{Path: "/tls/", Upstream: []string{"https://" + upstream.addr}, TLS: upstream.trust, Token: "none"},
		}
	})
	a.browser().Fetch("GET", "/tls/x")
	now := scrape(t, a.server)
	_, issuer, _ := strings.Cut(strings.TrimSuffix(a.provider.Issuer, "/op"), "://")
	for _, labels := range []string{
		`{certificate="server",name="localhost"}`,
		`{certificate="client",name="spa"}`,
		`{certificate="client",name="localhost"}`, `{certificate="store",name="redis"}`,
		fmt.Sprintf(`{certificate="provider",name=%q}`, issuer),
		fmt.Sprintf(`{certificate="upstream",name=%q}`, upstream.addr),
	} {
		got := now.Rise(t, nil, "cloakroom_certificate_expiry_seconds"+labels)
		if isHour := got > 3000 && got <= 3600; !isHour && !(strings.Contains(labels, "provider") && got > 3600) {
			t.Errorf("%s: got %v s, want about an hour", labels, got)
		}
		if life := now.Rise(t, nil, "cloakroom_certificate_lifetime_seconds"+labels); life < got {
			t.Errorf("%s: got a lifetime of %v s, want at least the %v s that are left", labels, life, got)
		}
	}
}

// A scrape may come every 100 ms. Some calls of the store belong to other
// work, such as the comparison of replicas every few seconds.
func TestScrapeCallsNeitherStoreNorProvider(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	a.signedIn()
	calls := func() float64 {
		sum := 0.0
		for _, n := range scrape(t, a.server).With("cloakroom_store_duration_seconds_count") {
			sum += n
		}
		return sum
	}
	before := calls()
	provider := a.recordCalls(devidp.Hooks{})
	for range 100 {
		scrape(t, a.server)
	}
	if got := calls() - before; got >= 50 {
		t.Errorf("calls of the store during 100 scrapes: got %v, want fewer than 50", got)
	}
	if got := provider.to("/token"); len(got) > 0 {
		t.Errorf("requests to the provider: got %d, want none", len(got))
	}
}

func TestConnectionsAndTheirRefusalsAreCounted(t *testing.T) {
	t.Parallel()
	var cfg bff.Config
	newApp(t, func(_ *app, c *bff.Config) { cfg = *c })
	cfg.Limits.Connections = 2
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, stop, ended := serve(t, cfg, l)
	a := &app{server: server}
	var open []net.Conn
	dial := func() (net.Conn, error) {
		c, err := net.Dial("tcp", l.Addr().String())
		if err == nil {
			open = append(open, c)
		}
		return c, err
	}
	// A connection that has sent a request is not closed for a new one.
	openUsed := func() {
		t.Helper()
		c, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(testTimeout))
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.Close {
			t.Fatalf("request: got %v, %v, want a response and an open connection", resp, err)
		}
	}
	openUsed()
	a.wantRise(t, nil, "cloakroom_connections", 1)
	a.wantRise(t, nil, "cloakroom_connections_limit", 2)
	a.wantRise(t, nil, `cloakroom_refusals_total{limit="connections"}`, 0)
	openUsed()
	a.wantRise(t, nil, "cloakroom_connections", 2)
	// A refused connection may be reset before dial returns.
	if _, err := dial(); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatal(err)
	}
	a.wantRise(t, nil, `cloakroom_refusals_total{limit="connections"}`, 1)
	for _, c := range open {
		c.Close()
	}
	a.wantRise(t, nil, "cloakroom_connections", 0)
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
