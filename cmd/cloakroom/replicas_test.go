package main

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
	"github.com/cloakroom-bff/cloakroom/tokenstore/storetest"
)

// What holds when the broker is several processes with one Redis, and when one of them, Redis or the provider fails.

// leaseTTL is for how long a replica that dies in the middle of a refresh keeps the others waiting.
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
			t.Run("AStormOfCallsIsOneRefresh", func(t *testing.T) { storm(t, store) })
			t.Run("ALogoutReachesEveryReplica", func(t *testing.T) { logoutReaches(t, store) })
			t.Run("AServerIsKilledInMidRefresh", func(t *testing.T) {
				f := startFleet(t, nil, store.url, store.url)
				var heal func()
				f.outlives(t, 0, func(v *visitor) { heal = store.kill(v.recordKey()) }, func() { heal() })
			})
		})
	}
}

// storm makes 200 calls over three replicas with a token that has expired: there
// is one refresh, and nobody waits for a lease to end.
func storm(t *testing.T, store redisStore) {
	f := startFleet(t, nil, store.url, store.url, store.url)
	const calls, providerTakes = 200, 150 * time.Millisecond
	f.warm(calls)
	v, other := f.expired(t), f.signIn(t, devidp.Hooks{})
	before := f.provider.Refreshes()
	without := slowest(f.start(other, calls, f.replicas...)()) // the same calls, when nothing is refreshed
	f.answersAfter(providerTakes)
	replies := f.start(v, calls, f.replicas...)()
	f.provider.Behave()
	wantStatuses(t, replies, 200)
	f.wantRefreshes(t, before+1)
	if token := replies[0].token; !f.provider.Issued(token) || slices.ContainsFunc(replies, func(r reply) bool { return r.token != token }) {
		t.Error("not every call reached the upstream with the new token")
	}
	took := slowest(replies)
	t.Logf("slowest of %d calls: %v, of which the provider took %v; without a refresh: %v", calls, took.Round(time.Millisecond), providerTakes, without.Round(time.Millisecond))
	if limit := 4*without + providerTakes + leaseTTL*3/4; took > limit {
		t.Errorf("the slowest call took %v, want %v at most", took, limit)
	}
}

// warm opens the connections that so many calls at once need.
func (f *fleet) warm(calls int) {
	v := f.signIn(f.t, devidp.Hooks{})
	var all sync.WaitGroup
	for i := range calls {
		all.Go(func() { f.call(f.replicas[i%len(f.replicas)], v, "GET", "/slow/x") })
	}
	all.Wait()
	wantStatuses(f.t, f.start(v, calls, f.replicas...)(), 200)
}

// logoutReaches checks that a logout at one replica ends the session at the
// others within 100 ms, although it is in their caches, and ends their streams.
// That is the median: one of them may be late on a machine that is busy, but
// none is as late as a cache that was not told.
func logoutReaches(t *testing.T, store redisStore) {
	f := startFleet(t, nil, store.url, store.url, store.url)
	const usually, streamUsually, always = 100 * time.Millisecond, time.Second, 3 * time.Second
	var visitors []*visitor
	var streams []<-chan time.Time
	for range 5 {
		v := f.signIn(t, devidp.Hooks{})
		visitors, streams = append(visitors, v), append(streams, f.openStream(t, f.replicas[2], v))
	}
	time.Sleep(time.Second)         // a stream's session is watched from its first half second on
	var calls, ends []time.Duration // after the logout: the last call that was let through, and the stream's end
	for i, v := range visitors {
		for _, at := range f.replicas {
			wantStatuses(t, f.start(v, 3, at)(), 200)
		}
		// Each of the others is asked all the time. lastGood is when the last call began that was let through.
		lastGood := make([]time.Time, len(f.replicas)-1)
		var asking, underWay sync.WaitGroup
		for i, at := range f.replicas[1:] {
			underWay.Add(1)
			first := sync.OnceFunc(underWay.Done)
			asking.Go(func() {
				defer first()
				for until := time.Now().Add(10 * time.Second); time.Now().Before(until); {
					answer := f.call(at, v, "GET", "/api/x")
					if answer.status == 401 {
						return
					}
					if answer.status != 200 {
						t.Errorf("got %v, want 200 or 401", answer)
						return
					}
					lastGood[i] = answer.began
					first()
				}
				t.Error("signed in for 10 s after the logout")
			})
		}
		underWay.Wait()
		if got := f.call(f.replicas[0], v, "POST", "/bff/logout"); got.status != 200 {
			t.Errorf("logout: got %v, want 200", got)
		}
		out := time.Now()
		asking.Wait()
		for _, at := range lastGood {
			calls = append(calls, at.Sub(out))
		}
		select {
		case end := <-streams[i]:
			ends = append(ends, end.Sub(out))
		case <-time.After(10 * time.Second):
			t.Fatal("the stream goes on 10 s after the logout")
		}
		f.wantEnded(t, v)
	}
	slices.Sort(calls)
	slices.Sort(ends)
	call, latestCall, end, latestEnd := calls[len(calls)/2], calls[len(calls)-1], ends[len(ends)/2], ends[len(ends)-1]
	t.Logf("the last call that was let through began %v after a logout (%v at the most), and a stream ended %v after it (%v)", call, latestCall, end, latestEnd)
	if call > usually || end > streamUsually || latestCall > always || latestEnd > always {
		t.Errorf("want %v and %v as a median, and %v at the most", usually, streamUsually, always)
	}
}

// openStream opens a stream at a replica. The channel says when it ended.
func (f *fleet) openStream(t *testing.T, at *replica, v *visitor) <-chan time.Time {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+at.addr+"/stream/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = f.host
	req.Header = http.Header{"Cookie": {v.cookies}, "Accept": {"text/event-stream"}, "X-Csrf": {"1"}}
	resp, err := f.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	first := make([]byte, len("data: hello\n\n"))
	if _, err := io.ReadFull(resp.Body, first); err != nil || resp.StatusCode != 200 {
		t.Fatalf("the stream: got %d, %q, %v", resp.StatusCode, first, err)
	}
	end := make(chan time.Time, 1)
	go func() { // ends with the stream, at the latest with the test
		io.Copy(io.Discard, resp.Body)
		end <- time.Now()
		resp.Body.Close()
	}()
	return end
}

// outlives has the store fail while a refresh is under way, its answer arrive during the outage, and ordinary calls go on all the time. Nobody is
// signed out, and all is well soon after its end.
func (f *fleet) outlives(t *testing.T, outage time.Duration, fail func(v *visitor), heal func()) {
	t.Helper()
	ordinary, stale := f.signIn(t, devidp.Hooks{}), f.expired(t)
	processed, release := f.hold()
	stop := f.load(ordinary)
	stopStale := f.load(stale)
	await(t, processed, "the refresh is processed")
	fail(stale)
	release()
	time.Sleep(outage)
	heal()
	healed := time.Now()
	var mending sync.WaitGroup
	for i, at := range f.replicas {
		for name, v := range map[string]*visitor{"an ordinary session": ordinary, "the session that was being refreshed": stale} {
			mending.Go(func() {
				answer := f.call(at, v, "GET", "/api/x")
				for answer.status != 200 && time.Since(healed) < 15*time.Second {
					time.Sleep(20 * time.Millisecond)
					answer = f.call(at, v, "GET", "/api/x")
				}
				if answer.status != 200 {
					t.Errorf("%s at replica %d, %v after the outage: got %v, want 200", name, i, time.Since(healed), answer)
				}
			})
		}
	}
	mending.Wait()
	took := time.Since(healed)
	replies := slices.Concat(stop(), stopStale())
	count := wantStatuses(t, replies, 200, 503)
	t.Logf("%d calls were answered with 200, %d with 503; all well %v after the outage", count[200], count[503], took.Round(time.Millisecond))
	for _, r := range replies {
		if len(r.cookies) > 0 {
			t.Errorf("an answer of %v sets a cookie: %v", r, r.cookies)
		}
		if r.status == 503 && r.code != "store_unavailable" {
			t.Errorf("got %v, want store_unavailable", r)
		}
	}
	if count[503] == 0 {
		t.Error("nobody noticed the outage")
	}
	f.wantRefreshes(t, 1)
	f.wantAlive(t, stale)
}

func TestAnOutageOfRedisSignsNobodyOut(t *testing.T) {
	testenv.Slow(t)
	// Longer than an operation's time-out; the long ones are longer than the lease too.
	const outage, long = 3 * time.Second, leaseTTL + 2*time.Second
	for name, test := range map[string]struct {
		outage time.Duration
		fail   func(s *storetest.Server, p *storetest.Proxy)
		heal   func(s *storetest.Server, p *storetest.Proxy)
	}{
		"killed":                    {outage, func(s *storetest.Server, _ *storetest.Proxy) { s.Kill() }, func(s *storetest.Server, _ *storetest.Proxy) { s.Start() }},
		"killed for long":           {long, func(s *storetest.Server, _ *storetest.Proxy) { s.Kill() }, func(s *storetest.Server, _ *storetest.Proxy) { s.Start() }},
		"frozen":                    {outage, func(s *storetest.Server, _ *storetest.Proxy) { s.Freeze() }, func(s *storetest.Server, _ *storetest.Proxy) { s.Thaw() }},
		"nothing passes":            {outage, func(_ *storetest.Server, p *storetest.Proxy) { p.Hang() }, func(_ *storetest.Server, p *storetest.Proxy) { p.Heal() }},
		"nothing passes for long":   {long, func(_ *storetest.Server, p *storetest.Proxy) { p.Hang() }, func(_ *storetest.Server, p *storetest.Proxy) { p.Heal() }},
		"connections are cut":       {outage, func(_ *storetest.Server, p *storetest.Proxy) { p.Cut() }, func(_ *storetest.Server, p *storetest.Proxy) { p.Heal() }},
		"answers are lost":          {outage, func(_ *storetest.Server, p *storetest.Proxy) { p.DropAnswers() }, func(_ *storetest.Server, p *storetest.Proxy) { p.Heal() }},
		"answers are lost for long": {long, func(_ *storetest.Server, p *storetest.Proxy) { p.DropAnswers() }, func(_ *storetest.Server, p *storetest.Proxy) { p.Heal() }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := storetest.StartRedis(t)
			proxy := storetest.StartProxy(t, server.Addr())
			storeURL := "redis://" + proxy.Addr() + "/0"
			f := startFleet(t, nil, storeURL, storeURL)
			f.outlives(t, test.outage, func(*visitor) { test.fail(server, proxy) }, func() { test.heal(server, proxy) })
		})
	}
}

// A replica that alone is cut off from Redis while it refreshes, for less than its lease, is not overtaken by the others.
func TestAReplicaCutOffForLessThanItsLeaseKeepsIt(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	server := storetest.StartRedis(t)
	proxy := storetest.StartProxy(t, server.Addr())
	f := startFleet(t, nil, "redis://"+proxy.Addr()+"/0", server.URL())
	v := f.expired(t)
	processed, release := f.hold()
	atA := f.start(v, 1, f.replicas[0])
	await(t, processed, "the refresh is processed")
	atB := f.start(v, 5, f.replicas[1])
	proxy.Hang()
	release()
	time.Sleep(leaseTTL / 2)
	proxy.Heal()
	wantStatuses(t, atB(), 200)
	wantStatuses(t, atA(), 200, 503)
	f.wantRefreshes(t, 1)
	f.wantAlive(t, v)
}

// Without announcements (here the Redis user may not ask for them) everything is slower, but nothing is lost.
func TestTokensAreRefreshedWhereRedisAnnouncesNothing(t *testing.T) {
	t.Parallel()
	redis := storetest.StartRedis(t)
	if got := redis.Do("ACL", "SETUSER", "default", "-client|tracking"); got != "+OK" {
		t.Fatal(got)
	}
	f := startFleet(t, nil, redis.URL(), redis.URL())
	v := f.expired(t)
	replies := f.start(v, 20, f.replicas...)()
	wantStatuses(t, replies, 200)
	f.wantRefreshes(t, 1)
	if took, limit := slowest(replies), 2*leaseTTL; took > limit {
		t.Errorf("the slowest call took %v, want no more than %v", took, limit)
	}
	f.wantAlive(t, v)
}

func TestTheLeaseOutlastsASlowProvider(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	redis := storetest.StartRedis(t)
	f := startFleet(t, map[string]string{"OIDC_WAIT": "20s"}, redis.URL(), redis.URL())
	v := f.expired(t)
	const providerTakes = leaseTTL + 2*time.Second
	f.answersAfter(providerTakes)
	replies := f.start(v, 20, f.replicas...)()
	wantStatuses(t, replies, 200)
	f.wantRefreshes(t, 1)
	if took := slowest(replies); took > providerTakes+leaseTTL {
		t.Errorf("the slowest call took %v of which the provider took %v", took, providerTakes)
	}
	f.provider.Behave()
	f.wantAlive(t, v)
}

func TestALostAnswer(t *testing.T) {
	testenv.Slow(t)
	for name, test := range map[string]struct {
		grace time.Duration
		lost  int
		then  func(t *testing.T, f *fleet, v *visitor, replies []reply)
	}{
		"is asked for again within the provider's grace": {time.Minute, 1, func(t *testing.T, f *fleet, v *visitor, replies []reply) {
			wantStatuses(t, replies, 200)
			f.wantRefreshes(t, 2)
			f.wantAlive(t, v)
		}},
		"twice is an outage that passes": {time.Minute, 2, func(t *testing.T, f *fleet, v *visitor, replies []reply) {
			wantStatuses(t, replies, 503, 200) // another replica may have tried a third time
			for _, at := range f.replicas {
				eventually(t, 20*time.Second, "the pause after the failure ends", func() bool { return f.call(at, v, "POST", "/bff/session/refresh").status == 200 })
			}
			f.wantAlive(t, v)
			if n := f.provider.Reuses(); n != 0 {
				t.Errorf("%d reuses, want 0", n)
			}
		}},
		"ends the session where the provider takes it for a theft": {0, 1, func(t *testing.T, f *fleet, v *visitor, replies []reply) {
			wantStatuses(t, replies, 401)
			f.wantEnded(t, v)
			if n := f.provider.LiveRefreshTokens(); n != 0 {
				t.Errorf("%d refresh tokens are good, want 0", n)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			redis := storetest.StartRedis(t)
			f := startFleet(t, nil, redis.URL(), redis.URL(), redis.URL())
			f.provider.SetRefreshGrace(test.grace)
			v := f.expired(t)
			f.losesAnswers(test.lost)
			test.then(t, f, v, f.start(v, 60, f.replicas...)())
		})
	}
}

func TestTheTokenIsSavedThoughItsClientHasLeft(t *testing.T) {
	t.Parallel()
	redis := storetest.StartRedis(t)
	f := startFleet(t, nil, redis.URL(), redis.URL())
	v := f.expired(t)
	processed, release := f.hold()
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan reply)
	go func() { left <- f.callUntil(ctx, f.replicas[0], v, "GET", "/api/x") }()
	await(t, processed, "the refresh is processed")
	leave()
	if answer := <-left; answer.err == nil {
		t.Errorf("got %v before anybody left", answer)
	}
	waiting := f.start(v, 1, f.replicas[1])
	release()
	wantStatuses(t, waiting(), 200)
	f.wantRefreshes(t, 1)
	f.wantAlive(t, v)
}

func TestAReplicaThatIsToldToStopSavesTheTokenFirst(t *testing.T) {
	t.Parallel()
	redis := storetest.StartRedis(t)
	f := startFleet(t, nil, redis.URL(), redis.URL())
	v := f.expired(t)
	processed, release := f.hold()
	holder := f.replicas[0]
	waiting := f.start(v, 1, holder)
	await(t, processed, "the refresh is processed")
	holder.terminate()
	eventually(t, 20*time.Second, "it shuts down", func() bool { return strings.Contains(holder.stderr.String(), "shutting down") })
	release()
	wantStatuses(t, waiting(), 200)
	await(t, holder.ended, "it has ended")
	f.wantRefreshes(t, 1)
	if got := f.call(f.replicas[1], v, "GET", "/api/x"); got.status != 200 {
		t.Errorf("at the other replica: got %v, want 200", got)
	}
}

func TestAReplicaThatIsKilledInMidRefreshDelaysOthersByItsLease(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	redis := storetest.StartRedis(t)
	f := startFleet(t, nil, redis.URL(), redis.URL())
	f.provider.SetRefreshGrace(time.Minute)
	v := f.expired(t)
	processed, release := f.hold()
	lost := f.start(v, 1, f.replicas[0])
	await(t, processed, "the refresh is processed")
	waiting := f.start(v, 20, f.replicas[1])
	f.replicas[0].kill()
	killed := time.Now()
	release()
	if got := lost()[0]; got.err == nil {
		t.Errorf("the replica that was killed answered %v", got)
	}
	wantStatuses(t, waiting(), 200)
	took := time.Since(killed)
	t.Logf("answered %v after the kill", took.Round(time.Millisecond))
	if limit := 2 * leaseTTL; took > limit {
		t.Errorf("answered %v after the kill, want no more than %v", took, limit)
	}
	f.wantRefreshes(t, 2) // the second got what the first should have got
	f.wantAlive(t, v)
}

func TestASessionThatEndsDuringARefreshElsewhereStaysEnded(t *testing.T) {
	testenv.Slow(t)
	for name, test := range map[string]struct {
		env map[string]string
		end func(t *testing.T, f *fleet, at *replica, v *visitor)
	}{
		"by logout": {nil, func(t *testing.T, f *fleet, at *replica, v *visitor) {
			if got := f.call(at, v, "POST", "/bff/logout"); got.status != 200 {
				t.Errorf("logout: got %v, want 200", got)
			}
		}},
		"by back-channel logout": {nil, func(t *testing.T, f *fleet, at *replica, v *visitor) {
			for sid := range f.provider.Stats().LiveRefreshTokens { // there is one
				token, err := f.provider.LogoutToken(f.provider.Client.ID, "alice", sid)
				if err != nil {
					t.Fatal(err)
				}
				resp, err := f.client.PostForm("http://"+at.addr+"/bff/backchannel-logout", url.Values{"logout_token": {token}})
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				if resp.StatusCode != 200 {
					t.Errorf("back-channel logout: got %d, want 200", resp.StatusCode)
				}
			}
		}},
		"by idling": {map[string]string{"SESSION_IDLE_TIMEOUT": "4s"}, func(t *testing.T, f *fleet, at *replica, v *visitor) {
			eventually(t, 20*time.Second, "the session ends", func() bool { return !f.knows(at, v) })
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			redis := storetest.StartRedis(t)
			f := startFleet(t, test.env, redis.URL(), redis.URL(), redis.URL())
			v := f.expired(t)
			processed, release := f.hold()
			waiting := f.start(v, 1, f.replicas[0])
			await(t, processed, "the refresh is processed")
			test.end(t, f, f.replicas[1], v)
			release()
			wantStatuses(t, waiting(), 401)
			f.wantEnded(t, v)
			eventually(t, 20*time.Second, "the new refresh token is given back", func() bool { return f.provider.LiveRefreshTokens() == 0 })
			if record := redis.Do("EXISTS", v.recordKey()); record != ":0" {
				t.Errorf("the session's record is in Redis: %s", record)
			}
		})
	}
}

func TestTheRefreshAfterAnUnusualAnswerWorksElsewhere(t *testing.T) {
	t.Parallel()
	redis := storetest.StartRedis(t)
	f := startFleet(t, nil, redis.URL(), redis.URL())
	for _, fault := range brokertest.RefreshOddities {
		t.Run(fault.Name, func(t *testing.T) {
			v := f.signIn(t, devidp.Hooks{})
			f.provider.Misbehave(t, fault)
			f.wantAlive(t, v)
			f.provider.Behave()
			f.wantAlive(t, v)
			if n := f.provider.Reuses(); n != 0 {
				t.Errorf("%d reuses, want 0", n)
			}
		})
	}
}

func TestAClockThatIsAMinuteOff(t *testing.T) {
	t.Parallel()
	redis := storetest.StartRedis(t)
	f := startFleet(t, nil, redis.URL(), redis.URL())
	for name, off := range map[string]time.Duration{"ahead": time.Minute, "behind": -time.Minute} {
		t.Run(name, func(t *testing.T) {
			shift := func(_, claims map[string]any) {
				for _, name := range []string{"iat", "nbf", "exp", "auth_time"} {
					if at, ok := claims[name].(int64); ok {
						claims[name] = at + int64(off/time.Second)
					}
				}
			}
			hooks := devidp.Hooks{EditIDToken: shift, EditAccessToken: shift}
			v := f.signIn(t, hooks)
			f.provider.SetHooks(hooks)
			defer f.provider.Behave()
			f.wantAlive(t, v)
		})
	}
}
