package main

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/redistest"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// An outage leaves two lines in the log at INFO, however many sessions are in
// use: one with the cause, and one with the duration. Requests that fail have
// their own lines.
func TestOutageIsTwoLinesForAllSessions(t *testing.T) {
	testenv.Slow(t)
	for name, outage := range map[string]struct {
		store      bool // the outage is one of Redis, not of the provider
		begin      func(f *fleet, store *redistest.Server) (end func())
		down, over string
	}{
		"provider with 503": {false, providerFault(func(w http.ResponseWriter, _ *http.Request, _ <-chan struct{}) {
			http.Error(w, "", http.StatusServiceUnavailable)
		}), "provider unavailable; sessions are kept", "provider recovered"},
		"provider without a response": {false, providerFault(func(_ http.ResponseWriter, _ *http.Request,
			over <-chan struct{}) {
			<-over
			panic(http.ErrAbortHandler)
		}), "provider unavailable; sessions are kept", "provider recovered"},
		"provider that closes connections": {false, providerFault(func(_ http.ResponseWriter, _ *http.Request,
			_ <-chan struct{}) {
			panic(http.ErrAbortHandler)
		}), "provider unavailable; sessions are kept", "provider recovered"},
		"store killed": {true, func(_ *fleet, store *redistest.Server) func() {
			store.Kill()
			return store.Start
		}, "store unavailable; sessions are kept", "store recovered"},
		"store frozen": {true, func(_ *fleet, store *redistest.Server) func() {
			store.Freeze()
			return store.Thaw
		}, "store unavailable; sessions are kept", "store recovered"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// The calls of all subtests are few, so that they cause no
			// timeout, which would be another outage.
			const users = 20
			f := newFleet(t, func(c *devidp.Config) { c.AccessTokenTTL = 4 * time.Second })
			var store *redistest.Server
			storeURL := "memory:"
			if outage.store {
				store = redistest.Start(t, "--maxmemory", "100mb", "--maxmemory-policy", "noeviction",
					"--appendonly", "yes")
				storeURL = store.URL()
			}
			f.startReplicas(map[string]string{"SESSION_REFRESH_AHEAD": "1s"}, storeURL)
			r := f.replicas[0]
			var sessions []*userSession
			for range users {
				sessions = append(sessions, f.signIn(t, "alice", devidp.Hooks{}))
			}
			stop := f.repeat(users, func() time.Duration { return time.Second }, func(i int) response {
				return f.call(r, sessions[i], "GET", "/api/x")
			})
			time.Sleep(2 * time.Second)
			before := len(r.stderr.String())
			end := outage.begin(f, store)
			time.Sleep(10 * time.Second)
			end()
			eventually(t, 30*time.Second, "the outage is over", func() bool {
				return strings.Contains(r.stderr.String()[before:], `"msg":"`+outage.over+`"`)
			})
			time.Sleep(3 * time.Second)
			responses := stop()
			failed := 0
			for _, resp := range responses {
				if resp.status != 200 {
					failed++
				}
			}
			t.Logf("%d of %d requests failed", failed, len(responses))
			lines := make(map[string][]string)
			for line := range strings.Lines(r.stderr.String()[before:]) {
				var l struct{ Level, Msg string }
				if err := json.Unmarshal([]byte(line), &l); err != nil {
					t.Fatalf("not JSON: %s", line)
				}
				switch l.Msg {
				case "request", "session refreshed":
				default:
					lines[l.Msg] = append(lines[l.Msg], line)
				}
			}
			for msg, all := range lines {
				t.Logf("%d × %s\n%s", len(all), msg, strings.Join(all[:min(3, len(all))], ""))
			}
			for _, msg := range []string{outage.down, outage.over} {
				if len(lines[msg]) != 1 {
					t.Errorf("%s: got %d lines, want 1", msg, len(lines[msg]))
				}
				delete(lines, msg)
			}
			if len(lines) > 0 {
				t.Errorf("other messages: got %d, want none", len(lines))
			}
		})
	}
}

// providerFault returns the beginning of an outage in which respond responds to
// all requests to the provider. over is closed at its end.
func providerFault(
	respond func(w http.ResponseWriter, r *http.Request, over <-chan struct{}),
) func(*fleet, *redistest.Server) func() {
	return func(f *fleet, _ *redistest.Server) func() {
		ctx, over := context.WithCancel(f.t.Context())
		f.provider.SetHooks(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			respond(w, r, ctx.Done())
		}})
		return func() {
			f.provider.Behave()
			over()
		}
	}
}
