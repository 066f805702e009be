package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
	"github.com/cloakroom-bff/cloakroom/tokenstore/storetest"
)

const (
	soakReplicas = 3
	soakUsers    = 30
	soakWorkers  = 12
	// soakReach is for how long after an end was answered a replica may still
	// accept calls of the session. Undisturbed it is a tenth of a second. A replica
	// whose connection to Redis was cut or frozen just then notices within half a
	// second. The rest is for a busy machine; a cache that is not told of the end
	// is wrong for 5 seconds.
	soakReach = 3 * time.Second
	// soakPatience bounds how long a session may be without an answer once all faults are over: a dead replica's lease and the pause after failures.
	soakPatience = 40 * time.Second
)

// TestSoakInvariants has users sign in, call, refresh, leave and sign out at random on three replicas while provider, Redis and the replicas
// themselves fail one after the other. CLOAKROOM_SOAK is how long, CLOAKROOM_SEED repeats what was drawn in a run before.
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

	redis := storetest.StartRedis(t)
	var proxies []*storetest.Proxy
	var urls []string
	for range soakReplicas {
		p := storetest.StartProxy(t, redis.Addr())
		proxies, urls = append(proxies, p), append(urls, "redis://"+p.Addr()+"/0")
	}
	s := newSoak(t, 2*time.Second, urls...)
	s.provider.strict = true
	draw := rand.New(rand.NewPCG(seed, 0))
	var browsers []*soakSlot
	for i := range soakUsers {
		for range 1 + draw.IntN(3) {
			browsers = append(browsers, &soakSlot{user: soakUser(i)})
		}
	}

	ctx, stop := context.WithTimeout(t.Context(), duration)
	defer stop()
	var working sync.WaitGroup
	for n := range soakWorkers {
		draw := rand.New(rand.NewPCG(seed, uint64(n)+1))
		working.Go(func() {
			for ctx.Err() == nil {
				s.step(ctx, draw, browsers[min(draw.IntN(len(browsers)), draw.IntN(len(browsers)))]) // some are busier than others
				soakPause(ctx, time.Duration(draw.IntN(20))*time.Millisecond)
			}
		})
	}
	s.faults(ctx, draw, redis, proxies)
	stop()
	working.Wait()

	s.settle()
	s.judge()
	s.checkKeys(redis)
	s.end()
	s.report()
}

// TestSoakFailover kills a master while ten thousand sessions are in use whose tokens are due: nobody is signed out by it, and nobody is taken for
// somebody else. It takes minutes, so it runs only where CLOAKROOM_SOAK is set.
func TestSoakFailover(t *testing.T) {
	if soakDuration(t) == 0 {
		t.Skip("CLOAKROOM_SOAK is not set")
	}
	t.Run("Sentinel", func(t *testing.T) {
		c := storetest.StartSentinel(t)
		soakFailover(t, c.URL(), func() {
			old := c.Master()
			old.Kill()
			c.WaitForOtherMaster(old)
		}, func() []*storetest.Server { return []*storetest.Server{c.Master()} })
	})
	t.Run("Cluster", func(t *testing.T) {
		c := storetest.StartCluster(t)
		soakFailover(t, c.URL(), func() {
			old := c.MasterOf("cloakroom:")
			old.Kill()
			c.WaitForOtherMaster("cloakroom:", old)
		}, c.Masters)
	})
}

func soakFailover(t *testing.T, storeURL string, failOver func(), masters func() []*storetest.Server) {
	const sessions, workers = 10_000, 32
	s := newSoak(t, time.Minute, storeURL, storeURL)
	began := time.Now()
	var next atomic.Int64
	var working sync.WaitGroup
	for range workers {
		working.Go(func() {
			for n := next.Add(1); n <= sessions && !t.Failed(); n = next.Add(1) {
				if s.signIn(t.Context(), s.replicas[n%2], soakUser(int(n%soakUsers))) == nil {
					s.fail("sign-in %d did not succeed", n)
				}
			}
		})
	}
	working.Wait()
	if t.Failed() {
		return
	}
	t.Logf("%d sign-ins in %v", sessions, time.Since(began).Round(time.Millisecond))

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	for range workers {
		working.Go(func() {
			for ctx.Err() == nil {
				n := next.Add(1)
				s.call(ctx, s.replicas[n%2], s.sessions[n/2%sessions])
			}
		})
	}
	soakPause(ctx, 5*time.Second)
	s.mu.Lock()
	calm := s.outage.first.IsZero()
	s.mu.Unlock()
	if !calm {
		s.fail("503 before anything was wrong")
	}
	killed := time.Now()
	failOver()
	t.Logf("another master after %v", time.Since(killed).Round(time.Millisecond))
	soakPause(ctx, 10*time.Second)
	stop()
	working.Wait()
	s.settle()

	for _, x := range s.sessions {
		if !x.refused.IsZero() {
			s.fail("signed out: %s", x)
		}
	}
	stats := s.provider.op.Stats()
	for sid, n := range stats.LiveRefreshTokens {
		if n != 1 {
			s.fail("%d refresh tokens of %s are good", n, sid)
		}
	}
	if n := len(stats.LiveRefreshTokens); n != sessions || stats.Reuses != 0 {
		s.fail("%d sessions with a good refresh token and %d reuses, want %d and 0", n, stats.Reuses, sessions)
	}
	for _, master := range masters() {
		s.checkKeys(master)
	}
	s.end()
	s.report()
	if !s.outage.first.IsZero() {
		t.Logf("503 from %v after the kill to %v", s.outage.first.Sub(killed).Round(time.Millisecond), s.outage.last.Sub(killed).Round(time.Millisecond))
	}
}

func soakDuration(t *testing.T) time.Duration {
	text := os.Getenv("CLOAKROOM_SOAK")
	if text == "" {
		return 0
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		t.Fatalf("CLOAKROOM_SOAK: %q is not a duration such as 60s", text)
	}
	return d
}

func soakUser(i int) string { return fmt.Sprintf("user%02d", i) }

func soakPause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// soak is a provider, an API, a Redis, replicas of the broker, and what is known of every session there was.
type soak struct {
	t        *testing.T
	app      string // the app's origin
	provider *soakProvider
	replicas []*soakReplica
	outside  *http.Client // reaches the provider, as browsers do

	mu       sync.Mutex // guards all below
	sessions []*soakSession
	counts   map[string]int // :: what was asked and answered → how often
	wrong    int
	reach    time.Duration // the longest after an answered logout that a replica took a call
	kills    []time.Time
	words    map[string]bool                 // what browsers saw that may be a token
	slowest  time.Duration                   // answer
	outage   struct{ first, last time.Time } // 503
}

// newSoak starts all of it: a replica for each URL of a store. Access tokens live for tokenLife.
func newSoak(t *testing.T, tokenLife time.Duration, storeURLs ...string) *soak {
	s := &soak{t: t, counts: make(map[string]int), words: make(map[string]bool), outside: soakClient("")}
	addrs := make([]string, len(storeURLs))
	for i := range addrs {
		addrs[i] = freeAddr(t)
	}
	_, port, _ := net.SplitHostPort(addrs[0])
	s.app = "http://localhost:" + port
	s.provider = newSoakProvider(s, tokenLife)
	api := soakAPI(t)
	for i, addr := range addrs {
		s.replicas = append(s.replicas, startSoakReplica(t, addr, map[string]string{
			"CLOAKROOM_SERVER_PUBLIC_URL": s.app, "CLOAKROOM_OIDC_ISSUER": s.provider.Issuer, "CLOAKROOM_OIDC_CLIENT_ID": "spa",
			"CLOAKROOM_OIDC_CLIENT_SECRET": s.provider.Client.Secret, "CLOAKROOM_STORE_URL": storeURLs[i], "CLOAKROOM_SESSION_KEYS": goodKey,
			"CLOAKROOM_ROUTES":                    "[{path: /api/, upstream: " + api + ", token: user}]",
			"CLOAKROOM_SERVER_LIMITS_LOGINS_RATE": "1000/s", "CLOAKROOM_SERVER_LIMITS_LOGINS_BURST": "100000", // all users have one address
		}))
	}
	for _, r := range s.replicas {
		r.awaitReady()
	}
	return s
}

// fail says what broke an invariant, the first twenty times.
func (s *soak) fail(format string, args ...any) {
	s.mu.Lock()
	s.wrong++
	n := s.wrong
	s.mu.Unlock()
	if n <= 20 {
		s.t.Errorf(time.Now().Format("15:04:05.000 ")+format, args...)
	}
}

func (s *soak) count(what string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[what] += n
}

// A soakReplica is a process of the broker.
type soakReplica struct {
	t      *testing.T
	addr   string
	admin  string
	env    []string
	client *http.Client // reaches this replica, whatever the URL says
	stderr *lockedBuffer
	cmd    *exec.Cmd

	up    atomic.Bool
	kills atomic.Int32
}

func startSoakReplica(t *testing.T, addr string, env map[string]string) *soakReplica {
	r := &soakReplica{t: t, addr: addr, admin: freeAddr(t), client: soakClient(addr), stderr: new(lockedBuffer)}
	r.env = []string{"CLOAKROOM_SERVER_LISTEN=" + addr, "CLOAKROOM_SERVER_ADMIN_LISTEN=" + r.admin}
	for name, value := range env {
		r.env = append(r.env, name+"="+value)
	}
	r.start()
	t.Cleanup(func() {
		if r.cmd != nil {
			r.cmd.Process.Kill()
			r.cmd.Wait()
		}
	})
	return r
}

func (r *soakReplica) start() {
	r.cmd = brokerCommand(r.t, "serve")
	r.cmd.Env, r.cmd.Stderr = append(r.cmd.Env, r.env...), r.stderr
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
}

func (r *soakReplica) awaitReady() {
	r.t.Helper()
	ready(r.t, r.admin)
	r.up.Store(true)
}

// kill ends the process as a crash would.
func (r *soakReplica) kill() {
	r.up.Store(false)
	r.kills.Add(1)
	r.cmd.Process.Kill()
	r.cmd.Wait()
	r.cmd = nil
	r.client.CloseIdleConnections()
}

// end stops the process as an operator does.
func (r *soakReplica) end() error {
	cmd := r.cmd
	r.cmd = nil
	cmd.Process.Signal(syscall.SIGTERM)
	timeout := time.AfterFunc(40*time.Second, func() { cmd.Process.Kill() })
	defer timeout.Stop()
	return cmd.Wait()
}

// soakClient returns a client that sends what a test tells it to, to addr if that is not empty.
func soakClient(addr string) *http.Client {
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	return &http.Client{
		Timeout:       30 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{MaxIdleConnsPerHost: 64, DialContext: func(ctx context.Context, network, to string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, cmp.Or(addr, to))
		}},
	}
}

// soakToken is what the API says of the access token that it got.
type soakToken struct {
	Sub string `json:"sub"`
	SID string `json:"sid"`
	Exp int64  `json:"exp"`
}

// soakAPI starts an API that says whose token came with a call, and returns its URL.
func soakAPI(t *testing.T) string {
	api := brokertest.NewEcho(t)
	api.Handler = func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(soakClaims(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")))
	}
	return api.URL
}

// soakClaims reads a JWT. What is none has no claims.
func soakClaims(jwt string) (claims soakToken) {
	if parts := strings.Split(jwt, "."); len(parts) == 3 {
		if payload, err := base64.RawURLEncoding.DecodeString(parts[1]); err == nil {
			json.Unmarshal(payload, &claims)
		}
	}
	return claims
}

// soakProvider is a provider that fails on demand and keeps account of every refresh token: rotation with reuse detection and no grace.
type soakProvider struct {
	*brokertest.Provider
	op      *devidp.Provider // answers in its place: it has more users, and tokens that live shorter
	soak    *soak
	fault   atomic.Pointer[soakFault] // nil: none
	faulted atomic.Int64              // token requests that were not answered as they should
	strict  bool                      // one token request at a time, and a look at all tokens after each

	mu      sync.Mutex            // guards all below
	grants  map[string]*soakGrant // :: sid
	codes   map[string]*soakGrant // :: authorization code → what it was redeemed for
	refresh map[string]*soakGrant // :: refresh token → whose it is
}

// soakGrant is what the provider knows of one sign-in.
type soakGrant struct {
	sid      string
	rotated  int       // times its refresh token was replaced
	lost     int       // of these, how often the answer was lost or spoiled on its way
	reused   int       // times a replaced refresh token was used
	last     time.Time // when it was replaced last
	refusals int       // refreshes that were refused
}

// soakFault is what happens to some of the token requests.
type soakFault struct {
	name  string
	share float64
	over  chan struct{}
}

func newSoakProvider(s *soak, tokenLife time.Duration) *soakProvider {
	p := &soakProvider{Provider: brokertest.NewProvider(s.t, s.app), soak: s, grants: make(map[string]*soakGrant), codes: make(map[string]*soakGrant), refresh: make(map[string]*soakGrant)}
	var users []devidp.User
	for i := range soakUsers {
		users = append(users, devidp.User{Sub: soakUser(i), Name: "User " + strconv.Itoa(i), Email: soakUser(i) + "@example.com"})
	}
	var err error
	p.op, err = devidp.New(devidp.Config{Issuer: p.Issuer, Clients: []devidp.Client{p.Client}, Users: users, AccessTokenTTL: tokenLife})
	if err != nil {
		s.t.Fatal(err)
	}
	p.SetHooks(devidp.Hooks{Intercept: p.serve})
	return p
}

func (p *soakProvider) serve(w http.ResponseWriter, r *http.Request, _ http.Handler) {
	if !strings.HasSuffix(r.URL.Path, "/token") {
		p.op.ServeHTTP(w, r)
		return
	}
	var name string
	if f := p.fault.Load(); f != nil && rand.Float64() < f.share {
		name = f.name
		p.faulted.Add(1)
		if name == "slow" {
			<-f.over
		}
	}
	switch name {
	case "500":
		http.Error(w, "oops", http.StatusInternalServerError)
		return
	case "429":
		w.Header().Set("Retry-After", "1")
		http.Error(w, `{"error":"slow_down"}`, http.StatusTooManyRequests)
		return
	case "html":
		io.WriteString(w, "<html>Log in to the Wi-Fi</html>")
		return
	case "silent":
		panic(http.ErrAbortHandler) // the request was not processed; nobody can know
	}
	body, status := p.process(r, name == "lost" || name == "half")
	if p.strict {
		time.Sleep(rand.N(60 * time.Millisecond)) // here a rotated token is lost most easily
	}
	switch name {
	case "lost":
		panic(http.ErrAbortHandler)
	case "half":
		body = body[:len(body)/2]
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(body)
}

// process lets the provider answer a token request, and notes what that means.
func (p *soakProvider) process(r *http.Request, lost bool) (body []byte, status int) {
	var before, after devidp.Stats
	answer := httptest.NewRecorder()
	if p.strict {
		p.mu.Lock()
		before = p.op.Stats()
		p.op.ServeHTTP(answer, r)
		after = p.op.Stats()
	} else {
		p.op.ServeHTTP(answer, r)
		p.mu.Lock()
	}
	defer p.mu.Unlock()
	body, status = answer.Body.Bytes(), answer.Code
	var tokens struct {
		Refresh string `json:"refresh_token"`
		ID      string `json:"id_token"`
	}
	json.Unmarshal(body, &tokens)
	old := r.PostForm.Get("refresh_token")
	g := p.refresh[old]
	switch {
	case status == http.StatusOK && old == "":
		g = &soakGrant{sid: soakClaims(tokens.ID).SID}
		p.grants[g.sid], p.codes[r.PostForm.Get("code")], p.refresh[tokens.Refresh] = g, g, g
	case g == nil:
		p.soak.fail("a refresh with a token that was never issued, or a sign-in that the provider refused: %d", status)
	case status == http.StatusOK:
		g.rotated++
		g.last = time.Now()
		if lost {
			g.lost++
		}
		p.refresh[tokens.Refresh] = g
	default:
		g.refusals++
		g.reused += after.Reuses - before.Reuses
	}
	for sid, n := range after.LiveRefreshTokens {
		if n > 1 {
			p.soak.fail("%d refresh tokens of %s are good at once", n, sid)
		}
	}
	return body, status
}

// sidOf returns the session at the provider for which a code was redeemed.
func (p *soakProvider) sidOf(code string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if g := p.codes[code]; g != nil {
		return g.sid
	}
	return ""
}

// misbehave spoils a share of the token requests for a while.
func (p *soakProvider) misbehave(ctx context.Context, name string, share float64, d time.Duration) {
	f := &soakFault{name, share, make(chan struct{})}
	p.fault.Store(f)
	soakPause(ctx, d)
	p.fault.Store(nil)
	close(f.over)
}

// A soakSlot is a place for one browser of a user. Who signs in in it again does so with a new browser.
type soakSlot struct {
	user    string
	signing sync.Mutex
	current atomic.Pointer[soakSession]
	before  atomic.Pointer[soakSession] // the one that ended last
}

// A soakSession is a session as its browser knows it.
type soakSession struct {
	user    string
	sid     string // at the provider
	id      string // at the broker
	cookies map[string]string

	mu      sync.Mutex // guards all below
	leaving bool       // a logout was sent
	ended   time.Time  // when it was answered
	refused time.Time  // when the first call was refused
	history []string
}

func (x *soakSession) note(format string, args ...any) {
	x.history = append(x.history, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
	if len(x.history) > 12 {
		x.history = x.history[1:]
	}
}

func (x *soakSession) String() string {
	return fmt.Sprintf("session %s of %s (sid %s)\n\t%s", x.id, x.user, x.sid, strings.Join(x.history, "\n\t"))
}

// soakAnswer is an answer of a replica.
type soakAnswer struct {
	began  time.Time
	status int
	header http.Header
	body   []byte
}

// errSoakKilled says that the replica was killed before it answered.
var errSoakKilled = errors.New("the replica was killed")

// send sends a request to a replica with the cookies of a browser, and keeps those of the answer. Only a replica that was killed, or ctx, excuses that there is none.
func (s *soak) send(ctx context.Context, r *soakReplica, method, path string, cookies map[string]string, header ...string) (*soakAnswer, error) {
	kills := r.kills.Load()
	if !r.up.Load() {
		return nil, errSoakKilled
	}
	a, err := soakSend(ctx, r.client, method, s.app+path, "", cookies, header...)
	if err == nil {
		s.look(method, path, a)
		return a, nil
	}
	if r.kills.Load() != kills {
		return nil, errSoakKilled
	}
	if ctx.Err() == nil {
		s.fail("%s %s at %s: no answer: %v", method, path, r.addr, err)
	}
	return nil, err
}

func soakSend(ctx context.Context, client *http.Client, method, target, body string, cookies map[string]string, header ...string) (*soakAnswer, error) {
	req, err := http.NewRequestWithContext(ctx, method, target, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	for name, value := range cookies {
		req.AddCookie(&http.Cookie{Name: name, Value: value})
	}
	a := &soakAnswer{began: time.Now()}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if a.body, err = io.ReadAll(resp.Body); err != nil {
		return nil, err
	}
	a.status, a.header = resp.StatusCode, resp.Header
	return a, nil
}

// keep has a browser keep the cookies of an answer.
func (a *soakAnswer) keep(cookies map[string]string) {
	resp := http.Response{Header: a.header}
	for _, c := range resp.Cookies() {
		cookies[c.Name] = c.Value
		if c.MaxAge < 0 {
			delete(cookies, c.Name)
		}
	}
}

var soakFetch = []string{"Accept", "application/json", "X-CSRF", "1", "Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty", "Sec-Fetch-Site", "same-origin"}
var soakNavigate = []string{"Accept", "text/html", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document", "Sec-Fetch-Site", "none"}

// look counts an answer, and checks what holds for all of them.
func (s *soak) look(method, path string, a *soakAnswer) {
	path, _, _ = strings.Cut(path, "?")
	now := time.Now()
	s.mu.Lock()
	s.counts[fmt.Sprintf("%s %s %d", method, path, a.status)]++
	s.slowest = max(s.slowest, now.Sub(a.began))
	if a.status == http.StatusServiceUnavailable {
		if s.outage.first.IsZero() {
			s.outage.first = now
		}
		s.outage.last = now
	}
	s.mu.Unlock()
	if a.status == http.StatusServiceUnavailable {
		if a.header.Get("Retry-After") == "" {
			s.fail("%s %s: 503 without Retry-After: %s", method, path, a.body)
		}
		if c := strings.Join(a.header["Set-Cookie"], " "); sessionCookieSet.MatchString(c) {
			s.fail("%s %s: 503 touches the session cookie", method, path)
		}
	}
	if a.status/100 != 3 { // a redirect holds what it has to: the ID token as a hint
		s.mu.Lock()
		for _, word := range soakWords.FindAll(a.body, -1) {
			s.words[string(word)] = true
		}
		s.mu.Unlock()
	}
}

// sessionCookieSet matches a Set-Cookie header of the session cookie.
var sessionCookieSet = regexp.MustCompile(`cloakroom-\d+=`)

// soakWords is what may be a token.
var soakWords = regexp.MustCompile(`[\w.+/=-]{40,}`)

var soakForm = regexp.MustCompile(`name="csrf" value="([^"]*)"`)

// signIn signs a user in with a new browser. It returns nil where a fault was in the way.
func (s *soak) signIn(ctx context.Context, r *soakReplica, user string) *soakSession {
	x := &soakSession{user: user, cookies: make(map[string]string)}
	faulted := s.provider.faulted.Load()
	a, err := s.send(ctx, r, "GET", "/bff/login", x.cookies, soakNavigate...)
	if err != nil || !s.signInAnswer("/bff/login", a, 302, faulted) {
		return nil
	}
	a.keep(x.cookies)
	page, cookies := a.header.Get("Location"), make(map[string]string)
	if a, err = soakSend(ctx, s.outside, "GET", page, "", cookies, soakNavigate...); err == nil {
		a.keep(cookies)
		form := url.Values{"user": {user}}
		if m := soakForm.FindSubmatch(a.body); m != nil {
			form.Set("csrf", string(m[1]))
		}
		a, err = soakSend(ctx, s.outside, "POST", page, form.Encode(), cookies, "Content-Type", "application/x-www-form-urlencoded")
	}
	if err != nil || a.status != 303 {
		if ctx.Err() == nil {
			s.fail("sign in at the provider: %v %v", a, err)
		}
		return nil
	}
	back, err := url.Parse(a.header.Get("Location"))
	if err != nil {
		s.fail("sign in at the provider: %v", err)
		return nil
	}
	a, err = s.send(ctx, r, "GET", back.RequestURI(), x.cookies, soakNavigate...)
	if err != nil || !s.signInAnswer("/bff/callback", a, 303, faulted) {
		return nil
	}
	a.keep(x.cookies)
	x.sid = s.provider.sidOf(back.Query().Get("code"))
	s.learn(ctx, r, x)
	return x
}

// signInAnswer says whether a step of a sign-in went well. It may fail with 503 for any fault, with 502 for one of the provider.
func (s *soak) signInAnswer(path string, a *soakAnswer, want int, faulted int64) bool {
	switch {
	case a.status == want:
		return true
	case a.status == 503, a.status == 502 && s.provider.faulted.Load() != faulted:
	default:
		s.fail("GET %s: got %d %s", path, a.status, a.body)
	}
	return false
}

// learn asks who the broker says is signed in, as long as it takes, and counts the session in.
func (s *soak) learn(ctx context.Context, r *soakReplica, x *soakSession) {
	patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), soakPatience)
	defer cancel()
	var known struct {
		Authenticated bool
		User          soakToken
		Session       struct{ ID string }
	}
	for ; ; soakPause(patience, 100*time.Millisecond) {
		if patience.Err() != nil {
			s.fail("who is %s? No answer for %v", x.user, soakPatience)
			return
		}
		a, err := s.send(patience, r, "GET", "/bff/session", x.cookies, soakFetch...)
		if err != nil || a.status == 503 {
			r = s.anyReplica(rand.IntN)
			continue
		}
		if err := json.Unmarshal(a.body, &known); err != nil || !known.Authenticated || known.User.Sub != x.user {
			s.fail("%s has signed in, and the broker says %d %s", x.user, a.status, a.body)
			return
		}
		break
	}
	x.id = known.Session.ID
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions = append(s.sessions, x)
}

func (s *soak) anyReplica(intn func(int) int) *soakReplica { return s.replicas[intn(len(s.replicas))] }

// step does one thing that a user may do.
func (s *soak) step(ctx context.Context, draw *rand.Rand, slot *soakSlot) {
	r := s.anyReplica(draw.IntN)
	x := slot.current.Load()
	if x == nil {
		if slot.signing.TryLock() {
			defer slot.signing.Unlock()
			if slot.current.Load() == nil {
				if x := s.signIn(ctx, r, slot.user); x != nil {
					slot.current.Store(x)
				}
			}
		}
		return
	}
	switch n := draw.IntN(100); {
	case n < 50:
		s.call(ctx, r, x)
	case n < 60:
		var all sync.WaitGroup
		for i := range 2 * soakReplicas {
			all.Go(func() { s.call(ctx, s.replicas[i%soakReplicas], x) })
		}
		all.Wait()
	case n < 70:
		s.refresh(ctx, r, x)
	case n < 75:
		s.show(ctx, r, x)
	case n < 85:
		leaving, leave := context.WithTimeout(ctx, time.Duration(draw.IntN(60_000))*time.Microsecond)
		defer leave()
		if draw.IntN(2) == 0 {
			s.call(leaving, r, x)
		} else {
			s.refresh(leaving, r, x)
		}
	case n < 95:
		if before := slot.before.Load(); before != nil {
			s.call(ctx, r, before)
		}
	default:
		s.logout(ctx, r, x)
		slot.before.Store(x)
		slot.current.CompareAndSwap(x, nil)
	}
	x.mu.Lock()
	over := !x.refused.IsZero()
	x.mu.Unlock()
	if over {
		slot.before.Store(x)
		slot.current.CompareAndSwap(x, nil)
	}
}

// call calls the API.
func (s *soak) call(ctx context.Context, r *soakReplica, x *soakSession) (status int) {
	a, err := s.send(ctx, r, "GET", "/api/x", x.cookies, soakFetch...)
	if err != nil {
		return 0
	}
	if a.status != 200 {
		s.heed(r, x, a, "call")
		return a.status
	}
	var got soakToken
	json.Unmarshal(a.body, &got)
	if got.Sub != x.user || got.SID != x.sid {
		s.fail("the API got the token of %q, %q from %s: %s", got.Sub, got.SID, x, a.body)
	}
	s.heed(r, x, a, "call")
	return 200
}

// refresh asks for new tokens.
func (s *soak) refresh(ctx context.Context, r *soakReplica, x *soakSession) {
	if a, err := s.send(ctx, r, "POST", "/bff/session/refresh", x.cookies, soakFetch...); err == nil && a.status != 429 { // too many at once
		s.heedShown(r, x, a, "refresh")
	}
}

// show asks who is signed in.
func (s *soak) show(ctx context.Context, r *soakReplica, x *soakSession) {
	if a, err := s.send(ctx, r, "GET", "/bff/session", x.cookies, soakFetch...); err == nil {
		s.heedShown(r, x, a, "show")
	}
}

// heedShown is heed for an answer that says who is signed in.
func (s *soak) heedShown(r *soakReplica, x *soakSession, a *soakAnswer, what string) {
	if a.status == 200 {
		var known struct {
			Authenticated bool
			User          soakToken
			Session       struct{ ID string }
		}
		json.Unmarshal(a.body, &known)
		if !known.Authenticated {
			a.status = 401
		} else if known.User.Sub != x.user || known.Session.ID != x.id {
			s.fail("%s says %s to %s", what, a.body, x)
		}
	}
	s.heed(r, x, a, what)
}

// heed compares an answer with what is known of its session: 200 unless it has ended, and never again then.
func (s *soak) heed(r *soakReplica, x *soakSession, a *soakAnswer, what string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	switch a.status {
	case 200:
		if late := a.began.Sub(x.ended); !x.ended.IsZero() && late > 0 {
			s.mu.Lock()
			s.reach = max(s.reach, late)
			s.mu.Unlock()
		}
		if !x.ended.IsZero() && a.began.After(x.ended.Add(soakReach)) {
			s.fail("%s at %s was answered %v after the logout of %s", what, r.addr, a.began.Sub(x.ended), x)
		} else if !x.refused.IsZero() && a.began.After(x.refused.Add(soakReach)) {
			s.fail("%s at %s was answered %v after a refusal of %s", what, r.addr, a.began.Sub(x.refused), x)
		}
	case 401:
		if x.refused.IsZero() {
			x.refused = time.Now()
			x.note("%s at %s: 401 %s", what, r.addr, bytes.TrimSpace(a.body))
		}
	case 503:
		x.note("%s at %s: 503", what, r.addr)
	default:
		s.fail("%s at %s: got %d %s for %s", what, r.addr, a.status, a.body, x)
	}
}

// logout ends a session, and sees to it that every replica knows.
func (s *soak) logout(ctx context.Context, r *soakReplica, x *soakSession) {
	x.mu.Lock()
	x.leaving = true
	x.note("logout at %s", r.addr)
	x.mu.Unlock()
	a, err := s.send(ctx, r, "POST", "/bff/logout", maps.Clone(x.cookies), "X-CSRF", "1", "Sec-Fetch-Site", "same-origin")
	switch {
	case err != nil:
		return
	case a.status == 503:
		return // nothing has ended, or it cannot be known
	case a.status != 303:
		s.fail("logout: got %d %s for %s", a.status, a.body, x)
		return
	}
	ended := time.Now()
	x.mu.Lock()
	x.ended = ended
	x.note("logout answered")
	x.mu.Unlock()
	for _, r := range s.replicas {
		for ctx.Err() == nil && time.Since(ended) < 2*soakReach && s.call(ctx, r, x) == 200 {
		}
	}
}

// faults lets one thing after the other go wrong until ctx ends.
func (s *soak) faults(ctx context.Context, draw *rand.Rand, redis *storetest.Server, proxies []*storetest.Proxy) {
	some := func(d time.Duration) time.Duration { return d/4 + time.Duration(draw.Int64N(int64(d*3/4))) }
	between := func(fault func(*storetest.Proxy)) {
		p := proxies[draw.IntN(len(proxies))]
		fault(p)
		soakPause(ctx, some(time.Second))
		p.Heal()
	}
	slowly := func() <-chan struct{} {
		answered := make(chan struct{})
		go func() { // ends with its fault
			s.provider.misbehave(ctx, "slow", 0.7, 700*time.Millisecond)
			close(answered)
		}()
		return answered
	}
	kinds := []struct {
		name string
		do   func()
	}{
		{"the provider answers 500", func() { s.provider.misbehave(ctx, "500", 0.7, some(time.Second)) }},
		{"the provider answers 429", func() { s.provider.misbehave(ctx, "429", 0.7, some(time.Second)) }},
		{"the provider answers in HTML", func() { s.provider.misbehave(ctx, "html", 0.7, some(time.Second)) }},
		{"the provider hangs", func() { s.provider.misbehave(ctx, "slow", 0.7, some(2*time.Second)) }},
		{"the provider hangs up", func() { s.provider.misbehave(ctx, "silent", 0.7, some(time.Second)) }},
		{"answers of the provider are lost", func() { s.provider.misbehave(ctx, "lost", 0.1, some(500*time.Millisecond)) }},
		{"answers of the provider break off", func() { s.provider.misbehave(ctx, "half", 0.1, some(500*time.Millisecond)) }},
		{"Redis is frozen", func() {
			redis.Freeze()
			soakPause(ctx, some(time.Second))
			redis.Thaw()
		}},
		{"connections to Redis break", func() {
			for range 5 {
				redis.Do("CLIENT", "KILL", "TYPE", "normal")
				redis.Do("CLIENT", "KILL", "TYPE", "pubsub")
				soakPause(ctx, some(100*time.Millisecond))
			}
		}},
		{"a replica is cut off from Redis", func() { between((*storetest.Proxy).Cut) }},
		{"between a replica and Redis nothing passes", func() { between((*storetest.Proxy).Hang) }},
		{"a replica gets no answers from Redis", func() { between((*storetest.Proxy).DropAnswers) }},
		{"a replica is killed", func() { s.kill(ctx, s.anyReplica(draw.IntN), some(400*time.Millisecond)) }},
		{"a replica is killed while the provider works", func() {
			answered := slowly()
			soakPause(ctx, some(600*time.Millisecond))
			s.kill(ctx, s.anyReplica(draw.IntN), some(400*time.Millisecond))
			<-answered
		}},
		{"a replica is cut off from Redis while the provider works", func() {
			answered := slowly()
			soakPause(ctx, some(600*time.Millisecond))
			p := proxies[draw.IntN(len(proxies))]
			p.Cut()
			<-answered
			soakPause(ctx, some(400*time.Millisecond))
			p.Heal()
		}},
	}
	for ctx.Err() == nil {
		for _, i := range draw.Perm(len(kinds)) {
			if ctx.Err() != nil {
				return
			}
			s.count("fault: "+kinds[i].name, 1)
			kinds[i].do()
			s.checkKeys(redis)
			soakPause(ctx, some(400*time.Millisecond))
		}
	}
}

// kill kills a replica and starts it again.
func (s *soak) kill(ctx context.Context, r *soakReplica, pause time.Duration) {
	s.mu.Lock()
	s.kills = append(s.kills, time.Now())
	s.mu.Unlock()
	r.kill()
	soakPause(ctx, pause)
	r.start()
	r.awaitReady()
}

const soakKeys = `
local wrong, keys, cursor = {}, 0, '0'
repeat
	local page = redis.call('SCAN', cursor, 'COUNT', 1000)
	cursor = page[1]
	for _, key in ipairs(page[2]) do
		keys = keys + 1
		if redis.call('PTTL', key) == -1 or string.sub(key, 1, 10) ~= 'cloakroom:' then wrong[#wrong + 1] = key end
	end
until cursor == '0'
return 'keys=' .. keys .. ' wrong=' .. table.concat(wrong, ',')`

// checkKeys says which keys live for ever or are not ours.
func (s *soak) checkKeys(redis *storetest.Server) {
	answer := redis.Do("EVAL", soakKeys, "0")
	if m := regexp.MustCompile(`keys=(\d+) wrong=(.*)`).FindStringSubmatch(answer); m == nil || m[2] != "" {
		s.fail("keys in Redis: %q", answer)
	}
}

// settle waits until every session has an answer at every replica, now that nothing is wrong any more.
func (s *soak) settle() {
	began := time.Now()
	queue := make(chan *soakSession, len(s.sessions))
	for _, x := range s.sessions {
		queue <- x
	}
	close(queue)
	var working sync.WaitGroup
	for range soakWorkers {
		working.Go(func() {
			for x := range queue {
				if s.t.Failed() {
					return
				}
				deadline := time.Now().Add(soakPatience)
				for _, r := range s.replicas {
					status := s.call(s.t.Context(), r, x)
					for status != 200 && status != 401 && time.Now().Before(deadline) {
						soakPause(s.t.Context(), 100*time.Millisecond)
						status = s.call(s.t.Context(), r, x)
					}
					if status != 200 && status != 401 {
						s.fail("nothing is wrong any more, and %s still gets %d from %s", x, status, r.addr)
					}
				}
			}
		})
	}
	working.Wait()
	s.t.Logf("settled after %v", time.Since(began).Round(time.Millisecond))
}

// judge asks of every session that ended why.
func (s *soak) judge() {
	saved := s.savedRefreshes()
	live := s.provider.op.Stats().LiveRefreshTokens
	p := s.provider
	p.mu.Lock()
	defer p.mu.Unlock()
	ids := make(map[string]string) // :: sid → session ID
	for _, x := range s.sessions {
		g := p.grants[x.sid]
		if g == nil {
			s.fail("the provider knows nothing of %s", x)
			continue
		}
		ids[x.sid] = x.id
		cause := s.cause(g, saved[x.id])
		switch {
		case !x.ended.IsZero():
			s.count("ended by logout", 1)
			if x.refused.IsZero() {
				s.fail("signed out, and never refused: %s", x)
			}
			if live[x.sid] > 0 {
				s.fail("signed out, and its refresh token is good: %s", x)
			}
		case x.refused.IsZero() && live[x.sid] != 1:
			s.fail("alive with %d refresh tokens: %s", live[x.sid], x)
		case x.refused.IsZero():
			s.count("alive at the end", 1)
		case x.leaving:
			s.count("ended by a logout without an answer", 1)
		case g.refusals > 0 && cause != "":
			s.count("ended by "+cause, 1)
		default:
			s.fail("ended for no reason (rotated %d, lost %d, saved %d, reused %d, refused %d): %s", g.rotated, g.lost, saved[x.id], g.reused, g.refusals, x)
		}
	}
	reused := 0
	for sid, g := range p.grants {
		reused += g.reused
		if g.reused > 0 && s.cause(g, saved[ids[sid]]) == "" {
			s.fail("session %s: %d reuses of a refresh token for no reason (rotated %d, saved %d, last at %s)", ids[sid], g.reused, g.rotated, saved[ids[sid]], g.last.Format("15:04:05.000"))
		}
	}
	if n := p.op.Stats().Reuses; n != reused {
		s.fail("the provider counts %d reuses, and %d were seen", n, reused)
	}
	s.count("reuses", reused)
}

// cause is why a session may have lost its refresh token; empty: for no reason.
func (s *soak) cause(g *soakGrant, saved int) string {
	if g.lost > 0 {
		return "a lost answer"
	}
	killed := slices.ContainsFunc(s.kills, func(at time.Time) bool {
		return g.last.After(at.Add(-5*time.Second)) && g.last.Before(at.Add(2*time.Second))
	})
	if g.rotated > saved && killed {
		return "a kill in mid-refresh"
	}
	return ""
}

// savedRefreshes returns, by session ID, how many refreshes the replicas say they saved.
func (s *soak) savedRefreshes() map[string]int {
	saved := make(map[string]int)
	for _, r := range s.replicas {
		for line := range strings.Lines(r.stderr.String()) {
			var entry struct{ Msg, Session string }
			if json.Unmarshal([]byte(line), &entry) == nil && entry.Msg == "session refreshed" {
				saved[entry.Session]++
			}
		}
	}
	return saved
}

// end stops the replicas and reads what they have said.
func (s *soak) end() {
	for _, r := range s.replicas {
		if err := r.end(); err != nil {
			s.t.Errorf("replica %s ended with %v", r.addr, err)
		}
		log := r.stderr.String()
		for _, bad := range []string{"DATA RACE", "panic", s.provider.Client.Secret, goodKey} {
			if i := strings.Index(log, bad); i >= 0 {
				s.t.Errorf("replica %s says %.20s:\n%s", r.addr, bad, log[i:min(len(log), i+4000)])
			}
		}
		words := make(map[string]bool)
		for _, word := range soakWords.FindAllString(log, -1) {
			words[word] = true
		}
		s.provider.CheckLeaks(s.t, "the log", strings.Join(slices.Collect(maps.Keys(words)), " "))
	}
	s.provider.CheckLeaks(s.t, "an answer", strings.Join(slices.Collect(maps.Keys(s.words)), " "))
}

func (s *soak) report() {
	for _, what := range slices.Sorted(maps.Keys(s.counts)) {
		s.t.Logf("%7d %s", s.counts[what], what)
	}
	s.t.Logf("%d refreshes; the slowest answer took %v; the last call that was taken after a logout came %v after it; %d invariants broken", s.provider.op.Stats().Tokens["refresh_token"], s.slowest.Round(time.Millisecond), s.reach.Round(time.Millisecond), s.wrong)
}
