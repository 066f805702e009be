package devtools

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/pagetext"
	"github.com/cloakroom-bff/cloakroom/session"
)

func TestViolationsComeWithASetting(t *testing.T) {
	const cdn = "https://cdn.example.com"
	for name, test := range map[string]struct{ directive, blocked, setting, advice string }{
		"an image":         {"img-src", cdn, "img-src: [" + cdn + "]", "allow the origin"},
		"a script element": {"script-src-elem", cdn, "script-src: [" + cdn + "]", "another origin"},
		"a call":           {"connect-src", cdn, "connect-src: [" + cdn + "]", "a route"},
		"a data URL":       {"font-src", "data", `font-src: ["data:"]`, "data:"},
		"WebAssembly":      {"script-src", "wasm-eval", `script-src: ["'wasm-unsafe-eval'"]`, "WebAssembly"},
		"eval":             {"script-src", "eval", "", "source-map"},
		"an inline script": {"script-src-elem", "inline", "", "by their hash"},
		"a handler":        {"script-src-attr", "inline", "", "addEventListener"},
		"hot reload":       {"connect-src", "ws://localhost:5173", "", "hot reload"},
		"an API":           {"connect-src", "ws://localhost:3000", "", "--api /api=http://localhost:3000"},
		"an API by fetch":  {"connect-src", "http://localhost:3000", "", "--api /api=http://localhost:3000"},
		"a frame":          {"frame-ancestors", cdn, "", "for safety"},
		"nonsense":         {"", "\x00%zz", "", "does not allow"},
	} {
		advice, setting := advise(test.directive, test.blocked)
		if setting != test.setting {
			t.Errorf("%s: setting: got %q, want %q", name, setting, test.setting)
		}
		if got := fmt.Sprintf(advice.Key, advice.Args...); !strings.Contains(got, test.advice) {
			t.Errorf("%s: advice: got %q, want %q in it", name, got, test.advice)
		}
		checkGerman(t, advice)
	}
}

// checkGerman checks that a text has German with the same arguments.
func checkGerman(t *testing.T, text pagetext.Text) {
	t.Helper()
	if got := german[text.Key]; got == "" || strings.Count(got, "%s") != len(text.Args) {
		t.Errorf("%q: got the German text %q, want one with %d arguments", text.Key, got, len(text.Args))
	}
}

func TestNoticesAndTokensHaveGerman(t *testing.T) {
	for _, n := range notices {
		checkGerman(t, n.Text)
	}
	s := &session.Session{}
	s.Tokens.ID = "x"
	s.Tokens.Others = map[string]session.Tokens{"https://api.example": {}}
	for _, token := range viewSession(s).Tokens {
		checkGerman(t, token.Name)
	}
	for _, e := range []bff.Event{
		{Kind: bff.EventKind(session.SessionRefreshed)},
		{Kind: bff.EventKind(session.SessionEnded), Reason: "logout"},
	} {
		tools := New(Config{})
		tools.Observe(t.Context(), e)
		var p page
		tools.addHistory(&p)
		checkGerman(t, p.Refreshes[0].Outcome)
	}
}

func TestRepeatedFailuresAreLoggedOnce(t *testing.T) {
	var out bytes.Buffer
	tools := New(Config{Prefix: "/bff", Routes: []Route{{Path: "/api/"}}})
	log := slog.New(tools.LogHandler(slog.NewTextHandler(&out, nil)))
	for range 10 {
		log.Warn("request", "path", "/", "err", "connection refused")
		log.Info("request", "path", "/api/x", "route", "/api/", "status", 200)
	}
	log.Warn("request", "path", "/", "err", "another error")
	log.Warn("something else")
	if got := strings.Count(out.String(), "\n"); got != 3 {
		t.Errorf("lines: got %d, want 3:\n%s", got, out.String())
	}
	if got := len(tools.requests.latest()); got != 21 {
		t.Errorf("requests for the page: got %d, want 21", got)
	}
	s := seenErrors{at: make(map[string]time.Time)}
	for i := range 3 * maxSeenErrors {
		s.first(strings.Repeat("x", i), time.Now())
	}
	if got := len(s.at); got > maxSeenErrors {
		t.Errorf("texts kept: got %d, want at most %d", got, maxSeenErrors)
	}
}

func TestTokenIsShownWithoutItsSignature(t *testing.T) {
	v := viewToken(pagetext.Plain("Access token"), "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl")
	if want := "{\n  \"sub\": \"alice\"\n}"; v.Claims != want {
		t.Errorf("claims: got %q, want %q", v.Claims, want)
	}
	for _, token := range []string{"", "opaque", "a.b", "a.b.c", "..", "a.b.c.d", "%%.%%.%%", "bnVsbA.W10.x"} {
		if v := viewToken(pagetext.Plain("x"), session.Secret(token)); strings.Contains(v.Claims+v.Header, ".") {
			t.Errorf("%q: got %+v, want no part of it", token, v)
		}
	}
}
