package bff

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/oidc"
	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/session"
)

// maxLogoutBody bounds the body of a back-channel logout. A logout token has a
// few hundred bytes; any client can send junk, which must cost little.
const maxLogoutBody = 10 << 10

const (
	revokeTimeout  = 3 * time.Second // a logout waits no longer for the provider
	revokeTries    = 4
	maxRevokeDelay = 30 * time.Second
)

// logout ends the session here, tells the provider, and sends the browser to
// sign out there too. Without a session it responds in the same way.
//
// A script gets a path of this origin that redirects to the provider once
// (logoutContinue): the URL at the provider has the ID token in it.
func (a *app) logout(w *response, r *http.Request) error {
	w.page = plainPage
	r.Body = http.MaxBytesReader(w, r.Body, 8<<10)
	asked := cmp.Or(r.FormValue("return_to"), parseQueryAsBrowsers(r.URL.RawQuery).Get("return_to"))
	returnTo := a.logoutReturnTo(a.askedPath(asked), startedByOwnPage(r) || startedByOwnScript(r))
	a.logReturnTo(w, asked, returnTo)
	ended, err := a.signOut(w, r)
	if err != nil {
		return err
	}
	var hint logoutHint
	if ended != nil {
		hint = newLogoutHint(ended)
	}
	location, err := a.endSessionURL(hint, returnTo)
	if err != nil {
		return err
	}
	if script := prefersJSON(r) || fromScript(r); script && a.provider.HasEndSession() {
		if location, err = a.hints.put(w, hint, returnTo); err != nil {
			return err
		}
		location = a.endpoint("/logout/continue?" + url.Values{"state": {location}}.Encode())
	}
	if !prefersJSON(r) {
		http.Redirect(w, r, location, http.StatusSeeOther) // never 307, which would post again (RFC 9700 4.12)
		return nil
	}
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(map[string]string{"redirect_to": location})
}

// startedByOwnScript reports whether a script of the app's origin sent a
// request.
func startedByOwnScript(r *http.Request) bool {
	site := r.Header.Values("Sec-Fetch-Site")
	return len(site) == 1 && site[0] == "same-origin" && r.Header.Get("X-Csrf") != ""
}

// fromScript reports whether a script in a browser sent a POST request. It can
// read the URL that its request is redirected to, if the server there allows
// that (Fetch, section 4.10). Browsers send Origin with POST, also those that
// do not send Sec-Fetch-Mode.
func fromScript(r *http.Request) bool {
	mode := r.Header.Get("Sec-Fetch-Mode")
	return mode != "" && mode != "navigate" || r.Header.Get("X-Csrf") != "" && r.Header.Get("Origin") != ""
}

// endSessionURL returns where the browser goes to sign out at the provider, and
// from there to returnTo; or returnTo if it cannot sign out there.
func (a *app) endSessionURL(hint logoutHint, returnTo string) (string, error) {
	state, err := a.logoutStates.Seal("logout", []byte(returnTo))
	if err != nil {
		return "", err
	}
	location := a.provider.EndSessionURL(hint.idToken, hint.user, a.endpointURL("/logout/callback"), state)
	return cmp.Or(location, a.path(returnTo)), nil
}

// logoutContinue is where a script sends the browser after a logout. It
// redirects to the provider, with the ID token that is in the cookie, and
// removes the cookie. It does so once, unless the store fails: the store has a
// mark, for a copy of the cookie could be sent again.
func (a *app) logoutContinue(w *response, r *http.Request) error {
	w.page = plainPage
	hint, returnTo, err := a.hints.take(w, r)
	if err == nil && hint != (logoutHint{}) { // without a session there is nothing to use twice
		first, storeErr := a.store.Create(r.Context(), continuationKey(r), []byte(rand.Text()), logoutHintLife)
		if storeErr != nil { // the user wants to be signed out at the provider too
			a.log.DebugContext(r.Context(), "logout not marked as continued", "err", storeErr, "request", w.requestID)
		} else if !first {
			err = errors.New("the URL was used before")
		}
	}
	if err != nil { // a link from the browser's history, say: the session here has ended long ago
		a.log.InfoContext(r.Context(), "logout not continued at the provider", "err", err, "request", w.requestID)
		seeOther(w, a.path(a.logoutReturnTo(returnTo, true)))
		return nil
	}
	location, err := a.endSessionURL(hint, a.logoutReturnTo(returnTo, true))
	if err != nil {
		return err
	}
	http.Redirect(w, r, location, http.StatusSeeOther)
	return nil
}

// logoutCallback is where the provider sends the browser after a logout. A
// state that is not ours leads to the app's front page.
func (a *app) logoutCallback(w *response, r *http.Request) error {
	returnTo := "/"
	if asked, err := a.logoutStates.Open("logout", r.URL.Query().Get("state")); err == nil {
		returnTo = a.logoutReturnTo(string(asked), true) // logout has looked at who started it
	}
	seeOther(w, a.path(returnTo))
	return nil
}

// backchannelLogout ends the sessions that a logout token names (OpenID Connect
// Back-Channel Logout, section 2.5). The request is from the provider's server:
// it has no cookie, and maybe another Host. The token's signature authenticates
// it.
func (a *app) backchannelLogout(w *response, r *http.Request) error {
	w.oauthErrors = true
	ctx := context.WithValue(r.Context(), responseKey{}, w) // for observe
	if r.ContentLength > maxLogoutBody {
		return problem.BadLogoutToken.WithCause(fmt.Errorf("the body has %d bytes; %d are the limit",
			r.ContentLength, maxLogoutBody))
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxLogoutBody)
	if !isForm(r) {
		return problem.BadLogoutToken.WithCause(fmt.Errorf("the Content-Type is %.80q", r.Header.Get("Content-Type")))
	}
	if err := r.ParseForm(); err != nil {
		return problem.BadLogoutToken.WithCause(err)
	}
	if n := len(r.PostForm["logout_token"]); n != 1 {
		return problem.BadLogoutToken.WithCause(fmt.Errorf("logout_token is there %d times", n))
	}
	token, err := a.provider.VerifyLogoutToken(ctx, r.PostForm.Get("logout_token"))
	if errors.Is(err, oidc.ErrUnavailable) {
		return problem.ProviderUnavailable.WithCause(err)
	}
	if err != nil {
		return problem.BadLogoutToken.WithCause(err)
	}
	ctx = context.WithoutCancel(ctx) // the sessions end also if the provider does not wait
	sum := a.app.Digest(token.ID)    // a jti is unique for its issuer and client alone
	seen := "logout:" + base64.RawURLEncoding.EncodeToString(sum[:16])
	if _, _, found, err := a.store.Get(ctx, seen); err != nil {
		return fmt.Errorf("%w: look for the logout token: %w", session.ErrStore, err)
	} else if found {
		return problem.BadLogoutToken.WithCause(errors.New("its jti was here before"))
	}
	if _, err := a.sessions.EndAll(ctx, a.provider.Config().Issuer, token.Subject, token.SID,
		session.ReasonBackchannel); err != nil {
		return err
	}
	// Remembered only now: after a failure the provider may send the same token
	// again.
	if _, err := a.store.Create(ctx, seen, []byte(rand.Text()), token.Life()); err != nil {
		return fmt.Errorf("%w: remember the logout token: %w", session.ErrStore, err)
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// revoke revokes the tokens of an ended session at the provider. The response
// waits for the first attempt only. After a transient error it retries in the
// background.
func (a *app) revoke(ctx context.Context, ended *session.Session) {
	ctx = context.WithoutCancel(ctx)
	err := a.tryRevoke(ctx, ended.Tokens)
	if err == nil {
		return
	}
	if !isTransient(err) {
		a.log.WarnContext(ctx, "tokens not revoked", "session", ended.ID, "err", err)
		return
	}
	a.log.DebugContext(ctx, "tokens not revoked yet", "session", ended.ID, "err", err)
	a.revocations.Go(func() { // ends after revokeTries, each of which is bounded
		if err := a.retryRevoke(ctx, ended.Tokens, err); err != nil {
			a.log.ErrorContext(ctx, "gave up revoking tokens; they stay valid until they expire",
				"session", ended.ID, "err", err)
		}
	})
}

// revokeTokens is session.Config.Revoke.
func (a *app) revokeTokens(ctx context.Context, t session.Tokens) error {
	return a.retryRevoke(ctx, t, a.tryRevoke(ctx, t))
}

func (a *app) tryRevoke(ctx context.Context, t session.Tokens) error {
	ctx, cancel := context.WithTimeout(ctx, revokeTimeout)
	defer cancel()
	return a.provider.Revoke(ctx, t)
}

// retryRevoke repeats tryRevoke, whose error was err, while that is transient.
func (a *app) retryRevoke(ctx context.Context, t session.Tokens, err error) error {
	for n := 1; n < revokeTries && isTransient(err); n++ {
		time.Sleep(revokeDelay(err, n))
		err = a.tryRevoke(ctx, t)
	}
	return err
}

// isTransient reports whether the same request may succeed later (RFC 7009,
// section 2.2.1: 503 means that the token still exists). Of joined errors one
// is enough.
func isTransient(err error) bool {
	switch e := err.(type) {
	case nil:
		return false
	case *oidc.Error:
		return e.Unavailable()
	case interface{ Unwrap() []error }:
		return slices.ContainsFunc(e.Unwrap(), isTransient)
	default:
		return err == session.ErrNoResponse || errors.Is(err, oidc.ErrUnavailable) || isTransient(errors.Unwrap(err))
	}
}

func revokeDelay(err error, n int) time.Duration {
	var told *session.RefreshError
	if errors.As(err, &told) && told.RetryAfter > 0 {
		return min(told.RetryAfter, maxRevokeDelay)
	}
	return time.Second << n
}
