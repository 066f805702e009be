package devop

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// endSession is OpenID Connect RP-Initiated Logout. It asks nobody: whoever comes here wants out.
func (p *Provider) endSession(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if r.Method == http.MethodPost {
		r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
		if err := r.ParseForm(); err != nil {
			http.Error(w, "The form cannot be read.", http.StatusBadRequest)
			return
		}
		q = r.PostForm
	}
	id, sid := q.Get("client_id"), ""
	if hint := q.Get("id_token_hint"); hint != "" {
		var claims struct{ Aud, Sid string }
		if err := p.readOwn(hint, &claims); err != nil || id != "" && id != claims.Aud {
			http.Error(w, "The id_token_hint is not one of this provider's for this client.", http.StatusBadRequest)
			return
		}
		id, sid = claims.Aud, claims.Sid
	}
	client := p.client(id)
	back := q.Get("post_logout_redirect_uri")
	if back != "" && (client == nil || !slices.Contains(client.PostLogoutRedirectURIs, back)) {
		http.Error(w, "The post_logout_redirect_uri is not registered.", http.StatusBadRequest)
		return
	}
	p.mu.Lock()
	if s := p.sessionOf(r); s != nil {
		sid = s.sid
	}
	p.mu.Unlock()
	if sid != "" {
		if err := p.EndSession(r.Context(), sid); err != nil {
			p.log.Warn("back-channel logout", "err", err)
		}
	}
	http.SetCookie(w, &http.Cookie{Name: cookieName, Path: p.path + "/", MaxAge: -1, HttpOnly: true})
	if back == "" {
		io.WriteString(w, "You are signed out.\n")
		return
	}
	u, _ := url.Parse(back)
	query := u.Query()
	if state := q.Get("state"); state != "" {
		query.Set("state", state)
	}
	u.RawQuery = query.Encode()
	http.Redirect(w, r, u.String(), http.StatusSeeOther)
}

// readOwn reads the claims of a JWT that this provider signed, with whichever of its keys, expired or not.
func (p *Provider) readOwn(raw string, claims any) error {
	p.mu.Lock()
	keys := slices.Clone(p.keys)
	p.mu.Unlock()
	for _, k := range keys {
		jws, err := jose.ParseSignedCompact(raw, []jose.SignatureAlgorithm{jose.RS256})
		if err != nil {
			return err
		}
		if payload, err := jws.Verify(&k.private.PublicKey); err == nil {
			return json.Unmarshal(payload, claims)
		}
	}
	return errors.New("it was not signed here")
}

// EndSession ends a session here: its refresh tokens are revoked, and every client that has a back-channel logout URI is told
// (OpenID Connect Back-Channel Logout 2.5). The error joins what went wrong with telling them.
func (p *Provider) EndSession(ctx context.Context, sid string) error {
	p.mu.Lock()
	s := p.sessions[sid]
	if s == nil {
		p.mu.Unlock()
		return nil
	}
	delete(p.sessions, sid)
	maps.DeleteFunc(p.refresh, func(_ string, t *refreshToken) bool { return t.sid == sid })
	clients := slices.Collect(maps.Keys(s.clients))
	p.mu.Unlock()
	var errs []error
	for _, id := range clients {
		if err := p.tell(ctx, p.client(id), s); err != nil {
			errs = append(errs, fmt.Errorf("back-channel logout: %w", err))
		}
	}
	return errors.Join(errs...)
}

// EndUser ends all sessions of a user.
func (p *Provider) EndUser(ctx context.Context, sub string) error {
	p.mu.Lock()
	var sids []string
	for sid, s := range p.sessions {
		if s.user.Sub == sub {
			sids = append(sids, sid)
		}
	}
	p.mu.Unlock()
	var errs []error
	for _, sid := range sids {
		errs = append(errs, p.EndSession(ctx, sid))
	}
	return errors.Join(errs...)
}

// tell sends a logout token (OpenID Connect Back-Channel Logout 2.4).
func (p *Provider) tell(ctx context.Context, client *Client, s *session) error {
	if client.BackchannelLogoutURI == "" {
		return nil
	}
	now := time.Now()
	header := map[string]any{"typ": "logout+jwt"}
	claims := map[string]any{
		"iss": p.cfg.Issuer, "aud": client.ID, "sub": s.user.Sub, "sid": s.sid, "iat": now.Unix(), "exp": now.Add(2 * time.Minute).Unix(), "jti": rand.Text(),
		"events": map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}},
	}
	if edit := p.hooks.Load().EditLogoutToken; edit != nil {
		edit(header, claims)
	}
	token, err := p.Sign(header, claims)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, client.BackchannelLogoutURI, strings.NewReader(url.Values{"logout_token": {token}}.Encode()))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %d", client.ID, resp.StatusCode)
	}
	p.mu.Lock()
	p.stats.BackchannelLogouts++
	p.mu.Unlock()
	return nil
}

// userinfo is OpenID Connect Core 5.3.
func (p *Provider) userinfo(w http.ResponseWriter, r *http.Request) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	var claims struct {
		Sub, Scope string
		Exp        int64
	}
	if err := p.readOwn(token, &claims); !strings.EqualFold(scheme, "Bearer") || err != nil || time.Now().Unix() >= claims.Exp {
		w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	body := map[string]any{"sub": claims.Sub}
	for _, u := range p.cfg.Users {
		if u.Sub == claims.Sub && slices.Contains(strings.Fields(claims.Scope), "profile") {
			body["name"] = u.Name
		}
		if u.Sub == claims.Sub && slices.Contains(strings.Fields(claims.Scope), "email") {
			body["email"], body["email_verified"] = u.Email, true
		}
	}
	if edit := p.hooks.Load().EditUserinfo; edit != nil {
		edit(body)
	}
	writeJSON(w, http.StatusOK, body)
}
