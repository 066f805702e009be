package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/redistest"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

const (
	soakReplicas = 3
	soakUsers    = 30
	soakWorkers  = 12
	// propagationLimit is how long after the response to a logout a replica may
	// still accept calls of the session. Undisturbed it is a tenth of a second.
	// A replica whose connection to Redis was cut or frozen just then notices
	// within half a second. The rest is for a busy machine. A cache that gets
	// no invalidation is wrong for 5 seconds.
	propagationLimit = 3 * time.Second
	// recoveryLimit is how long a session may get no response other than 503
	// after the last fault: the lease of a dead replica and the backoff after
	// failures.
	recoveryLimit = 40 * time.Second

	clockFormat = "15:04:05.000"
)

// TestSoakInvariants makes users sign in, call, refresh, disconnect and sign
// out at random on three replicas, while the provider, Redis and the replicas
// fail one after the other. CLOAKROOM_SOAK is the duration. CLOAKROOM_SEED
// repeats the random choices of an earlier run.
func TestSoakInvariants(t *testing.T) {
	testenv.Slow(t)
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("CLOAKROOM_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("CLOAKROOM_SEED: %v", err)
		}
	}
	t.Logf("CLOAKROOM_SEED=%d", seed)
	duration := cmp.Or(soakDuration(t), 8*time.Second)

	redis := redistest.Start(t)
	var proxies []*redistest.Proxy
	var urls []string
	for range soakReplicas {
		p := redistest.StartProxy(t, redis.Addr())
		proxies, urls = append(proxies, p), append(urls, "redis://"+p.Addr()+"/0")
	}
	s := newSoak(t, 2*time.Second, urls...)
	s.endpoint.serial = true
	random := rand.New(rand.NewPCG(seed, 0))
	var browsers []*soakBrowser
	for i := range soakUsers {
		for range 1 + random.IntN(3) {
			browsers = append(browsers, &soakBrowser{user: soakUser(i)})
		}
	}

	ctx, stop := context.WithTimeout(t.Context(), duration)
	defer stop()
	var workers sync.WaitGroup
	for n := range soakWorkers {
		random := rand.New(rand.NewPCG(seed, uint64(n)+1))
		workers.Go(func() {
			for ctx.Err() == nil {
				// The minimum makes some browsers busier than others.
				i := min(random.IntN(len(browsers)), random.IntN(len(browsers)))
				s.step(ctx, random, browsers[i])
				sleep(ctx, time.Duration(random.IntN(20))*time.Millisecond)
			}
		})
	}
	s.injectFaults(ctx, random, redis, proxies)
	stop()
	workers.Wait()

	s.waitForRecovery()
	s.checkEnds()
	s.checkKeys(redis)
	s.report()
}

func soakDuration(t *testing.T) time.Duration {
	text := os.Getenv("CLOAKROOM_SOAK")
	if text == "" {
		return 0
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		t.Fatalf("CLOAKROOM_SOAK: got %q, want a duration such as 60s", text)
	}
	return d
}

func soakUser(i int) string { return fmt.Sprintf("user%02d", i) }

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// soak is a fleet under random load, and what is known of all its sessions.
type soak struct {
	*fleet
	endpoint *tokenEndpoint

	mu       sync.Mutex // guards all below
	sessions []*soakSession
	counts   map[string]int // requests by method, path and status; faults; ends by cause
	failures int
	latest   time.Duration // longest time from the response to a logout to an accepted call
	kills    []time.Time
	words    map[string]bool // of responses, that may contain a token
	slowest  time.Duration
	outage   struct{ first, last time.Time } // responses with 503
}

// newSoak starts a replica for each store URL. Access tokens expire after
// tokenTTL.
func newSoak(t *testing.T, tokenTTL time.Duration, storeURLs ...string) *soak {
	s := &soak{counts: make(map[string]int), words: make(map[string]bool)}
	s.fleet = newFleet(t, func(c *devidp.Config) {
		c.AccessTokenTTL, c.Users = tokenTTL, nil
		for i := range soakUsers {
			c.Users = append(c.Users, devidp.User{Sub: soakUser(i)})
		}
	})
	s.endpoint = newTokenEndpoint(s.provider, s.fail)
	api := brokertest.NewEcho(t)
	api.Handler = func(w http.ResponseWriter, r *http.Request) {
		token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		json.NewEncoder(w).Encode(parseClaims(token))
	}
	for _, storeURL := range storeURLs {
		s.startReplicas(map[string]string{
			"ROUTES": "[{path: /api/, upstream: " + api.URL + ", token: user}]",
			// A replica that was killed gets the same ports again.
			"SERVER_LISTEN": freeAddr(t), "SERVER_ADMIN_LISTEN": freeAddr(t),
		}, storeURL)
	}
	return s
}

// fail reports a violation. The test logs the first twenty.
func (s *soak) fail(format string, args ...any) {
	s.mu.Lock()
	s.failures++
	n := s.failures
	s.mu.Unlock()
	if n <= 20 {
		s.t.Errorf(time.Now().Format(clockFormat)+" "+format, args...)
	}
}

func (s *soak) count(what string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[what] += n
}

// soakBrowser is one of a user's browsers. It has one session after the other.
type soakBrowser struct {
	user     string
	signing  sync.Mutex // held during a sign-in
	current  atomic.Pointer[soakSession]
	previous atomic.Pointer[soakSession]
}

// soakSession is a session and what its browser has seen of it.
type soakSession struct {
	userSession
	user string
	sid  string // at the provider

	mu      sync.Mutex // guards all below
	leaving bool       // a logout was sent
	ended   time.Time  // of the response to it
	refused time.Time  // of the first 401
	history []string   // the last events
}

func (x *soakSession) note(format string, args ...any) {
	x.history = append(x.history, time.Now().Format(clockFormat)+" "+fmt.Sprintf(format, args...))
	x.history = x.history[max(0, len(x.history)-12):]
}

func (x *soakSession) String() string {
	return fmt.Sprintf("session %s of %s (sid %s)\n\t%s",
		x.id, x.user, x.sid, strings.Join(x.history, "\n\t"))
}

// exchange makes one request at a replica, and checks what holds for every
// response. Without a response, err is set: only a kill of the replica and the
// end of ctx are no violations.
func (s *soak) exchange(
	ctx context.Context, at *replica, cookies, method, path string, header ...string,
) response {
	kills := at.kills.Load()
	if at.killed.Load() {
		return response{err: errors.New("the replica was killed")}
	}
	limited, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	resp := s.send(limited, at, cookies, method, path, header...)
	path, _, _ = strings.Cut(path, "?")
	if resp.err != nil {
		if at.kills.Load() == kills && ctx.Err() == nil {
			s.fail("%s %s at %s: no response: %v", method, path, at.addr, resp.err)
		}
		return resp
	}
	s.mu.Lock()
	s.counts[fmt.Sprintf("%s %s %d", method, path, resp.status)]++
	s.slowest = max(s.slowest, resp.took)
	if resp.status == http.StatusServiceUnavailable {
		s.outage.last = time.Now()
		if s.outage.first.IsZero() {
			s.outage.first = s.outage.last
		}
	}
	if resp.status/100 != 3 { // a redirect may contain an ID token, as id_token_hint
		for _, word := range brokertest.TokenLike(resp.text) {
			s.words[word] = true
		}
	}
	s.mu.Unlock()
	if resp.status == http.StatusServiceUnavailable {
		if resp.header.Get("Retry-After") == "" {
			s.fail("%s %s: 503 without Retry-After: %s", method, path, resp.text)
		}
		if set := strings.Join(resp.header["Set-Cookie"], " "); sessionCookie.MatchString(set) {
			s.fail("%s %s: 503 sets the session cookie", method, path)
		}
	}
	return resp
}

var (
	sessionCookie = regexp.MustCompile(`cloakroom-\d+=`)
	navigation    = []string{
		"Accept", "text/html", "X-CSRF", "",
		"Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document", "Sec-Fetch-Site", "none",
	}
)

// login signs a user in with a new browser. It returns nil if a fault prevented
// that.
func (s *soak) login(ctx context.Context, at *replica, user string) *soakSession {
	b := bfftest.NewBrowser(s.t, s.url)
	faulted := s.endpoint.faulted.Load()
	navigate := func(path, cookies string, want int) (http.Header, bool) {
		resp := s.exchange(ctx, at, cookies, "GET", path, navigation...)
		for _, c := range (&http.Response{Header: resp.header}).Cookies() {
			b.SetCookie(c)
		}
		switch {
		case resp.err != nil, resp.status == 503:
		case resp.status == 502 && s.endpoint.faulted.Load() != faulted:
		case resp.status != want:
			s.fail("GET %.20s: got %v, want %d: %s", path, resp, want, resp.text)
		}
		return resp.header, resp.status == want
	}
	header, ok := navigate("/bff/login", "", 302)
	if !ok {
		return nil
	}
	// Thousands of browsers must not each keep a connection to the provider.
	page := b.Navigate(header.Get("Location"), "Connection", "close")
	form := brokertest.HiddenFields(page.Text)
	form.Set("user", user)
	callback := b.Do("POST", page.Request.URL.String(), form.Encode(),
		"Content-Type", "application/x-www-form-urlencoded", "Connection", "close").Location(s.t)
	if _, ok := navigate(callback.RequestURI(), cookieHeader(b.CookiesFor(callback)), 303); !ok {
		return nil
	}
	x := &soakSession{user: user, sid: s.endpoint.sidOf(callback.Query().Get("code"))}
	x.cookies = cookieHeader(b.Cookies())
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recoveryLimit)
	defer cancel()
	for ; ctx.Err() == nil; sleep(ctx, 100*time.Millisecond) {
		resp := s.exchange(ctx, at, x.cookies, "GET", "/bff/session")
		if resp.err != nil || resp.status == 503 {
			at = s.anyReplica(rand.IntN)
			continue
		}
		var body sessionBody
		json.Unmarshal([]byte(resp.text), &body)
		if !body.Authenticated || body.User.Sub != user {
			s.fail("/bff/session after the sign-in of %s: got %v %s", user, resp, resp.text)
			return x
		}
		x.id = body.Session.ID
		s.mu.Lock()
		defer s.mu.Unlock()
		s.sessions = append(s.sessions, x)
		return x
	}
	s.fail("/bff/session after the sign-in of %s: no response within %v", user, recoveryLimit)
	return x
}

func (s *soak) anyReplica(intn func(int) int) *replica { return s.replicas[intn(len(s.replicas))] }

// step does one thing that a user may do.
func (s *soak) step(ctx context.Context, random *rand.Rand, b *soakBrowser) {
	at := s.anyReplica(random.IntN)
	x := b.current.Load()
	if x == nil {
		if b.signing.TryLock() {
			defer b.signing.Unlock()
			if b.current.Load() == nil {
				b.current.Store(s.login(ctx, at, b.user))
			}
		}
		return
	}
	switch n := random.IntN(100); {
	case n < 50:
		s.request(ctx, at, x, "GET", "/api/x")
	case n < 60:
		var calls sync.WaitGroup
		for i := range 2 * soakReplicas {
			calls.Go(func() { s.request(ctx, s.replicas[i%soakReplicas], x, "GET", "/api/x") })
		}
		calls.Wait()
	case n < 70:
		s.request(ctx, at, x, "POST", "/bff/session/refresh")
	case n < 75:
		s.request(ctx, at, x, "GET", "/bff/session")
	case n < 85: // the client disconnects
		ctx, disconnect := context.WithTimeout(ctx, time.Duration(random.IntN(60_000))*time.Microsecond)
		defer disconnect()
		if random.IntN(2) == 0 {
			s.request(ctx, at, x, "GET", "/api/x")
		} else {
			s.request(ctx, at, x, "POST", "/bff/session/refresh")
		}
	case n < 95:
		if previous := b.previous.Load(); previous != nil {
			s.request(ctx, at, previous, "GET", "/api/x")
		}
	default:
		s.logout(ctx, at, x)
		b.previous.Store(x)
		b.current.CompareAndSwap(x, nil)
	}
	x.mu.Lock()
	refused := !x.refused.IsZero()
	x.mu.Unlock()
	if refused {
		b.previous.Store(x)
		b.current.CompareAndSwap(x, nil)
	}
}

// request makes one request of the app's browser client, and compares the
// response with what is known of the session: 200 until the session ends, and
// never after that. The status is 401 if the response is "not authenticated",
// and 0 if there is none.
func (s *soak) request(ctx context.Context, at *replica, x *soakSession, method, path string) (status int) {
	resp := s.exchange(ctx, at, x.cookies, method, path)
	status = resp.status
	if resp.err != nil {
		return 0
	}
	if status == 429 && path == "/bff/session/refresh" { // too many at once
		return status
	}
	switch {
	case status == 200 && path == "/api/x":
		var got tokenClaims
		json.Unmarshal([]byte(resp.text), &got)
		if got.Sub != x.user {
			s.fail("sub of the token at the API: got %q from %s", got.Sub, x)
		}
		if got.SID != x.sid {
			s.fail("sid of the token at the API: got %q from %s", got.SID, x)
		}
	case status == 200:
		var got sessionBody
		json.Unmarshal([]byte(resp.text), &got)
		if !got.Authenticated {
			status = 401
			break
		}
		if got.User.Sub != x.user {
			s.fail("%s: got sub %q for %s", path, got.User.Sub, x)
		}
		if got.Session.ID != x.id {
			s.fail("%s: got session %q for %s", path, got.Session.ID, x)
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	since := func(event time.Time) time.Duration {
		if event.IsZero() {
			return 0
		}
		return resp.began.Sub(event)
	}
	switch status {
	case 200:
		logout, refusal := since(x.ended), since(x.refused)
		s.mu.Lock()
		s.latest = max(s.latest, logout)
		s.mu.Unlock()
		if logout > propagationLimit {
			s.fail("%s at %s: got 200 %v after the logout of %s", path, at.addr, logout, x)
		}
		if refusal > propagationLimit {
			s.fail("%s at %s: got 200 %v after the first 401 of %s", path, at.addr, refusal, x)
		}
	case 401:
		if x.refused.IsZero() {
			x.refused = time.Now()
			x.note("%s at %s: 401 %s", path, at.addr, bytes.TrimSpace([]byte(resp.text)))
		}
	case 503:
		x.note("%s at %s: 503", path, at.addr)
	default:
		s.fail("%s at %s: got %v %s for %s", path, at.addr, resp, resp.text, x)
	}
	return status
}

// logout ends a session, and calls every replica until it refuses the session.
func (s *soak) logout(ctx context.Context, at *replica, x *soakSession) {
	x.mu.Lock()
	x.leaving = true
	x.note("logout at %s", at.addr)
	x.mu.Unlock()
	resp := s.exchange(ctx, at, x.cookies, "POST", "/bff/logout", "Accept", "text/html")
	switch {
	case resp.err != nil, resp.status == 503: // the session may have ended or not
		return
	case resp.status != 303:
		s.fail("logout: got %v %s for %s, want 303", resp, resp.text, x)
		return
	}
	ended := time.Now()
	x.mu.Lock()
	x.ended = ended
	x.note("response to the logout")
	x.mu.Unlock()
	for _, at := range s.replicas {
		for ctx.Err() == nil && time.Since(ended) < 2*propagationLimit {
			if s.request(ctx, at, x, "GET", "/api/x") != 200 {
				break
			}
		}
	}
}

// injectFaults injects one fault after the other until ctx ends.
func (s *soak) injectFaults(
	ctx context.Context, random *rand.Rand, redis *redistest.Server, proxies []*redistest.Proxy,
) {
	// upTo returns a random duration between a quarter of d and d.
	upTo := func(d time.Duration) time.Duration { return d/4 + time.Duration(random.Int64N(int64(d*3/4))) }
	atProvider := func(fault tokenFault, share float64, d time.Duration) func() {
		return func() { s.endpoint.inject(ctx, fault, share, upTo(d)) }
	}
	anyProxy := func() *redistest.Proxy { return proxies[random.IntN(len(proxies))] }
	atProxy := func(fault func(*redistest.Proxy)) func() {
		return func() {
			p := anyProxy()
			fault(p)
			sleep(ctx, upTo(time.Second))
			p.Heal()
		}
	}
	// duringSlowRefreshes runs fault while the provider is slow. It waits in
	// fault until the provider has responded.
	duringSlowRefreshes := func(fault func(responded <-chan struct{})) func() {
		return func() {
			responded := make(chan struct{})
			go func() { // ends with the provider's fault
				s.endpoint.inject(ctx, faultSlow, 0.7, 700*time.Millisecond)
				close(responded)
			}()
			sleep(ctx, upTo(600*time.Millisecond))
			fault(responded)
			<-responded
		}
	}
	restartOne := func() { s.restart(ctx, s.anyReplica(random.IntN), upTo(400*time.Millisecond)) }
	faults := []struct {
		name   string
		inject func()
	}{
		{"provider: 500", atProvider(fault500, 0.7, time.Second)},
		{"provider: 429", atProvider(fault429, 0.7, time.Second)},
		{"provider: HTML", atProvider(faultHTML, 0.7, time.Second)},
		{"provider: slow", atProvider(faultSlow, 0.7, 2*time.Second)},
		{"provider: request lost", atProvider(faultRequestLost, 0.7, time.Second)},
		{"provider: response lost", atProvider(faultResponseLost, 0.1, 500*time.Millisecond)},
		{"provider: response truncated", atProvider(faultTruncated, 0.1, 500*time.Millisecond)},
		{"Redis: frozen", func() {
			redis.Freeze()
			sleep(ctx, upTo(time.Second))
			redis.Thaw()
		}},
		{"Redis: connections reset", func() {
			for range 5 {
				redis.Do("CLIENT", "KILL", "TYPE", "normal")
				redis.Do("CLIENT", "KILL", "TYPE", "pubsub")
				sleep(ctx, upTo(100*time.Millisecond))
			}
		}},
		{"replica: cut off from Redis", atProxy((*redistest.Proxy).Cut)},
		{"replica: connections to Redis hang", atProxy((*redistest.Proxy).Hang)},
		{"replica: no responses from Redis", atProxy((*redistest.Proxy).DropResponses)},
		{"replica: killed", restartOne},
		{"replica: killed during a refresh", duringSlowRefreshes(func(<-chan struct{}) { restartOne() })},
		{"replica: cut off from Redis during a refresh", duringSlowRefreshes(func(responded <-chan struct{}) {
			p := anyProxy()
			p.Cut()
			<-responded
			sleep(ctx, upTo(400*time.Millisecond))
			p.Heal()
		})},
	}
	for ctx.Err() == nil {
		for _, i := range random.Perm(len(faults)) {
			if ctx.Err() != nil {
				return
			}
			s.count("fault: "+faults[i].name, 1)
			faults[i].inject()
			s.checkKeys(redis)
			sleep(ctx, upTo(400*time.Millisecond))
		}
	}
}

// restart kills a replica and starts it again after a pause.
func (s *soak) restart(ctx context.Context, r *replica, pause time.Duration) {
	s.mu.Lock()
	s.kills = append(s.kills, time.Now())
	s.mu.Unlock()
	r.kill()
	s.client.CloseIdleConnections()
	sleep(ctx, pause)
	r.start(s.t)
	ready(s.t, r.admin)
	r.killed.Store(false)
}
