package devop

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// authenticate checks the client's credentials (RFC 6749 2.3.1), by exactly one method, or answers what is wrong.
func (p *Provider) authenticate(w http.ResponseWriter, r *http.Request) (*Client, bool) {
	r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
	if err := r.ParseForm(); err != nil {
		oauthError(w, http.StatusBadRequest, "invalid_request")
		return nil, false
	}
	id, secret := r.PostForm.Get("client_id"), r.PostForm.Get("client_secret")
	if user, password, ok := r.BasicAuth(); ok {
		if secret != "" {
			oauthError(w, http.StatusBadRequest, "invalid_request")
			return nil, false
		}
		id, _ = url.QueryUnescape(user)
		secret, _ = url.QueryUnescape(password)
	}
	client := p.client(id)
	if client == nil || subtle.ConstantTimeCompare([]byte(secret), []byte(client.Secret)) != 1 {
		w.Header().Set("WWW-Authenticate", `Basic realm="devop"`)
		oauthError(w, http.StatusUnauthorized, "invalid_client")
		return nil, false
	}
	return client, true
}

func oauthError(w http.ResponseWriter, status int, code string) {
	writeJSON(w, status, map[string]any{"error": code})
}

// token is the token endpoint.
func (p *Provider) token(w http.ResponseWriter, r *http.Request) {
	client, ok := p.authenticate(w, r)
	if !ok {
		return
	}
	grant := r.PostForm.Get("grant_type")
	p.mu.Lock()
	p.stats.Tokens[grant]++
	p.mu.Unlock()
	jkt, ok := p.checkProof(w, r)
	if !ok {
		return
	}
	var t *refreshToken
	var status int
	var body map[string]any
	switch grant {
	case "authorization_code":
		t, body = p.redeem(client, r.PostForm, jkt)
	case "refresh_token":
		t, body = p.rotate(client, r.PostForm, jkt)
	case "client_credentials":
		t = &refreshToken{client: client.ID, user: User{Sub: client.ID}, scope: grantedScope(client, r.PostForm.Get("scope")), resource: r.PostForm["resource"], jkt: jkt}
	default:
		body = map[string]any{"error": "unsupported_grant_type"}
	}
	status = http.StatusBadRequest
	if body["error"] == nil {
		status = http.StatusOK
		access, err := p.accessToken(t)
		if err != nil {
			oauthError(w, http.StatusInternalServerError, "server_error")
			return
		}
		answer := map[string]any{"access_token": access, "token_type": "Bearer", "expires_in": int(p.cfg.AccessTokenTTL / time.Second), "scope": t.scope}
		if jkt != "" {
			answer["token_type"] = "DPoP"
		}
		if t.sid != "" {
			if answer["id_token"], err = p.idToken(t, access); err != nil {
				oauthError(w, http.StatusInternalServerError, "server_error")
				return
			}
		}
		maps.Copy(answer, body)
		body = answer
	}
	if edit := p.hooks.Load().EditTokenResponse; edit != nil {
		edit(grant, status, body)
	}
	writeJSON(w, status, body)
}

func refused() map[string]any { return map[string]any{"error": "invalid_grant"} }

// redeem trades a code (RFC 6749 4.1.3, RFC 7636 4.6).
func (p *Provider) redeem(client *Client, form url.Values, jkt string) (*refreshToken, map[string]any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.codes[form.Get("code")]
	if c == nil || c.client != client || time.Now().After(c.expires) {
		return nil, refused()
	}
	if c.issued != "" { // RFC 6749 4.1.2: what the first use obtained is taken back
		p.endFamily(c.issued)
		return nil, refused()
	}
	challenge := sha256.Sum256([]byte(form.Get("code_verifier")))
	if c.request.redirectURI != form.Get("redirect_uri") || encode(challenge[:]) != c.request.challenge || c.request.jkt != "" && c.request.jkt != jkt {
		return nil, refused()
	}
	c.issued = rand.Text()
	c.session.clients[client.ID] = true
	t := &refreshToken{
		family: c.issued, client: client.ID, sid: c.session.sid, user: c.session.user, authTime: c.session.authTime, acr: c.request.acr, nonce: c.request.nonce,
		scope: c.request.scope, resource: append(c.request.resource, form["resource"]...), jkt: jkt, expires: time.Now().Add(p.cfg.RefreshTokenTTL),
	}
	return t, map[string]any{"refresh_token": p.issue(t)}
}

// rotate trades a refresh token (RFC 6749 6), each once (RFC 9700 4.14.2).
func (p *Provider) rotate(client *Client, form url.Values, jkt string) (*refreshToken, map[string]any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.refresh[form.Get("refresh_token")]
	now := time.Now()
	if old == nil || old.client != client.ID || now.After(old.expires) || old.jkt != jkt {
		return nil, refused()
	}
	if !old.replaced.IsZero() {
		if now.Sub(old.replaced) < p.grace && p.refresh[old.successor] != nil {
			return p.refresh[old.successor], map[string]any{"refresh_token": old.successor}
		}
		p.stats.Reuses++
		p.endFamily(old.family)
		return nil, refused()
	}
	if p.hooks.Load().KeepRefreshTokens {
		return old, map[string]any{}
	}
	next := *old
	next.nonce = "" // OpenID Connect Core 12.2: an ID token of a refresh should have none
	if asked := form.Get("scope"); asked != "" {
		for _, s := range strings.Fields(asked) {
			if !slices.Contains(strings.Fields(old.scope), s) {
				return nil, map[string]any{"error": "invalid_scope"}
			}
		}
		next.scope = asked
	}
	if len(form["resource"]) > 0 {
		next.resource = form["resource"]
	}
	old.replaced = now
	old.successor = p.issue(&next)
	return &next, map[string]any{"refresh_token": old.successor}
}

// SetRefreshGrace changes Config.RefreshGrace.
func (p *Provider) SetRefreshGrace(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.grace = d
}

// issue makes t a refresh token. The caller holds mu.
func (p *Provider) issue(t *refreshToken) string {
	p.prune()
	value := rand.Text() + rand.Text()
	p.refresh[value] = t
	return value
}

// endFamily revokes a refresh token with all that came before and after it. The caller holds mu.
func (p *Provider) endFamily(family string) {
	maps.DeleteFunc(p.refresh, func(_ string, t *refreshToken) bool { return t.family == family })
}

// revoke is RFC 7009: a token that is unknown is revoked as well.
func (p *Provider) revoke(w http.ResponseWriter, r *http.Request) {
	client, ok := p.authenticate(w, r)
	if !ok {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.Revocations++
	if t := p.refresh[r.PostForm.Get("token")]; t != nil && t.client == client.ID {
		p.endFamily(t.family)
	}
}
