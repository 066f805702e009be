package bff_test

import (
	"crypto/rand"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/oidc"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// workload is what runs beside the broker and gives it client assertions in a
// file.
type workload struct {
	t      *testing.T
	file   string
	signer jose.Signer
	issuer string
}

// newWorkload returns an app that authenticates with the file, and what writes
// that.
func newWorkload(t *testing.T) (*app, *workload) {
	t.Helper()
	key := ecKey(t)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	w := &workload{t: t, file: filepath.Join(t.TempDir(), "token"), signer: signer, issuer: "https://id.example"}
	w.write(time.Now().Add(time.Minute))
	provider, _ := withKeys(key)
	a := newAppWith(t, provider, func(a *app, cfg *bff.Config) {
		w.issuer = cfg.Provider.Issuer
		cfg.Provider.ClientSecret, cfg.Provider.Wait = "", 200*time.Millisecond
		cfg.Provider.ClientAuth, cfg.Provider.ClientAssertionFile = oidc.JWTFile, w.file
	})
	w.write(time.Now().Add(time.Minute))
	return a, w
}

// write replaces the file by an assertion that the provider accepts once.
func (w *workload) write(expiry time.Time) {
	w.t.Helper()
	text, err := jwt.Signed(w.signer).Claims(map[string]any{
		"iss": "spa", "sub": "spa", "aud": w.issuer, "jti": rand.Text(), "exp": expiry.Unix(),
	}).Serialize()
	if err != nil {
		w.t.Fatal(err)
	}
	w.set(text + "\n")
}

func (w *workload) set(text string) {
	w.t.Helper()
	next := w.file + ".next"
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(next, w.file); err != nil {
		w.t.Fatal(err)
	}
}

// replaceByFolder replaces the file by a folder, until it is written again.
func (w *workload) replaceByFolder() {
	w.t.Helper()
	os.Remove(w.file)
	if err := os.Mkdir(w.file, 0o700); err != nil {
		w.t.Fatal(err)
	}
}

// TestClientAssertionFile checks that each request has the assertion that is in
// the file then: the provider accepts none twice.
func TestClientAssertionFile(t *testing.T) {
	t.Parallel()
	a, w := newWorkload(t)
	c := a.recordCalls(devidp.Hooks{Intercept: func(rw http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.PostForm.Has("client_assertion") {
			w.write(time.Now().Add(time.Minute))
		}
		next.ServeHTTP(rw, r)
	}})
	checkLifecycle(t, a)
	for _, path := range []string{"/par", "/token", "/revoke"} {
		if len(c.to(path)) == 0 {
			t.Errorf("no request to %s", path)
		}
		for _, call := range c.to(path) {
			if got := call.form.Get("client_id"); got != "spa" {
				t.Errorf("%s: client_id: got %q, want spa", path, got)
			}
			want := "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
			if got := call.form.Get("client_assertion_type"); got != want {
				t.Errorf("%s: client_assertion_type: got %q, want %q", path, got, want)
			}
			if call.header.Get("Authorization") != "" {
				t.Errorf("%s: the client authenticates twice", path)
			}
		}
	}
}

// TestClientAssertionFileIsOfNoUse checks that no user is signed out while the
// file has no assertion that is valid, that the log says what is wrong without
// quoting the file, and that the next assertion is used.
func TestClientAssertionFileIsOfNoUse(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		spoil func(w *workload)
		want  string // in the log
	}{
		"missing":       {func(w *workload) { os.Remove(w.file) }, "no such file"},
		"empty":         {func(w *workload) { w.set("") }, "has no signed JWT"},
		"another file":  {func(w *workload) { w.set("topsecret") }, "has no signed JWT"},
		"too long":      {func(w *workload) { w.set(strings.Repeat("topsecret", 200_000)) }, "more than 1 MiB"},
		"a folder":      {(*workload).replaceByFolder, "is not a regular file"},
		"expired":       {func(w *workload) { w.write(time.Now().Add(-time.Hour)) }, "must renew it"},
		"not its claim": {func(w *workload) { w.set("eyJhbGciOiJFUzI1NiJ9.W10.AAAA") }, "has no valid claims"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, w := newWorkload(t)
			a.recordCalls(devidp.Hooks{Intercept: func(rw http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.PostForm.Has("client_assertion") {
					w.write(time.Now().Add(time.Minute))
				}
				next.ServeHTTP(rw, r)
			}})
			b := a.signedIn()
			test.spoil(w)
			if got := b.Fetch("POST", "/bff/session/refresh").StatusCode; got != 503 {
				t.Errorf("refresh: got %d, want 503", got)
			}
			if got := a.browser().Navigate("/bff/login").StatusCode; got != 503 {
				t.Errorf("login: got %d, want 503", got)
			}
			if got := b.Fetch("GET", "/api/x").StatusCode; got != 200 {
				t.Errorf("API call: got %d, want 200", got)
			}
			if logs := a.logs.String(); !strings.Contains(logs, test.want) || strings.Contains(logs, "topsecret") {
				t.Errorf("the log: got %s, want one with %q and without the content", logs, test.want)
			}
			os.Remove(w.file) // rename does not replace a folder
			w.write(time.Now().Add(time.Minute))
			waitFor(t, "the next assertion is used", func() bool {
				return b.Fetch("POST", "/bff/session/refresh").StatusCode == 200
			})
		})
	}
}
