// Package adminpage renders the page for administrators. It is HTML from a
// template, with one style sheet and one small script of the same origin. The
// page works without the script, which asks before a session is revoked and
// keeps the numbers up to date.
package adminpage

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"net/http"
	"path"
	"strings"
	"time"
)

// Page is what the page shows. All times are shown in UTC.
type Page struct {
	Origin  string // of the app
	Version string // of the program; empty: not shown
	Now     time.Time
	// SignedIn is true if a cookie authenticates the browser, so that it can
	// sign out.
	SignedIn bool

	Search  Search
	Revoked int // sessions that the previous request revoked; -1: it was another request

	Minutes       []Minute // the last hour of this replica, the oldest first
	Checks        []Check
	Replicas      []Replica
	ReplicasError string  // why Replicas is empty
	Events        []Event // the latest first
	Settings      []Setting
}

// Search is a search for sessions, and its result.
type Search struct {
	By       string // sub, sid, id or request
	Text     string // empty: nothing was searched for
	Problem  string // why there is no result
	Sessions []Session
	More     bool    // there are more sessions than these
	Events   []Event // of the user, the session or the request, the latest first
	// MoreEvents reports whether there are older events.
	MoreEvents bool
}

// Session is one session of a user.
type Session struct {
	ID string
	// Zero times are unknown.
	CreatedAt, LastSeenAt, IdleExpiresAt, ExpiresAt time.Time
	Device                                          string // empty: unknown
}

// Minute is what happened in one minute.
type Minute struct {
	SignIns, RefusedSignIns    uint64
	Refreshes, FailedRefreshes uint64
	Requests                   uint64
	ServerErrors, ClientErrors uint64 // responses with 5xx and 4xx
	// Median and P95 are of the time to serve a request of a route. Zero means
	// that there was none.
	Median, P95 time.Duration
}

// Check is the state of one thing that the broker depends on.
type Check struct {
	Name    string
	Failed  bool
	Warning bool // it works, and needs attention soon
	Note    string
}

// Replica is one replica of the broker.
type Replica struct {
	Name      string
	Self      bool // it is the one that shows the page
	Version   string
	StartedAt time.Time
	SeenAt    time.Time
	Differs   []string // keys in which it differs from this one
}

// Event is a security event.
type Event struct {
	Time                           time.Time
	Kind                           string
	Bad                            bool // something was refused or failed
	User, Session, Reason, Request string
	Client, Cause                  string
}

// Setting is one key of the configuration in force. Secrets are redacted.
type Setting struct{ Key, Value string }

//go:embed page.html style.css script.js icon.svg
var files embed.FS

var pages = template.Must(template.New("").Funcs(template.FuncMap{
	"at": at,
	"list": func(now time.Time, events []Event, caption string) eventList {
		return eventList{now,
			events, caption}
	},
	"iso":      func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
	"duration": duration,
	"charts":   charts,
	"problems": problems,
	"plural":   plural,
}).ParseFS(files, "page.html"))

// eventList is a table of events.
type eventList struct {
	Now     time.Time
	Events  []Event
	Caption string
}

// Write responds with the page.
func Write(w http.ResponseWriter, p *Page) error { return write(w, "page", http.StatusOK, p) }

// WriteSignIn responds with 401 and a form for the token. problem says why the
// last attempt failed; empty: there was none.
func WriteSignIn(w http.ResponseWriter, problem string) error {
	return write(w, "sign-in", http.StatusUnauthorized, problem)
}

// WriteProblem responds with a status and a page that says what is wrong.
func WriteProblem(w http.ResponseWriter, status int, problem string) error {
	return write(w, "problem", status, problem)
}

func write(w http.ResponseWriter, name string, status int, data any) error {
	var page bytes.Buffer
	if err := pages.ExecuteTemplate(&page, name, data); err != nil {
		return fmt.Errorf("render the page: %w", err)
	}
	setHeaders(w.Header())
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	page.WriteTo(w) // fails if the client has left
	return nil
}

// csp allows the page's own files. There is nothing inline.
const csp = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; " +
	"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

func setHeaders(h http.Header) {
	h.Set("Content-Security-Policy", csp)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
}

// types are the files that the page needs.
var types = map[string]string{
	"style.css": "text/css; charset=utf-8",
	"script.js": "text/javascript; charset=utf-8",
	"icon.svg":  "image/svg+xml",
}

// ServeFile serves a file of the page: the last element of the path names it.
// There is nothing secret in these files.
func ServeFile(w http.ResponseWriter, r *http.Request) {
	name := path.Base(r.URL.Path)
	contentType, ok := types[name]
	if !ok {
		http.NotFound(w, r)
		return
	}
	setHeaders(w.Header())
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("Content-Type", contentType)
	http.ServeFileFS(w, r, files, name)
}

// at returns a time for people: without the date if it is that of now.
func at(now, t time.Time) string {
	if t.IsZero() {
		return "unknown"
	}
	t, now = t.UTC(), now.UTC()
	if t.Format(time.DateOnly) == now.Format(time.DateOnly) {
		return t.Format(time.TimeOnly)
	}
	return t.Format("2 Jan, 15:04")
}

// duration returns a duration with two digits.
func duration(d time.Duration) string {
	switch {
	case d == 0:
		return "–"
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// problems returns how many checks fail, those that warn included.
func problems(checks []Check) (n int) {
	for _, c := range checks {
		if c.Failed || c.Warning {
			n++
		}
	}
	return n
}

// plural returns a number with its noun.
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%s %ss", grouped(uint64(n)), noun)
}

// grouped returns a number with a thin space between groups of three digits.
func grouped(n uint64) string {
	text := fmt.Sprint(n)
	var b strings.Builder
	for i, digit := range text {
		if i > 0 && (len(text)-i)%3 == 0 {
			b.WriteRune('\u202f')
		}
		b.WriteRune(digit)
	}
	return b.String()
}
