package devidp

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
)

// endSession is the endpoint of OpenID Connect RP-Initiated Logout. A request
// with an ID token of the session ends it; for any other request the user is
// asked first.
func (p *Provider) endSession(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	q := r.URL.Query()
	if r.Method == http.MethodPost {
		if err := r.ParseForm(); err != nil {
			p.showMessage(w, r, http.StatusBadRequest, "That did not work", "The form cannot be read.")
			return
		}
		q = r.PostForm
	}
	clientID, back, state := q.Get("client_id"), q.Get("post_logout_redirect_uri"), q.Get("state")
	clientID, hinted, err := p.readLogoutHint(q.Get("id_token_hint"), clientID)
	if err != nil {
		p.showMessage(w, r, http.StatusBadRequest, "You are not signed out",
			"The id_token_hint is not an ID token of this provider for this client.")
		return
	}
	client := p.client(clientID)
	if back != "" && (client == nil || !slices.Contains(client.PostLogoutRedirectURIs, back)) {
		p.showMessage(w, r, http.StatusBadRequest, "You are not signed out",
			"The post_logout_redirect_uri is not registered for this client.")
		return
	}
	p.mu.Lock()
	s := p.sessionOf(r)
	p.mu.Unlock()

	// Without a hint, or with a hint for another session, the user must be
	// asked (RP-Initiated Logout, section 2).
	confirmed := r.Method == http.MethodPost && p.isOwnForm(r)
	switch {
	case confirmed && q.Get("sign_out") == "no":
		p.showMessage(w, r, http.StatusOK, "You are still signed in", "You can close this page.")
		return
	case s != nil && s.sid != hinted && !confirmed:
		p.showSignOut(w, r, s.user, back, state, clientID)
		return
	case s != nil:
		hinted = s.sid
	}
	// The response waits for the back-channel logouts. If the user leaves
	// earlier, they continue.
	if err := p.EndSession(context.WithoutCancel(r.Context()), hinted); err != nil {
		p.cfg.Logger.Warn("end session", "err", err)
	}
	http.SetCookie(w, &http.Cookie{
		Name: p.cookieName, Path: p.cfg.CookiePath, MaxAge: -1, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
	if back == "" {
		p.showMessage(w, r, http.StatusOK, "You are signed out", "You can close this page.")
		return
	}
	parameters := url.Values{}
	if state != "" {
		parameters.Set("state", state)
	}
	redirect(w, r, back, parameters)
}

// readLogoutHint returns the client and the session (sid) that an id_token_hint
// names. An empty clientID means the client that the ID token is for.
func (p *Provider) readLogoutHint(hint, clientID string) (client, sid string, err error) {
	if hint == "" {
		return clientID, "", nil
	}
	claims, err := p.readOwnIDToken(hint)
	if err != nil {
		return "", "", err
	}
	if clientID == "" && len(claims.Audience) > 0 {
		clientID = claims.Audience[0]
	}
	if !claims.Audience.Contains(clientID) {
		return "", "", errors.New("the ID token is for another client")
	}
	return clientID, claims.SessionID, nil
}

// EndSession ends a session, revokes its grants, and sends a logout token to
// each of its clients with a back-channel logout URI. It returns when all have
// responded; the error joins the failures. An unknown session is not an error.
func (p *Provider) EndSession(ctx context.Context, sid string) error {
	p.mu.Lock()
	var ended *session
	for cookie, s := range p.sessions {
		if s.sid == sid {
			ended = s
			delete(p.sessions, cookie)
		}
	}
	if ended == nil {
		p.mu.Unlock()
		return nil
	}
	maps.DeleteFunc(p.refreshTokens, func(_ string, t *refreshToken) bool {
		if t.grant.sid == sid {
			t.grant.ended = true
		}
		return t.grant.ended
	})
	clients := slices.Collect(maps.Keys(ended.clients))
	p.mu.Unlock()

	errs := make([]error, len(clients))
	var sending sync.WaitGroup // one goroutine each; the timeout of the HTTP client stops it
	for i, id := range clients {
		sending.Go(func() { errs[i] = p.sendLogout(ctx, p.client(id), ended) })
	}
	sending.Wait()
	return errors.Join(errs...)
}

// EndUser ends all sessions of a user, as EndSession does.
func (p *Provider) EndUser(ctx context.Context, sub string) error {
	p.mu.Lock()
	var sids []string
	for _, s := range p.sessions {
		if s.user.Sub == sub {
			sids = append(sids, s.sid)
		}
	}
	p.mu.Unlock()
	var errs []error
	for _, sid := range sids {
		errs = append(errs, p.EndSession(ctx, sid))
	}
	return errors.Join(errs...)
}

// sendLogout sends a logout token (OpenID Connect Back-Channel Logout, section
// 2.5). Only status 200 acknowledges it (section 2.8).
func (p *Provider) sendLogout(ctx context.Context, client *Client, s *session) error {
	if client.BackchannelLogoutURI == "" {
		return nil
	}
	token, err := p.LogoutToken(client.ID, s.user.Sub, s.sid)
	if err != nil {
		return fmt.Errorf("logout token for %s: %w", client.ID, err)
	}
	form := url.Values{"logout_token": {token}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, client.BackchannelLogoutURI, strings.NewReader(form))
	if err != nil {
		return fmt.Errorf("back-channel logout of %s: %w", client.ID, err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := p.cfg.HTTPClient.Do(req)
	if err != nil {
		return fmt.Errorf("back-channel logout of %s: %w", client.ID, err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("back-channel logout of %s: %s", client.ID, resp.Status)
	}
	p.mu.Lock()
	p.stats.BackchannelLogouts++
	p.mu.Unlock()
	return nil
}
