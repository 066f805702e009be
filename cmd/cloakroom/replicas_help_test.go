package main

import (
	"context"
	"encoding/json"
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
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
	"github.com/cloakroom-bff/cloakroom/tokenstore/storetest"
)

// brokerName as the name of the program makes the test binary the broker: it is
// one with the race detector if the tests are.
const brokerName = "cloakroom"

// brokerCommand returns the broker as a process of its own, without the test's
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
		main()
	}
	if os.Getenv("CLOAKROOM_TEST_PROVIDER") != "" {
		serveOutageProvider()
	}
	testenv.Main(m)
}

// topology is one of the ways to run Redis.
type topology struct {
	name  string
	start func(t *testing.T) redisStore
}

// redisStore is what runs then. Kill kills the server that a key is written to; heal, which it returns, ends the outage: it starts the server
// again, or waits until another has taken its place.
type redisStore struct {
	url  string
	kill func(key string) (heal func())
}

var topologies = []topology{
	{"standalone", func(t *testing.T) redisStore {
		s := storetest.StartRedis(t)
		return redisStore{s.URL(), func(string) func() {
			s.Kill()
			return s.Start
		}}
	}},
	{"Sentinel", func(t *testing.T) redisStore {
		s := storetest.StartSentinel(t)
		return redisStore{s.URL(), func(string) func() {
			master := s.Master()
			master.Kill()
			return func() { s.WaitForOtherMaster(master) }
		}}
	}},
	{"Cluster", func(t *testing.T) redisStore {
		c := storetest.StartCluster(t)
		return redisStore{c.URL(), func(key string) func() {
			master := c.MasterOf(key)
			master.Kill()
			return func() { c.WaitForOtherMaster(key, master) }
		}}
	}},
}

// fleet is several replicas of the broker behind one host, with a provider and upstreams of their own.
type fleet struct {
	t        *testing.T
	provider *brokertest.Provider
	url      string // what browsers see: a balancer that asks each replica in turn
	host     string
	replicas []*replica
	client   *http.Client
}

// startFleet starts a replica for each store URL, and waits until all are ready. Env is added to what configures them.
func startFleet(t *testing.T, env map[string]string, storeURLs ...string) *fleet {
	t.Helper()
	f := newFleet(t)
	f.startReplicas(env, storeURLs...)
	return f
}

// newFleet returns a fleet without replicas: its URL and its provider.
func newFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{t: t, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1000}}}
	var turn atomic.Uint64
	balancer := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) {
		p.Out.URL.Scheme, p.Out.URL.Host = "http", f.replicas[turn.Add(1)%uint64(len(f.replicas))].addr
	}})
	t.Cleanup(balancer.Close)
	t.Cleanup(f.client.CloseIdleConnections)
	f.host = strings.Replace(balancer.Listener.Addr().String(), "127.0.0.1", "localhost", 1)
	f.url = "http://" + f.host
	f.provider = brokertest.NewProvider(t, f.url)
	return f
}

// startReplicas starts a replica for each store URL, and waits until all are
// ready. Env is added to what configures them.
func (f *fleet) startReplicas(env map[string]string, storeURLs ...string) {
	t := f.t
	t.Helper()
	echo := brokertest.NewEcho(t)
	stream := brokertest.NewEcho(t)
	stream.Handler = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "data: hello\n\n")
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
	slow := brokertest.NewEcho(t)
	slow.Handler = func(http.ResponseWriter, *http.Request) { time.Sleep(200 * time.Millisecond) }
	for _, storeURL := range storeURLs {
		settings := map[string]string{
			"SERVER_LISTEN": "127.0.0.1:0", "SERVER_ADMIN_LISTEN": "127.0.0.1:0", "SERVER_PUBLIC_URL": f.url, "SERVER_SHUTDOWN_GRACE": "10s",
			"OIDC_ISSUER": f.provider.Issuer, "OIDC_CLIENT_ID": f.provider.Client.ID, "OIDC_CLIENT_SECRET": f.provider.Client.Secret,
			"STORE_URL": storeURL, "SESSION_KEYS": goodKey,
			"ROUTES": "[{path: /api/, upstream: " + echo.URL + ", token: user}, {path: /slow/, upstream: " + slow.URL + ", token: user}, {path: /stream/, upstream: " + stream.URL + ", token: user}]",
		}
		maps.Copy(settings, env)
		f.replicas = append(f.replicas, startReplica(t, f.provider, settings))
	}
	t.Cleanup(func() { // before those of the replicas, which wait for one after the other
		for _, r := range f.replicas {
			r.terminate()
		}
	})
	for _, r := range f.replicas {
		r.awaitReady(t)
	}
}

// replica is a process of the broker.
type replica struct {
	addr   string
	cmd    *exec.Cmd
	stderr *lockedBuffer
	ended  chan struct{} // closed when the process has ended, and err says how
	err    error
	killed bool

	terminated sync.Once
}

// startReplica starts a process with settings, environment variables without their prefix. When the test ends it has to end well, and to have
// printed nothing that it should not.
func startReplica(t *testing.T, provider *brokertest.Provider, settings map[string]string, args ...string) *replica {
	t.Helper()
	r := &replica{cmd: brokerCommand(t, append([]string{"serve"}, args...)...), stderr: new(lockedBuffer), ended: make(chan struct{})}
	r.cmd.Stderr = r.stderr
	for name, value := range settings {
		r.cmd.Env = append(r.cmd.Env, "CLOAKROOM_"+name+"="+value)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { // until the process ends, which the clean-up sees to
		r.err = r.cmd.Wait()
		close(r.ended)
	}()
	t.Cleanup(func() {
		r.stop(t)
		log := r.stderr.String()
		for _, word := range []string{"DATA RACE", "panic", "goroutine "} {
			if strings.Contains(log, word) {
				t.Errorf("a replica printed %q", word)
			}
		}
		provider.CheckLeaks(t, "a replica's log", log)
		if t.Failed() {
			t.Logf("replica %s, without the requests:\n%s", r.addr, requestLine.ReplaceAllString(log, ""))
		}
	})
	return r
}

var requestLine = regexp.MustCompile(`(?m)^.*"msg":"request".*\n`)

func (r *replica) awaitReady(t *testing.T) {
	t.Helper()
	listening := regexp.MustCompile(`"msg":"listening","listen":"([^"]+)","admin_listen":"([^"]+)"`)
	eventually(t, 20*time.Second, "a replica listens", func() bool { return listening.MatchString(r.stderr.String()) })
	m := listening.FindStringSubmatch(r.stderr.String())
	r.addr = m[1]
	ready(t, m[2])
}

// kill ends the process as a crash would.
func (r *replica) kill() {
	r.killed = true
	r.cmd.Process.Kill()
	<-r.ended
}

// terminate asks the process to end. It asks once, for the second time is not a question.
func (r *replica) terminate() {
	r.terminated.Do(func() { r.cmd.Process.Signal(syscall.SIGTERM) })
}

// stop asks the process to end, and waits until it has.
func (r *replica) stop(t *testing.T) {
	t.Helper()
	r.terminate()
	select {
	case <-r.ended:
	case <-time.After(30 * time.Second):
		r.kill()
		t.Error("a replica did not stop when it was asked to")
	}
	if r.err != nil && !r.killed {
		t.Errorf("a replica ended with %v", r.err)
	}
}

// visitor is somebody who has signed in.
type visitor struct {
	cookies string
	id      string    // of the session
	expiry  time.Time // of the access token
}

// recordKey is where the visitor's session is in Redis.
func (v *visitor) recordKey() string { return "cloakroom:session:" + v.id }

// signIn signs alice in on a browser of her own, while the provider has hooks.
func (f *fleet) signIn(t *testing.T, hooks devidp.Hooks) *visitor {
	t.Helper()
	f.provider.SetHooks(hooks)
	defer f.provider.Behave()
	b := bfftest.NewBrowser(t, f.url)
	if got := b.SignIn("alice", ""); got.StatusCode != 303 {
		t.Fatalf("sign in: got %d\n%s", got.StatusCode, got.Text)
	}
	var shown struct {
		Session struct {
			ID                   string
			AccessTokenExpiresAt time.Time `json:"access_token_expires_at"`
		}
	}
	b.Fetch("GET", "/bff/session").Decode(t, &shown)
	v := &visitor{id: shown.Session.ID, expiry: shown.Session.AccessTokenExpiresAt}
	for _, c := range b.Cookies() {
		v.cookies += c.Name + "=" + c.Value + "; "
	}
	return v
}

// expired returns somebody whose access token has expired.
func (f *fleet) expired(t *testing.T) *visitor {
	t.Helper()
	v := f.signIn(t, devidp.Hooks{EditTokenResponse: func(_ string, _ int, body map[string]any) { body["expires_in"] = 1 }})
	time.Sleep(time.Until(v.expiry))
	return v
}

// onRefresh has deal see to the requests to refresh tokens, in the provider's place. It is told which one of them it is, from 1.
func (f *fleet) onRefresh(deal func(n int, w http.ResponseWriter, r *http.Request, provider http.Handler)) {
	var n atomic.Int64
	f.provider.SetHooks(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, provider http.Handler) {
		if strings.HasSuffix(r.URL.Path, "/token") && r.PostFormValue("grant_type") == "refresh_token" {
			deal(int(n.Add(1)), w, r, provider)
			return
		}
		provider.ServeHTTP(w, r)
	}})
	f.t.Cleanup(f.provider.Behave)
}

// answersAfter makes a refresh take its time.
func (f *fleet) answersAfter(d time.Duration) {
	f.onRefresh(func(_ int, w http.ResponseWriter, r *http.Request, provider http.Handler) {
		time.Sleep(d)
		provider.ServeHTTP(w, r)
	})
}

// losesAnswers has the first refreshes processed, and hangs up instead of answering.
func (f *fleet) losesAnswers(first int) {
	f.onRefresh(func(n int, w http.ResponseWriter, r *http.Request, provider http.Handler) {
		if n > first {
			provider.ServeHTTP(w, r)
			return
		}
		provider.ServeHTTP(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler)
	})
}

// hold has the next refresh processed, and keeps the answer back until release is called: the tokens before are spent by then. It returns a channel
// that is closed when that is so. Refreshes after it are answered at once.
func (f *fleet) hold() (processed <-chan struct{}, release func()) {
	held, released := make(chan struct{}), make(chan struct{})
	release = sync.OnceFunc(func() { close(released) })
	f.t.Cleanup(release)
	f.onRefresh(func(n int, w http.ResponseWriter, r *http.Request, provider http.Handler) {
		if n > 1 {
			provider.ServeHTTP(w, r)
			return
		}
		answer := httptest.NewRecorder()
		provider.ServeHTTP(answer, r)
		close(held)
		<-released
		maps.Copy(w.Header(), answer.Header())
		w.WriteHeader(answer.Code)
		w.Write(answer.Body.Bytes())
	})
	return held, release
}

// reply is what a replica said to one call.
type reply struct {
	err     error // the connection broke, and there is nothing below but the times
	status  int
	code    string // of a problem
	text    string
	token   string // digest of the access token that reached the upstream
	cookies []string
	began   time.Time
	took    time.Duration
}

func (r reply) String() string {
	if r.err != nil {
		return r.err.Error()
	}
	return strings.TrimSpace(strconv.Itoa(r.status) + " " + r.code)
}

// call does what the app's browser client does, at one replica.
func (f *fleet) call(at *replica, v *visitor, method, path string) reply {
	return f.callUntil(f.t.Context(), at, v, method, path)
}

var bearerDigest = regexp.MustCompile(`Bearer ([0-9a-f]+)`)

// callUntil is a call by somebody who leaves when ctx ends.
func (f *fleet) callUntil(ctx context.Context, at *replica, v *visitor, method, path string) reply {
	answer := reply{began: time.Now()}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+at.addr+path, nil)
	if err != nil {
		answer.err = err
		return answer
	}
	req.Host = f.host
	req.Header = http.Header{"Cookie": {v.cookies}, "Accept": {"application/json"}, "X-Csrf": {"1"}, "Sec-Fetch-Site": {"same-origin"}}
	resp, err := f.client.Do(req)
	if err == nil {
		var text []byte
		text, err = io.ReadAll(resp.Body)
		resp.Body.Close()
		answer.status, answer.text, answer.cookies = resp.StatusCode, string(text), resp.Header["Set-Cookie"]
		answer.code = (&bfftest.Response{Response: resp, Text: string(text)}).Code()
		if m := bearerDigest.FindSubmatch(text); m != nil {
			answer.token = string(m[1])
		}
	}
	answer.err, answer.took = err, time.Since(answer.began)
	return answer
}

// start makes n calls at once, at the replicas in turn. What it returns waits for the replies.
func (f *fleet) start(v *visitor, n int, at ...*replica) (wait func() []reply) {
	replies := make([]reply, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { replies[i] = f.call(at[i%len(at)], v, "GET", "/api/x") })
	}
	return func() []reply {
		all.Wait()
		return replies
	}
}

// load makes one call after the other at every replica, until what it returns is called, which returns the replies.
func (f *fleet) load(v *visitor) (stop func() []reply) {
	var over atomic.Bool
	var all sync.WaitGroup
	replies := make([][]reply, len(f.replicas))
	for i, at := range f.replicas {
		all.Go(func() {
			for !over.Load() && f.t.Context().Err() == nil {
				replies[i] = append(replies[i], f.call(at, v, "GET", "/api/x"))
				time.Sleep(20 * time.Millisecond) // or it would be the machine that is loaded
			}
		})
	}
	return func() []reply {
		over.Store(true)
		all.Wait()
		return slices.Concat(replies...)
	}
}

// wantRefreshes checks how many refreshes the provider has seen, and that none of them was of a token that was used before.
func (f *fleet) wantRefreshes(t *testing.T, want int) {
	t.Helper()
	if n, reuses := f.provider.Refreshes(), f.provider.Reuses(); n != want || reuses != 0 {
		t.Errorf("the provider saw %d refreshes and %d reuses, want %d and 0", n, reuses, want)
	}
}

// wantAlive checks that a session can be used and refreshed at every replica that was not killed, one after the other.
func (f *fleet) wantAlive(t *testing.T, v *visitor) {
	t.Helper()
	for i, at := range f.replicas {
		if at.killed {
			continue
		}
		for _, call := range [][2]string{{"GET", "/api/x"}, {"POST", "/bff/session/refresh"}, {"GET", "/api/x"}} {
			if got := f.call(at, v, call[0], call[1]); got.status != 200 {
				t.Errorf("%s %s at replica %d: got %v, want 200", call[0], call[1], i, got)
			}
		}
	}
}

// wantEnded checks that no replica knows the session.
func (f *fleet) wantEnded(t *testing.T, v *visitor) {
	t.Helper()
	for i, at := range f.replicas {
		if got := f.call(at, v, "GET", "/api/x"); got.status != 401 || got.code != "not_signed_in" {
			t.Errorf("a call at replica %d: got %v, want 401 not_signed_in", i, got)
		}
		if f.knows(at, v) {
			t.Errorf("replica %d still knows the session", i)
		}
	}
}

// knows says whether a replica finds the visitor's session.
func (f *fleet) knows(at *replica, v *visitor) bool {
	var shown struct{ Authenticated bool }
	answer := f.call(at, v, "GET", "/bff/session")
	if err := json.Unmarshal([]byte(answer.text), &shown); err != nil || answer.status != 200 {
		f.t.Errorf("/bff/session: got %v, want 200", answer)
	}
	return shown.Authenticated
}

// wantStatuses checks that every reply has one of the statuses, and returns how many have which.
func wantStatuses(t *testing.T, replies []reply, statuses ...int) map[int]int {
	t.Helper()
	count := make(map[int]int)
	wrong := make(map[string]int)
	for _, r := range replies {
		count[r.status]++
		if !slices.Contains(statuses, r.status) {
			wrong[r.String()]++
		}
	}
	if len(wrong) > 0 {
		t.Errorf("of %d calls these were answered wrongly: %v, want %v", len(replies), wrong, statuses)
	}
	return count
}

func slowest(replies []reply) time.Duration {
	return slices.MaxFunc(replies, func(a, b reply) int { return int(a.took - b.took) }).took
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

// eventually waits until something is so, and returns how long that took.
func eventually(t *testing.T, limit time.Duration, what string, yes func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !yes() {
		if time.Since(began) > limit {
			t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(began)
}
