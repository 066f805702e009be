package main

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/redistest"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// These tests run several replicas with one Redis, and make a replica, Redis or
// the provider fail.

// leaseTTL is how long the lease of a replica that dies during a refresh delays
// the others.
const leaseTTL = 4 * time.Second

func TestReplicasOnEveryTopology(t *testing.T) {
	t.Parallel()
	for _, topology := range topologies {
		t.Run(topology.name, func(t *testing.T) {
			if topology.name != "standalone" {
				testenv.Slow(t)
			}
			t.Parallel()
			store := topology.start(t)
			t.Run("ConcurrentCallsShareOneRefresh", func(t *testing.T) { testConcurrentRefresh(t, store) })
			t.Run("LogoutReachesEveryReplica", func(t *testing.T) { testLogoutPropagation(t, store) })
			t.Run("RedisIsKilledDuringRefresh", func(t *testing.T) {
				f := startFleet(t, nil, store.url, store.url)
				var heal func()
				kill := func(u *userSession) { heal = store.kill(u.recordKey()) }
				f.testOutage(t, 0, kill, func() { heal() })
			})
		})
	}
}

// testConcurrentRefresh makes 200 calls to three replicas with an expired
// access token. They share one refresh, and none waits until a lease expires.
func testConcurrentRefresh(t *testing.T, store redisStore) {
	f := startFleet(t, nil, store.url, store.url, store.url)
	const calls, providerDelay = 200, 150 * time.Millisecond
	u, other := f.signInExpired(t), f.signIn(t, "alice", devidp.Hooks{})

	// Open as many connections as the calls need.
	var opening sync.WaitGroup
	for i := range calls {
		opening.Go(func() { f.call(f.replicas[i%len(f.replicas)], other, "GET", "/slow/x") })
	}
	opening.Wait()
	wantStatuses(t, f.startCalls(other, calls, f.replicas...)(), 200)

	before := f.provider.Refreshes()
	without := slowest(f.startCalls(other, calls, f.replicas...)()) // without a refresh
	f.delayRefresh(providerDelay)
	responses := f.startCalls(u, calls, f.replicas...)()
	f.provider.Behave()
	wantStatuses(t, responses, 200)
	f.wantRefreshes(t, before+1)
	token := responses[0].token
	if !f.provider.Issued(token) {
		t.Errorf("token at the upstream: got %q, want one of the provider", token)
	}
	for _, r := range responses {
		if r.token != token {
			t.Errorf("token at the upstream: got %q, want %q as in the first call", r.token, token)
		}
	}
	took := slowest(responses)
	t.Logf("slowest of %d calls: %v with a refresh of %v, %v without",
		calls, took.Round(time.Millisecond), providerDelay, without.Round(time.Millisecond))
	if limit := 4*without + providerDelay + leaseTTL*3/4; took > limit {
		t.Errorf("slowest call: got %v, want at most %v", took, limit)
	}
}

// testLogoutPropagation checks that a logout at one replica ends the session at
// the others within 100 ms, although they have cached it, and ends its streams.
// That is the median: on a busy machine one may be late, but none is as late as
// a cache that gets no invalidation.
func testLogoutPropagation(t *testing.T, store redisStore) {
	f := startFleet(t, nil, store.url, store.url, store.url)
	const callMedian, streamMedian, limit = 100 * time.Millisecond, time.Second, 3 * time.Second
	var sessions []*userSession
	var streams []<-chan time.Time
	for range 5 {
		u := f.signIn(t, "alice", devidp.Hooks{})
		sessions, streams = append(sessions, u), append(streams, f.openStream(t, f.replicas[2], u))
	}
	time.Sleep(time.Second) // the session of a stream is watched after half a second
	// The times from the response to the logout to the start of the last
	// accepted call, and to the end of the stream.
	var calls, ends []time.Duration
	for i, u := range sessions {
		for _, at := range f.replicas {
			wantStatuses(t, f.startCalls(u, 3, at)(), 200)
		}
		// The other replicas are called all the time. lastAccepted is when the
		// last accepted call began.
		lastAccepted := make([]time.Time, len(f.replicas)-1)
		var calling, started sync.WaitGroup
		for i, at := range f.replicas[1:] {
			started.Add(1)
			first := sync.OnceFunc(started.Done)
			calling.Go(func() {
				defer first()
				for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
					resp := f.call(at, u, "GET", "/api/x")
					if resp.status == 401 {
						return
					}
					if resp.status != 200 {
						t.Errorf("call during the logout: got %v, want 200 or 401", resp)
						return
					}
					lastAccepted[i] = resp.began
					first()
				}
				t.Error("calls are accepted for 10 s, want the logout to end the session")
			})
		}
		started.Wait()
		if got := f.call(f.replicas[0], u, "POST", "/bff/logout"); got.status != 200 {
			t.Errorf("logout: got %v, want 200", got)
		}
		loggedOut := time.Now()
		calling.Wait()
		for _, at := range lastAccepted {
			calls = append(calls, at.Sub(loggedOut))
		}
		select {
		case end := <-streams[i]:
			ends = append(ends, end.Sub(loggedOut))
		case <-time.After(10 * time.Second):
			t.Fatal("the stream is open 10 s after the logout")
		}
		f.wantEnded(t, u)
	}
	for _, test := range []struct {
		name   string
		times  []time.Duration
		median time.Duration
	}{{"last accepted call", calls, callMedian}, {"end of the stream", ends, streamMedian}} {
		slices.Sort(test.times)
		median, latest := test.times[len(test.times)/2], test.times[len(test.times)-1]
		t.Logf("%s after the logout: median %v, latest %v", test.name, median, latest)
		if median > test.median {
			t.Errorf("%s after the logout: got a median of %v, want at most %v", test.name, median, test.median)
		}
		if latest > limit {
			t.Errorf("%s after the logout: got %v, want at most %v", test.name, latest, limit)
		}
	}
}

// openStream opens a stream at a replica. The channel receives the time at
// which it ended.
func (f *fleet) openStream(t *testing.T, at *replica, u *userSession) <-chan time.Time {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+at.addr+"/stream/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = f.host
	req.Header = http.Header{"Cookie": {u.cookies}, "Accept": {"text/event-stream"}, "X-Csrf": {"1"}}
	resp, err := f.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	first := make([]byte, len(firstEvent))
	if _, err := io.ReadFull(resp.Body, first); err != nil || resp.StatusCode != 200 {
		t.Fatalf("stream: got %d, %q, %v, want 200 and an event", resp.StatusCode, first, err)
	}
	end := make(chan time.Time, 1)
	go func() { // ends with the stream, at the latest with the test
		io.Copy(io.Discard, resp.Body)
		end <- time.Now()
		resp.Body.Close()
	}()
	return end
}

// testOutage makes the store fail during a refresh. The provider's response
// arrives during the outage, and other calls go on all the time. No session
// ends, and all can be used soon after the outage.
func (f *fleet) testOutage(t *testing.T, outage time.Duration, fail func(u *userSession), heal func()) {
	t.Helper()
	sessions := map[string]*userSession{
		"session": f.signIn(t, "alice", devidp.Hooks{}), "session with a refresh": f.signInExpired(t),
	}
	expired := sessions["session with a refresh"]
	processed, release := f.holdRefresh()
	var stops []func() []response
	for _, u := range sessions {
		stops = append(stops, f.repeat(len(f.replicas), func() time.Duration { return 20 * time.Millisecond },
			func(i int) response { return f.call(f.replicas[i], u, "GET", "/api/x") }))
	}
	await(t, processed, "the provider processes the refresh")
	fail(expired)
	release()
	time.Sleep(outage)
	heal()
	healed := time.Now()
	var recovering sync.WaitGroup
	for i, at := range f.replicas {
		for name, u := range sessions {
			recovering.Go(func() {
				resp := f.call(at, u, "GET", "/api/x")
				for resp.status != 200 && time.Since(healed) < 15*time.Second {
					time.Sleep(20 * time.Millisecond)
					resp = f.call(at, u, "GET", "/api/x")
				}
				if resp.status != 200 {
					t.Errorf("%s at replica %d, %v after the outage: got %v, want 200",
						name, i, time.Since(healed), resp)
				}
			})
		}
	}
	recovering.Wait()
	took := time.Since(healed)
	var responses []response
	for _, stop := range stops {
		responses = append(responses, stop()...)
	}
	count := wantStatuses(t, responses, 200, 503)
	t.Logf("calls by status: %v; recovered %v after the outage", count, took.Round(time.Millisecond))
	for _, r := range responses {
		if cookies := r.header["Set-Cookie"]; len(cookies) > 0 {
			t.Errorf("Set-Cookie of %v: got %v, want none", r, cookies)
		}
		if r.status == 503 && r.code != "store_unavailable" {
			t.Errorf("call during the outage: got %v, want 200 or 503 store_unavailable", r)
		}
	}
	if count[503] == 0 {
		t.Error("calls with 503: got none, want the outage to be noticed")
	}
	f.wantRefreshes(t, 1)
	f.wantActive(t, expired)
}

func TestRedisOutageEndsNoSession(t *testing.T) {
	testenv.Slow(t)
	// Both are longer than the timeout of an operation, long than the lease,
	// too.
	const short, long = 3 * time.Second, leaseTTL + 2*time.Second
	type redis struct {
		*redistest.Server
		*redistest.Proxy
	}
	kill, start := func(r redis) { r.Kill() }, func(r redis) { r.Start() }
	hang, heal := func(r redis) { r.Hang() }, func(r redis) { r.Heal() }
	lose := func(r redis) { r.DropResponses() }
	for name, test := range map[string]struct {
		outage     time.Duration
		fail, heal func(redis)
	}{
		"killed":                  {short, kill, start},
		"killed for long":         {long, kill, start},
		"frozen":                  {short, func(r redis) { r.Freeze() }, func(r redis) { r.Thaw() }},
		"connections hang":        {short, hang, heal},
		"connections hang long":   {long, hang, heal},
		"connections are cut":     {short, func(r redis) { r.Cut() }, heal},
		"responses are lost":      {short, lose, heal},
		"responses are lost long": {long, lose, heal},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			r := redis{server, redistest.StartProxy(t, server.Addr())}
			storeURL := "redis://" + r.Proxy.Addr() + "/0"
			f := startFleet(t, nil, storeURL, storeURL)
			f.testOutage(t, test.outage, func(*userSession) { test.fail(r) }, func() { test.heal(r) })
		})
	}
}

// A replica that loses its connection to Redis during a refresh keeps the lease
// if it is back before the lease expires.
func TestReplicaCutOffForLessThanItsLeaseKeepsIt(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.StartProxy(t, server.Addr())
	f := startFleet(t, nil, "redis://"+proxy.Addr()+"/0", server.URL())
	u := f.signInExpired(t)
	processed, release := f.holdRefresh()
	waitA := f.startCalls(u, 1, f.replicas[0])
	await(t, processed, "the provider processes the refresh")
	waitB := f.startCalls(u, 5, f.replicas[1])
	proxy.Hang()
	release()
	time.Sleep(leaseTTL / 2)
	proxy.Heal()
	wantStatuses(t, waitB(), 200)
	wantStatuses(t, waitA(), 200, 503)
	f.wantRefreshes(t, 1)
	f.wantActive(t, u)
}

// Without invalidations, here because the Redis user has no permission for
// them, requests are slower but nothing is lost.
func TestTokensAreRefreshedWithoutInvalidations(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	if got := redis.Do("ACL", "SETUSER", "default", "-client|tracking"); got != "+OK" {
		t.Fatalf("ACL SETUSER: got %s, want +OK", got)
	}
	f := startFleet(t, nil, redis.URL(), redis.URL())
	u := f.signInExpired(t)
	responses := f.startCalls(u, 20, f.replicas...)()
	wantStatuses(t, responses, 200)
	f.wantRefreshes(t, 1)
	if took, limit := slowest(responses), 2*leaseTTL; took > limit {
		t.Errorf("slowest call: got %v, want at most %v", took, limit)
	}
	f.wantActive(t, u)
}

func TestLeaseOutlastsASlowProvider(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	redis := redistest.Start(t)
	f := startFleet(t, map[string]string{"OIDC_WAIT": "20s"}, redis.URL(), redis.URL())
	u := f.signInExpired(t)
	const providerDelay = leaseTTL + 2*time.Second
	f.delayRefresh(providerDelay)
	responses := f.startCalls(u, 20, f.replicas...)()
	wantStatuses(t, responses, 200)
	f.wantRefreshes(t, 1)
	if took, limit := slowest(responses), providerDelay+leaseTTL; took > limit {
		t.Errorf("slowest call: got %v, want at most %v", took, limit)
	}
	f.provider.Behave()
	f.wantActive(t, u)
}

func TestLostRefreshResponse(t *testing.T) {
	testenv.Slow(t)
	for name, test := range map[string]struct {
		grace time.Duration
		lost  int // responses
		check func(t *testing.T, f *fleet, u *userSession, responses []response)
	}{
		"is requested again within the grace period": {time.Minute, 1, func(
			t *testing.T, f *fleet, u *userSession, responses []response,
		) {
			wantStatuses(t, responses, 200)
			f.wantRefreshes(t, 2)
			f.wantActive(t, u)
		}},
		"twice is a transient error": {time.Minute, 2, func(
			t *testing.T, f *fleet, u *userSession, responses []response,
		) {
			wantStatuses(t, responses, 503, 200) // another replica may have tried a third time
			for _, at := range f.replicas {
				eventually(t, 20*time.Second, "a refresh succeeds after the backoff", func() bool {
					return f.call(at, u, "POST", "/bff/session/refresh").status == 200
				})
			}
			f.wantActive(t, u)
			f.wantNoReuse(t)
		}},
		"ends the session without a grace period": {0, 1, func(
			t *testing.T, f *fleet, u *userSession, responses []response,
		) {
			wantStatuses(t, responses, 401)
			f.wantEnded(t, u)
			if got := f.provider.LiveRefreshTokens(); got != 0 {
				t.Errorf("valid refresh tokens: got %d, want 0", got)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			redis := redistest.Start(t)
			f := startFleet(t, nil, redis.URL(), redis.URL(), redis.URL())
			f.provider.SetRefreshGrace(test.grace)
			u := f.signInExpired(t)
			f.interceptRefresh(func(n int, w http.ResponseWriter, r *http.Request, next http.Handler) {
				if n <= test.lost {
					next.ServeHTTP(httptest.NewRecorder(), r)
					panic(http.ErrAbortHandler)
				}
				next.ServeHTTP(w, r)
			})
			test.check(t, f, u, f.startCalls(u, 60, f.replicas...)())
		})
	}
}

func TestTokenIsSavedAfterItsClientDisconnects(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	f := startFleet(t, nil, redis.URL(), redis.URL())
	u := f.signInExpired(t)
	processed, release := f.holdRefresh()
	ctx, disconnect := context.WithCancel(t.Context())
	aborted := make(chan response)
	go func() { // until disconnect
		aborted <- f.send(ctx, f.replicas[0], u.cookies, "GET", "/api/x")
	}()
	await(t, processed, "the provider processes the refresh")
	disconnect()
	if got := <-aborted; got.err == nil {
		t.Errorf("call that was aborted: got %v, want no response", got)
	}
	wait := f.startCalls(u, 1, f.replicas[1])
	release()
	wantStatuses(t, wait(), 200)
	f.wantRefreshes(t, 1)
	f.wantActive(t, u)
}

func TestReplicaSavesTheTokenBeforeItStops(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	f := startFleet(t, nil, redis.URL(), redis.URL())
	u := f.signInExpired(t)
	processed, release := f.holdRefresh()
	holder := f.replicas[0]
	wait := f.startCalls(u, 1, holder)
	await(t, processed, "the provider processes the refresh")
	holder.terminate()
	eventually(t, 20*time.Second, "the replica shuts down", func() bool {
		return strings.Contains(holder.stderr.String(), "shutting down")
	})
	release()
	wantStatuses(t, wait(), 200)
	await(t, holder.ended, "the replica has stopped")
	f.wantRefreshes(t, 1)
	if got := f.call(f.replicas[1], u, "GET", "/api/x"); got.status != 200 {
		t.Errorf("call at the other replica: got %v, want 200", got)
	}
}

func TestReplicaKilledDuringARefreshDelaysOthersByItsLease(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	redis := redistest.Start(t)
	// The default is a second longer than the lease. That this is enough is
	// tested in package session, with a fake clock.
	f := startFleet(t, map[string]string{"OIDC_WAIT": "30s"}, redis.URL(), redis.URL())
	f.provider.SetRefreshGrace(time.Minute)
	u := f.signInExpired(t)
	processed, release := f.holdRefresh()
	waitKilled := f.startCalls(u, 1, f.replicas[0])
	await(t, processed, "the provider processes the refresh")
	wait := f.startCalls(u, 20, f.replicas[1])
	f.replicas[0].kill()
	killed := time.Now()
	release()
	// The second refresh repeats the first, whose response was lost.
	eventually(t, 2*leaseTTL, "the other replica refreshes the session", func() bool {
		return f.provider.Refreshes() == 2
	})
	t.Logf("second refresh %v after the kill", time.Since(killed).Round(time.Millisecond))
	if got := waitKilled()[0]; got.err == nil {
		t.Errorf("call at the replica that was killed: got %v, want no response", got)
	}
	wantStatuses(t, wait(), 200)
	f.wantRefreshes(t, 2)
	f.wantActive(t, u)
}

func TestSessionThatEndsDuringARefreshStaysEnded(t *testing.T) {
	testenv.Slow(t)
	for name, test := range map[string]struct {
		env map[string]string
		end func(t *testing.T, f *fleet, at *replica, u *userSession)
	}{
		"by logout": {nil, func(t *testing.T, f *fleet, at *replica, u *userSession) {
			if got := f.call(at, u, "POST", "/bff/logout"); got.status != 200 {
				t.Errorf("logout: got %v, want 200", got)
			}
		}},
		"by back-channel logout": {nil, func(t *testing.T, f *fleet, at *replica, u *userSession) {
			for sid := range f.provider.Stats().LiveRefreshTokens { // there is one
				token, err := f.provider.LogoutToken(f.provider.Client.ID, "alice", sid)
				if err != nil {
					t.Fatal(err)
				}
				form := url.Values{"logout_token": {token}}
				resp, err := f.client.PostForm("http://"+at.addr+"/bff/backchannel-logout", form)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				if resp.StatusCode != 200 {
					t.Errorf("back-channel logout: got %d, want 200", resp.StatusCode)
				}
			}
		}},
		// The call begins before the idle timeout, and waits until then.
		"by the idle timeout": {map[string]string{"SESSION_IDLE_TIMEOUT": "8s", "OIDC_WAIT": "30s"}, func(
			t *testing.T, f *fleet, at *replica, u *userSession,
		) {
			eventually(t, 20*time.Second, "the session ends", func() bool { return !f.authenticated(at, u) })
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			redis := redistest.Start(t)
			f := startFleet(t, test.env, redis.URL(), redis.URL(), redis.URL())
			u := f.signInExpired(t)
			processed, release := f.holdRefresh()
			wait := f.startCalls(u, 1, f.replicas[0])
			await(t, processed, "the provider processes the refresh")
			test.end(t, f, f.replicas[1], u)
			release()
			wantStatuses(t, wait(), 401)
			f.waitEnded(t, u)
			eventually(t, 20*time.Second, "the new refresh token is revoked", func() bool {
				return f.provider.LiveRefreshTokens() == 0
			})
			if got := redis.Do("EXISTS", u.recordKey()); got != ":0" {
				t.Errorf("EXISTS of the session's record: got %s, want :0", got)
			}
		})
	}
}

func TestReplicasShareARefreshWithAnUnusualResponse(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	f := startFleet(t, nil, redis.URL(), redis.URL())
	for _, fault := range brokertest.RefreshOddities {
		t.Run(fault.Name, func(t *testing.T) {
			u := f.signIn(t, "alice", devidp.Hooks{})
			f.provider.Misbehave(t, fault)
			f.wantActive(t, u)
			f.provider.Behave()
			f.wantActive(t, u)
			f.wantNoReuse(t)
		})
	}
}

func TestClockSkewOfAMinute(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	f := startFleet(t, nil, redis.URL(), redis.URL())
	for name, skew := range map[string]time.Duration{"ahead": time.Minute, "behind": -time.Minute} {
		t.Run(name, func(t *testing.T) {
			shift := func(_, claims map[string]any) {
				for _, name := range []string{"iat", "nbf", "exp", "auth_time"} {
					if at, ok := claims[name].(int64); ok {
						claims[name] = at + int64(skew/time.Second)
					}
				}
			}
			hooks := devidp.Hooks{EditIDToken: shift, EditAccessToken: shift}
			u := f.signIn(t, "alice", hooks)
			f.provider.SetHooks(hooks)
			defer f.provider.Behave()
			f.wantActive(t, u)
		})
	}
}

// Without CLIENT TRACKING, replicas publish what they write.
func TestLogoutReachesEveryReplicaWithoutTracking(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--user", "cloakroom", "on", ">pw", "~*", "&*", "+@all", "-client|tracking")
	testLogoutPropagation(t, redisStore{url: server.URLAs("cloakroom", "pw")})
}
