package bff

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/session"
)

// EventKind is what happened. The kinds of package session are among them.
type EventKind string

const (
	// LoginStarted: a browser was sent to the provider.
	LoginStarted EventKind = "login.started"
	// LoginReturned: the provider sent a browser back, to an attempt of its
	// own. Either session.started or login.refused follows.
	LoginReturned EventKind = "login.returned"
	// LoginRefused: a login was not started, or did not succeed. Event.Reason
	// is the code of the problem, or login_required and its like, if a silent
	// login found no session at the provider.
	LoginRefused EventKind = "login.refused"
	// LogoutRefused: a logout token of the provider was not accepted.
	// Event.Reason is the code of the problem.
	LogoutRefused EventKind = "logout.refused"
	// CSRFRefused: a request did not prove that it comes from a page of this
	// origin.
	CSRFRefused EventKind = "csrf.refused"
	// CookieForeign: a cookie was sealed with our keys, but for another
	// application.
	CookieForeign EventKind = "cookie.foreign"
	// CookieUnopenable: a cookie was not sealed with one of our keys, or was
	// changed.
	CookieUnopenable EventKind = "cookie.unopenable"
	// CookieDuplicate: a request had a cookie more than once.
	CookieDuplicate EventKind = "cookie.duplicate"
	// AdminRefused: a request to the admin listener had no valid token, or came
	// from elsewhere.
	AdminRefused EventKind = "admin.refused"
	// AdminSignedIn: an administrator signed in to the page of the admin
	// listener.
	AdminSignedIn EventKind = "admin.signed_in"
	// AdminSessionsListed: an administrator looked for sessions.
	AdminSessionsListed EventKind = "admin.sessions_listed"
	// AdminEventsRead: an administrator read the events of a session, a user or
	// a request. A search on the page for administrators is one such event,
	// although the page shows the sessions too.
	AdminEventsRead EventKind = "admin.events_read"
	// AdminSessionRevoked: an administrator ended a session. It has no session
	// if there was none to end.
	AdminSessionRevoked EventKind = "admin.session_revoked"
)

// Event is a fact that matters to the security of users. In JSON, empty members
// are left out.
type Event struct {
	Kind EventKind `json:"event"`
	Time time.Time `json:"time"`
	// App is the host of the public URL.
	App string `json:"app"`
	// Session is the ID that /bff/session shows.
	Session string `json:"session,omitempty"`
	// User is the user of the session, in the form of Config.LogUsers. It is
	// empty if the replica does not know it.
	User string `json:"user,omitempty"`
	// Request is the ID of the request that caused or noticed the event.
	Request string `json:"request,omitempty"`
	// Client is the address that the request came from.
	Client string `json:"client,omitempty"`
	// Reason is why, as a word for scripts.
	Reason string `json:"reason,omitempty"`
	// Cause is why, for people. It is the text of an error.
	Cause string `json:"err,omitempty"`
	// By and Target are what an administrator named: By is sub, sid, id or
	// request, and Target is its value. A sub is in the form of
	// Config.LogUsers.
	By     string `json:"by,omitempty"`
	Target string `json:"target,omitempty"`

	// Of its line in the log.
	level   slog.Level
	message string
	attrs   []slog.Attr // besides the members

	subject, userHash string // of the user; empty: unknown
	refreshes         int    // session.Event.Refreshes
}

// LogAttrs returns the members of an event as attributes of a log line, but for
// the time.
func (e Event) LogAttrs() []slog.Attr {
	attrs := append(make([]slog.Attr, 0, 10), slog.String("event", string(e.Kind)), slog.String("app", e.App))
	add := func(key, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(key, value))
		}
	}
	add("session", e.Session)
	add("user", e.User)
	add("request", e.Request)
	add("client", e.Client)
	add("reason", e.Reason)
	add("err", e.Cause)
	add("by", e.By)
	add("target", e.Target)
	return append(attrs, e.attrs...)
}

// eventLimit is how many events of one kind are reported if any client can
// cause them: an attacker must fill neither the log nor the audit log.
var eventLimit = RateLimit{Rate: 20, Burst: 200}

// unauthenticated reports whether clients without a session can cause events of
// this kind, as many as they like.
func (k EventKind) unauthenticated() bool {
	switch k {
	case LoginStarted, LoginReturned, LoginRefused, LogoutRefused, CSRFRefused,
		CookieForeign, CookieUnopenable, CookieDuplicate, AdminRefused:
		return true
	}
	return false
}

// emit reports an event. If a request caused the event, ctx is its context.
// emit neither waits nor calls the store: if only the store knows the user of
// the session, the event is reported a moment later.
func (a *app) emit(ctx context.Context, e Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	e.App = a.host
	a.setUser(&e)
	if e.Request == "" {
		e.Request, e.Client = requestOf(ctx)
	}
	e.Cause = truncate(e.Cause, maxLogged)
	a.server.metrics.count(e) // also those that are not reported
	a.server.hour.countEvent(e)
	if e.Kind.unauthenticated() {
		if a.events.take(e.Kind) > 0 {
			a.server.unreported.add(func(count uint64) {
				a.log.Warn("events not reported: too many", "count", count, "event", string(e.Kind))
			})
			return
		}
	} else if e.User == "" && e.Session != "" && a.users.form == UsersHashed && a.unnamed.add(ctx, e) {
		return
	}
	a.report(ctx, e)
}

// setUser sets the user of an event, as far as it is known.
func (a *app) setUser(e *Event) {
	switch {
	case e.subject != "":
		e.User, e.userHash = a.user(e.subject), a.users.hash(e.subject)
	case a.users.form == UsersHashed:
		e.User = e.userHash
	}
}

// requestOf returns the ID and the client of the request with a context, if
// there is one.
func requestOf(ctx context.Context) (id, client string) {
	if w, ok := ctx.Value(responseKey{}).(*response); ok {
		return w.requestID, w.client
	}
	r, _ := ctx.Value(adminRequestKey{}).(adminRequest)
	return r.id, r.client
}

// report writes an event to the log, to Config.Observe and to the history. It
// is the one place that does.
func (a *app) report(ctx context.Context, e Event) {
	ctx = context.WithoutCancel(ctx)
	a.server.recent.add(e)
	a.log.LogAttrs(ctx, e.level, e.message, e.LogAttrs()...)
	if e.Kind != AdminEventsRead && e.Kind != AdminSessionsListed { // which would otherwise add to what they read
		a.history.add(e)
	}
	if a.onEvent != nil {
		a.onEvent(ctx, e)
	}
}

// unnamedEvents are events of sessions whose user only the store knows. They
// are reported as soon as the store has named the user, or without a user.
type unnamedEvents struct {
	mu      sync.Mutex        // guards all below
	waiting chan unnamedEvent // nil: reportUnnamed does not run, and is not about to
}

// unnamedEvent is an event with the span in which it happened.
type unnamedEvent struct {
	Event
	span trace.SpanContext
}

const (
	// maxUnnamed is how many events wait for their user at most.
	maxUnnamed = 1000
	// namingTimeout bounds how long the store may take to name a user.
	namingTimeout = 2 * time.Second
)

// open has events wait for reportUnnamed, which has to be called next.
func (u *unnamedEvents) open() (waiting <-chan unnamedEvent) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.waiting = make(chan unnamedEvent, maxUnnamed)
	return u.waiting
}

// add reports whether reportUnnamed will report the event.
func (u *unnamedEvents) add(ctx context.Context, e Event) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	select {
	case u.waiting <- unnamedEvent{e, trace.SpanContextFromContext(ctx)}: // never, if it is nil
		return true
	default:
		return false
	}
}

// reportUnnamed reports events until ctx ends, and then those that wait.
func (a *app) reportUnnamed(ctx context.Context, waiting <-chan unnamedEvent) {
	for ctx.Err() == nil {
		select {
		case e := <-waiting:
			a.reportNamed(ctx, e)
		case <-ctx.Done():
		}
	}
	a.unnamed.mu.Lock()
	a.unnamed.waiting = nil // emit reports what comes from now on
	a.unnamed.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), namingTimeout)
	defer cancel()
	for len(waiting) > 0 {
		a.reportNamed(ctx, <-waiting)
	}
}

// reportNamed looks up the user of an event, and reports it.
func (a *app) reportNamed(ctx context.Context, e unnamedEvent) {
	lookup, cancel := context.WithTimeout(context.WithoutCancel(ctx), namingTimeout)
	defer cancel()
	e.userHash = a.history.userOf(lookup, e.Session)
	a.setUser(&e.Event)
	a.report(trace.ContextWithSpanContext(ctx, e.span), e.Event)
}

// observe is session.Config.Observe.
func (a *app) observe(ctx context.Context, s session.Event) {
	e := Event{
		Kind: EventKind(s.Kind), Time: s.At, Session: s.Session, subject: s.Subject, Reason: string(s.Reason),
		refreshes: s.Refreshes,
	}
	if s.Err != nil {
		e.Cause = s.Err.Error()
	}
	switch s.Kind {
	case session.SessionStarted:
		e.message = "session started"
	case session.SessionRefreshed:
		e.message = "session refreshed"
		e.attrs = []slog.Attr{slog.Time("access_token_expires_at", s.TokenExpiry)}
	case session.RefreshFailed:
		e.level, e.message = slog.LevelWarn, "tokens not refreshed; the session is kept"
		var retry *session.RefreshError
		if errors.Is(s.Err, session.ErrUserRequired) {
			e.Reason, e.message = "user_required", "tokens not refreshed; the user has to sign in again"
		} else if errors.As(s.Err, &retry) {
			e.Reason = "error"
			if retry.Outage {
				e.Reason = "outage"
			}
			if retry.Outage || s.Failures < 2 { // an outage is logged once, not for each session
				e.level = slog.LevelDebug
			}
			e.attrs = []slog.Attr{slog.String("retry_after", retry.RetryAfter.String())}
		}
	case session.SessionEnded:
		e.message = "session ended"
		if s.Reason == session.ReasonLimit {
			e.attrs = []slog.Attr{slog.Int("max_per_user", a.maxPerUser)}
		}
	case session.SessionReturned:
		e.message = "cookie of an ended session received"
	}
	a.emit(ctx, e)
}

// refused reports an error response that matters to security.
func (a *app) refused(w *response, r *http.Request, p *problem.Problem) {
	var e Event
	switch {
	case p.Code == problem.CSRF.Code:
		e = w.event(CSRFRefused, "request refused: it may come from another site")
		if e.Session == "" && a.events.check(e.Kind) == 0 { // a flood opens no cookies
			e.Session = a.cookieSession(r)
		}
	case w.login:
		e = w.event(LoginRefused, "login refused")
	case w.oauthErrors:
		e = w.event(LogoutRefused, "logout token refused")
	default:
		return
	}
	e.level, e.Reason, e.Cause = slog.LevelInfo, p.Code, p.Error()
	a.emit(trace.ContextWithSpan(context.Background(), w.span), e)
}

// event returns an event that a request caused. Its level is DEBUG.
func (w *response) event(kind EventKind, message string) Event {
	return Event{
		Kind: kind, Session: w.session, Request: w.requestID, Client: w.client, subject: w.subject,
		level: slog.LevelDebug, message: message,
	}
}

// recentEvents are the last events of this replica. They include those of
// clients without a session, which the store does not keep.
type recentEvents struct {
	mu     sync.Mutex // guards all below
	events []Event    // a ring: the oldest is at next if it is full
	next   int
}

const maxRecentEvents = 1000

func (r *recentEvents) add(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.events) < maxRecentEvents {
		r.events = append(r.events, e)
		return
	}
	r.events[r.next] = e
	r.next = (r.next + 1) % maxRecentEvents
}

// list returns the events, the oldest first.
func (r *recentEvents) list() []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Concat(r.events[r.next:], r.events[:r.next])
}
