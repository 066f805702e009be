package bff_test

import (
	"bytes"
	"errors"
	"regexp"
	"strconv"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// logging returns a server that logs users in a form, with session keys that
// consist of one letter each.
func logging(form bff.LogUsers, issuer, keys string) (*bff.Server, error) {
	cfg := bff.Config{
		PublicURL: "https://app.example.com", LogUsers: form,
		Provider: bff.ProviderConfig{Issuer: issuer, ClientID: "spa", ClientSecret: "secret"},
		Sessions: session.Config{Store: new(tokenstore.Memory)},
	}
	for _, letter := range keys {
		cfg.Sessions.Keys = append(cfg.Sessions.Keys, bytes.Repeat([]byte(string(letter)), 32))
	}
	return bff.New(cfg)
}

func TestFormOfLoggedUsers(t *testing.T) {
	t.Parallel()
	const issuer = "https://id.example.com"
	user := func(form bff.LogUsers, issuer, keys, subject string) string {
		return must(logging(form, issuer, keys)).User(subject)
	}
	hashed := user("", issuer, "ab", "alice")
	if !regexp.MustCompile(`^[0-9a-f]{16}$`).MatchString(hashed) {
		t.Errorf("the default: got %q, want 16 hexadecimal digits", hashed)
	}
	for what, got := range map[string]string{
		"another replica":          user(bff.UsersHashed, issuer, "ab", "alice"),
		"another key at the end":   user(bff.UsersHashed, issuer, "abc", "alice"),
		"the second key was taken": user(bff.UsersHashed, issuer, "a", "alice"),
	} {
		if got != hashed {
			t.Errorf("%s: got %q, want %q", what, got, hashed)
		}
	}
	for what, got := range map[string]string{
		"another first key": user(bff.UsersHashed, issuer, "ba", "alice"),
		"another issuer":    user(bff.UsersHashed, "https://other.example.com", "ab", "alice"),
		"another user":      user(bff.UsersHashed, issuer, "ab", "bob"),
	} {
		if got == hashed {
			t.Errorf("%s: got the same hash", what)
		}
	}
	if got := user(bff.UsersPlain, issuer, "a", "alice"); got != "alice" {
		t.Errorf("plain: got %q, want alice", got)
	}
	if got := user(bff.UsersOmitted, issuer, "a", "alice"); got != "" {
		t.Errorf("none: got %q, want nothing", got)
	}
	if got := user(bff.UsersHashed, issuer, "a", ""); got != "" {
		t.Errorf("no user: got %q, want nothing", got)
	}

	_, err := logging("all", issuer, "a")
	var mistake *bff.ConfigError
	if !errors.As(err, &mistake) || mistake.Key != "LogUsers" {
		t.Errorf("an unknown form: got %v, want an error for LogUsers", err)
	}
}

// The memory of hashes has a bound.
func TestHashOfLoggedUserSurvivesManyOthers(t *testing.T) {
	t.Parallel()
	server := must(logging(bff.UsersHashed, "https://id.example.com", "a"))
	before := server.User("alice")
	for i := range 25_000 {
		server.User(strconv.Itoa(i))
	}
	if got := server.User("alice"); got != before {
		t.Errorf("got %q, want %q", got, before)
	}
}

// requestLine returns the line of the access log of the request for a path. It
// waits for it, because it is written after the response.
func (a *app) requestLine(path string) (line map[string]any) {
	a.t.Helper()
	waitFor(a.t, "the request for "+path+" is logged", func() bool {
		for _, l := range a.logs.lines(a.t, "request") {
			if l["path"] == path {
				line = l
			}
		}
		return line != nil
	})
	return line
}

func TestRequestLineNamesUser(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	a.signedIn().Fetch("GET", "/api/x")
	if got, want := a.requestLine("/api/x")["user"], a.server.User("alice"); got != want {
		t.Errorf("got user %v, want %q", got, want)
	}
	a.browser().Fetch("GET", "/public/x")
	if got, ok := a.requestLine("/public/x")["user"]; ok {
		t.Errorf("without a session: got user %v, want none", got)
	}
}

func BenchmarkLoggedUser(b *testing.B) {
	server := must(logging(bff.UsersHashed, "https://id.example.com", "a"))
	b.ReportAllocs()
	for b.Loop() {
		server.User("auth0|0123456789abcdef01234567")
	}
}
