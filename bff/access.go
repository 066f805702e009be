package bff

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/oidc"
	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/bff/proxy"
	"github.com/cloakroom-bff/cloakroom/session"
)

// access is what a request to a route has been granted. It is the credential of
// the request to the upstream.
type access struct {
	app     *app
	route   *route
	session *session.Session // nil: the route needs none, or the caller has none
	token   accessToken      // the zero value: none
}

// accessToken is an access token as it is sent. The zero value is none.
type accessToken struct {
	header []string          // the values of the header Authorization
	key    *ecdsa.PrivateKey // that the token is bound to by DPoP; nil: it is a bearer token
}

// Authorization returns the header of that name.
func (a *access) Authorization() []string { return a.token.header }

// Key returns the key that the token is bound to, or nil.
func (a *access) Key() *ecdsa.PrivateKey { return a.token.key }

// Renew returns access with another token after an upstream has rejected this
// one. It returns nil if there is none, also if the provider cannot be reached.
func (a *access) Renew(ctx context.Context) (proxy.Credential, error) {
	renewed := *a
	var err error
	if a.session == nil {
		renewed.token, err = renewClientToken(ctx, a.route, a.token)
	} else if renewed.session, err = a.app.sessions.RefreshRejected(ctx, a.session, a.route.targetKey); err == nil {
		renewed.token = sessionToken(renewed.session, a.route)
	}
	switch {
	case errors.As(err, new(*session.RefreshError)):
		return nil, nil
	case err != nil:
		return nil, err
	case len(renewed.token.header) == 0 || renewed.token.header[0] == a.token.header[0]:
		return nil, nil
	}
	return &renewed, nil
}

// onEnd calls abort when the session has ended.
func (a *access) onEnd(abort func()) (stop func()) { return a.app.sessions.OnEnd(a.session, abort) }

// authorize decides whether a request may use a route, in which session and
// with which token. It does not depend on what serves the route. Errors are
// problems and those of session.Manager.Fresh.
func (a *app) authorize(w *response, r *http.Request, route *route) (access, error) {
	if err := a.checkRequest(w, r, route, route.guard); err != nil {
		return access{}, err
	}
	current, err := a.sessionForRoute(r, route)
	if err != nil {
		return access{}, err
	}
	if current != nil {
		w.setSession(current)
		if err := checkRequirements(route, current); err != nil {
			return access{}, err
		}
		if err := a.touch(r, current); err != nil {
			return access{}, err
		}
	}
	token, err := routeToken(r.Context(), route, current)
	return access{app: a, route: route, session: current, token: token}, err
}

// touch counts a request as activity of the user, unless the app says that it
// made the request by itself.
func (a *app) touch(r *http.Request, current *session.Session) error {
	if r.Header.Get("X-Background") == "1" {
		return nil
	}
	return a.sessions.Touch(r.Context(), current)
}

// checkRequest checks what needs no session: the method, the proof that the
// request comes from this origin, and the limits of the route.
func (a *app) checkRequest(
	w *response, r *http.Request, route *route, guard func(*app, *http.Request) error,
) error {
	if len(route.Methods) > 0 && !slices.Contains(route.Methods, r.Method) {
		w.Header()["Allow"] = []string{strings.Join(route.Methods, ", ")}
		return problem.MethodNotAllowed
	}
	if err := guard(a, r); err != nil {
		return err
	}
	if err := a.upgradeAllowed(r); err != nil {
		return err
	}
	if len(r.Header["Service-Worker"]) > 0 || r.Header.Get("Sec-Fetch-Dest") == "serviceworker" {
		return problem.ServiceWorker // it would control the whole origin
	}
	if route.MaxBody > 0 && r.ContentLength > route.MaxBody {
		cause := fmt.Errorf("header Content-Length is %d, want at most %d", r.ContentLength, route.MaxBody)
		return problem.BodyTooLarge.WithCause(cause)
	}
	if (route.user || route.client) && queryHas(r.URL.RawQuery, "access_token") {
		return problem.TokenInQuery // RFC 6750, section 2: one method of sending a token per request
	}
	return nil
}

// upgradeAllowed accepts the upgrade to a WebSocket that a page of this origin
// opens. It refuses any other protocol: after an upgrade to h2c requests would
// reach the upstream unchecked (RFC 9113, section 3.1; RFC 6455, section 10.2).
func (a *app) upgradeAllowed(r *http.Request) error {
	upgrade := r.Header["Upgrade"]
	switch {
	case len(upgrade) == 0:
		return nil
	case len(upgrade) != 1 || !strings.EqualFold(upgrade[0], "websocket"):
		return problem.UpgradeRefused.WithCause(fmt.Errorf("header Upgrade is %.40q", upgrade))
	case r.Method != http.MethodGet || r.ProtoMajor != 1 || r.ProtoMinor != 1 || r.ContentLength != 0:
		// RFC 6455, section 4.1
		cause := fmt.Errorf("%s %s with a body of %d bytes cannot open a WebSocket", r.Method, r.Proto, r.ContentLength)
		return problem.UpgradeRefused.WithCause(cause)
	case len(r.Header["Origin"]) == 0:
		return problem.CSRF.WithCause(errors.New("a WebSocket without an Origin"))
	case r.Header.Get("Origin") == "null":
		return problem.CSRF.WithCause(errors.New("a WebSocket of the Origin null"))
	}
	return a.originAllowed(r)
}

// queryHas reports whether a query has a parameter, however a server parses it.
func queryHas(query, name string) bool {
	if query == "" {
		return false
	}
	isSeparator := func(c rune) bool { return c == '&' || c == ';' }
	for part := range strings.FieldsFuncSeq(query, isSeparator) {
		key, _, _ := strings.Cut(part, "=")
		if unescaped, err := url.QueryUnescape(key); err == nil {
			key = unescaped
		}
		if strings.EqualFold(key, name) {
			return true
		}
	}
	return false
}

// sessionForRoute returns the session in which a request uses a route. It is
// nil if the route takes no session, or if it needs none and there is none.
func (a *app) sessionForRoute(r *http.Request, route *route) (*session.Session, error) {
	if !route.user {
		return nil, nil
	}
	current, err := a.freshSession(r, route)
	if route.anonymous && errors.Is(err, session.ErrNone) {
		return nil, nil
	}
	return current, err
}

// freshSession returns the request's session with a usable token for the route.
// A request that fails because the provider does not respond counts as
// activity: an outage longer than the idle timeout must not sign out active
// users.
func (a *app) freshSession(r *http.Request, route *route) (*session.Session, error) {
	current, err := a.findSession(r)
	if err != nil {
		return nil, err
	}
	fresh, err := a.refreshFor(r.Context(), current, route)
	if _, ok := errors.AsType[*session.RefreshError](err); ok {
		if err := a.touch(r, current); err != nil {
			return nil, err
		}
	}
	return fresh, err
}

// refreshFor refreshes a session if the token for a route is about to expire.
// Token exchange (RFC 8693) needs a usable token of the session's own first.
func (a *app) refreshFor(ctx context.Context, current *session.Session, route *route) (*session.Session, error) {
	if !route.target.Exchange {
		return a.sessions.Fresh(ctx, current, route.targetKey)
	}
	ctx, cancel := context.WithTimeout(ctx, a.provider.Config().MaxWait())
	defer cancel()
	current, err := a.sessions.Fresh(ctx, current, "")
	if err != nil {
		return nil, err
	}
	return a.sessions.Fresh(ctx, current, route.targetKey)
}

// routeToken returns the token for a route: the session's, or the broker's own.
func routeToken(ctx context.Context, route *route, current *session.Session) (accessToken, error) {
	switch {
	case current != nil:
		token := sessionToken(current, route)
		if token.header == nil {
			return accessToken{}, problem.Internal.WithCause(errors.New("the session has no token for this route"))
		}
		return token, nil
	case route.client:
		token, err := route.clientToken.Token(ctx)
		return accessToken{header: token.Authorization, key: token.Key}, err
	}
	return accessToken{}, nil
}

// renewClientToken returns another token of the broker's own than the rejected
// one.
func renewClientToken(ctx context.Context, route *route, rejected accessToken) (accessToken, error) {
	token, err := route.clientToken.Renew(ctx, oidc.AccessToken{Authorization: rejected.header, Key: rejected.key})
	return accessToken{header: token.Authorization, key: token.Key}, err
}

func sessionToken(current *session.Session, route *route) accessToken {
	return accessToken{header: current.Authorization(route.targetKey), key: current.Key()}
}

// checkRequirements verifies that a session has what a route requires.
func checkRequirements(route *route, current *session.Session) error {
	q := &route.Require
	if q.empty() {
		return nil
	}
	// Only the space separates scopes (RFC 6749, section 3.3).
	granted := strings.Split(current.Tokens.For(route.targetKey).Scope, " ")
	for _, scope := range q.Scopes {
		if !slices.Contains(granted, scope) {
			challenge := `Bearer error="insufficient_scope", scope="` + strings.Join(q.Scopes, " ") + `"`
			cause := fmt.Errorf("scope %q was not granted", scope)
			return problem.InsufficientScope.WithChallenge(challenge).WithCause(cause)
		}
	}
	for name, want := range q.Claims {
		accepted := func(text string) bool { return slices.Contains(want, text) }
		if !slices.ContainsFunc(claimTexts(current.Claim(name)), accepted) {
			return problem.Forbidden.WithCause(fmt.Errorf("claim %q is none of %q", name, want))
		}
	}
	return q.checkSignIn(current)
}

// checkSignIn verifies how and when the user signed in. The error challenges
// the app to have the user sign in as required (RFC 9470, section 3).
func (q *Require) checkSignIn(current *session.Session) error {
	acr, _ := current.Claim("acr").(string)
	at := authTime(current)
	weak := len(q.ACR) > 0 && !slices.Contains(q.ACR, acr)
	old := q.MaxAge > 0 && time.Since(at) > q.MaxAge
	if !weak && !old {
		return nil
	}
	challenge, login := `Bearer error="insufficient_user_authentication"`, make(url.Values)
	if len(q.ACR) > 0 {
		challenge += `, acr_values="` + strings.Join(q.ACR, " ") + `"`
		login.Set("acr_values", strings.Join(q.ACR, " "))
	}
	if q.MaxAge > 0 {
		seconds := strconv.Itoa(int(q.MaxAge / time.Second))
		challenge += `, max_age="` + seconds + `"`
		login.Set("max_age", seconds)
	}
	cause := fmt.Errorf("acr is %q, auth_time is %v", acr, at.UTC())
	return problem.InsufficientUserAuthentication.WithChallenge(challenge).WithLogin(login).WithCause(cause)
}

// authTime returns when the user signed in. It is zero, and so too old, if the
// claim auth_time is missing or no possible time: a value in milliseconds lies
// in the future and must not make a sign-in recent.
func authTime(current *session.Session) time.Time {
	n, ok := current.Claim("auth_time").(json.Number)
	if !ok {
		return time.Time{}
	}
	seconds, err := n.Float64()
	latest := float64(time.Now().Add(oidc.ClockSkew).Unix())
	if err != nil || seconds < 0 || seconds > latest {
		return time.Time{}
	}
	return time.Unix(int64(seconds), 0)
}
