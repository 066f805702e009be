package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/redistest"
)

// tokenEndpoint is the provider's token endpoint. It fails on demand, and
// records what happens to every refresh token. The provider rotates them
// without a grace period.
type tokenEndpoint struct {
	provider *brokertest.Provider
	fail     func(format string, args ...any)
	fault    atomic.Pointer[injectedFault] // nil: none
	faulted  atomic.Int64                  // responses with a fault
	serial   bool                          // process one request at a time, and check all tokens after each

	mu        sync.Mutex        // guards all below
	grants    map[string]*grant // by sid
	byCode    map[string]*grant // by authorization code
	byRefresh map[string]*grant // by refresh token
}

// grant is what the provider knows of one sign-in.
type grant struct {
	sid         string
	rotations   int       // of its refresh token
	lost        int       // rotations whose response was lost or truncated
	reuses      int       // of a rotated refresh token
	lastRotated time.Time // of the last rotation
	refused     int       // refreshes
}

func (g *grant) String() string {
	return fmt.Sprintf("%d rotations (last %s), %d responses lost, %d reuses, %d refreshes refused",
		g.rotations, g.lastRotated.Format(clockFormat), g.lost, g.reuses, g.refused)
}

// tokenFault is a fault of a response of the token endpoint.
type tokenFault string

const (
	fault500          tokenFault = "500"
	fault429          tokenFault = "429"
	faultHTML         tokenFault = "html"
	faultSlow         tokenFault = "slow"         // the response comes when the fault is over
	faultRequestLost  tokenFault = "request lost" // the connection is closed, nothing is processed
	faultResponseLost tokenFault = "response lost"
	faultTruncated    tokenFault = "truncated"
)

// injectedFault is a fault that a share of the requests have.
type injectedFault struct {
	kind  tokenFault
	share float64
	over  chan struct{}
}

func newTokenEndpoint(p *brokertest.Provider, fail func(format string, args ...any)) *tokenEndpoint {
	e := &tokenEndpoint{
		provider: p, fail: fail,
		grants: make(map[string]*grant), byCode: make(map[string]*grant), byRefresh: make(map[string]*grant),
	}
	p.SetHooks(devidp.Hooks{
		Intercept: e.serve,
		EditTokenResponse: func(_ string, status int, body map[string]any) {
			// Some tokens live longer than a cached session. Otherwise each
			// session is read for its next refresh before it is out of date.
			if status == http.StatusOK && e.serial && rand.IntN(4) == 0 {
				body["expires_in"] = 8
			}
		},
	})
	return e
}

// inject gives a share of the requests a fault for some time.
func (e *tokenEndpoint) inject(ctx context.Context, kind tokenFault, share float64, d time.Duration) {
	f := &injectedFault{kind, share, make(chan struct{})}
	e.fault.Store(f)
	sleep(ctx, d)
	e.fault.Store(nil)
	close(f.over)
}

func (e *tokenEndpoint) serve(w http.ResponseWriter, r *http.Request, provider http.Handler) {
	if !strings.HasSuffix(r.URL.Path, "/token") {
		provider.ServeHTTP(w, r)
		return
	}
	var kind tokenFault
	if f := e.fault.Load(); f != nil && rand.Float64() < f.share {
		kind = f.kind
		e.faulted.Add(1)
		if kind == faultSlow {
			<-f.over
		}
	}
	switch kind {
	case fault500:
		http.Error(w, "oops", http.StatusInternalServerError)
		return
	case fault429:
		w.Header().Set("Retry-After", "1")
		http.Error(w, `{"error":"slow_down"}`, http.StatusTooManyRequests)
		return
	case faultHTML:
		io.WriteString(w, "<html>Log in to the Wi-Fi</html>")
		return
	case faultRequestLost:
		panic(http.ErrAbortHandler)
	}
	resp := e.process(r, provider, kind == faultResponseLost || kind == faultTruncated)
	if e.serial {
		time.Sleep(rand.N(60 * time.Millisecond)) // most likely to lose a rotated token
	}
	body := resp.Body.Bytes()
	switch kind {
	case faultResponseLost:
		panic(http.ErrAbortHandler)
	case faultTruncated:
		body = body[:len(body)/2]
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(resp.Code)
	w.Write(body)
}

// process makes the provider process a token request, and records the result.
func (e *tokenEndpoint) process(r *http.Request, provider http.Handler, lost bool) *httptest.ResponseRecorder {
	var before, after devidp.Stats
	resp := httptest.NewRecorder()
	if e.serial {
		e.mu.Lock()
		before = e.provider.Stats()
		provider.ServeHTTP(resp, r)
		after = e.provider.Stats()
	} else {
		provider.ServeHTTP(resp, r)
		e.mu.Lock()
	}
	defer e.mu.Unlock()
	var tokens struct {
		Refresh string `json:"refresh_token"`
		ID      string `json:"id_token"`
	}
	json.Unmarshal(resp.Body.Bytes(), &tokens)
	old := r.PostForm.Get("refresh_token")
	g := e.byRefresh[old]
	switch {
	case r.Method != http.MethodPost: // the circuit breaker probes the endpoint with GET
	case resp.Code == http.StatusOK && old == "":
		g = &grant{sid: parseClaims(tokens.ID).SID}
		e.grants[g.sid], e.byCode[r.PostForm.Get("code")], e.byRefresh[tokens.Refresh] = g, g, g
	case g == nil:
		e.fail("token request that is refused or has an unknown refresh token: got %d", resp.Code)
	case resp.Code == http.StatusOK:
		g.rotations++
		g.lastRotated = time.Now()
		if lost {
			g.lost++
		}
		e.byRefresh[tokens.Refresh] = g
	default:
		g.refused++
		g.reuses += after.Reuses - before.Reuses
	}
	for sid, n := range after.LiveRefreshTokens {
		if n > 1 {
			e.fail("valid refresh tokens of sid %s: got %d, want at most 1", sid, n)
		}
	}
	return resp
}

// sidOf returns the session at the provider for which a code was redeemed.
func (e *tokenEndpoint) sidOf(code string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if g := e.byCode[code]; g != nil {
		return g.sid
	}
	return ""
}

type tokenClaims struct {
	Sub string `json:"sub"`
	SID string `json:"sid"`
}

// parseClaims returns the claims of a JWT, and none if it is not one.
func parseClaims(jwt string) (claims tokenClaims) {
	if parts := strings.Split(jwt, "."); len(parts) == 3 {
		if payload, err := base64.RawURLEncoding.DecodeString(parts[1]); err == nil {
			json.Unmarshal(payload, &claims)
		}
	}
	return claims
}

// findKeys counts the keys in Redis, and lists those that do not expire or do
// not have the broker's prefix.
const findKeys = `
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

var foundKeys = regexp.MustCompile(`keys=(\d+) wrong=(.*)`)

// checkKeys checks that every key in Redis expires and has the broker's prefix.
func (s *soak) checkKeys(redis *redistest.Server) {
	reply := redis.Do("EVAL", findKeys, "0")
	if m := foundKeys.FindStringSubmatch(reply); m == nil || m[2] != "" {
		s.fail("keys in Redis: got %q, want none that is wrong", reply)
	}
}

// waitForRecovery waits until every replica responds to every session with 200
// or 401, after all faults.
func (s *soak) waitForRecovery() {
	began := time.Now()
	queue := make(chan *soakSession, len(s.sessions))
	for _, x := range s.sessions {
		queue <- x
	}
	close(queue)
	ctx := s.t.Context()
	var workers sync.WaitGroup
	for range soakWorkers {
		workers.Go(func() {
			for x := range queue {
				if s.t.Failed() {
					return
				}
				deadline := time.Now().Add(recoveryLimit)
				for _, at := range s.replicas {
					status := s.request(ctx, at, x, "GET", "/api/x")
					for status != 200 && status != 401 && time.Now().Before(deadline) {
						sleep(ctx, 100*time.Millisecond)
						status = s.request(ctx, at, x, "GET", "/api/x")
					}
					if status != 200 && status != 401 {
						s.fail("call at %s %v after the last fault: got %d, want 200 or 401: %s",
							at.addr, time.Since(began), status, x)
					}
				}
			}
		})
	}
	workers.Wait()
	s.t.Logf("all replicas had recovered after %v", time.Since(began).Round(time.Millisecond))
}

// waitForEnds waits for a 401 to each session without a valid refresh token.
// The provider may have refused its refresh, in the background, after the last
// call. live has the number of valid refresh tokens by sid.
func (s *soak) waitForEnds(live map[string]int) {
	deadline := time.Now().Add(recoveryLimit)
	for _, x := range s.sessions {
		for live[x.sid] == 0 && x.refused.IsZero() && time.Now().Before(deadline) {
			s.request(s.t.Context(), s.replicas[0], x, "GET", "/api/x")
			sleep(s.t.Context(), 10*time.Millisecond)
		}
	}
}

// waitForRevocations waits until no session with a logout has a valid refresh
// token, at most for recoveryLimit. While the provider fails, a logout responds
// before the token is revoked.
func (s *soak) waitForRevocations() {
	for deadline := time.Now().Add(recoveryLimit); time.Now().Before(deadline); {
		live := s.provider.Stats().LiveRefreshTokens
		if !slices.ContainsFunc(s.sessions, func(x *soakSession) bool { return !x.ended.IsZero() && live[x.sid] > 0 }) {
			return
		}
		sleep(s.t.Context(), 50*time.Millisecond)
	}
}

// checkEnds checks that every session that ended had a cause, and that those
// with a logout have ended.
func (s *soak) checkEnds() {
	s.waitForRevocations()
	stats := s.provider.Stats()
	s.waitForEnds(stats.LiveRefreshTokens)
	saved := s.savedRefreshes()
	e := s.endpoint
	e.mu.Lock()
	defer e.mu.Unlock()
	ids := make(map[string]string) // session IDs by sid
	for _, x := range s.sessions {
		g := e.grants[x.sid]
		if g == nil {
			s.fail("sid unknown to the provider: %s", x)
			continue
		}
		ids[x.sid] = x.id
		valid := stats.LiveRefreshTokens[x.sid]
		cause := s.cause(g, saved[x.id])
		switch {
		case !x.ended.IsZero():
			s.count("ended by logout", 1)
			if x.refused.IsZero() {
				s.fail("no 401 after the logout: %s", x)
			}
			if valid > 0 {
				s.fail("valid refresh tokens after the logout: got %d, want 0: %s", valid, x)
			}
		case x.refused.IsZero():
			s.count("active at the end", 1)
			if valid != 1 {
				s.fail("valid refresh tokens of an active session: got %d, want 1: %s", valid, x)
			}
		case x.leaving:
			s.count("ended by a logout without a response", 1)
		case g.refused > 0 && cause != "":
			s.count("ended by "+cause, 1)
		default:
			s.fail("session ended without a cause (%d refreshes saved, %s): %s", saved[x.id], g, x)
		}
	}
	reuses := 0
	for sid, g := range e.grants {
		reuses += g.reuses
		if g.reuses > 0 && s.cause(g, saved[ids[sid]]) == "" {
			s.fail("refresh token of session %s reused without a cause (%d refreshes saved, %s)",
				ids[sid], saved[ids[sid]], g)
		}
	}
	// Not in stats: a refresh in the background may have been refused since.
	if got := s.provider.Stats().Reuses; got != reuses {
		s.fail("reuses of refresh tokens at the provider: got %d, want %d", got, reuses)
	}
	s.count("reuses", reuses)
}

// cause returns why a session may have lost its refresh token, or "".
func (s *soak) cause(g *grant, saved int) string {
	if g.lost > 0 {
		return "a lost response"
	}
	killed := slices.ContainsFunc(s.kills, func(at time.Time) bool {
		return g.lastRotated.After(at.Add(-5*time.Second)) && g.lastRotated.Before(at.Add(2*time.Second))
	})
	if g.rotations > saved && killed {
		return "a kill during a refresh"
	}
	return ""
}

// savedRefreshes returns the number of refreshes that the replicas logged as
// saved, by session ID.
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

// report checks that no response contained a token, and logs what was counted.
func (s *soak) report() {
	s.provider.CheckLeaks(s.t, "responses", strings.Join(slices.Collect(maps.Keys(s.words)), " "))
	for _, what := range slices.Sorted(maps.Keys(s.counts)) {
		s.t.Logf("%7d %s", s.counts[what], what)
	}
	s.t.Logf("%d refreshes; slowest response %v; last accepted call %v after its logout; %d violations",
		s.provider.Refreshes(), s.slowest.Round(time.Millisecond), s.latest.Round(time.Millisecond), s.failures)
}
