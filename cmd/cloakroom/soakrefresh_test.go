//go:build soak

package main

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// refreshRecord records the refreshes at the provider, and can hold them.
//
// If a replica is killed while the response to a refresh is on its way, the
// rotated refresh token is lost, and no broker can keep that session. So a test
// that kills a replica holds refreshes, waits until all tokens that were issued
// are saved, and kills then. All sessions must survive that.
type refreshRecord struct {
	l    *rolling
	from map[*replica]int // length of the log of a replica when the record began

	mu     sync.Mutex     // guards all below
	issued map[string]int // :: user → refreshes that the provider has processed
	held   chan struct{}  // closed by release; nil: refreshes are processed at once
	n      int            // refreshes that were held, of killed replicas too
}

// recordRefreshes records all refreshes from now on.
func (l *rolling) recordRefreshes() *refreshRecord {
	c := &refreshRecord{l: l, from: make(map[*replica]int), issued: make(map[string]int)}
	for _, r := range l.replicas {
		c.from[r] = len(r.stderr.String())
	}
	hooks := cheapTokens
	hooks.Intercept = c.serve
	l.provider.SetHooks(hooks)
	return c
}

func (c *refreshRecord) serve(w http.ResponseWriter, r *http.Request, provider http.Handler) {
	if !strings.HasSuffix(r.URL.Path, "/token") || r.PostFormValue("grant_type") != "refresh_token" {
		provider.ServeHTTP(w, r)
		return
	}
	c.mu.Lock()
	held := c.held
	if held != nil {
		c.n++
	}
	c.mu.Unlock()
	if held != nil {
		<-held
		if r.Context().Err() != nil {
			panic(http.ErrAbortHandler) // the replica has been killed
		}
	}
	resp := httptest.NewRecorder()
	provider.ServeHTTP(resp, r)
	var tokens struct {
		Access string `json:"access_token"`
	}
	json.Unmarshal(resp.Body.Bytes(), &tokens)
	if resp.Code == http.StatusOK {
		c.mu.Lock()
		c.issued[parseClaims(tokens.Access).Sub]++
		c.mu.Unlock()
	}
	maps.Copy(w.Header(), resp.Header())
	w.WriteHeader(resp.Code)
	w.Write(resp.Body.Bytes())
}

// hold makes the provider process no refresh until release is called, which
// returns how many were held. Those of clients that have gone by then are not
// processed.
func (c *refreshRecord) hold() (release func() int) {
	held := make(chan struct{})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held, c.n = held, 0
	release = sync.OnceValue(func() int {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.held = nil
		close(held)
		return c.n
	})
	c.l.t.Cleanup(func() { release() })
	return release
}

// unsaved returns the users for whom the provider has issued tokens that no
// replica has logged as saved.
func (c *refreshRecord) unsaved() []string {
	c.mu.Lock()
	issued := maps.Clone(c.issued)
	c.mu.Unlock()
	saved := make(map[string]int) // :: Session.ID
	for r := range c.l.backends {
		for line := range strings.Lines(r.stderr.String()[c.from[r]:]) {
			var entry struct{ Msg, Session string }
			if strings.Contains(line, "session refreshed") &&
				json.Unmarshal([]byte(line), &entry) == nil && entry.Msg == "session refreshed" {
				saved[entry.Session]++
			}
		}
	}
	var users []string
	for i, u := range c.l.users {
		if issued[soakUser(i)] > saved[u.id] {
			users = append(users, soakUser(i))
		}
	}
	return users
}

// waitSaved waits until the replicas have saved all tokens that the provider
// has issued.
func (c *refreshRecord) waitSaved(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		users := c.unsaved()
		if len(users) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("tokens of %d users were not saved within 30 s: %.500q", len(users), users)
		}
	}
}
