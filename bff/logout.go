package bff

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"time"

	"github.com/gorilla/securecookie"

	"github.com/cloakroom-bff/cloakroom/session"
)

const (
	revokeTimeout  = 3 * time.Second // a logout waits no longer for the provider
	revokeTries    = 4
	maxRevokeDelay = 30 * time.Second
)

// logout ends the session here, then tells the provider, then says where the browser goes to log out there too. It answers the
// same without a session.
func (s *Server) logout(w *response, r *http.Request) error {
	w.page = plainPage
	r.Body = http.MaxBytesReader(w, r.Body, 8<<10)
	returnTo := parseReturnTo(r.FormValue("return_to"))
	ended, err := s.sessions.End(r.Context(), w, r)
	if err != nil {
		return err
	}
	var idToken session.Secret
	if ended != nil {
		w.session = ended.ID
		s.log.InfoContext(r.Context(), "session ended", "session", ended.ID, "reason", "logout", "request", w.requestID)
		idToken = ended.Tokens.ID
		s.revoke(r.Context(), ended)
	}
	state, err := securecookie.EncodeMulti("logout", []byte(returnTo), s.logoutTos...)
	if err != nil {
		return err
	}
	location := s.provider.logoutURL(idToken, s.origin+s.prefix+"/logout/callback", state)
	if location == "" {
		location = returnTo
	}
	if !s.keeps { // not "cookies": that is all of the registrable domain's, the provider's own among them if it is a neighbour
		w.Header().Set("Clear-Site-Data", `"storage"`)
	}
	if prefersJSON(r) {
		w.Header().Set("Content-Type", "application/json")
		return json.NewEncoder(w).Encode(map[string]string{"redirect_to": location})
	}
	http.Redirect(w, r, location, http.StatusSeeOther) // never 307, which would post again (RFC 9700 4.12)
	return nil
}

// logoutCallback is where the provider sends the browser after a logout. A state that is not ours leads to the app's front page.
func (s *Server) logoutCallback(w *response, r *http.Request) error {
	returnTo := "/"
	var sealed []byte
	if err := securecookie.DecodeMulti("logout", r.URL.Query().Get("state"), &sealed, s.logoutTos...); err == nil {
		returnTo = parseReturnTo(string(sealed))
	}
	seeOther(w, returnTo)
	return nil
}

// backchannelLogout ends what the provider says is over (OpenID Connect Back-Channel Logout 2.5). It is the provider's own server that calls, without
// a cookie and under whatever name it knows us by; what it says is believed for its signature.
func (s *Server) backchannelLogout(w *response, r *http.Request) error {
	w.oauthErrors = true
	ctx := r.Context()
	r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
	if mediaType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); mediaType != "application/x-www-form-urlencoded" {
		return errBadLogoutToken.because(fmt.Errorf("the Content-Type is %.80q", r.Header.Get("Content-Type")))
	}
	if err := r.ParseForm(); err != nil {
		return errBadLogoutToken.because(err)
	}
	if n := len(r.PostForm["logout_token"]); n != 1 {
		return errBadLogoutToken.because(fmt.Errorf("logout_token is there %d times", n))
	}
	m, err := s.provider.metadata()
	if err != nil {
		return err
	}
	token, err := s.provider.verifyLogoutToken(ctx, m, r.PostForm.Get("logout_token"))
	if errors.Is(err, errKeysUnreachable) {
		return errProviderUnavailable.because(err)
	}
	if err != nil {
		return errBadLogoutToken.because(err)
	}
	sum := s.app.Digest(token.ID) // a jti is unique for its issuer and client alone
	seen := "logout:" + base64.RawURLEncoding.EncodeToString(sum[:16])
	if _, _, found, err := s.store.Get(ctx, seen); err != nil {
		return fmt.Errorf("%w: look for the logout token: %w", session.ErrStore, err)
	} else if found {
		return errBadLogoutToken.because(errors.New("its jti was here before"))
	}
	ended, err := s.sessions.EndAll(ctx, s.provider.cfg.Issuer, token.Subject, token.SID)
	if err != nil {
		return err
	}
	for _, id := range ended {
		s.log.InfoContext(ctx, "session ended", "session", id, "reason", "back-channel logout", "request", w.requestID)
	}
	// Remembered only now: after a failure the provider may send the same token again.
	if _, err := s.store.Create(ctx, seen, []byte(rand.Text()), time.Until(token.Expiry)+2*clockSkew); err != nil {
		return fmt.Errorf("%w: remember the logout token: %w", session.ErrStore, err)
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// revoke takes an ended session's tokens back at the provider. The user, who is signed out already, waits for the first try
// only; if the provider is out of reach more are made in the background.
func (s *Server) revoke(ctx context.Context, ended *session.Session) {
	ctx = context.WithoutCancel(ctx)
	try := func() error {
		ctx, cancel := context.WithTimeout(ctx, revokeTimeout)
		defer cancel()
		return s.provider.revoke(ctx, ended.Tokens)
	}
	err := try()
	if err == nil {
		return
	}
	s.log.WarnContext(ctx, "tokens not revoked", "session", ended.ID, "err", err)
	if !passes(err) {
		return
	}
	s.revoking.Go(func() { // ends after revokeTries, each of which is bounded
		for n := 1; n < revokeTries && passes(err); n++ {
			time.Sleep(revokeDelay(err, n))
			err = try()
		}
		if err != nil {
			s.log.ErrorContext(ctx, "tokens never revoked; they are good until the provider lets them expire", "session", ended.ID, "err", err)
		}
	})
}

// passes says whether the same request may well be answered later (RFC 7009 2.2.1: 503 means that the token still exists); of several that are joined, one of them.
func passes(err error) bool {
	switch e := err.(type) {
	case nil:
		return false
	case *tokenError:
		return e.status >= 500 || e.status == http.StatusTooManyRequests
	case interface{ Unwrap() []error }:
		return slices.ContainsFunc(e.Unwrap(), passes)
	default:
		return err == session.ErrNoAnswer || err == errUnreachable || passes(errors.Unwrap(err))
	}
}

func revokeDelay(err error, n int) time.Duration {
	var told *session.RefreshError
	if errors.As(err, &told) && told.RetryAfter > 0 {
		return min(told.RetryAfter, maxRevokeDelay)
	}
	return time.Second << n
}
