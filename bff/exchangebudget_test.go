package bff_test

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// Concurrent codes have the same limit as sequential ones.
func TestCodeExchangesInFlightCountAgainstTheLimit(t *testing.T) {
	t.Parallel()
	const burst, callbacks = 3, 12
	a, _ := newLimitedApp(t, burst, nil)
	release := make(chan struct{})
	var exchanges atomic.Int64
	a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, "/token") {
			exchanges.Add(1)
			<-release
		}
		next.ServeHTTP(w, r)
	}})
	var all sync.WaitGroup
	var refused atomic.Int64
	for i := range callbacks {
		b := a.browser()
		login := b.Navigate("/bff/login", "X-Forwarded-For", fmt.Sprintf("203.0.113.%d", i+1)).Location(t).String()
		state := b.Authorize("alice", login).Location(t).Query().Get("state")
		all.Go(func() {
			got := b.Navigate("/bff/callback?"+url.Values{
				"state": {state},
				"code":  {"junk"},
				"iss":   {a.provider.Issuer},
			}.Encode(), "X-Forwarded-For", "198.51.100.1")
			if got.StatusCode == 429 {
				refused.Add(1)
			}
		})
	}
	late := time.AfterFunc(3*time.Second, func() { close(release) }) // the code exchanges time out after 5 seconds
	waitFor(t, "all callbacks are refused or at the provider", func() bool {
		return refused.Load()+exchanges.Load() >= callbacks
	})
	if late.Stop() {
		close(release)
	}
	all.Wait()
	if n := exchanges.Load(); n > burst {
		t.Errorf("%d code exchanges at once, want %d at most", n, burst)
	}
}

// A successful login does not count against the limit.
func TestSuccessfulCodeExchangeIsNotCounted(t *testing.T) {
	t.Parallel()
	a, _ := newLimitedApp(t, 1, nil)
	for i := range 4 {
		b := a.browser()
		login := b.Navigate("/bff/login", "X-Forwarded-For", fmt.Sprintf("203.0.113.%d", i+1)).Location(t).String()
		callback := b.Authorize("alice", login).Location(t).String()
		if got := b.Navigate(callback, "X-Forwarded-For", "198.51.100.1"); got.StatusCode != 303 {
			t.Errorf("sign-in %d: got %d, want 303", i+1, got.StatusCode)
		}
	}
}
