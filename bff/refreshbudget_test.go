package bff_test

import (
	"bytes"
	"encoding/base64"
	"net/http"
	"strings"
	"testing"
)

// The last character of a cookie has unused bits, so it has several spellings.
// They share the limit of forced refreshes.
func TestRefreshLimitIgnoresCookieSpelling(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	cookie := a.sessionCookie(a.signedIn())
	sealed, err := base64.URLEncoding.DecodeString(cookie.Value)
	if err != nil {
		t.Fatal(err)
	}
	bare := strings.TrimRight(cookie.Value, "=")
	padding := cookie.Value[len(bare):]
	spellings, refreshed := 0, 0
	for _, last := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_" {
		value := bare[:len(bare)-1] + string(last) + padding
		if other, err := base64.URLEncoding.DecodeString(value); err != nil || !bytes.Equal(other, sealed) {
			continue
		}
		spellings++
		for {
			req, err := http.NewRequest("POST", a.url+"/bff/session/refresh", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("X-CSRF", "1")
			req.Header.Set("Cookie", cookie.Name+"="+value)
			resp, err := httpClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode == 429 {
				break
			}
			refreshed++
		}
	}
	if spellings < 2 {
		t.Fatalf("%d spellings of the cookie, want several to test", spellings)
	}
	// After the burst of 5 there is one refresh per 2 seconds. A slow machine
	// may use some of them.
	if refreshed >= 5*spellings {
		t.Errorf("%d forced refreshes with %d spellings of the cookie, want 5", refreshed, spellings)
	}
}

// Without a session, and while the store is down, there is nothing to limit.
func TestRefreshLimitIsOfSessions(t *testing.T) {
	t.Parallel()
	store := new(readOnlyStore)
	a := newApp(t, store.wrap)
	b := a.signedIn()
	cookie := a.sessionCookie(b)
	refresh := func(status int, code string) {
		t.Helper()
		for range 10 {
			resp := a.browser().Fetch("POST", "/bff/session/refresh", "Cookie", cookie.Name+"="+cookie.Value)
			wantProblem(t, resp, status, code)
		}
	}
	store.down.Store(true)
	refresh(503, "store_unavailable")
	store.down.Store(false)
	wantOK(t, b.Fetch("POST", "/bff/session/refresh"))
	wantOK(t, b.Fetch("POST", "/bff/logout"))
	refresh(401, "not_signed_in")
}
