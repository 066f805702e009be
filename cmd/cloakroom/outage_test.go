package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/redistest"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// An outage of the provider, of any kind and duration, ends no session and
// delays no request by more than oidc.wait. All sessions resume soon after the
// provider responds again, without a burst of requests. The provider is a
// process of its own. Its access tokens expire after 30 seconds, and it revokes
// the tokens of a session whose refresh token is used twice.
func TestProviderOutageEndsNoSession(t *testing.T) {
	testenv.Slow(t)
	frozen := func(d time.Duration) func(*outage) {
		return func(o *outage) {
			o.signal(syscall.SIGSTOP)
			time.Sleep(d)
			o.signal(syscall.SIGCONT)
		}
	}
	blackhole := func(d time.Duration) func(*outage) {
		return func(o *outage) {
			// No response is lost: otherwise a rotated refresh token would be
			// used twice, which the broker cannot avoid.
			o.proxy.BlackholeRequests()
			o.fault("idle", 0)
			time.Sleep(time.Second)
			o.proxy.Blackhole()
			time.Sleep(d)
			o.proxy.Heal()
		}
	}
	fault := func(kind string, d time.Duration) func(*outage) {
		return func(o *outage) {
			o.fault(kind, d)
			time.Sleep(d)
		}
	}
	var all sync.WaitGroup
	defer all.Wait()
	for i, test := range []struct { // the longest first
		name string
		fail func(*outage)
	}{
		{"frozen for 66 s", frozen(66 * time.Second)},
		{"in a black hole for 66 s", blackhole(66 * time.Second)},
		{"503 for 60 s", fault("503", 60*time.Second)},
		{"429 for 60 s", fault("429", 60*time.Second)},
		{"500 for token requests", fault("500", 60*time.Second)},
		{"refuses connections, 60 s", fault("restart", 60*time.Second)},
		{"frozen for 24 s", frozen(24 * time.Second)},
		{"in a black hole for 24 s", blackhole(24 * time.Second)},
		{"frozen for 10 s", frozen(10 * time.Second)},
		{"restarting, down for 5 s", fault("restart", 5*time.Second)},
	} {
		delay := time.Duration(i) * 3 * time.Second // the start of the replicas takes time
		all.Go(func() {                             // concurrently, because they mostly wait
			t.Run(test.name, func(t *testing.T) {
				time.Sleep(delay)
				o := startOutage(t)
				stop := o.callAll()
				time.Sleep(5 * time.Second)
				before := o.stats()
				began := time.Now()
				test.fail(o)
				recovered := time.Now()
				time.Sleep(20 * time.Second)
				calls := stop()
				o.check(calls, began, recovered, before, o.stats())
			})
		})
	}
}

const (
	// outageUsers sign in, one in each second, before the outage.
	outageUsers = 25
	// outageTokenTTL is the life of an access token. It is longer than the
	// sign-ins take, and shorter than the long outages: all sessions wait then.
	outageTokenTTL = 30 * time.Second
	// outageWait is the oidc.wait of the replicas.
	outageWait = 5 * time.Second
	// outageSlack is how much longer a call may take than that. On an idle
	// machine it is 0.1 s, which the test logs. Beside busy loops it was 4.5 s,
	// while this test signs in hundreds of users. Without a limit calls took
	// over 20 s.
	outageSlack = 10 * time.Second
	// outageOver is the time after the recovery when no call fails any more,
	// plus three times the slowest call before the outage: so long the broker
	// waits for a response that may be lost. On an idle machine it is less than
	// two seconds, which the test logs. Without the circuit breaker it was more
	// than 14.
	outageOver = 10 * time.Second
)

// outage is a fleet of three replicas, with a provider that fails and users who
// make calls.
type outage struct {
	*fleet
	process *exec.Cmd
	control string // host:port of the provider's control endpoints
	proxy   *redistest.Proxy
	users   []*userSession
}

// outageStats are the counts of the provider.
type outageStats struct {
	Refreshes []int64 // Unix milliseconds of each refresh request
	Reuses    int     // of refresh tokens
}

// startOutage signs one user in each second, so that their tokens expire at
// different times. Meanwhile those who have signed in make a few calls, which
// refresh tokens in time if it takes longer: on a busy machine many would
// expire at once.
func startOutage(t *testing.T) *outage {
	t.Helper()
	providerAddr, control := freeAddr(t), freeAddr(t)
	o := &outage{fleet: newFleet(t, nil), control: control, proxy: redistest.StartProxy(t, providerAddr)}
	issuer := "http://" + o.proxy.Addr() + "/op"
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	o.process = exec.Command(self)
	settings := strings.Join([]string{issuer, providerAddr, control, o.url}, " ")
	o.process.Env = append(os.Environ(), "CLOAKROOM_TEST_PROVIDER="+settings)
	o.process.Stderr = os.Stderr
	if err := o.process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		o.process.Process.Kill()
		o.process.Wait()
	})
	eventually(t, 20*time.Second, "the provider responds", func() bool {
		resp, err := http.Get("http://" + control + "/stats")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return true
	})
	store := redistest.Start(t)
	o.startReplicas(map[string]string{
		"OIDC_ISSUER": issuer, "OIDC_WAIT": outageWait.String(), "SESSION_REFRESH_AHEAD": "5s",
	}, store.URL(), store.URL(), store.URL())
	started := time.Now()
	for i := range outageUsers {
		time.Sleep(time.Until(started.Add(time.Duration(i) * time.Second)))
		o.users = append(o.users, o.signIn(t, fmt.Sprintf("user%02d", i), devidp.Hooks{}))
		for j := i % 5; j <= i; j += 5 {
			o.call(o.replicas[j%len(o.replicas)], o.users[j], "GET", "/api/x")
		}
	}
	return o
}

// callAll makes every user call any replica about every two seconds, until stop
// is called. stop returns all responses.
func (o *outage) callAll() (stop func() []response) {
	pause := func() time.Duration { return 1400*time.Millisecond + rand.N(1200*time.Millisecond) }
	return o.repeat(len(o.users), pause, func(i int) response {
		at := o.replicas[rand.N(len(o.replicas))]
		return o.call(at, o.users[i], "GET", "/api/x")
	})
}

// check checks the responses to all calls, and the requests at the provider.
func (o *outage) check(calls []response, began, recovered time.Time, before, after outageStats) {
	o.t.Helper()
	statuses := make(map[string]int)
	var earlier []response
	for _, c := range calls {
		if c.began.Add(c.took).Before(began) {
			earlier = append(earlier, c)
		}
	}
	over := outageOver + 3*slowest(earlier)
	var lastFailure time.Duration // after the recovery
	lateFailures := 0
	for _, c := range calls {
		statuses[c.String()]++
		if c.status != 200 && c.began.After(recovered) {
			lastFailure = max(lastFailure, c.began.Add(c.took).Sub(recovered))
			if c.began.After(recovered.Add(over)) {
				lateFailures++
			}
		}
		switch {
		case c.status == 200:
		case c.status == 503 && c.code == "provider_unavailable" && c.began.Add(c.took).After(began):
		case c.status == 503 && c.code == "store_unavailable": // Redis is slow on a busy machine
		default:
			o.t.Errorf("call %v after the start of the outage: got %v, want 200 or 503", c.began.Sub(began), c)
		}
	}
	longest := slowest(calls)
	if limit := outageWait + outageSlack; longest > limit {
		o.t.Errorf("slowest call: got %v, want at most %v", longest, limit)
	}
	if lateFailures > 0 {
		o.t.Errorf("calls that fail %v after the recovery: got %d, want 0", over, lateFailures)
	}
	if after.Reuses > 0 {
		o.t.Errorf("refresh tokens used twice: got %d, want 0", after.Reuses)
	}
	count := func(from, to time.Time) (n int) {
		for _, at := range after.Refreshes {
			if from.UnixMilli() <= at && at < to.UnixMilli() {
				n++
			}
		}
		return n
	}
	// Each replica tries one token request in each 0.8 s.
	during := count(began, recovered)
	most := len(o.users) + 2*len(o.replicas)*int(recovered.Sub(began)/time.Second)
	if during > most {
		o.t.Errorf("refresh requests during the outage: got %d, want at most %d", during, most)
	}
	// A session sends one or two refresh requests. Their distribution depends
	// on how fast the provider recovers, so it is only logged.
	if got := count(recovered, recovered.Add(5*time.Second)); got > 2*len(o.users) {
		o.t.Errorf("refresh requests within 5 s of the recovery: got %d, want at most two for each of %d users",
			got, len(o.users))
	}
	busiest := 0 // requests within 100 ms
	for _, at := range after.Refreshes {
		if at := time.UnixMilli(at); !at.Before(recovered) {
			busiest = max(busiest, count(at, at.Add(100*time.Millisecond)))
		}
	}
	o.t.Logf("%d calls: %v; slowest %v, before the outage %v; last failure %v after the recovery",
		len(calls), statuses, longest.Round(time.Millisecond), slowest(earlier).Round(time.Millisecond),
		lastFailure.Round(time.Millisecond))
	o.t.Logf("refresh requests: %d before, %d during the outage, at most %d within 100 ms after it",
		len(before.Refreshes), during, busiest)
}

func (o *outage) signal(s os.Signal) {
	o.t.Helper()
	if err := o.process.Process.Signal(s); err != nil {
		o.t.Fatal(err)
	}
}

// fault makes the provider fail in one way for d.
func (o *outage) fault(kind string, d time.Duration) {
	o.t.Helper()
	resp, err := http.Post("http://"+o.control+"/fault?kind="+kind+"&for="+d.String(), "", nil)
	if err != nil {
		o.t.Fatal(err)
	}
	resp.Body.Close()
}

func (o *outage) stats() (s outageStats) {
	o.t.Helper()
	resp, err := http.Get("http://" + o.control + "/stats")
	if err != nil {
		o.t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		o.t.Fatal(err)
	}
	return s
}

// serveOutageProvider is the provider's process: a development provider that
// counts requests and fails on demand. It ends with the test.
func serveOutageProvider() {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "outage provider:", err)
			os.Exit(1)
		}
	}
	settings := strings.Fields(os.Getenv("CLOAKROOM_TEST_PROVIDER"))
	issuer, addr, control, app := settings[0], settings[1], settings[2], settings[3]
	cfg := devidp.Config{
		Issuer: issuer, AccessTokenTTL: outageTokenTTL, Logger: slog.New(slog.DiscardHandler),
		Clients: []devidp.Client{{
			ID: "spa", Secret: "s3cret:with/odd+characters%&",
			RedirectURIs:           []string{app + "/bff/callback"},
			PostLogoutRedirectURIs: []string{app + "/bff/logout/callback"},
		}},
	}
	for i := range outageUsers {
		cfg.Users = append(cfg.Users, devidp.User{Sub: fmt.Sprintf("user%02d", i)})
	}
	provider, err := devidp.New(cfg)
	fail(err)
	var serving sync.RWMutex // held by token requests, so that a restart loses no response
	var mu sync.Mutex
	var seen []int64
	var failing int // status
	var until time.Time
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token := strings.HasSuffix(r.URL.Path, "/token")
		mu.Lock()
		if token && r.PostFormValue("grant_type") == "refresh_token" {
			seen = append(seen, time.Now().UnixMilli())
		}
		status := failing
		if time.Now().After(until) {
			status = 0
		}
		mu.Unlock()
		serving.RLock()
		defer serving.RUnlock()
		if status != 0 && (token || status != 500) {
			http.Error(w, "out of order", status)
			return
		}
		provider.ServeHTTP(w, r)
	})
	var server *http.Server
	listen := func() {
		l, err := net.Listen("tcp", addr)
		fail(err)
		server = &http.Server{Handler: handler}
		go server.Serve(l) // until the process ends, or a restart
	}
	listen()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		json.NewEncoder(w).Encode(outageStats{Refreshes: seen, Reuses: provider.Stats().Reuses})
	})
	mux.HandleFunc("POST /fault", func(w http.ResponseWriter, r *http.Request) {
		d, err := time.ParseDuration(r.FormValue("for"))
		fail(err)
		mu.Lock()
		defer mu.Unlock()
		until = time.Now().Add(d)
		switch kind := r.FormValue("kind"); kind {
		case "idle": // the response comes when no request is being served
			serving.Lock()
			serving.Unlock()
		case "restart":
			serving.Lock()
			server.Close()
			serving.Unlock()
			time.AfterFunc(d, listen)
		default:
			_, err := fmt.Sscan(kind, &failing)
			fail(err)
		}
	})
	l, err := net.Listen("tcp", control)
	fail(err)
	fail(http.Serve(l, mux))
}
