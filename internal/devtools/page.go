package devtools

import (
	"bytes"
	"embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/adminpage"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/pagetext"
	"github.com/cloakroom-bff/cloakroom/session"
)

//go:embed page.html dev.css dev.js
var files embed.FS

var pages = pagetext.Parse(files, "page.html", german, template.FuncMap{
	"clock": func(t time.Time) string { return t.Local().Format(time.TimeOnly) },
	"iso":   func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
	"until": func(t time.Time) string { return duration(time.Until(t)) },
})

// page is what the page shows. There is no token in it.
type page struct {
	Base   string // path of the page
	Root   string // path before those of the app and its routes; empty: none
	Login  string // path that starts a login
	Notice *notice

	StoreDown, ProviderDown bool

	Session *sessionView // nil: this browser has none, or Problem says why it is unknown
	Problem string       // key of german
	Users   []devidp.User

	Refreshes  []refreshView
	Refused    []refusedView
	Violations []violation
	Requests   []request
	Routes     []Route
	Issuer     string
	Audience   string
}

// notice is the result of an action.
type notice struct {
	Text pagetext.Text
	Bad  bool
}

var notices = map[string]notice{
	"expired": {Text: pagetext.Plain("The access token counts as expired. The next call of an API refreshes it.")},
	"ended":   {Text: pagetext.Plain("The session has ended. Open tabs of the app learn of it at once.")},
	"failed": {
		Text: pagetext.Plain("That did not work: this browser has no session, or the store is off."), Bad: true,
	},
}

// sessionView is the session of the browser that shows the page.
type sessionView struct {
	ID, Subject                         string
	CreatedAt, IdleExpiresAt, ExpiresAt time.Time
	Claims                              string // as the app sees them, in JSON
	Tokens                              []tokenView
	CanRefresh                          bool
}

// tokenView is what a token says, without its signature.
type tokenView struct {
	Name           pagetext.Text
	Header, Claims string // JSON; empty: the token is no JWT
	Scope          string
	Expires        time.Time // zero: unknown
}

// Expired reports whether the token has expired.
func (t tokenView) Expired() bool { return !t.Expires.IsZero() && time.Now().After(t.Expires) }

// refreshView is a refresh of tokens.
type refreshView struct {
	Time    time.Time
	Session string
	Failed  bool
	Outcome pagetext.Text
}

// refusedView is a request that was refused because it may have come from
// another site.
type refusedView struct {
	Time         time.Time
	Method, Path string // empty: unknown
	Cause        string
}

// shown is how many lines each list of the page has.
const shown = 20

func (t *Tools) showPage(w http.ResponseWriter, r *http.Request) {
	var n *notice
	if found, ok := notices[r.URL.Query().Get("notice")]; ok {
		n = &found
	}
	t.writePage(w, r, http.StatusOK, n)
}

func (t *Tools) writePage(w http.ResponseWriter, r *http.Request, status int, n *notice) {
	p := &page{
		Base: t.page(), Root: t.cfg.Base, Login: t.cfg.Base + t.cfg.Prefix + "/login", Notice: n,
		StoreDown: t.storeDown.Load(), ProviderDown: t.providerDown.Load(),
		Users: t.provider.Users(), Routes: t.cfg.Routes, Issuer: t.cfg.Issuer, Audience: t.cfg.Audience,
		Violations: t.reports.latest(),
	}
	switch current, err := t.server.Session(r); {
	case err == nil:
		p.Session = viewSession(current)
	case !errors.Is(err, session.ErrNone):
		p.Problem = "The session cannot be read: the store is off."
	}
	t.addHistory(p)
	l := pagetext.Preferred(r)
	var body bytes.Buffer
	if err := pages[l].ExecuteTemplate(&body, "page", p); err != nil {
		http.Error(w, "the page cannot be rendered: "+err.Error(), http.StatusInternalServerError)
		return
	}
	t.setHeaders(w.Header())
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Language", string(l))
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	body.WriteTo(w) // fails if the browser has left
}

// setHeaders allows the page's own files, and nothing inline. A sign-in leads
// its form to the provider.
func (t *Tools) setHeaders(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "+
		"connect-src 'self'; form-action 'self' "+t.cfg.Issuer+"; base-uri 'none'; frame-ancestors 'none'")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
}

// serveFile serves a file of the page. Those of the page for administrators
// have the style that both share.
func (t *Tools) serveFile(w http.ResponseWriter, r *http.Request) {
	types := map[string]string{"dev.css": "text/css; charset=utf-8", "dev.js": "text/javascript; charset=utf-8"}
	name := r.PathValue("file")
	contentType, ok := types[name]
	if !ok {
		adminpage.ServeFile(w, r)
		return
	}
	t.setHeaders(w.Header())
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", "no-cache")
	http.ServeFileFS(w, r, files, name)
}

// addHistory adds what has happened.
func (t *Tools) addHistory(p *page) {
	byID := make(map[string]request)
	for _, line := range t.requests.latest() {
		byID[line.ID] = line
		if t.isAPI(line) && len(p.Requests) < shown {
			p.Requests = append(p.Requests, line)
		}
	}
	for _, e := range t.events.latest() {
		switch e.Kind {
		case bff.EventKind(session.SessionRefreshed):
			p.Refreshes = append(p.Refreshes, refreshView{Time: e.Time, Session: e.Session,
				Outcome: pagetext.Plain("new tokens")})
		case bff.EventKind(session.RefreshFailed):
			p.Refreshes = append(p.Refreshes, refreshView{Time: e.Time, Session: e.Session, Failed: true,
				Outcome: pagetext.Plain(e.Cause)})
		case bff.EventKind(session.SessionEnded):
			p.Refreshes = append(p.Refreshes, refreshView{Time: e.Time, Session: e.Session, Failed: true,
				Outcome: pagetext.Text{Key: "the session ended: %s", Args: []any{e.Reason}}})
		case bff.CSRFRefused:
			line := byID[e.Request]
			p.Refused = append(p.Refused, refusedView{e.Time, line.Method, line.Path, e.Cause})
		}
	}
	p.Refreshes, p.Refused = p.Refreshes[:min(shown, len(p.Refreshes))], p.Refused[:min(shown, len(p.Refused))]
}

// viewSession returns what the page shows of a session.
func viewSession(s *session.Session) *sessionView {
	v := &sessionView{
		ID: s.ID, Subject: s.Subject, CreatedAt: s.CreatedAt, IdleExpiresAt: s.IdleExpiresAt,
		ExpiresAt: s.ExpiresAt, Claims: indent(s.Claims), CanRefresh: s.Tokens.Refresh != "",
	}
	access := viewToken(pagetext.Plain("Access token"), s.Tokens.Access)
	access.Scope, access.Expires = s.Tokens.Scope, s.Tokens.Expiry
	v.Tokens = []tokenView{access}
	for _, target := range slices.Sorted(maps.Keys(s.Tokens.Others)) {
		other := s.Tokens.Others[target]
		token := viewToken(pagetext.Text{Key: "Access token for %s", Args: []any{target}}, other.Access)
		token.Scope, token.Expires = other.Scope, other.Expiry
		v.Tokens = append(v.Tokens, token)
	}
	if s.Tokens.ID != "" {
		v.Tokens = append(v.Tokens, viewToken(pagetext.Plain("ID token"), s.Tokens.ID))
	}
	return v
}

// viewToken decodes a JWT. The signature, without which the token is good for
// nothing, is left out.
func viewToken(name pagetext.Text, token session.Secret) tokenView {
	v := tokenView{Name: name}
	parts := strings.Split(token.Reveal(), ".")
	if len(parts) != 3 {
		return v
	}
	v.Header, v.Claims = indentPart(parts[0]), indentPart(parts[1])
	return v
}

func indentPart(part string) string {
	text, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		return ""
	}
	return indent(text)
}

// indent formats JSON; it returns "" for anything else.
func indent(text []byte) string {
	var b bytes.Buffer
	if json.Indent(&b, text, "", "  ") != nil {
		return ""
	}
	return b.String()
}

// duration returns a duration for people.
func duration(d time.Duration) string {
	switch {
	case d < 0:
		return "0 s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d < 2*time.Hour:
		return fmt.Sprintf("%.0f min", d.Minutes())
	}
	return fmt.Sprintf("%.0f h", d.Hours())
}
