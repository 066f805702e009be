package devidp

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

var grantTypes = []string{"authorization_code", "refresh_token", "client_credentials", tokenExchange}

var errGrantType = &oauthError{"unsupported_grant_type",
	"grant_type must be one of " + strings.Join(grantTypes, ", ")}

const (
	tokenExchange   = "urn:ietf:params:oauth:grant-type:token-exchange"
	accessTokenType = "urn:ietf:params:oauth:token-type:access_token"
)

// grant holds the tokens that a client obtained with one code, or with its own
// credentials: a family of refresh tokens, of which only the newest is valid,
// and access tokens.
type grant struct {
	client   *Client
	sid      string // empty: client credentials, or no session
	user     User
	authTime time.Time
	acr      string
	nonce    string
	scope    string
	resource []string
	expires  time.Time
	ended    bool
}

type refreshToken struct {
	grant     *grant
	replaced  time.Time // zero: it is the newest of its family
	successor string
}

type accessToken struct {
	grant   *grant
	scope   string
	jkt     string
	expires time.Time
}

// tokenRequest is a valid token request.
type tokenRequest struct {
	grant    *grant
	scope    string // of the access token: a subset of the grant's
	resource []string
	refresh  string // the refresh token of the response; empty: none
	first    bool   // redeems a code
	other    bool   // exchanges a token
}

// token is the token endpoint.
func (p *Provider) token(w http.ResponseWriter, r *http.Request) {
	grantType, body, fault := p.tokenResponse(w, r)
	status := http.StatusOK
	if fault != nil {
		status, body = fault.status(), fault.body()
		if status == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", `Basic realm="devidp"`)
		}
	}
	if edit := p.hooks.Load().EditTokenResponse; edit != nil {
		edit(grantType, status, body)
	}
	writeJSON(w, status, body)
}

func (p *Provider) tokenResponse(w http.ResponseWriter, r *http.Request) (
	grantType string, body map[string]any, fault *oauthError,
) {
	if fault := readForm(w, r); fault != nil {
		return "", nil, fault
	}
	grantType = r.PostForm.Get("grant_type")
	counted := grantType
	if !slices.Contains(grantTypes, grantType) {
		counted = "unsupported"
	}
	p.mu.Lock()
	p.stats.Tokens[counted]++
	p.mu.Unlock()

	client, fault := p.authenticate(r)
	if fault != nil {
		return grantType, nil, fault
	}
	jkt, fault := p.checkProof(w, r, "")
	if fault != nil {
		return grantType, nil, fault
	}
	bound := binding{jkt: jkt}
	if client.shows(r) {
		sum := sha256.Sum256(client.Certificate.Raw)
		bound.x5t = encode(sum[:])
	}
	if jkt == "" && client.DPoPBound {
		return grantType, nil, &oauthError{
			"invalid_dpop_proof",
			"a DPoP proof is required: the tokens of this client are bound to a key",
		}
	}
	var t tokenRequest
	switch grantType {
	case "authorization_code":
		t, fault = p.redeem(client, r.PostForm, jkt)
	case "refresh_token":
		t, fault = p.rotate(client, r.PostForm)
	case "client_credentials":
		g := &grant{
			client:   client,
			user:     User{Sub: client.ID},
			scope:    among(r.PostForm.Get("scope"), client.Scopes),
			resource: r.PostForm["resource"],
		}
		t = tokenRequest{grant: g}
		t.scope, t.resource, fault = g.part(g.scope, g.resource)
	case tokenExchange:
		t, fault = p.exchange(client, r.PostForm)
	case "password":
		t, fault = p.named(client, r.PostForm)
	default:
		fault = errGrantType
	}
	if fault != nil {
		return grantType, nil, fault
	}
	body, err := p.issue(t, bound)
	if err != nil {
		p.cfg.Logger.Error("issue tokens", "err", err)
		return grantType, nil, &oauthError{"server_error", "the tokens could not be signed"}
	}
	return grantType, body, nil
}

// named returns a token request for the user that the client names, without a
// session.
func (p *Provider) named(client *Client, form url.Values) (tokenRequest, *oauthError) {
	if !client.NamesUsers {
		return tokenRequest{}, errGrantType
	}
	user, err := p.User(form.Get("username"))
	if err != nil {
		return tokenRequest{}, &oauthError{"invalid_grant", "there is no such user"}
	}
	g := &grant{client: client, user: user, scope: among(form.Get("scope"), client.Scopes)}
	return tokenRequest{grant: g, scope: g.scope}, nil
}

// redeem exchanges a code for tokens (RFC 6749, section 4.1.3; RFC 7636,
// section 4.6). The first attempt of the client uses up the code, even if it
// fails.
func (p *Provider) redeem(client *Client, form url.Values, jkt string) (tokenRequest, *oauthError) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.codes[form.Get("code")]
	if c == nil || c.request.client != client {
		return tokenRequest{}, &oauthError{"invalid_grant", "the code is unknown"}
	}
	if c.used { // RFC 6749 4.1.2: the tokens of the first use are revoked
		if c.grant != nil {
			p.end(c.grant)
		}
		return tokenRequest{}, &oauthError{"invalid_grant", "the code was used before"}
	}
	c.used = true
	now := time.Now()
	challenge := sha256.Sum256([]byte(form.Get("code_verifier")))
	refused := func(why string) (tokenRequest, *oauthError) {
		return tokenRequest{}, &oauthError{"invalid_grant", why}
	}
	switch {
	case now.After(c.expires):
		return refused("the code has expired")
	case p.sessions[c.session.cookie] != c.session:
		return refused("the user has signed out")
	case form.Get("redirect_uri") != c.request.redirectURI:
		return refused("redirect_uri differs from the authorization request")
	case subtle.ConstantTimeCompare([]byte(encode(challenge[:])), []byte(c.request.challenge)) != 1 &&
		!p.hooks.Load().SkipPKCE:
		return refused("code_verifier does not match the code_challenge")
	case c.request.jkt != "" && c.request.jkt != jkt: // RFC 9449 10
		return refused("the code is bound to another key than that of the DPoP proof")
	}
	g := &grant{
		client: client, sid: c.session.sid, user: c.session.user, authTime: c.authTime, acr: c.acr,
		nonce: c.request.nonce,
		scope: c.request.scope, resource: c.request.resource, expires: now.Add(p.cfg.RefreshTokenTTL),
	}
	// RFC 6749 section 4.1.3 has no scope here. Some providers have one, and
	// return the granted part of it.
	requested := among(form.Get("scope"), strings.Fields(g.scope))
	scope, resource, fault := g.part(requested, form["resource"])
	if fault != nil {
		return tokenRequest{}, fault
	}
	c.grant = g
	c.session.clients[client.ID] = true
	c.session.expires = g.expires
	return tokenRequest{grant: g, scope: scope, resource: resource, refresh: p.newRefreshToken(g), first: true}, nil
}

// rotate exchanges a refresh token for the next one (RFC 6749, section 6). A
// second use means that it was stolen, and revokes the family (RFC 9700,
// section 4.14.2). It is not bound to a DPoP key, because the client is
// confidential (RFC 9449, section 5).
func (p *Provider) rotate(client *Client, form url.Values) (tokenRequest, *oauthError) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	old := p.refreshTokens[form.Get("refresh_token")]
	if old == nil || old.grant.client != client || now.After(old.grant.expires) {
		return tokenRequest{}, &oauthError{"invalid_grant", "the refresh token is unknown, expired or revoked"}
	}
	if !old.replaced.IsZero() &&
		!(now.Sub(old.replaced) < p.refreshGrace && p.refreshTokens[old.successor].replaced.IsZero()) {
		p.stats.Reuses++
		p.end(old.grant)
		return tokenRequest{}, &oauthError{"invalid_grant", "the refresh token was used before"}
	}
	scope, resource, fault := old.grant.part(form.Get("scope"), form["resource"])
	if fault != nil {
		return tokenRequest{}, fault // the token stays valid
	}
	t := tokenRequest{grant: old.grant, scope: scope, resource: resource}
	if p.hooks.Load().KeepRefreshTokens {
		return t, nil
	}
	if old.replaced.IsZero() {
		old.replaced, old.successor = now, p.newRefreshToken(old.grant)
	}
	t.refresh = old.successor
	return t, nil
}

// exchange exchanges one of the client's access tokens for another (RFC 8693,
// section 2): for the given audience and resource, with at most the same scope.
func (p *Provider) exchange(client *Client, form url.Values) (tokenRequest, *oauthError) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if form.Get("subject_token_type") != accessTokenType ||
		form.Has("requested_token_type") && form.Get("requested_token_type") != accessTokenType {
		return tokenRequest{}, &oauthError{
			"invalid_request",
			"only access tokens can be exchanged, and only for access tokens",
		}
	}
	subject := p.accessTokens[form.Get("subject_token")]
	if subject == nil || subject.grant.client != client || subject.grant.ended || time.Now().After(subject.expires) {
		return tokenRequest{}, &oauthError{"invalid_grant", "the subject_token is not a valid token of this client"}
	}
	resource := append(form["resource"], form["audience"]...)
	for _, r := range resource {
		if strings.HasPrefix(r, "unknown") {
			return tokenRequest{}, &oauthError{"invalid_target", "the audience is unknown"}
		}
	}
	part := *subject.grant
	part.scope, part.resource = subject.scope, nil
	scope, _, fault := part.part(form.Get("scope"), nil)
	if fault != nil {
		return tokenRequest{}, fault
	}
	return tokenRequest{grant: subject.grant, scope: scope, resource: resource, other: true}, nil
}

// part returns the requested part of a grant, or all of it for empty parameters
// (RFC 6749 section 6, RFC 8707 section 2.2). A grant without resources allows
// any.
func (g *grant) part(scope string, resource []string) (string, []string, *oauthError) {
	if scope == "" {
		scope = g.scope
	}
	for s := range strings.FieldsSeq(scope) {
		if !slices.Contains(strings.Fields(g.scope), s) {
			return "", nil, &oauthError{"invalid_scope", "scope exceeds the grant"}
		}
	}
	if len(resource) == 0 {
		resource = g.resource
	}
	for _, r := range resource {
		if len(g.resource) > 0 && !slices.Contains(g.resource, r) {
			return "", nil, &oauthError{"invalid_target", "resource exceeds the grant"}
		}
	}
	if !areResources(resource) {
		return "", nil, &oauthError{"invalid_target", "resource must be an absolute URI without a fragment"}
	}
	return scope, resource, nil
}

// binding is the thumbprint of the DPoP key or the certificate that an access
// token is bound to. The zero value is no binding.
type binding struct{ jkt, x5t string }

// issue creates the tokens of a token response (RFC 6749, section 5.1; OpenID
// Connect Core, sections 3.1.3.3 and 12.2).
func (p *Provider) issue(t tokenRequest, bound binding) (map[string]any, error) {
	access, err := p.newAccessToken(t, bound)
	if err != nil {
		return nil, err
	}
	body := map[string]any{
		"access_token": access,
		"token_type":   "Bearer",
		"expires_in":   int(p.cfg.AccessTokenTTL / time.Second),
		"scope":        t.scope,
	}
	if bound.jkt != "" {
		body["token_type"] = "DPoP"
	}
	if t.refresh != "" {
		body["refresh_token"] = t.refresh
	}
	if t.other {
		body["issued_token_type"] = accessTokenType
	} else if t.grant.sid != "" {
		if body["id_token"], err = p.newIDToken(t, access); err != nil {
			return nil, err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.prune()
	p.accessTokens[access] = &accessToken{
		grant:   t.grant,
		scope:   t.scope,
		jkt:     bound.jkt,
		expires: time.Now().Add(p.cfg.AccessTokenTTL),
	}
	return body, nil
}

// newRefreshToken adds a refresh token to a grant. The caller holds mu.
func (p *Provider) newRefreshToken(g *grant) string {
	p.prune()
	value := rand.Text() + rand.Text()
	p.refreshTokens[value] = &refreshToken{grant: g}
	return value
}

// end revokes a grant and all its tokens. The caller holds mu.
func (p *Provider) end(g *grant) {
	g.ended = true
	maps.DeleteFunc(p.refreshTokens, func(_ string, t *refreshToken) bool { return t.grant == g })
}

// SetRefreshGrace changes Config.RefreshGrace.
func (p *Provider) SetRefreshGrace(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refreshGrace = d
}

// revoke is the revocation endpoint (RFC 7009). Revoking a refresh token
// revokes its grant (section 2.1). An unknown token is a success (section 2.2),
// and so is another client's, which stays valid.
func (p *Provider) revoke(w http.ResponseWriter, r *http.Request) {
	fault := readForm(w, r)
	var client *Client
	if fault == nil {
		client, fault = p.authenticate(r)
	}
	if fault == nil && r.PostForm.Get("token") == "" {
		fault = &oauthError{"invalid_request", "token is missing"}
	}
	if fault != nil {
		fault.write(w)
		return
	}
	token := r.PostForm.Get("token")
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.Revocations++
	if t := p.refreshTokens[token]; t != nil && t.grant.client == client {
		p.end(t.grant)
	}
	if t := p.accessTokens[token]; t != nil && t.grant.client == client {
		delete(p.accessTokens, token)
	}
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
}

// userinfo is the userinfo endpoint (OpenID Connect Core, section 5.3). It
// accepts valid access tokens of this provider. A token that is bound to a key
// needs a proof of that key (RFC 9449 section 7).
func (p *Provider) userinfo(w http.ResponseWriter, r *http.Request) {
	scheme, value, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	p.mu.Lock()
	t := p.accessTokens[value]
	good := t != nil && !t.grant.ended && time.Now().Before(t.expires)
	p.mu.Unlock()
	refuse := func(status int, challenge string) {
		w.Header().Set("WWW-Authenticate", challenge)
		w.WriteHeader(status)
	}
	switch {
	case value == "": // RFC 6750 3.1: no error code without a token
		refuse(http.StatusUnauthorized, "Bearer")
		return
	case !good || t.jkt == "" && !strings.EqualFold(scheme, "Bearer"):
		refuse(http.StatusUnauthorized, `Bearer error="invalid_token"`)
		return
	case t.jkt != "":
		if !strings.EqualFold(scheme, "DPoP") {
			refuse(http.StatusUnauthorized, `DPoP error="invalid_token"`)
			return
		}
		if jkt, fault := p.checkProof(w, r, value); fault != nil || jkt != t.jkt {
			refuse(http.StatusUnauthorized, `DPoP error="invalid_dpop_proof"`)
			return
		}
	}
	if !slices.Contains(strings.Fields(t.scope), "openid") || t.grant.sid == "" {
		refuse(http.StatusForbidden, `Bearer error="insufficient_scope", scope="openid"`)
		return
	}
	claims := map[string]any{"sub": t.grant.user.Sub}
	p.describe(t.grant.user, claims, t.scope)
	if t.grant.client.SignedUserInfo {
		claims["iss"], claims["aud"] = p.cfg.Issuer, t.grant.client.ID
	}
	if edit := p.hooks.Load().EditUserinfo; edit != nil {
		edit(claims)
	}
	if !t.grant.client.SignedUserInfo {
		writeJSON(w, http.StatusOK, claims)
		return
	}
	signed, err := p.make(map[string]any{"typ": "JWT"}, claims, nil, p.hooks.Load().SignUserinfo)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/jwt")
	w.Header().Set("Cache-Control", "no-store")
	io.WriteString(w, signed)
}
