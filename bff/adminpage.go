package bff

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/adminpage"
	"github.com/cloakroom-bff/cloakroom/session"
)

const (
	// adminSignIn is how long a browser stays signed in to the page.
	adminSignIn = 8 * time.Hour
	// shownEvents is how many events the page shows.
	shownEvents = 200
)

// AdminPage returns a handler for an admin listener that serves the page for
// administrators, at GET /admin/ and under /admin/page/. add completes each
// page with what a Server does not know: version, configuration and replicas.
//
// Access is that of RequireAdmin. If Config.AdminToken is set, a browser signs
// in with it once. It gets a cookie that is good for 8 hours and for this page
// only.
func (s *Server) AdminPage(add func(ctx context.Context, p *adminpage.Page)) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /admin/page/{file}", adminpage.ServeFile)
	handle := func(pattern string, serve func(*app, http.ResponseWriter, *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			a := s.enter()
			defer a.leave()
			if err := serve(a, w, a.identify(w, r)); err != nil {
				a.log.ErrorContext(r.Context(), "page for administrators failed", "path", r.URL.Path, "err", err)
			}
		})
	}
	private := func(serve func(*app, http.ResponseWriter, *http.Request) error) func(
		*app, http.ResponseWriter, *http.Request,
	) error {
		return func(a *app, w http.ResponseWriter, r *http.Request) error {
			if allowed, err := a.admitToPage(w, r); !allowed {
				return err
			}
			return serve(a, w, r)
		}
	}
	handle("GET /admin/{$}", private(func(a *app, w http.ResponseWriter, r *http.Request) error {
		return a.showAdminPage(w, r, add)
	}))
	handle("POST /admin/page/revoke", private((*app).revokeFromPage))
	handle("POST /admin/page/sign-in", (*app).signInToPage)
	handle("POST /admin/page/sign-out", private(func(a *app, w http.ResponseWriter, r *http.Request) error {
		a.setPageCookie(w, r, "", -1)
		http.Redirect(w, r, "/admin/", http.StatusSeeOther)
		return nil
	}))
	return mux
}

// admitToPage reports whether a request may see the page. If not, it responds.
func (a *app) admitToPage(w http.ResponseWriter, r *http.Request) (allowed bool, err error) {
	refusal := a.refuseAdmin(r)
	switch {
	case refusal == nil:
		return true, nil
	case !refusal.noToken:
		a.emitAdminRefused(r, refusal)
		refusal.setHeader(w.Header())
		return false, adminpage.WriteProblem(w, refusal.status, refusal.cause)
	case !a.hasPageCookie(r):
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			a.emitAdminRefused(r, refusal)
		}
		refusal.setHeader(w.Header())
		return false, adminpage.WriteSignIn(w, "")
	case crossOrigin.Check(r) != nil:
		refusal = &adminRefusal{status: http.StatusForbidden, cause: fromOtherOrigin}
		a.emitAdminRefused(r, refusal)
		return false, adminpage.WriteProblem(w, refusal.status, refusal.cause)
	}
	return true, nil
}

// signInToPage exchanges the token for a cookie.
func (a *app) signInToPage(w http.ResponseWriter, r *http.Request) error {
	if crossOrigin.Check(r) != nil {
		refusal := &adminRefusal{status: http.StatusForbidden, cause: fromOtherOrigin}
		a.emitAdminRefused(r, refusal)
		return adminpage.WriteProblem(w, refusal.status, refusal.cause)
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxAdminBody)
	if refusal := a.checkAdminToken(r, strings.TrimSpace(r.PostFormValue("token"))); refusal != nil {
		a.emitAdminRefused(r, refusal)
		refusal.setHeader(w.Header())
		if refusal.status != http.StatusUnauthorized {
			return adminpage.WriteProblem(w, refusal.status, refusal.cause)
		}
		return adminpage.WriteSignIn(w, "This is not the admin token.")
	}
	sum := sha256.Sum256([]byte(a.adminToken.Reveal()))
	value, err := a.pageCookies.Seal("admin page", sum[:])
	if err != nil {
		return err
	}
	a.emit(r.Context(), Event{Kind: AdminSignedIn, message: "administrator signed in to the page"})
	a.setPageCookie(w, r, value, int(adminSignIn/time.Second))
	http.Redirect(w, r, "/admin/", http.StatusSeeOther)
	return nil
}

// pageCookieName returns the name of the cookie. Cookies do not distinguish
// ports, and there may be two brokers on one host.
func pageCookieName(r *http.Request) string {
	if _, port, err := net.SplitHostPort(r.Host); err == nil {
		return "cloakroom-admin-" + port
	}
	return "cloakroom-admin"
}

// setPageCookie sets the cookie of the page, which is no credential for the
// API.
func (a *app) setPageCookie(w http.ResponseWriter, r *http.Request, value string, maxAge int) {
	http.SetCookie(w, &http.Cookie{
		Name: pageCookieName(r), Value: value, Path: "/admin/", MaxAge: maxAge, HttpOnly: true,
		Secure:   r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https",
		SameSite: http.SameSiteStrictMode,
	})
}

// hasPageCookie reports whether a request has the cookie of a browser that
// signed in with the token in force.
func (a *app) hasPageCookie(r *http.Request) bool {
	cookies := r.CookiesNamed(pageCookieName(r))
	if len(cookies) != 1 {
		return false
	}
	given, err := a.pageCookies.Open("admin page", cookies[0].Value)
	sum := sha256.Sum256([]byte(a.adminToken.Reveal()))
	return err == nil && subtle.ConstantTimeCompare(given, sum[:]) == 1
}

// showAdminPage shows the page, with the result of a search.
func (a *app) showAdminPage(w http.ResponseWriter, r *http.Request, add func(context.Context, *adminpage.Page)) error {
	q := r.URL.Query()
	p := &adminpage.Page{
		Origin: a.app.Origin, Now: time.Now(), SignedIn: a.adminToken != "" && r.Header.Get("Authorization") == "",
		Search: a.searchForPage(r, q), Revoked: -1,
		Minutes: a.server.hour.list(time.Now()), Checks: a.checks(r.Context()),
	}
	if n, err := strconv.Atoi(q.Get("revoked")); err == nil && n >= 0 && n <= 1e6 {
		p.Revoked = n
	}
	recent := slices.DeleteFunc(a.server.recent.list(), func(e Event) bool { return e.Kind.isRoutine() })
	p.Events = shown(recent[max(0, len(recent)-shownEvents):])
	add(r.Context(), p)
	return adminpage.Write(w, p)
}

// isRoutine reports whether events of this kind happen all the time in the life
// of a session.
func (k EventKind) isRoutine() bool {
	return k == LoginStarted || k == LoginReturned || k == EventKind(session.SessionRefreshed)
}

// isBad reports whether events of this kind say that something was refused or
// failed.
func (k EventKind) isBad() bool {
	return strings.HasSuffix(string(k), ".refused") || strings.HasSuffix(string(k), ".failed") ||
		strings.HasPrefix(string(k), "cookie.")
}

// shown returns events as the page shows them, the latest first.
func shown(events []Event) []adminpage.Event {
	list := make([]adminpage.Event, 0, len(events))
	for _, e := range slices.Backward(events) {
		list = append(list, adminpage.Event{
			Time: e.Time, Kind: string(e.Kind), Bad: e.Kind.isBad(),
			User: e.User, Session: e.Session, Reason: e.Reason, Request: e.Request, Client: e.Client, Cause: e.Cause,
		})
	}
	return list
}

// searchForPage searches as the query of the page says.
func (a *app) searchForPage(r *http.Request, q url.Values) adminpage.Search {
	s := adminpage.Search{By: q.Get("by"), Text: strings.TrimSpace(q.Get("q"))}
	if !slices.Contains([]string{"sub", "sid", "id", "request"}, s.By) {
		s.By = "sub"
	}
	if s.Text == "" {
		return s
	}
	list, found, err := a.search(r, &s)
	var mistake badRequest
	switch {
	case errors.As(err, &mistake):
		s.Problem = mistake.Error()
	case err != nil:
		a.logAdminError(r, slog.LevelWarn, err)
		s.Problem = "The store failed. Try again in a moment."
	}
	for _, l := range list {
		s.Sessions = append(s.Sessions, adminpage.Session{
			ID: l.ID, CreatedAt: l.CreatedAt, LastSeenAt: l.LastSeenAt, IdleExpiresAt: l.IdleExpiresAt,
			ExpiresAt: l.ExpiresAt, Device: l.Device,
		})
	}
	s.Events = shown(found.events[max(0, len(found.events)-shownEvents):])
	s.MoreEvents = found.more || len(found.events) > shownEvents
	return s
}

// search returns the sessions and the events that the page shows for a search,
// and reports it as one event.
func (a *app) search(r *http.Request, s *adminpage.Search) (list []adminSession, found foundEvents, err error) {
	ctx := r.Context()
	var named sessionsNamed
	var by string // of events
	switch s.By {
	case "sub":
		named.sub, by = s.Text, "user"
	case "sid":
		named.sid = s.Text
	case "id":
		named.id, by = s.Text, "session"
	case "request":
		by = "request"
	}
	if by != "request" {
		if list, s.More, err = a.findSessions(ctx, named, 0); err != nil {
			return nil, foundEvents{}, err
		}
	}
	if by == "" {
		a.emitSessionsListed(r, named, len(list))
		return list, foundEvents{}, nil
	}
	if found, err = a.eventsOf(ctx, by, s.Text, 0); err != nil {
		found.by = by
	}
	if err == nil || len(list) > 0 { // the sessions are shown beside the error
		a.emitEventsRead(r, found, s.Text)
	}
	return list, found, err
}

// revokeFromPage ends one session, or all that a search finds, and shows the
// search again.
func (a *app) revokeFromPage(w http.ResponseWriter, r *http.Request) error {
	r.Body = http.MaxBytesReader(w, r.Body, maxAdminBody)
	if err := r.ParseForm(); err != nil {
		return adminpage.WriteProblem(w, http.StatusBadRequest, "The form cannot be read.")
	}
	by, value := "id", r.PostForm.Get("id")
	if r.PostForm.Has("all") {
		by, value = r.PostForm.Get("by"), r.PostForm.Get("q")
	}
	if !slices.Contains([]string{"id", "sub", "sid"}, by) {
		return adminpage.WriteProblem(w, http.StatusBadRequest, "The form does not say which sessions to revoke.")
	}
	ended, err := a.revokeFor(r, by, value)
	var mistake badRequest
	switch {
	case errors.As(err, &mistake):
		return adminpage.WriteProblem(w, http.StatusBadRequest, mistake.Error())
	case err != nil:
		a.logAdminError(r, slog.LevelWarn, err)
		text := "The store failed. Try again in a moment."
		if partly, ok := errors.AsType[partlyRevoked](err); ok {
			text = fmt.Sprintf("The store failed. Sessions revoked: %d. There may be more. "+
				"Try again in a moment.", partly.ended)
		}
		return adminpage.WriteProblem(w, http.StatusServiceUnavailable, text)
	}
	back := url.Values{"by": {r.PostForm.Get("by")}, "q": {r.PostForm.Get("q")}, "revoked": {strconv.Itoa(len(ended))}}
	http.Redirect(w, r, "/admin/?"+back.Encode(), http.StatusSeeOther)
	return nil
}
