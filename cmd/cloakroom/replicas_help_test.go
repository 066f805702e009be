package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
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

	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/redistest"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// brokerName as the name of the program makes the test binary the broker. So
// the broker has the race detector if the tests have it.
const brokerName = "cloakroom"

// brokerCommand returns a command that runs the broker, without the test's
// environment.
func brokerCommand(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	cmd.Args[0] = brokerName
	cmd.Env = []string{"GORACE=atexit_sleep_ms=50"}
	return cmd
}

func TestMain(m *testing.M) {
	if os.Args[0] == brokerName {
		limitDescriptors()
		main()
	}
	if os.Getenv("CLOAKROOM_TEST_PROVIDER") != "" {
		serveOutageProvider()
	}
	if os.Getenv("CLOAKROOM_TEST_DEV") != "" {
		serveTestApp()
	}
	testenv.Main(m)
}

// topologies are the ways to run Redis.
var topologies = []struct {
	name  string
	start func(t *testing.T) redisStore
}{
	{"standalone", func(t *testing.T) redisStore {
		s := redistest.Start(t)
		kill := func(string) func() {
			s.Kill()
			return s.Start
		}
		return redisStore{s.URL(), kill, func() []*redistest.Server { return []*redistest.Server{s} }}
	}},
	{"Sentinel", func(t *testing.T) redisStore {
		s := redistest.StartSentinel(t)
		kill := func(string) func() {
			master := s.Master()
			master.Kill()
			return func() { s.WaitForOtherMaster(master) }
		}
		return redisStore{s.URL(), kill, func() []*redistest.Server { return []*redistest.Server{s.Master()} }}
	}},
	{"Cluster", func(t *testing.T) redisStore {
		c := redistest.StartCluster(t)
		kill := func(key string) func() {
			master := c.MasterOf(key)
			master.Kill()
			return func() { c.WaitForOtherMaster(key, master) }
		}
		return redisStore{c.URL(), kill, c.Masters}
	}},
}

// redisStore is a running Redis of one topology.
type redisStore struct {
	url string
	// kill kills the server that holds a key. heal ends the outage: it restarts
	// the server, or waits until another one has become the master.
	kill    func(key string) (heal func())
	masters func() []*redistest.Server
}

// fleet is several replicas of the broker behind one origin, with a provider
// and upstreams of their own.
type fleet struct {
	t        *testing.T
	provider *brokertest.Provider
	url      string // the origin: a load balancer that uses each replica in turn
	scheme   string // of the replicas; empty: http
	host     string
	replicas []*replica
	client   *http.Client

	balanced atomic.Pointer[[]string] // host:port of the replicas behind url; nil: none yet
}

// startFleet starts a replica for each store URL, and waits until all are ready
// and use their caches. env overrides their settings.
func startFleet(t *testing.T, env map[string]string, storeURLs ...string) *fleet {
	t.Helper()
	f := newFleet(t, nil)
	f.startReplicas(env, storeURLs...)
	for _, r := range f.replicas {
		waitForCache(t, r.admin)
	}
	return f
}

// newFleet returns a fleet without replicas. edit may change the provider; nil
// leaves it as it is.
func newFleet(t *testing.T, edit func(*devidp.Config)) *fleet {
	t.Helper()
	f := &fleet{t: t, client: &http.Client{
		Transport:     &http.Transport{MaxIdleConnsPerHost: 1000},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	var turn atomic.Uint64
	balancer := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) {
		p.Out.URL.Scheme = "http"
		if addrs := f.balanced.Load(); addrs != nil { // otherwise the response is 502
			p.Out.URL.Host = (*addrs)[turn.Add(1)%uint64(len(*addrs))]
		}
	}})
	t.Cleanup(balancer.Close)
	t.Cleanup(f.client.CloseIdleConnections)
	f.host = strings.Replace(balancer.Listener.Addr().String(), "127.0.0.1", "localhost", 1)
	f.url = "http://" + f.host
	f.provider = brokertest.StartProvider(t, f.url, edit)
	return f
}

// startReplicas starts a replica for each store URL, and waits until all are
// ready. env overrides their settings.
func (f *fleet) startReplicas(env map[string]string, storeURLs ...string) {
	t := f.t
	t.Helper()
	echo := brokertest.NewEcho(t)
	slow := brokertest.NewEcho(t)
	slow.Handler = func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/slow/") {
			time.Sleep(200 * time.Millisecond)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, firstEvent)
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
	route := func(path, upstream string) string {
		return fmt.Sprintf("{path: %s, upstream: %s, token: user}", path, upstream)
	}
	routes := []string{route("/api/", echo.URL), route("/slow/", slow.URL), route("/stream/", slow.URL)}
	for _, storeURL := range storeURLs {
		settings := map[string]string{
			"SERVER_LISTEN": "127.0.0.1:0", "SERVER_ADMIN_LISTEN": "127.0.0.1:0",
			"SERVER_PUBLIC_URL": f.url, "SERVER_SHUTDOWN_GRACE": "10s",
			"OIDC_ISSUER": f.provider.Issuer, "OIDC_CLIENT_ID": f.provider.Client.ID,
			"OIDC_CLIENT_SECRET": f.provider.Client.Secret,
			"STORE_URL":          storeURL, "SESSION_KEYS": goodKey,
			"ROUTES": "[" + strings.Join(routes, ", ") + "]",
			// All users have one address.
			"SERVER_LIMITS_LOGINS_RATE": "1000/s", "SERVER_LIMITS_LOGINS_BURST": "100000",
		}
		maps.Copy(settings, env)
		f.replicas = append(f.replicas, startReplica(t, f.provider, settings))
	}
	t.Cleanup(func() { // runs before the clean-ups of the replicas, which wait one by one
		for _, r := range f.replicas {
			r.terminate()
		}
	})
	for _, r := range f.replicas {
		r.waitReady(t)
	}
	f.balance()
}

// balance makes the load balancer use the replicas, which are ready.
func (f *fleet) balance() {
	var addrs []string
	for _, r := range f.replicas {
		addrs = append(addrs, r.addr)
	}
	f.balanced.Store(&addrs)
}

// firstEvent is what the upstream of /stream/ sends at once.
const firstEvent = "data: hello\n\n"

// replica is a process of the broker.
type replica struct {
	program     string // empty: the broker of this test
	args, env   []string
	addr, admin string // known when it is ready
	name        string // set by waitList
	cmd         *exec.Cmd
	stderr      *lockedBuffer
	ended       chan struct{} // closed when the process has ended; then err is set
	err         error
	killed      atomic.Bool  // by kill, and not ready again
	kills       atomic.Int32 // calls of kill

	terminated sync.Once
}

// startReplica starts a process with settings, which are environment variables
// without their prefix, and those of Go and OpenTelemetry. When the
// test ends, the process must exit with status 0 and must have logged neither a
// panic nor a secret.
func startReplica(
	t *testing.T, provider *brokertest.Provider, settings map[string]string, args ...string,
) *replica {
	t.Helper()
	r := &replica{args: append([]string{"serve"}, args...), stderr: new(lockedBuffer)}
	r.program = settings["PROGRAM"]
	for name, value := range settings {
		if name == "PROGRAM" {
			continue
		}
		if name != "GOMEMLIMIT" && name != "GOGC" && name != "SSL_CERT_FILE" && !strings.HasPrefix(name, "OTEL_") {
			name = "CLOAKROOM_" + name
		}
		r.env = append(r.env, name+"="+value)
	}
	r.start(t)
	t.Cleanup(func() {
		r.stop(t)
		log := r.stderr.String()
		for _, word := range []string{"DATA RACE", "panic", "goroutine ", goodKey} {
			if i := strings.Index(log, word); i >= 0 {
				t.Errorf("replica %s logged %.9q:\n%.4000s", r.addr, word, log[i:])
			}
		}
		provider.CheckLeaks(t, "the log of replica "+r.addr, log)
		if t.Failed() {
			log = requestLine.ReplaceAllString(log, "")
			t.Logf("the end of the log of replica %s, without requests:\n%s", r.addr, log[max(0, len(log)-1<<18):])
		}
	})
	return r
}

// start starts the process, for the first time or after kill.
func (r *replica) start(t *testing.T) {
	t.Helper()
	cmd, ended := brokerCommand(t, r.args...), make(chan struct{})
	if r.program != "" {
		cmd.Path = r.program
	}
	cmd.Env, cmd.Stderr = append(cmd.Env, r.env...), r.stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.cmd, r.ended = cmd, ended
	go func() { // ends with the process, which the clean-up stops
		r.err = cmd.Wait()
		close(ended)
	}()
}

var requestLine = regexp.MustCompile(`(?m)^.*"msg":"request".*\n`)

// waitReady waits until the replica accepts requests.
func (r *replica) waitReady(t *testing.T) {
	t.Helper()
	listening := regexp.MustCompile(`"msg":"listening","listen":"([^"]+)","admin_listen":"([^"]+)"`)
	eventually(t, 20*time.Second, "the replica listens", func() bool {
		return listening.MatchString(r.stderr.String())
	})
	m := listening.FindStringSubmatch(r.stderr.String())
	r.addr, r.admin = m[1], m[2]
	ready(t, r.admin)
}

// kill ends the process as a crash would.
func (r *replica) kill() {
	r.killed.Store(true)
	r.kills.Add(1)
	r.cmd.Process.Kill()
	<-r.ended
}

// terminate begins a graceful shutdown. Later calls do nothing: a second signal
// would end the process at once.
func (r *replica) terminate() {
	r.terminated.Do(func() { r.cmd.Process.Signal(syscall.SIGTERM) })
}

// stop shuts the process down and waits until it has ended.
func (r *replica) stop(t *testing.T) {
	t.Helper()
	r.terminate()
	select {
	case <-r.ended:
	case <-time.After(30 * time.Second):
		r.kill()
		t.Errorf("replica %s did not stop within 30 s of SIGTERM", r.addr)
	}
	if r.err != nil && !r.killed.Load() {
		t.Errorf("replica %s ended with %v, want status 0", r.addr, r.err)
	}
}

// userSession is a session as its browser knows it.
type userSession struct {
	cookies string // the Cookie header
	id      string
	expiry  time.Time // of the access token
}

// recordKey returns the key of the session's record in Redis.
func (u *userSession) recordKey() string { return "cloakroom:session:" + u.id }

// signIn signs a user in with a new browser, while the provider has hooks.
func (f *fleet) signIn(t *testing.T, user string, hooks devidp.Hooks) *userSession {
	t.Helper()
	f.provider.SetHooks(hooks)
	defer f.provider.Behave()
	b := bfftest.NewBrowser(t, f.url)
	if got := b.SignIn(user, ""); got.StatusCode != 303 {
		t.Fatalf("callback: got %d, want 303\n%s", got.StatusCode, got.Text)
	}
	var body sessionBody
	b.Fetch("GET", "/bff/session").Decode(t, &body)
	return &userSession{cookieHeader(b.Cookies()), body.Session.ID, body.Session.AccessTokenExpiresAt}
}

// sessionBody is the response of /bff/session.
type sessionBody struct {
	Authenticated bool
	User          struct{ Sub string }
	Session       struct {
		ID                   string
		AccessTokenExpiresAt time.Time `json:"access_token_expires_at"`
	}
}

func cookieHeader(cookies []*http.Cookie) string {
	var pairs []string
	for _, c := range cookies {
		pairs = append(pairs, c.Name+"="+c.Value)
	}
	return strings.Join(pairs, "; ")
}

// signInExpired signs alice in and waits until her access token has expired.
func (f *fleet) signInExpired(t *testing.T) *userSession {
	t.Helper()
	u := f.signIn(t, "alice", devidp.Hooks{
		EditTokenResponse: func(_ string, _ int, body map[string]any) { body["expires_in"] = 1 },
	})
	time.Sleep(time.Until(u.expiry))
	return u
}

// interceptRefresh makes handle process the refresh requests at the provider.
// n counts them from 1. next is the provider.
func (f *fleet) interceptRefresh(
	handle func(n int, w http.ResponseWriter, r *http.Request, next http.Handler),
) {
	var n atomic.Int64
	f.provider.SetHooks(devidp.Hooks{
		Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if strings.HasSuffix(r.URL.Path, "/token") && r.PostFormValue("grant_type") == "refresh_token" {
				handle(int(n.Add(1)), w, r, next)
				return
			}
			next.ServeHTTP(w, r)
		},
	})
	f.t.Cleanup(f.provider.Behave)
}

// delayRefresh delays every refresh request.
func (f *fleet) delayRefresh(d time.Duration) {
	f.interceptRefresh(func(_ int, w http.ResponseWriter, r *http.Request, next http.Handler) {
		time.Sleep(d)
		next.ServeHTTP(w, r)
	})
}

// holdRefresh makes the provider process the next refresh, so that the old
// refresh token is spent, but withhold the response until release is called.
// processed is closed when the request has been processed. Later refreshes are
// not delayed.
func (f *fleet) holdRefresh() (processed <-chan struct{}, release func()) {
	held, released := make(chan struct{}), make(chan struct{})
	release = sync.OnceFunc(func() { close(released) })
	f.t.Cleanup(release)
	f.interceptRefresh(func(n int, w http.ResponseWriter, r *http.Request, next http.Handler) {
		if n > 1 {
			next.ServeHTTP(w, r)
			return
		}
		resp := httptest.NewRecorder()
		next.ServeHTTP(resp, r)
		close(held)
		<-released
		maps.Copy(w.Header(), resp.Header())
		w.WriteHeader(resp.Code)
		w.Write(resp.Body.Bytes())
	})
	return held, release
}

// response is the result of one request to a replica.
type response struct {
	err    error // of the connection; then only began and took are set
	status int
	code   string // of a problem
	text   string
	header http.Header
	token  string // digest of the access token that reached the upstream
	began  time.Time
	took   time.Duration
}

func (r response) String() string {
	if r.err != nil {
		return r.err.Error()
	}
	return strings.TrimSpace(strconv.Itoa(r.status) + " " + r.code)
}

// call makes a request at one replica as the app's browser client does.
func (f *fleet) call(at *replica, u *userSession, method, path string) response {
	return f.send(f.t.Context(), at, u.cookies, method, path)
}

var bearerDigest = regexp.MustCompile(`Bearer ([0-9a-f]+)`)

// send makes a request at one replica with a Cookie header. header are names
// and values that replace what the app's browser client sends; an empty value
// removes the header. The client disconnects when ctx ends.
func (f *fleet) send(
	ctx context.Context, at *replica, cookies, method, path string, header ...string,
) response {
	result := response{began: time.Now()}
	url := cmp.Or(f.scheme, "http") + "://" + at.addr + path
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		result.err = err
		return result
	}
	req.Host = f.host
	for h := range slices.Chunk(append([]string{
		"Cookie", cookies, "Accept", "application/json", "X-CSRF", "1",
		"Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty", "Sec-Fetch-Site", "same-origin",
	}, header...), 2) {
		if req.Header.Set(h[0], h[1]); h[1] == "" {
			req.Header.Del(h[0])
		}
	}
	resp, err := f.client.Do(req)
	if err == nil {
		var text []byte
		text, err = io.ReadAll(resp.Body)
		resp.Body.Close()
		result.status, result.text, result.header = resp.StatusCode, string(text), resp.Header
		result.code = (&bfftest.Response{Response: resp, Text: result.text}).Code()
		if m := bearerDigest.FindStringSubmatch(result.text); m != nil {
			result.token = m[1]
		}
	}
	result.err, result.took = err, time.Since(result.began)
	return result
}

// startCalls starts n calls at once, at the replicas in turn. wait returns the
// responses.
func (f *fleet) startCalls(u *userSession, n int, at ...*replica) (wait func() []response) {
	responses := make([]response, n)
	var running sync.WaitGroup
	for i := range n {
		running.Go(func() { responses[i] = f.call(at[i%len(at)], u, "GET", "/api/x") })
	}
	return func() []response {
		running.Wait()
		return responses
	}
}

// repeat runs n goroutines that make one call after the other, with a pause
// after each, until stop is called or the test ends. stop returns all
// responses.
func (f *fleet) repeat(
	n int, pause func() time.Duration, call func(i int) response,
) (stop func() []response) {
	stopped := make(chan struct{})
	responses := make([][]response, n)
	var running sync.WaitGroup
	for i := range n {
		running.Go(func() {
			for {
				responses[i] = append(responses[i], call(i))
				select {
				case <-stopped:
					return
				case <-f.t.Context().Done():
					return
				case <-time.After(pause()):
				}
			}
		})
	}
	f.t.Cleanup(running.Wait) // also if the test fails before stop
	return func() []response {
		close(stopped)
		running.Wait()
		return slices.Concat(responses...)
	}
}

// wantRefreshes checks the number of refreshes at the provider, and that no
// refresh token was used twice.
func (f *fleet) wantRefreshes(t *testing.T, want int) {
	t.Helper()
	if got := f.provider.Refreshes(); got != want {
		t.Errorf("refreshes at the provider: got %d, want %d", got, want)
	}
	f.wantNoReuse(t)
}

// wantNoReuse checks that no refresh token was used after its rotation.
func (f *fleet) wantNoReuse(t *testing.T) {
	t.Helper()
	if got := f.provider.Reuses(); got != 0 {
		t.Errorf("reuses of a refresh token: got %d, want 0", got)
	}
}

// wantActive checks that the session can be used and refreshed at every replica
// that was not killed, one after the other.
func (f *fleet) wantActive(t *testing.T, u *userSession) {
	t.Helper()
	for i, at := range f.replicas {
		if at.killed.Load() {
			continue
		}
		for _, call := range [][2]string{{"GET", "/api/x"}, {"POST", "/bff/session/refresh"}, {"GET", "/api/x"}} {
			if got := f.call(at, u, call[0], call[1]); got.status != 200 {
				t.Errorf("%s %s at replica %d: got %v, want 200", call[0], call[1], i, got)
			}
		}
	}
}

// wantEnded checks that no replica accepts the session.
func (f *fleet) wantEnded(t *testing.T, u *userSession) {
	t.Helper()
	for i, at := range f.replicas {
		if got := f.call(at, u, "GET", "/api/x").String(); got != "401 not_signed_in" {
			t.Errorf("call at replica %d: got %s, want 401 not_signed_in", i, got)
		}
		if f.authenticated(at, u) {
			t.Errorf("/bff/session at replica %d: got authenticated true, want false", i)
		}
	}
}

// waitEnded waits until no replica accepts a session that has ended at one of
// them. The others have it in their caches until they learn of that, which on
// an idle machine takes a few milliseconds.
func (f *fleet) waitEnded(t *testing.T, u *userSession) {
	t.Helper()
	for i, at := range f.replicas {
		eventually(t, 5*time.Second, fmt.Sprintf("replica %d refuses the session", i), func() bool {
			return f.call(at, u, "GET", "/api/x").status == 401
		})
	}
	f.wantEnded(t, u)
}

// authenticated reports whether a replica finds the session.
func (f *fleet) authenticated(at *replica, u *userSession) bool {
	var body sessionBody
	resp := f.call(at, u, "GET", "/bff/session")
	if resp.status != 200 {
		f.t.Errorf("/bff/session: got %v, want 200", resp)
	}
	if err := json.Unmarshal([]byte(resp.text), &body); err != nil {
		f.t.Errorf("/bff/session: %v", err)
	}
	return body.Authenticated
}

// wantStatuses checks that every response has one of the statuses, and returns
// the number of responses by status.
func wantStatuses(t *testing.T, responses []response, statuses ...int) map[int]int {
	t.Helper()
	count := make(map[int]int)
	wrong := make(map[string]int)
	for _, r := range responses {
		count[r.status]++
		if !slices.Contains(statuses, r.status) {
			wrong[r.String()]++
		}
	}
	if len(wrong) > 0 {
		t.Errorf("%d calls: got %v, want only %v", len(responses), wrong, statuses)
	}
	return count
}

func slowest(responses []response) time.Duration {
	return slices.MaxFunc(responses, func(a, b response) int { return cmp.Compare(a.took, b.took) }).took
}

// await waits until c is closed.
func await(t *testing.T, c <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(20 * time.Second):
		t.Fatalf("not within 20 s: %s", what)
	}
}

// eventually waits until condition returns true.
func eventually(t *testing.T, limit time.Duration, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}
