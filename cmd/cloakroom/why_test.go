package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/session"
)

// why runs the command until its output has all of want: events reach the store
// soon after they happen.
func (f *fleet) why(t *testing.T, file, value string, want ...string) (out string) {
	t.Helper()
	eventually(t, 20*time.Second, "why "+value+" prints "+strings.Join(want, ", "), func() bool {
		var code int
		out, _, code = f.command("why", value, "--config", file)
		return code == 0 && !slices.ContainsFunc(want, func(w string) bool { return !strings.Contains(out, w) })
	})
	return out
}

// What happened at the second replica is told by the first one.
func TestWhyTellsTheLifeOfASession(t *testing.T) {
	t.Parallel()
	f, file := startAdminFleet(t)
	at, other := f.replicas[0], f.replicas[1]
	u := f.signIn(t, "alice", devidp.Hooks{})
	bob := f.signIn(t, "bob", devidp.Hooks{})
	if got := f.call(other, u, "POST", "/bff/session/refresh"); got.status != 200 {
		t.Fatalf("refresh: got %v", got)
	}
	if status := f.admin(at, "DELETE", "/admin/sessions/"+u.id, ""); status != 204 {
		t.Fatalf("DELETE: got %d, want 204", status)
	}
	refused := f.call(other, u, "GET", "/api/x")
	if refused.status != 401 {
		t.Fatalf("call: got %v, want 401", refused)
	}
	out := f.why(t, file, u.id, "session.started", "session.refreshed", "session.ended", "admin.session_revoked",
		"session.returned", "Session "+u.id+" ended at ", "an administrator ended it")
	started, ended := strings.Index(out, "session.started"), strings.Index(out, "session.ended")
	if started > ended {
		t.Errorf("got the end before the start:\n%s", out)
	}
	if strings.Contains(out, bob.id) {
		t.Errorf("got an event of another session:\n%s", out)
	}
	f.why(t, file, "alice", u.id, "session.started")

	text, _, code := f.command("why", "--json", "--config", file, u.id)
	var events []bff.Event
	if err := json.Unmarshal([]byte(text), &events); err != nil || code != 0 {
		t.Fatalf("--json: got exit code %d, %v: %s", code, err, text)
	}
	for _, e := range events {
		if e.Kind != "session.started" {
			continue
		}
		if e.User == "alice" || e.User == "" {
			t.Errorf("user: got %q, want a hash", e.User)
		}
		f.why(t, file, e.User, u.id)
		f.why(t, file, e.Request, "session.started")
	}
	if request := regexp.MustCompile(`"request_id":"([^"]+)"`).FindStringSubmatch(refused.text); request != nil {
		f.why(t, file, request[1], "session.returned")
	}
}

// One command is one request, and so one event for auditors.
func TestWhyAsksOnceAndSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	admin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if got := r.URL.Query().Get("any"); got != "alice" {
			t.Errorf("any: got %q, want alice", got)
		}
		w.Header().Set("Link", `</admin/why?any=alice&offset=200>; rel="next"`)
		io.WriteString(w, `[{"event":"session.started","session":"s"}]`)
	}))
	defer admin.Close()
	getenv := func(name string) string {
		if name == "CLOAKROOM_SERVER_ADMIN_LISTEN" {
			return strings.TrimPrefix(admin.URL, "http://")
		}
		return ""
	}
	var out, errs bytes.Buffer
	if err := run(t.Context(), []string{"why", "--json", "alice"}, getenv, strings.NewReader(""), &out,
		&errs); err != nil {
		t.Fatal(err)
	}
	if got := asked.Load(); got != 1 {
		t.Errorf("got %d requests, want 1", got)
	}
	if want := "the newest sessions only"; !strings.Contains(errs.String(), want) {
		t.Errorf("standard error: got %q, want %q", &errs, want)
	}
	var events []bff.Event
	if err := json.Unmarshal(out.Bytes(), &events); err != nil || len(events) != 1 {
		t.Errorf("standard output: got %q, want a JSON array with one event", &out)
	}
}

func TestWhyRefusesMistakes(t *testing.T) {
	t.Parallel()
	f, file := startAdminFleet(t)
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{nil, 2, "takes a user, a session or a request"},
		{[]string{"alice", "bob"}, 2, "takes a user, a session or a request"},
		{[]string{""}, 2, "takes a user, a session or a request"},
		{[]string{"carol"}, 1, `there are no events of a user, a session or a request "carol"`},
		{[]string{"-" + strings.Repeat("A", 21)}, 1, "there are no events"},
		{[]string{"\x1b[31mred\x1b[0m\r\n"}, 1, `"\x1b[31mred\x1b[0m\r\n"`},
		{[]string{"a&session=b#c%zz"}, 1, "there are no events"},
		{[]string{strings.Repeat("x", 2000)}, 1, "1024 bytes"},
	} {
		out, errs, code := f.command(append([]string{"why", "--config", file}, test.args...)...)
		if code != test.code || out != "" || !strings.Contains(errs, test.want) {
			t.Errorf("why %.40q: got exit code %d, want %d and %q:\n%s%s", test.args, code, test.code,
				test.want, out, errs)
		}
	}
}

func TestEveryReasonHasAnExplanation(t *testing.T) {
	t.Parallel()
	for _, reason := range []string{
		"logout", "backchannel", "frontchannel", "idle", "lifetime", "refused", "replaced", "limit",
		"revoked", "key_removed",
	} {
		if _, ok := endCauses[session.Reason(reason)]; !ok {
			t.Errorf("%s has no explanation", reason)
		}
	}
}
